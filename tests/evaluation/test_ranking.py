"""Laws of ranking: literal values of accuracy, best of four and calibration."""

import math

import pytest

from emotune.evaluation.ranking import best_of, calibration, mean, wins


def test_a_tie_is_half_a_win() -> None:
    assert wins([0.1, -3.0, 0.0]) == [1.0, 0.0, 0.5]


def test_the_interval_is_over_dialogues_not_rows() -> None:
    values = [1.0] * 50 + [0.0] * 50
    alone = mean(range(100), values, 500, 0)
    # Two dialogues that are all right or all wrong: a sample may well have one of them alone.
    of_two = mean(["a"] * 50 + ["b"] * 50, values, 500, 0)
    assert alone["value"] == of_two["value"] == 0.5
    assert (of_two["low"], of_two["high"]) == (0.0, 1.0)
    assert 0.35 < alone["low"] < alone["high"] < 0.65


def test_the_right_reply_is_found_where_it_beats_all_and_shares_with_its_equals() -> None:
    assert best_of([[1.0, 0.1, 2.0], [1.0, -0.1, 2.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]) == [1.0, 0.0, 0.5, 0.25]


def test_the_calibration_error_is_how_far_confidence_is_from_accuracy() -> None:
    sure, unsure = math.log(0.95 / 0.05), math.log(0.55 / 0.45)
    # Sure at .95 and always right; unsure at .55 and right half of the time.
    error, curve = calibration([sure] * 4 + [unsure, -unsure])
    assert curve == [
        {"confidence": pytest.approx(0.55), "accuracy": 0.5, "pairs": 2},
        {"confidence": pytest.approx(0.95), "accuracy": 1.0, "pairs": 4},
    ]
    assert error == pytest.approx((4 * 0.05 + 2 * 0.05) / 6)
    assert calibration([100.0])[0] == 0.0
