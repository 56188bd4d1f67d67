"""Laws of the stage that makes rows of instructions: its files, what it counts, and splits that share nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from conftest import contents
from emotune.core import records
from emotune.core.dialogue import SPLITS
from emotune.core.errors import InputError
from emotune.core.sections import check
from emotune.stages.instruct import rows as stage

DEFAULT = {
    "source": "embedded",
    "path": None,
    "name": None,
    "revision": None,
    "dialogues": 100,
    "each": 2,
    "questions": True,
    "limit": None,
    "held_out": 0.1,
    "longest": 800,
    "max_dropped": 0.0,
    "seed": 7,
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the stage with these keys of `rows` and these rows of `questions`; gives the metrics."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))

    def run(asked: list[dict[str, Any]] | None = None, **keys: Any) -> Any:
        records.write_jsonl(Path("data/questions.jsonl"), asked or [])
        p = check(stage.Params, {"rows": DEFAULT | keys}, "params.yaml")
        return stage.main(p, lambda metrics, step: None, Path("data/questions.jsonl"), Path("data/rows"))

    return run


def files(**lines: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The keys of `rows` for a folder of these JSONL files."""
    for name, own in lines.items():
        records.write_jsonl(Path(f"mine/{name}.jsonl"), own)
    named = {path.name: records.sha256(path) for path in sorted(Path("mine").iterdir())}
    return {"source": "folder", "path": "mine", "revision": records.content_hash(named)}


def alpaca(count: int, **keys: str) -> list[dict[str, str]]:
    return [{"instruction": f"Say {n}.", "output": f"{n}"} | keys for n in range(count)]


def written() -> dict[str, list[dict[str, Any]]]:
    return {split: list(records.read_jsonl(Path(f"data/rows/{split}.jsonl"))) for split in SPLITS}


def test_it_writes_three_splits_and_nothing_else_and_equal_params_give_equal_bytes(run: Any) -> None:
    measured = run()
    first = contents(Path("data"))
    assert set(first) == {"questions.jsonl", *(f"rows/{split}.jsonl" for split in SPLITS)}
    assert run() == measured
    assert contents(Path("data")) == first
    assert {split: measured[split]["rows"] for split in SPLITS} == {"train": 160, "validation": 20, "test": 20}
    for split, rows in written().items():
        assert measured[split]["tasks"] == {
            task: sum(row["task"] == task for row in rows) for task in sorted({row["task"] for row in rows})
        }
        assert measured[split]["with_input"] == sum(row["input"] != "" for row in rows)
        keys = {"exact", "id", "input", "instruction", "output", "source", "task"}
        assert all(row.keys() == keys for row in rows)


def test_no_dialogue_and_no_prompt_is_in_two_splits_and_no_id_twice(run: Any) -> None:
    run(dialogues=1000, each=4)
    splits = written()
    for key in (lambda row: row["source"], lambda row: (row["instruction"].lower().rstrip(".?!"), row["input"])):
        values = [{key(row) for row in rows} for rows in splits.values()]
        assert not values[0] & values[1] | values[0] & values[2] | values[1] & values[2]
    ids = [row["id"] for rows in splits.values() for row in rows]
    assert len(ids) == len(set(ids)) > 3900


def test_a_prompt_that_two_splits_have_stays_in_test_and_each_loss_is_counted(run: Any) -> None:
    keys = files(train=[*alpaca(5), *alpaca(1)], validation=alpaca(2), test=alpaca(1, instruction="say  0"))
    measured = run(**keys)
    assert measured["duplicates"] == {"train_in_test": 2, "train_in_validation": 1, "validation_in_test": 1}
    assert {split: [row["output"] for row in rows] for split, rows in written().items()} == {
        "train": ["2", "3", "4"],
        "validation": ["1"],
        "test": ["0"],
    }


def test_rows_without_splits_are_divided_by_seed_and_a_chat_stays_whole(run: Any) -> None:
    turns = ("user", "assistant") * 4
    chats = [{"messages": [{"role": role, "content": f"{n} {i}"} for i, role in enumerate(turns)]} for n in range(10)]
    keys = files(rows=alpaca(60), chats=chats)
    measured = run(**keys, held_out=0.2)
    assert [measured[split]["rows"] for split in SPLITS] == pytest.approx([60, 20, 20], abs=6)
    sources = [{row["source"] for row in rows} for rows in written().values()]
    assert sum(map(len, sources)) == len(set().union(*sources)) == 70
    first = contents(Path("data/rows"))
    run(**keys, held_out=0.2, seed=8)
    assert contents(Path("data/rows")) != first


def test_what_a_source_lacks_is_cut_from_train_and_what_it_has_is_left_alone(run: Any) -> None:
    run(**files(train=alpaca(20), test=[{"instruction": "Test.", "output": "It."}]))
    assert {split: len(rows) for split, rows in written().items()} == {"train": 18, "validation": 2, "test": 1}


def test_every_drop_is_counted_by_its_reason_and_told_with_its_place(run: Any, capsys: Any) -> None:
    bad = [{"output": "3"}, {"instruction": "Add."}, {"instruction": "a", "output": ""}, *alpaca(1, output="x" * 900)]
    keys = files(train=[*alpaca(20), *bad])
    measured = run(**keys, max_dropped=0.2, limit=10)
    dropped = {"no_instruction": 1, "no_output": 1, "empty_output": 1, "too_long": 1, "beyond_limit": 6}
    assert measured["dropped"] == dropped
    assert measured["train"]["rows"] == 10
    assert "too_long: train.jsonl:24" in capsys.readouterr().out
    with pytest.raises(
        InputError, match=r"4 of 24 rows are unusable .*rows.max_dropped = 0.1.* no_output: train.jsonl:22"
    ):
        run(**keys, max_dropped=0.1)


def test_the_rows_of_questions_are_added_unless_they_are_not_wanted(run: Any) -> None:
    asked = [
        {"id": f"q/{n}", "task": "question", "instruction": f"What is {n}?", "input": "", "output": "It is a number."}
        | {"source": f"a.md:{n}", "exact": False, "rule": "definition"}
        for n in range(40)
    ]
    assert sum(run(asked)[split]["tasks"].get("question", 0) for split in SPLITS) == 40
    assert {split: sum(row["task"] == "question" for row in rows) for split, rows in written().items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    assert not any("question" in run(asked, questions=False)[split]["tasks"] for split in SPLITS)


def test_a_split_without_a_row_stops_and_nothing_is_written(run: Any) -> None:
    with pytest.raises(InputError, match="no row is left in the split validation; dropped: none"):
        run(**files(train=alpaca(2)))
    chat = {"messages": [{"role": role, "content": f"Say {n}."} for n, role in enumerate(("user", "assistant") * 20)]}
    with pytest.raises(InputError, match="no row is left in the split train; dropped: none"):
        run(**files(train=[chat]))
    assert not Path("data/rows").exists()
    with pytest.raises(InputError, match=r"params.yaml: rows.path must be set where source is folder, got null"):
        run(source="folder")
