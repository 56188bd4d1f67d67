"""Laws of the judges stage: what is measured of a judge."""

import pytest

from emotune.stages.judges import measure


def test_measure_counts_what_a_judge_gets_right() -> None:
    said = {"one": "joy", "two": "joy", "three": "calm", "four": "calm"}
    measured = measure(
        lambda texts: [(said[text], 1.0) for text in texts],
        list(said),
        ["joy", "calm", "calm", "calm"],
        ["calm", "joy"],
    )
    assert measured["accuracy"] == 0.75
    assert measured["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert measured["weighted_f1"] == pytest.approx((3 * 0.8 + 2 / 3) / 4)
    assert measured["per_class"]["joy"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
