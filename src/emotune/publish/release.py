"""A release of a run: written to a folder, compared with what the Hub has, or sent there."""

import filecmp
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emotune.core import records
from emotune.publish import example, hub, parts
from emotune.publish.facts import ADAPTERS, Facts, facts_of, repositories


@dataclass(frozen=True)
class Release:
    """The parts of a run that are published, under which tag, and whether everybody may see them."""

    facts: Facts
    parts: Sequence[str]
    tag: str | None
    public: bool

    @property
    def refused(self) -> bool:
        """Whether something speaks against it, and no reason overrides that."""
        return bool(self.facts.objections) and not self.facts.reason


def prepare(root: Path, metrics: Path, reason: str | None, merged: bool, tag: str | None, public: bool) -> Release:
    """What there is to publish; InputError where the run is not complete, or a licence forbids it."""
    facts = facts_of(root, metrics, reason)
    return Release(facts, parts.names(facts, merged), tag, public)


def write(release: Release, folder: Path) -> bool:
    """Write all parts to a folder, and print what is in it; False where the gate refuses to send that."""
    _print_objections(release)
    parts.build(release.facts, release.parts, folder)
    for part in release.parts:
        repository = release.facts.repositories[part]
        about = f"{'public' if release.public else 'private'} {repository.kind}{_comma_tag(release, repository)}"
        print(f"{repository.url} ({about}), from {folder / part}:")
        for path, file in hub.files(folder / part).items():
            print(f"{file.stat().st_size:>12,}  {path}")
    return not release.refused


def compare(release: Release) -> bool:
    """Print where the Hub has something else than would be sent now; False where it has.

    What can be loaded there is loaded. The card is not compared: it tells of the commit at which it was written.
    """
    facts, same = _with_owner(release.facts), True
    with tempfile.TemporaryDirectory() as name:
        here, cache = Path(name, "here"), Path(name, "there")
        parts.build(facts, release.parts, here)
        there = {part: hub.download(facts.repositories[part], release.tag, cache) for part in release.parts}
        for part in release.parts:
            lines = [
                f"{path} is another there"
                for path, file in hub.files(here / part).items()
                if path != parts.CARD and not _same(file, there[part] / path)
            ]
            if part == "prefs":
                rows = hub.rows(facts.repositories[part], release.tag, Path(name, "rows"))
                others = [split for split, own in parts.pairs(facts).items() if _texts(own) != _texts(rows[split])]
                lines += [f"load_dataset reads other rows in {split}" for split in others]
            elif part in ADAPTERS and not lines:
                base = parts.out(facts, "base")
                replies = example.replies(base, parts.out(facts, part), facts)
                if example.replies(there.get("base", base), there[part], facts) != replies:
                    lines.append("it replies otherwise")
            told = f"{facts.repositories[part].url}: {len(lines) or 'no'} differences"
            print(told, *(f"{part}: {line}" for line in lines), sep="\n  ")
            same = same and not lines
    return same


def _same(file: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(file, other, shallow=False)


def _texts(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    # As text: 1 and 1.0 are equal, and another content.
    return [json.dumps(row, sort_keys=True) for row in rows]


def send(release: Release, notes: Path) -> bool:
    """Send all parts; False where the gate refuses that, and nothing was sent.

    `notes` gets a line of JSON for each: `repo`, `revision`, and the `commit` that it was made of.
    """
    _print_objections(release)
    if release.refused:
        print('Nothing was sent. `--force "reason"` publishes all the same, and the cards carry the reason.')
        return False
    facts = _with_owner(release.facts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts.build(facts, release.parts, folder)
        places = {part: facts.repositories[part] for part in release.parts}
        # All plans before the first push: what forbids one of them forbids all.
        plans = [hub.plan(place, folder / part, release.tag, release.public) for part, place in places.items()]
        for plan in plans:
            print(f"{plan.repository.url}: {plan.summary}", flush=True)
            revision = hub.push(plan, f"emotune {facts.commit[:12]}")
            if not plan.done:
                print(f"{plan.repository.url}: at {revision[:12]}{_comma_tag(release, plan.repository)}")
            line = {"repo": plan.repository.id, "revision": revision, "commit": facts.commit}
            known = list(records.read_jsonl(notes)) if notes.exists() else []
            # It is there where a call was killed after it had sent something: the next finds nothing to send.
            if line not in known:
                records.write_jsonl(notes, [*known, line])
    return True


def _print_objections(release: Release) -> None:
    if release.facts.objections:
        print("Not to be published:", *release.facts.objections, sep="\n  ")


def _with_owner(facts: Facts) -> Facts:
    """With the token's own account as the owner, where params.yaml names none."""
    if facts.p.publish.owner:
        return facts
    return replace(facts, repositories=repositories(facts.p, hub.account()))


def _comma_tag(release: Release, repository: hub.Repository) -> str:
    return f", tag {repository.tag(release.tag)}" if release.tag else ""
