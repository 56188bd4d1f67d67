"""Read and write JSONL, JSON and CSV so that equal values are equal bytes: sorted keys, fixed rounding, whole files."""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from emotune.core.dialogue import Dialogue, from_record
from emotune.core.errors import InputError


def rounded(value: Any) -> Any:
    """The same JSON value with every float rounded to 6 decimals (-0.0 becomes 0.0)."""
    if isinstance(value, float):
        return round(value, 6) + 0.0
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return value


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """A text file that appears at `path` whole or not at all: written beside, synced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name: what a killed process left there is written over.
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A folder that takes the place of `path` once it is whole: what is written to it lies beside until then."""
    beside = path.with_name(f".{path.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        shutil.rmtree(path, ignore_errors=True)
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def read_text(path: Path) -> str:
    """The text of a file; InputError where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value with sorted keys, floats rounded to 6 decimals. NaN and infinity raise ValueError."""
    with replacing(path) as file:
        json.dump(rounded(value), file, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
        file.write("\n")


def read_json(path: Path) -> Any:
    """The JSON value in a file; InputError names the file and line where it is not JSON."""
    return _parsed(read_text(path), path, 1)


def write_metrics(path: Path, measured: Mapping[str, Any]) -> None:
    """Write a stage's metrics as the one element of a list.

    DVC shows every number of a metrics file but those in lists, and these are hundreds; its run cache keeps no run of a
    stage with an out in git that it does not call a metric or a plot.
    """
    write_json(path, [measured])


def read_metrics(path: Path) -> dict[str, Any]:
    """The metrics that a stage wrote."""
    return metrics_in(read_json(path))


def metrics_in(content: Any) -> dict[str, Any]:
    """The metrics in the JSON value of a metrics file; an older file is the metrics themselves."""
    measured: dict[str, Any] = content[0] if isinstance(content, list) else content
    return measured


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object a line in the order given (sorted keys, 6 decimals); returns the number of lines."""
    count = 0
    with replacing(path) as file:
        for row in rows:
            file.write(json.dumps(rounded(row), ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n")
            count += 1
    return count


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file in order; InputError names file and line of the first that is not an object."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            row = _parsed(line, path, number)
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
            yield row


def _parsed(text: str, path: Path, line: int) -> Any:
    """The JSON value of a text that begins in that line of a file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{line + error.lineno - 1}: not JSON: {error.msg}") from None


def read_dialogues(path: Path) -> list[Dialogue]:
    """The dialogues of a file that the prepare stage wrote."""
    return [from_record(row) for row in read_jsonl(path)]


def write_csv(path: Path, columns: list[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the named columns of the rows, in order, floats rounded to 6 decimals; an absent value is empty."""
    with replacing(path) as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rounded(row) for row in rows)


def sha256(path: Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(files: Mapping[str, str]) -> str:
    """One sha256 for several files: over their names and the sha256 of each, in the order given."""
    return hashlib.sha256("".join(f"{name}\0{own}\n" for name, own in files.items()).encode()).hexdigest()


def digest(path: Path) -> str:
    """The content hash of a file, or of a folder with all below it, in order; InputError where there is neither.

    What Python compiled of a folder's code is none of its content.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    below = sorted(p for p in path.rglob("*") if p.is_file() and p.parent.name != "__pycache__")
    files = below if path.is_dir() else [path]
    return content_hash({file.relative_to(path).as_posix(): sha256(file) for file in files})


def digests(**paths: Path) -> dict[str, str]:
    """The digest of each named path: what a run's tracker tags and its work directory's key are made of."""
    return {name: digest(path) for name, path in paths.items()}
