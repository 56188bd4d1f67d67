"""Laws of what is read once for several rows: the longest of them that begins so reads it, where that spares enough."""

import random

import pytest
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig

from emotune.models.prefixes import attends_to_all, shared


def test_rows_that_begin_alike_are_read_by_the_longest_beginning() -> None:
    common = list(range(50))
    rows = [[*common, 7], [*common, 8, 9], [9], [*common, 6, 5], [*common[:49], 1]]
    # 50 + 5 x 2 positions instead of 5 x 52.
    tail, readers = shared(rows)
    assert tail == 2
    assert len(set(readers)) == 1
    assert readers[0] in (1, 3)


def test_beginnings_of_several_kinds_have_a_reader_each() -> None:
    rows = [[kind] * 40 + [100 + number, 60] for number in range(5) for kind in (3, 4)]
    tail, readers = shared(rows)
    assert tail == 2
    assert [rows[reader][0] for reader in readers] == [row[0] for row in rows]
    assert len(set(readers)) == 2


def test_the_tail_is_no_shorter_than_what_each_row_needs_for_itself() -> None:
    rows = [[1] * 60 + [number] for number in range(4)]
    assert [shared(rows, least)[0] for least in (1, 5)] == [1, 5]


@pytest.mark.parametrize("rows", [[[1, 2, 3]], [[1] * 30, [1, 1, *range(2, 30)]], [[1] * 30 + [5] * 30] * 1])
def test_where_less_than_a_quarter_would_be_spared_each_row_reads_itself(rows: list[list[int]]) -> None:
    assert shared(rows) == (max(map(len, rows)), list(range(len(rows))))


def test_what_a_row_has_before_its_tail_its_reader_has_too() -> None:
    rng = random.Random(7)
    for _ in range(50):
        stems = [[rng.randrange(4) for _ in range(rng.randrange(5, 40))] for _ in range(3)]
        rows = [[*rng.choice(stems), *(rng.randrange(4) for _ in range(rng.randrange(1, 9)))] for _ in range(12)]
        tail, readers = shared(rows)
        for row, reader in zip(rows, readers, strict=True):
            head = row[:-tail]
            assert rows[reader][:-tail][: len(head)] == head
            assert readers[reader] == reader


def test_a_model_with_a_window_attends_to_all_of_what_fits_into_it() -> None:
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}
    assert attends_to_all(LlamaConfig(**small), 10**6)
    mistral = MistralConfig(sliding_window=64, num_key_value_heads=2, **small)
    assert [attends_to_all(mistral, positions) for positions in (63, 64)] == [True, False]
    gemma = Gemma3TextConfig(layer_types=["sliding_attention", "full_attention"], sliding_window=32, **small)
    assert not attends_to_all(gemma, 100)
