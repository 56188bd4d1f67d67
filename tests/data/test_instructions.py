"""Laws of the rows of instructions: tasks of the embedded dialogues, records of files, and what gives no row."""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from emotune.core import records
from emotune.core.errors import InputError
from emotune.data import corpus
from emotune.data.instruction_sources import Entry, folder, hub
from emotune.data.instructions import EXACT, SENTIMENT, TASKS, WORDINGS, Row, embedded


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, Row]]:
    return list(embedded(600, 4, seed=7))


def of(rows: list[tuple[str, Row]], task: str) -> list[Row]:
    found = [row for _, row in rows if row.task == task]
    assert len(found) > 30
    return found


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(rows: list[tuple[str, Row]]) -> None:
    assert list(embedded(600, 4, seed=7)) == rows
    assert list(embedded(600, 4, seed=8)) != rows


def test_there_are_eight_kinds_of_task_or_more_each_with_and_without_input_in_several_wordings() -> None:
    assert len(TASKS) >= 8
    assert WORDINGS.keys() == TASKS.keys()
    for table in WORDINGS.values():
        assert table.keys() == {"input", "alone"}
        assert len(set(table["input"] + table["alone"])) >= 4


def test_each_dialogue_gives_as_many_rows_of_different_tasks_in_its_own_split(rows: list[tuple[str, Row]]) -> None:
    tasks, splits = defaultdict(list), {}
    for split, row in rows:
        tasks[row.source].append(row.task)
        assert splits.setdefault(row.source, split) == split == row.source.split("-")[0]
    assert len(tasks) == 600
    assert {len(own) for own in tasks.values()} == {len(set(own)) for own in tasks.values()} == {4}


def test_no_brace_is_left_and_the_text_is_in_the_input_or_in_the_instruction(rows: list[tuple[str, Row]]) -> None:
    for _, row in rows:
        assert not set("{}") & set(row.instruction + row.input + row.output)
        assert row.output.strip()
    assert 0.4 < sum(bool(row.input) for _, row in rows) / len(rows) < 0.8


def test_a_rewritten_reply_is_its_words_between_an_opening_and_a_closing_of_the_emotion(
    rows: list[tuple[str, Row]],
) -> None:
    for row in of(rows, "rewrite"):
        text = row.input or row.instruction
        emotion = next(label for label in corpus.LEADS if label in row.instruction.replace("neutral to", ""))
        opening = next(lead for lead in corpus.LEADS[emotion] if row.output.startswith(f"{lead} "))
        closing = next(close for close in corpus.CLOSES[emotion] if row.output.endswith(f" {close}"))
        kept = row.output.removeprefix(f"{opening} ").removesuffix(f" {closing}")
        assert kept
        assert kept in text
        assert not any(kept.startswith(f"{lead} ") for lead in corpus.LEADS["neutral"])


def test_right_answers_are_right(rows: list[tuple[str, Row]]) -> None:
    talks = {d.id: d.turns for split in corpus.dialogues(600, seed=7).values() for d in split}
    for row in of(rows, "emotion") + of(rows, "sentiment"):
        text = row.input or row.instruction
        emotions = {turn.emotion for turn in talks[row.source] if turn.content in text}
        assert row.output in (emotions if row.task == "emotion" else {SENTIMENT.get(label) for label in emotions})
    for row in of(rows, "turns") + of(rows, "last"):
        lines = text_of(row).split("\n")
        assert row.output == (str(len(lines)) if row.task == "turns" else lines[-1][0])
    for row in of(rows, "order"):
        lines_by_number = {line[0]: line[3:] for line in text_of(row).split("\n")}
        in_order = [lines_by_number[number] for number in row.output.split(", ")]
        assert in_order == [turn.content for turn in talks[row.source][:3]]
    for row in (row for row in of(rows, "fits") + of(rows, "answers") if row.input):
        said, *replies = (line[3:] for line in row.input.split("\n"))
        contents = [turn.content for turn in talks[row.source]]
        answers = [reply in contents and contents.index(reply) == contents.index(said) + 1 for reply in replies]
        assert answers == ([row.output == "yes"] if row.task == "answers" else [row.output == n for n in "12"])


def test_the_answers_of_exact_tasks_are_short_and_none_is_the_answer_to_nearly_all(
    rows: list[tuple[str, Row]],
) -> None:
    for task in EXACT:
        outputs = Counter(row.output for row in of(rows, task))
        assert max(map(len, outputs)) <= 20
        assert outputs.most_common(1)[0][1] < 0.65 * outputs.total()


def text_of(row: Row) -> str:
    """The text that a row is about: what follows the wording where that is part of the instruction."""
    text = row.input or row.instruction
    return text[min(text.index(mark) for mark in ("A: ", "1. ", "2. ", "3. ") if mark in text) :]


ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3"}


def entries(path: Path, **files: str | bytes) -> list[Entry]:
    """What a folder of these files gives; `train_jsonl` is train.jsonl."""
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        own = content.encode() if isinstance(content, str) else content
        path.joinpath(name.replace("_", ".")).write_bytes(own)
    with pytest.raises(InputError) as error:
        list(folder(path, None))
    pin = re.search(r"rows.revision=([0-9a-f]{64})$", str(error.value))
    return list(folder(path, pin[1] if pin else None))


