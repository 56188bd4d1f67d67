"""Where rows of instructions come from: files of a folder, or a dataset of the Hub.

A record is an Alpaca row `{instruction, input, output}` or a chat row `{messages: [{role, content}, ...]}`. Each reader
gives `Entry(where, split, rows, dropped)`: the rows of a record, or why it gives none, and where it stands.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emotune.core.dialogue import ASSISTANT, SPLITS, USER
from emotune.core.errors import InputError
from emotune.data import sources
from emotune.data.instructions import Row

SUFFIXES = (".json", ".jsonl", ".parquet")
CHAT, ALPACA = "chat", "instruction"
NO_INSTRUCTION, NO_OUTPUT, EMPTY_OUTPUT, NO_REPLY = "no_instruction", "no_output", "empty_output", "no_reply"


class Entry(NamedTuple):
    """A record: where it stands, the split that its source has it in, its rows, and why it gives none."""

    where: str
    split: str | None
    rows: Sequence[Row] = ()
    dropped: str | None = None


def folder(path: str | Path, revision: str | None) -> Iterator[Entry]:
    """The records of the .json, .jsonl and .parquet files of a folder, whose content is what `revision` pins.

    A JSON file holds one array, a JSONL file a record a line. A file whose name begins with train, validation or test
    has its rows in that split.
    """
    for name, file in sources.pinned_files(path, revision, SUFFIXES, "rows").items():
        split = next((split for split in SPLITS if file.name.startswith(split)), None)
        for where, record in _parquet(name, file) if file.suffix == ".parquet" else _json(name, file):
            yield _entry(record, where, split)


def hub(name: str, revision: str | None) -> Iterator[Entry]:
    """The records of a dataset of the Hub at a commit; those of a split of another name are in none of ours."""
    for split, table in sources.hub_tables(name, revision, "rows").items():
        for number, record in enumerate(table, start=1):
            yield _entry(record, f"{name}: row {split}-{number}", split if split in SPLITS else None)


def _json(name: str, file: Path) -> Iterator[tuple[str, Any]]:
    """The elements of an array, or the values of lines, each after its place `file:line`."""
    text = sources.decoded(file.read_bytes(), name)
    if text.lstrip().startswith("["):
        _parsed(text, name, 1)
        yield from ((f"{name}:{line}", element) for line, element in _elements(text))
    else:
        lines = enumerate(text.split("\n"), start=1)
        yield from ((f"{name}:{number}", _parsed(line, name, number)) for number, line in lines if line.strip())


def _elements(array: str) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON array, each after the line where it begins."""
    decoder, between, line, last = json.JSONDecoder(), re.compile(r"[\s,]*"), 1, 0
    while (start := _end(between, array, last or array.index("[") + 1)) and array[start] != "]":
        line += array.count("\n", last, start)
        element, end = decoder.raw_decode(array, start)
        yield line, element
        line, last = line + array.count("\n", start, end), end


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start


def _parsed(text: str, name: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{name}:{line + error.lineno - 1}: not JSON: {error.msg}") from None


def _parquet(name: str, file: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a table, each after its place `file: row number`."""
    import pyarrow.lib
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
    except (pyarrow.lib.ArrowInvalid, OSError) as error:
        raise InputError(f"{name}: not a parquet file: {' '.join(str(error).split())}") from None
    yield from ((f"{name}: row {number}", record) for number, record in enumerate(table.to_pylist(), start=1))


def _entry(record: Any, where: str, split: str | None) -> Entry:
    """The rows of a record, or the reason why it gives none; InputError where it is no JSON object."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(record).__name__}")
    if record.get("messages") is not None:
        return _chat(record["messages"], where, split)
    instruction, context, output = (_text(record, key) for key in ("instruction", "input", "output"))
    if dropped := _fault(instruction, output):
        return Entry(where, split, dropped=dropped)
    return Entry(where, split, [Row(where, ALPACA, str(instruction), context or "", str(output), where)])


def _fault(instruction: str | None, output: str | None) -> str | None:
    """Why these make no row; None where they do."""
    if not instruction:
        return NO_INSTRUCTION
    if output is None:
        return NO_OUTPUT
    return None if output else EMPTY_OUTPUT


def _text(record: Mapping[str, Any], key: str) -> str | None:
    """The text under a key; None where there is none, or no text."""
    value = record.get(key)
    return value.strip() if isinstance(value, str) else None


def _chat(messages: Any, where: str, split: str | None) -> Entry:
    """A row for each reply: what the user said right before it is the instruction, what was said before that the input.

    `user` and `assistant` take turns; a system message may come first, and stands in the input of every row.
    """
    if not isinstance(messages, list):
        raise InputError(f"{where}: messages must be a list, found {type(messages).__name__}")
    said: list[tuple[str, str]] = []
    rows: list[Row] = []
    for number, message in enumerate(messages, start=1):
        role, content = _message(message, f"{where}: message {number}")
        if role == ASSISTANT and (not said or said[-1][0] != USER):
            return Entry(where, split, dropped=NO_INSTRUCTION)
        if role == ASSISTANT and not content:
            return Entry(where, split, dropped=EMPTY_OUTPUT)
        if role == ASSISTANT:
            before = "\n".join(f"{name.capitalize()}: {text}" for name, text in said[:-1])
            rows.append(Row(f"{where}/{len(rows) + 1}", CHAT, said[-1][1], before, content, where))
        said.append((role, content))
    return Entry(where, split, rows, None if rows else NO_REPLY)


def _message(message: Any, where: str) -> tuple[str, str]:
    """Role and text of a message; InputError where it has no role of the three, or no text."""
    role = message.get("role") if isinstance(message, dict) else None
    content = _text(message, "content") if isinstance(message, dict) else None
    if role not in (USER, ASSISTANT, "system") or content is None:
        raise InputError(
            f"{where}: expected {{role: system, user or assistant, content: text}}, found {message!r:.100}"
        )
    return role, content
