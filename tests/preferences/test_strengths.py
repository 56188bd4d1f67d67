"""Laws of strengths and of agreement, by numbers that can be reckoned by hand."""

import math
from typing import Any

import numpy as np
import pytest
from test_votes import swapped

from ballots import DPO, SFT, vote
from emotune.preferences import strengths

BASE = "c" * 64


def on(number: int, choice: str, voter: str = "ann", **changes: Any) -> Any:
    """A vote on a question of that number."""
    context = [{"role": "user", "content": f"Number {number}.", "emotion": "neutral"}]
    return vote(choice, voter=voter, context=context, **changes)


def test_a_draw_is_half_a_win_each_and_sides_are_no_matter() -> None:
    votes = [on(0, "right"), swapped(on(0, "left", "bob")), on(1, "both good"), on(2, "left")]
    wins = strengths.wins(votes, [SFT, DPO])
    assert wins.tolist() == [[[0, 0], [2, 0]], [[0, 0.5], [0.5, 0]], [[0, 1], [0, 0]]]


def test_the_strengths_of_two_are_the_log_odds_with_half_a_win_more_each() -> None:
    total = np.array([[0.0, 1.0], [3.0, 0.0]])
    sft, dpo = strengths.strengths(total, total)
    assert dpo - sft == pytest.approx(math.log(3.5 / 1.5))
    assert dpo + sft == pytest.approx(0)
    never = np.array([[0.0, 0.0], [9.0, 0.0]])
    assert np.isfinite(strengths.strengths(never, never)).all()


def test_strengths_that_made_the_votes_are_found_again_for_many_samples_at_once() -> None:
    p = np.array([1.0, 2.0, 5.0])
    total = 10_000 * p[:, None] / (p[:, None] + p) * (1 - np.eye(3))
    again = strengths.strengths(np.stack([total, total / 2]), total)
    assert again == pytest.approx(np.tile(np.log(p) - np.log(p).mean(), (2, 1)), abs=1e-3)


def test_models_that_no_vote_connects_are_of_different_groups_each_of_mean_0() -> None:
    total = np.zeros((4, 4))
    total[0, 2], total[1, 3] = 3.0, 1.0
    assert strengths.groups(total) == [0, 1, 0, 1]
    values = strengths.strengths(total, total)
    assert values[0] + values[2] == pytest.approx(0)
    assert values[1] + values[3] == pytest.approx(0)
    assert values[0] > values[1] > 0


def test_alpha_is_krippendorff_s() -> None:
    """His example of two coders and ten units of 0 and 1: alpha = 0.095."""
    first, second = "0100000010", "1110010000"
    votes = [
        on(unit, ("left", "right")[int(answer)], voter)
        for voter, answers in (("ann", first), ("bob", second))
        for unit, answer in enumerate(answers)
    ]
    alone = on(99, "left")
    sums = strengths.coincidences([*votes, alone]).sum(0)
    assert strengths.alpha(sums) == pytest.approx(0.095, abs=5e-4)
    alike = [on(0, "left"), swapped(on(0, "right", "bob")), on(1, "right"), on(1, "right", "bob")]
    assert strengths.alpha(strengths.coincidences(alike).sum(0)) == 1


def test_a_score_is_right_where_it_is_higher_for_the_reply_that_was_preferred() -> None:
    votes = [on(0, "left"), on(1, "right"), on(2, "both bad"), swapped(on(3, "left")), on(4, "left")]
    scores = [(2.0, 1.0), (2.0, 1.0), (2.0, 1.0), (2.0, 1.0), (1.0, 1.0)]
    assert strengths.agreeing(votes, scores) == {"with": 2, "against": 1, "equal": 1}


def test_two_replies_of_one_model_say_nothing_of_it() -> None:
    alike = on(0, "left", right={"model": "sft", "adapter": SFT, "reply": "Hm."})
    assert not strengths.wins([alike], [SFT, DPO, BASE]).any()