def test_arrays_lines_and_parquet_give_the_same_rows_each_at_its_own_place(tmp_path: Path) -> None:
    other = {"instruction": 'Greet, [in] "one" word.', "output": "Hi."}
    array = json.dumps([ALPACA, other], indent=2)
    by_array = entries(tmp_path / "a", rows_json=array)
    by_line = entries(tmp_path / "b", rows_jsonl=f"{json.dumps(ALPACA)}\n\n{json.dumps(other)}\n")
    parquet.write_table(pyarrow.Table.from_pylist([ALPACA, other]), tmp_path / "rows.parquet")
    by_table = entries(tmp_path / "c", rows_parquet=(tmp_path / "rows.parquet").read_bytes())
    assert by_array[0].rows == [
        Row("rows.json:2", "instruction", "Add.", "1 and 2", "3", "rows.json:2"),
    ]
    assert [entry.where for entry in by_array] == ["rows.json:2", "rows.json:7"]
    assert [entry.where for entry in by_line] == ["rows.jsonl:1", "rows.jsonl:3"]
    assert [entry.where for entry in by_table] == ["rows.parquet: row 1", "rows.parquet: row 2"]
    for found in (by_array, by_line, by_table):
        assert [row[2:5] for entry in found for row in entry.rows] == [
            ("Add.", "1 and 2", "3"),
            (other["instruction"], "", "Hi."),
        ]


def test_each_reply_of_a_chat_is_a_row_with_what_was_said_before_as_its_input(tmp_path: Path) -> None:
    roles = ("system", "user", "assistant", "user", "assistant")
    chat = {"messages": [{"role": role, "content": f"{n}."} for n, role in enumerate(roles)]}
    [entry] = entries(tmp_path, chats_jsonl=json.dumps(chat))
    assert [row[2:5] for row in entry.rows] == [
        ("1.", "System: 0.", "2."),
        ("3.", "System: 0.\nUser: 1.\nAssistant: 2.", "4."),
    ]
    assert {row.source for row in entry.rows} == {"chats.jsonl:1"}
    assert len({row.id for row in entry.rows}) == 2


def test_a_record_without_an_instruction_or_an_output_gives_no_row_and_says_why(tmp_path: Path) -> None:
    records = [
        {"output": "3"},
        {"instruction": " ", "output": "3"},
        {"instruction": "Add."},
        {"instruction": "Add.", "output": 3},
        {"instruction": "Add.", "output": " "},
        {"messages": [{"role": "assistant", "content": "Hi!"}]},
        {"messages": [{"role": "user", "content": "Hi!"}]},
        {"messages": [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": ""}]},
    ]
    found = entries(tmp_path, rows_jsonl="\n".join(map(json.dumps, records)))
    assert [(entry.where, entry.dropped) for entry in found] == [
        ("rows.jsonl:1", "no_instruction"),
        ("rows.jsonl:2", "no_instruction"),
        ("rows.jsonl:3", "no_output"),
        ("rows.jsonl:4", "no_output"),
        ("rows.jsonl:5", "empty_output"),
        ("rows.jsonl:6", "no_instruction"),
        ("rows.jsonl:7", "no_reply"),
        ("rows.jsonl:8", "empty_output"),
    ]
    assert not any(entry.rows for entry in found)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows_jsonl", '{"instruction": "a", "output": "b"}\n{"instruction"', r"rows.jsonl:2: not JSON"),
        ("rows_json", '[\n{"instruction": "a", "output": "b"},\n{"instruction": \n', r"rows.json:4: not JSON"),
        ("rows_json", "[3]", r"rows.json:1: expected a JSON object, found int"),
        ("rows_jsonl", b'{}\n{"instruction": "\xff"}', r"rows.jsonl:2: not UTF-8"),
        ("rows_parquet", b"PAR1", r"rows.parquet: not a parquet file"),
        ("rows_jsonl", '{"messages": {}}', r"rows.jsonl:1: messages must be a list, found dict"),
        (
            "rows_jsonl",
            '{"messages": [{"role": "bot", "content": "a"}]}',
            r"jsonl:1: message 1: expected .* found .*bot",
        ),
        ("rows_txt", "a", r"rows.path: no file in .* ends in .json, .jsonl, .parquet"),
    ],
)
def test_what_cannot_be_read_is_told_with_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        entries(tmp_path, **{name: content})


def test_the_content_of_a_folder_is_pinned(tmp_path: Path) -> None:
    [entry] = entries(tmp_path, rows_jsonl=json.dumps(ALPACA))
    (tmp_path / ".hidden.jsonl").write_text("{")
    pin = records.content_hash({"rows.jsonl": records.sha256(tmp_path / "rows.jsonl")})
    assert list(folder(tmp_path, pin)) == [entry]
    (tmp_path / "rows.jsonl").write_text(json.dumps(ALPACA | {"output": "4"}))
    with pytest.raises(InputError, match=r"rows.revision pins what DVC cannot hash"):
        list(folder(tmp_path, pin))


def test_a_dataset_of_the_hub_needs_a_commit_and_keeps_the_splits_that_are_ours(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows.revision must be the commit of owner/set .* got 'main'"):
        list(hub("owner/set", "main"))
    for split in ("train", "test"):
        parquet.write_table(pyarrow.Table.from_pylist([ALPACA]), tmp_path / f"{split}-00000-of-00001.parquet")
    found = list(hub(str(tmp_path), None))
    assert sorted((entry.split or "", entry.rows[0].output) for entry in found) == [("test", "3"), ("train", "3")]
    assert all("row" in entry.where for entry in found)
