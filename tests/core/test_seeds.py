"""Laws of seeds.py: keys that say what they are for, and the order in which rows are trained on."""

import random
from collections import Counter

import pytest

from emotune.core import seeds

LENGTHS = random.Random(7).choices(range(10, 200), k=103)


def test_a_key_is_a_number_of_63_bits_that_every_part_changes() -> None:
    keys = {seeds.key(7, "a", 1), seeds.key(8, "a", 1), seeds.key(7, "b", 1), seeds.key(7, "a", 2), seeds.key("7a", 1)}
    assert len(keys) == 5
    assert all(0 <= key < 2**63 for key in keys)
    # Kept from version to version: a changed key would change every reply that was ever sampled.
    assert seeds.key(7, "talk/1/neutral", 1, 0) == seeds.key("7", "talk/1/neutral", "1", "0")


@pytest.mark.parametrize("count", [1, 3, 8, 9, 15, 103])
@pytest.mark.parametrize("epochs", [1, 3])
def test_every_epoch_visits_each_row_once(epochs: int, count: int) -> None:
    rows = seeds.order(LENGTHS[:count], epochs, 8, 7)
    assert len(rows) == count * epochs
    for epoch in range(epochs):
        assert sorted(rows[count * epoch : count * (epoch + 1)]) == list(range(count))


def test_epochs_differ_in_order() -> None:
    rows = seeds.order(LENGTHS, 2, 8, 7)
    assert rows[:103] != rows[103:]


def test_a_part_of_an_epoch_visits_that_share_of_the_batches() -> None:
    # 103 rows are 12 batches of 8 and one of 7: half of them are 7 batches of 8.
    rows = seeds.order(LENGTHS, 0.5, 8, 7)
    assert len(rows) == 56
    assert max(Counter(rows).values()) == 1
    assert seeds.order(LENGTHS, 1.5, 8, 7)[:103] == seeds.order(LENGTHS, 1, 8, 7)
    # The second epoch fills up the batch of 7, and 102 rows are 13 batches again.
    assert len(seeds.order(LENGTHS, 1.5, 8, 7)) == 103 + 1 + 56


def test_a_batch_holds_rows_of_like_length() -> None:
    rows = seeds.order(LENGTHS, 1, 8, 7)
    spread = [
        max(LENGTHS[row] for row in rows[start : start + 8]) - min(LENGTHS[row] for row in rows[start : start + 8])
        for start in range(0, 96, 8)
    ]
    # 190 lengths over 13 batches: about 15 each.
    assert max(spread) <= 40
    assert [LENGTHS[row] for row in rows] != sorted(LENGTHS)


@pytest.mark.parametrize("count", [103, 500, 1001])
def test_every_epoch_is_padded_as_little_as_the_first(count: int) -> None:
    lengths = random.Random(7).choices(range(10, 200), k=count)

    def padding(rows: list[int]) -> float:
        batches = [[lengths[row] for row in rows[start : start + 8]] for start in range(0, len(rows), 8)]
        return 1 - sum(map(sum, batches)) / sum(max(batch) * len(batch) for batch in batches)

    rows = seeds.order(lengths, 4, 8, 7)
    assert padding(rows[count // 8 * 8 :]) < padding(rows[: count // 8 * 8]) + 0.01 < 0.1
    # No batch has a row twice.
    assert all(len({*rows[start : start + 8]}) == len(rows[start : start + 8]) for start in range(0, len(rows), 8))


def test_a_short_batch_comes_last() -> None:
    # So the trainer, which cuts the order into batches of 8, cuts where we did.
    rows = seeds.order([10] * 8 + [100] * 8 + [200] * 3, 1, 8, 7)
    assert {frozenset(row // 8 for row in rows[start : start + 8]) for start in (0, 8, 16)} == {
        frozenset({0}),
        frozenset({1}),
        frozenset({2}),
    }
    assert set(rows[16:]) == {16, 17, 18}


def test_the_order_depends_on_the_seed_and_on_nothing_else() -> None:
    assert seeds.order(LENGTHS, 1, 8, 7) == seeds.order(LENGTHS, 1, 8, 7)
    assert seeds.order(LENGTHS, 1, 8, 7) != seeds.order(LENGTHS, 1, 8, 8)
