"""Laws of a classifier's verdicts: what is divided by its prior hears what is rare, and what is not stays as it is."""

import numpy as np
import pytest

from emotune.judges.verdicts import Classifier, divided

LABELS = ("neutral", "fear")
PRIOR = {"neutral": 0.8, "fear": 0.2}
# Of three texts the second is feared more than a text is on average, and less than it is neutral.
SHARES = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])


def judge(tau: float, prior: dict[str, float] | None = PRIOR) -> Classifier:
    return Classifier(LABELS, lambda texts: SHARES[: len(texts)], prior, tau)


def test_a_text_that_is_rarely_so_afraid_is_afraid_for_a_judge_divided_by_its_prior() -> None:
    by_tau, undivided = judge(1.0).both(["a", "b", "c"])
    assert undivided == [("neutral", 0.9), ("neutral", 0.6), ("fear", 0.7)]
    # 0.6 / 0.8 : 0.4 / 0.2 = 3 : 8
    assert [label for label, _ in by_tau] == ["neutral", "fear", "fear"]
    assert by_tau[1][1] == pytest.approx(8 / 11)
    assert judge(1.0)(["a", "b"]) == by_tau[:2]
    assert judge(1.0).undivided(["a", "b"]) == undivided[:2]


def test_tau_is_the_power_of_the_prior_and_every_row_stays_a_distribution() -> None:
    # Tau 0.5 halves the way that the prior's logarithm goes: 0.4 / 0.6 x (0.8 / 0.2) ** 0.5 = 4 / 3.
    assert divided(SHARES[1:2], LABELS, PRIOR, 0.5)[0] == pytest.approx([3 / 7, 4 / 7])
    assert divided(SHARES, LABELS, PRIOR, 1.5).sum(1) == pytest.approx([1, 1, 1])
    # By labels, not by the order in which a prior lists them.
    assert (divided(SHARES, LABELS, dict(reversed(PRIOR.items())), 1) == divided(SHARES, LABELS, PRIOR, 1)).all()


@pytest.mark.parametrize(("tau", "prior"), [(0.0, PRIOR), (0.0, None)])
def test_tau_0_leaves_every_bit(tau: float, prior: dict[str, float] | None) -> None:
    assert divided(SHARES, LABELS, prior, tau) is SHARES
    assert judge(tau, prior)(["a", "b", "c"]) == judge(1.0).undivided(["a", "b", "c"])
