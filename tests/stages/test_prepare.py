"""Laws of the prepare stage: the files it writes, what it counts, and what stops it."""

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import contents, run_stage, write_params
from emotune.core import records
from emotune.core.dialogue import SPLITS
from emotune.core.errors import InputError
from emotune.data import sources
from emotune.stages.prepare import ngram_overlap


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the stage in tmp_path with params.yaml changed in its section data; gives the metrics."""
    monkeypatch.chdir(tmp_path)

    def run(**data: Any) -> Any:
        write_params(tmp_path, {f"data.{key}": value for key, value in {"max_dropped": 0.5, **data}.items()})
        run_stage("prepare", tmp_path)
        return records.read_metrics(Path("metrics/prepare.json"))

    return run


def talk(*texts: str, emotion: str = "neutral") -> dict[str, Any]:
    return {"turns": [{"content": text, "emotion": emotion} for text in texts]}


def own(**splits: list[dict[str, Any]]) -> dict[str, Any]:
    """The keys of data for a JSONL source with these dialogues, and one of its own in each split."""
    Path("mine").mkdir(exist_ok=True)
    for split in SPLITS:
        rows = [talk(f"Hi {split}.", "Hello!"), *splits.get(split, [])]
        Path("mine", f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {"source": "jsonl", "path": "mine", "revision": sources.fingerprint("mine")}


def test_it_writes_three_splits_and_the_labels_and_nothing_else(run: Any) -> None:
    run(source="embedded", dialogues=100)
    assert set(contents(Path("data"))) == {
        f"dialogues/{name}" for name in ("labels.json", *(f"{split}.jsonl" for split in SPLITS))
    }
    assert set(contents(Path("metrics"))) == {"prepare.json"}


def test_equal_params_give_equal_bytes(run: Any) -> None:
    run(source="embedded", dialogues=100)
    first = contents(Path("data"))
    run(source="embedded", dialogues=100)
    assert contents(Path("data")) == first


def test_ids_are_unique_over_all_splits(run: Any) -> None:
    run(source="embedded", dialogues=100)
    ids = [kept.id for split in SPLITS for kept in records.read_dialogues(Path(f"data/dialogues/{split}.jsonl"))]
    assert len(ids) == len(set(ids)) == 100


def test_every_drop_is_counted_by_its_reason(run: Any) -> None:
    twice = talk("So ?", "So .")
    measured = run(**own(train=[twice, talk("alone"), talk("A", "\x7f"), talk("B", "b", "odd")], test=[twice, twice]))
    assert measured["train"] == {
        "dialogues": 2,
        "turns": 4,
        "labels": {"neutral": 4, "anger": 0, "disgust": 0, "fear": 0, "happiness": 0, "sadness": 0, "surprise": 0},
        "dropped": {"too_short": 1, "empty_turn": 1, "duplicate_of_test": 1},
        "odd_last_turns": 2,
    }
    assert measured["test"]["dropped"] == {"duplicate_of_test": 1}
    kept = records.read_dialogues(Path("data/dialogues/test.jsonl"))
    assert [[turn.content for turn in dialogue.turns] for dialogue in kept] == [["Hi test.", "Hello!"], ["So?", "So."]]


def test_what_was_joined_is_counted_and_what_was_to_be_dropped_stops_nothing(run: Any) -> None:
    def spoken(*names: str) -> dict[str, Any]:
        return {"turns": [{"speaker": name, "content": f"{name}.", "emotion": "neutral"} for name in names]}

    data = own(train=[spoken("Ann", "Ann", "Bob"), spoken("Ann", "Bob", "Cid"), spoken("Ann", "Bob", "Dan")])
    measured = run(**data, same_speaker="join", others="drop", max_dropped=0.0)
    assert (measured["train"]["joined_turns"], measured["train"]["turns"]) == (1, 4)
    assert measured["train"]["dropped"] == {"more_than_two_speakers": 2}
    assert "joined_turns" not in measured["test"]


def test_the_overlap_of_test_and_train_replies_is_measured(run: Any) -> None:
    measured = run(**own(train=[talk("A", "one two three four")], test=[talk("B", "one two three five")]))
    assert measured["test_replies_in_train"] == {"3-grams": 0.5, "4-grams": 0.0, "5-grams": 0.0}


def test_ngram_overlap_is_the_share_of_distinct_ngrams_seen_in_train() -> None:
    assert ngram_overlap(["The dog sleeps."], ["the dog eats", "the dog eats"], 2) == 0.5
    assert ngram_overlap(["a b c"], ["A b, c!"], 3) == 1.0
    assert ngram_overlap(["a b", "c d"], ["b c"], 2) == 0.0  # never across two texts
    assert ngram_overlap(["a b c"], ["a b"], 3) == 0.0


def test_a_limit_bounds_train_only_and_a_larger_one_keeps_what_a_smaller_one_took(run: Any) -> None:
    def train_ids(limit: int) -> list[str]:
        measured = run(source="embedded", dialogues=100, limit=limit)
        assert measured["train"]["dropped"] == {"beyond_limit": 80 - limit}
        assert measured["test"]["dialogues"] == 10
        return [kept.id for kept in records.read_dialogues(Path("data/dialogues/train.jsonl"))]

    assert train_ids(20)[:10] == train_ids(10)


def test_too_large_a_dropped_share_stops_with_counts_and_the_key_to_turn(run: Any) -> None:
    data = own(validation=[talk("alone")])
    with pytest.raises(
        InputError, match=r"1 of 2 validation dialogues are unusable \(too_short 1\).*data.max_dropped = 0.4"
    ):
        run(**data, max_dropped=0.4)
    assert not Path("data").exists()
    assert not Path("metrics").exists()


def test_duplicates_do_not_count_against_the_share(run: Any) -> None:
    assert run(**own(test=[talk("So?", "So.")] * 9), max_dropped=0.0)["test"]["dropped"] == {"duplicate_of_test": 8}


def test_a_split_with_nothing_left_stops(run: Any) -> None:
    data = own()
    Path("mine/validation.jsonl").write_text(Path("mine/test.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(InputError, match=r"no dialogue is left in the split validation; dropped: duplicate_of_test 1"):
        run(**{**data, "revision": sources.fingerprint("mine")})


def test_a_source_with_other_emotions_than_the_labels_stops(run: Any) -> None:
    with pytest.raises(
        InputError, match=r"data.labels has no '\w+', the emotion of a turn of dialogue .* calm, neutral"
    ):
        run(source="embedded", dialogues=100, labels=["calm", "neutral"])


def test_ones_own_labels_are_data(run: Any) -> None:
    talks = {split: [talk(f"{split} one", "two", emotion="glee")] for split in SPLITS}
    data = {**own(), "labels": ["glee", "calm"], "neutral": "calm"}
    for split, rows in talks.items():
        Path("mine", f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert run(**{**data, "revision": sources.fingerprint("mine")})["test"]["labels"] == {"glee": 2, "calm": 0}
    assert records.read_json(Path("data/dialogues/labels.json")) == {"labels": ["glee", "calm"], "neutral": "calm"}
