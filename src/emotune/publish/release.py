"""A release of a run: written to a folder, compared with what the Hub has, or sent there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emotune.core import records
from emotune.publish import check, hub, parts
from emotune.publish.facts import Facts, facts_of, repositories


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
        print(_contents(release, part, folder / part))
    return not release.refused


def compare(release: Release) -> bool:
    """Print where the Hub has something else than would be sent now; False where it has."""
    facts, same = _with_owner(release.facts), True
    with tempfile.TemporaryDirectory() as folder:
        parts.build(facts, release.parts, Path(folder))
        for part, lines in check.differences(facts, release.parts, Path(folder), release.tag):
            print(f"{facts.repositories[part].url}: {len(lines) or 'no'} differences", *lines, sep="\n  ")
            same = same and not lines
    return same


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
            _note(notes, {"repo": plan.repository.id, "revision": revision, "commit": facts.commit})
    return True


def _print_objections(release: Release) -> None:
    if release.facts.objections:
        print("Not to be published:", *release.facts.objections, sep="\n  ")


def _with_owner(facts: Facts) -> Facts:
    """With the token's own account as the owner, where params.yaml names none."""
    if facts.p.publish.owner:
        return facts
    return replace(facts, repositories=repositories(facts.p, hub.account()))


def _note(notes: Path, line: Mapping[str, Any]) -> None:
    """Add a line, unless it is there: a call that was killed after it had sent something finds nothing to send."""
    known = list(records.read_jsonl(notes)) if notes.exists() else []
    if line not in known:
        records.write_jsonl(notes, [*known, line])


def _contents(release: Release, part: str, folder: Path) -> str:
    """A line for each file, under one for the repository that would hold them."""
    repository = release.facts.repositories[part]
    about = f"{'public' if release.public else 'private'} {repository.kind}{_comma_tag(release, repository)}"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.stat().st_size:>12,}  {path.relative_to(folder).as_posix()}" for path in files]
    return "\n".join([f"{repository.url} ({about}), from {folder}:", *lines])


def _comma_tag(release: Release, repository: hub.Repository) -> str:
    return f", tag {repository.tag(release.tag)}" if release.tag else ""
