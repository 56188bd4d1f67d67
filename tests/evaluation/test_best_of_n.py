"""Laws of best of n: its expected value over all subsets, and where the curves part."""

import math
from itertools import combinations
from statistics import fmean

import pytest

from emotune.evaluation.best_of_n import best_of, curve, divergence, summary

BY, VALUES = [2.0, 5.0, 1.0, 5.0, 3.0], [0.1, 0.7, 0.9, 0.2, 0.4]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_it_is_the_mean_over_all_subsets_and_of_equals_the_first_is_chosen(n: int) -> None:
    subsets = combinations(range(5), n)
    drawn = fmean(VALUES[max(subset, key=lambda reply: (BY[reply], -reply))] for subset in subsets)
    assert best_of(BY, VALUES, n) == pytest.approx(drawn)


def test_the_divergence_is_none_of_one_and_grows() -> None:
    assert divergence(1) == 0.0
    assert divergence(8) == pytest.approx(math.log(8) - 7 / 8)


def test_the_curves_part_where_what_had_no_part_in_choosing_falls() -> None:
    # The reward likes the fourth reply best, the blind measure the third, and the other one goes along.
    by = [[1.0, 2.0, 3.0, 4.0]] * 30
    measures = {"reward": by, "blind": [[0.0, 0.5, 1.0, 0.0]] * 30, "along": [[0.0, 0.1, 0.2, 0.3]] * 30}
    rows = curve(by, measures)
    assert [row["n"] for row in rows] == [1, 2, 3, 4]
    assert [row["blind"] for row in rows] == pytest.approx([0.375, 0.4166667, 0.25, 0.0])
    said = summary(range(30), by, measures)
    assert (said["prompts"], said["candidates"]) == (30, 4)
    assert {name: said[name]["parts_at"] for name in measures} == {"reward": None, "blind": 2, "along": None}
    assert said["reward"]["gain"]["value"] == 1.5


def test_a_fall_that_may_be_luck_is_none() -> None:
    by = [[1.0, 2.0]] * 10
    blind = [[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 4 + [[0.0, 0.0]]
    assert summary(range(10), by, {"blind": blind})["blind"]["parts_at"] is None
