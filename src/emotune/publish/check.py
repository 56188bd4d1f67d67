"""What was sent, loaded again and compared."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emotune.publish import cards, hub
from emotune.publish.parts import SPLITS, out, pairs, speaking


def checked(root: Path, facts: cards.Facts, names: Sequence[str], folder: Path, tag: str | None) -> int:
    """Download every part, load what can be loaded, and say where it is not what would be sent now; 1 where it differs.

    The card is not compared: it tells of the commit at which it was written.
    """
    with tempfile.TemporaryDirectory() as cache:
        there = {name: hub.fetched(facts.repositories[name], tag, Path(cache)) for name in names}
        differing = []
        for name in names:
            files = {path.relative_to(folder / name) for path in (folder / name).rglob("*") if path.is_file()}
            found = [
                f"{name}: {path} is another there"
                for path in sorted(files - {Path("README.md")})
                if not hub.same(folder / name / path, there[name] / path)
            ]
            if name == "prefs":
                rows, own = hub.rows(facts.repositories[name], tag, Path(cache, "rows")), pairs(root, facts)
                found += [
                    f"{name}: load_dataset reads other rows in {split}"
                    for split in SPLITS
                    if _hash_of_rows(rows[split]) != _hash_of_rows(own[split])
                ]
            elif name in cards.ADAPTERS and not found:
                base = there.get("base", out(root, facts, "base"))
                here = speaking(out(root, facts, "base"), out(root, facts, name), facts)
                found += [f"{name}: it replies otherwise"] if speaking(base, there[name], facts) != here else []
            print(f"{facts.repositories[name].url}: {len(found) or 'no'} differences", *found, sep="\n  ")
            differing += found
    return int(bool(differing))


def _hash_of_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    text = "\n".join(json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()
