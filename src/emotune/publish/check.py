"""What was sent, loaded again and compared with what would be sent now."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emotune.core import records
from emotune.publish import example, hub, parts
from emotune.publish.facts import ADAPTERS, Facts


def differences(facts: Facts, names: Sequence[str], folder: Path, tag: str | None) -> Iterator[tuple[str, list[str]]]:
    """Each part of a folder with a line for what is otherwise on the Hub; what can be loaded there is loaded.

    The card is not compared: it tells of the commit at which it was written.
    """
    with tempfile.TemporaryDirectory() as cache:
        there = {part: hub.download(facts.repositories[part], tag, Path(cache)) for part in names}
        for part in names:
            lines = [f"{path} is another there" for path in _other_files(folder / part, there[part])]
            if part == "prefs":
                rows = hub.rows(facts.repositories[part], tag, Path(cache, "rows"))
                lines += [f"load_dataset reads other rows in {split}" for split in _other_splits(facts, rows)]
            elif part in ADAPTERS and not lines and _replies_otherwise(part, facts, there):
                lines.append("it replies otherwise")
            yield part, [f"{part}: {line}" for line in lines]


def _other_files(here: Path, there: Path) -> list[Path]:
    files = {path.relative_to(here) for path in here.rglob("*") if path.is_file()} - {Path(parts.CARD)}
    return [path for path in sorted(files) if not _same(here / path, there / path)]


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and records.sha256(one) == records.sha256(other)


def _other_splits(facts: Facts, there: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[str]:
    return [split for split, rows in parts.pairs(facts).items() if _lines(rows) != _lines(there[split])]


def _lines(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    # As text: 1 and 1.0 are equal, and another content.
    return [json.dumps(row, sort_keys=True) for row in rows]


def _replies_otherwise(part: str, facts: Facts, there: Mapping[str, Path]) -> bool:
    base = parts.out(facts, "base")
    here = example.replies(base, parts.out(facts, part), facts)
    return example.replies(there.get("base", base), there[part], facts) != here
