"""A release of a run: written to a folder, compared with what the Hub has, or sent there."""

import filecmp
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emotune.core import records
from emotune.core.errors import InputError
from emotune.publish import example, hub, parts, registry
from emotune.publish.facts import ADAPTERS, DATA_SETS, Facts, InstructionFacts, facts_of, repositories
from emotune.runs import tracking

# In a dry run's folder: the sha256 of every file that it wrote there.
WRITTEN = ".emotune.json"
# Of a card: the commit, what spoke against sending it, and under which name it is loaded.
AT_WRITING = re.compile(r'^(>.*\n)+\n|^(Made by the stage|git checkout) .*\n|, revision="[^"]*"', re.MULTILINE)


@dataclass(frozen=True)
class Release:
    """The parts of a run that are published, under which tag, and whether everybody may see them."""

    facts: Facts | InstructionFacts
    parts: Sequence[str]
    public: bool

    @property
    def refused(self) -> bool:
        """Whether something speaks against it, and no reason overrides that."""
        return bool(self.facts.objections) and not self.facts.reason


def prepare(root: Path, metrics: Path, reason: str | None, merged: bool, tag: str | None, public: bool) -> Release:
    """What there is to publish; InputError where the run is not complete, or a licence forbids it."""
    facts = replace(facts_of(root, metrics, reason), tag=tag)
    return Release(facts, parts.names(facts, merged), public)


def write(release: Release, folder: Path) -> bool:
    """Write all parts to a folder, and print what is in it; False where the gate refuses to send that.

    InputError where the folder holds what no dry run wrote: the parts take the place of what is there.
    """
    _refuse_others(folder)
    _print_objections(release)
    try:
        parts.build(release.facts, release.parts, folder)
    finally:
        records.write_json(folder / WRITTEN, {name: records.sha256(path) for name, path in _written(folder).items()})
    for part in release.parts:
        repository = release.facts.repositories[part]
        about = f"{'public' if release.public else 'private'} {repository.kind}{_comma_tag(release, repository)}"
        print(f"{repository.url} ({about}), from {folder / part}:")
        for path, file in hub.files(folder / part).items():
            print(f"{file.stat().st_size:>12,}  {path}")
    return not release.refused


def compare(release: Release) -> bool:
    """Print where the Hub has something else than would be sent now; False where it has.

    What can be loaded there is loaded. Of a card, what it tells of the moment it was written at is not compared.
    """
    facts, same = _with_owner(release.facts), True
    with tempfile.TemporaryDirectory() as name:
        here, cache = Path(name, "here"), Path(name, "there")
        there = {part: hub.download(facts.repositories[part], facts.tag, cache) for part in release.parts}
        if "base" in there:
            # The Hub's cache calls a folder by its commit.
            facts = replace(facts, base_commit=there["base"].name)
        parts.build(facts, release.parts, here)
        for part in release.parts:
            lines = _differences(hub.files(here / part), hub.files(there[part]))
            if part in DATA_SETS:
                rows = hub.rows(facts.repositories[part], facts.tag, Path(name, "rows"))
                here_too = parts.rows(facts, part).items()
                others = [split for split, own in here_too if _texts(own) != _texts(rows.get(split, []))]
                lines += [f"load_dataset reads other rows in {split}" for split in others]
            elif part in ADAPTERS and not lines and isinstance(facts, Facts):
                base = parts.out(facts, "base")
                replies = example.replies(base, parts.out(facts, part), facts)
                if example.replies(there.get("base", base), there[part], facts) != replies:
                    lines.append("it replies otherwise")
            told = f"{facts.repositories[part].url}: {len(lines) or 'no'} differences"
            print(told, *(f"{part}: {line}" for line in lines), sep="\n  ")
            same = same and not lines
    return same


def _differences(here: Mapping[str, Path], there: Mapping[str, Path]) -> list[str]:
    """A line for each file that is not the same in two folders, or not in both; the Hub's own is no difference."""
    lines = [f"{path} is not there" for path in here if path not in there]
    lines += [f"{path} is there, and not of this run" for path in there if path not in (*here, hub.ATTRIBUTES)]
    both = [path for path in here if path in there]
    return lines + [f"{path} is another there" for path in both if not _same(path, here[path], there[path])]


def _same(path: str, file: Path, other: Path) -> bool:
    if path == hub.CARD:
        return AT_WRITING.sub("", file.read_text("utf-8")) == AT_WRITING.sub("", other.read_text("utf-8"))
    return filecmp.cmp(file, other, shallow=False)


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
    release = replace(release, facts=_with_owner(release.facts))
    with tempfile.TemporaryDirectory() as name:
        folder, plans = Path(name), dict[str, hub.Plan]()
        # All plans before the first push: what forbids one of them forbids all.
        for part in release.parts:
            plans[part] = _plan(release, part, folder)
            if part == "base" and not plans[part].changes:
                release = _on_base(release, plans[part].head)
        planned, revisions = release, dict[str, str]()
        for part in release.parts:
            if part in ADAPTERS and release != planned:
                plans[part] = _plan(release, part, folder)
            revisions[part] = _push(release, plans[part])
            repo, commit = plans[part].repository.id, release.facts.commit
            note(notes, {"repo": repo, "revision": revisions[part], "commit": commit})
            if part == "base":
                release = _on_base(release, revisions[part])
    last = next(part for part in reversed(ADAPTERS) if part in revisions)
    print(registry.register(last, revisions[last], release.facts))
    return True


def _plan(release: Release, part: str, folder: Path) -> hub.Plan:
    parts.build(release.facts, [part], folder)
    return hub.plan(release.facts.repositories[part], folder / part, release.facts.tag, release.public)


def _on_base(release: Release, commit: str | None) -> Release:
    """With adapters that name this commit of the base model trained here."""
    return replace(release, facts=replace(release.facts, base_commit=commit))


def _push(release: Release, plan: hub.Plan) -> str:
    print(f"{plan.repository.url}: {plan.summary}", flush=True)
    revision = hub.push(plan, f"emotune {release.facts.commit[:12]}")
    if not plan.done:
        print(f"{plan.repository.url}: at {revision[:12]}{_comma_tag(release, plan.repository)}")
    return revision


def note(notes: Path, line: Mapping[str, str]) -> None:
    """Add a line that is not there yet, whatever another call adds at the same time.

    It is there where a call was killed after it had sent something: the next finds nothing to send.
    """
    with tracking.locked():
        known = list(records.read_jsonl(notes)) if notes.exists() else []
        if line not in known:
            records.write_jsonl(notes, [*known, line])


def _refuse_others(folder: Path) -> None:
    """InputError where a folder holds anything but what dry runs wrote, by the list of hashes that they leave there."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--dry-run {folder}: not a folder")
    known = records.read_json(folder / WRITTEN) if (folder / WRITTEN).is_file() else {}
    for name, path in _written(folder).items():
        if path.is_symlink() or known.get(name) != records.sha256(path):
            raise InputError(
                f"--dry-run {folder}: {name} there was written by no dry run; name an empty folder, or none"
            )


def _written(folder: Path) -> dict[str, Path]:
    """All that a folder holds, but the list of it; a link is none of the folders that it may lead to."""
    below = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix(): path for path in below if path != folder / WRITTEN}


def _print_objections(release: Release) -> None:
    if release.facts.objections:
        print("Not to be published:", *release.facts.objections, sep="\n  ")


def _with_owner(facts: Facts | InstructionFacts) -> Facts | InstructionFacts:
    """With the token's own account as the owner, where params.yaml names none."""
    if facts.p.publish.owner:
        return facts
    return replace(facts, repositories=repositories(facts.p, hub.account(), facts.stages))


def _comma_tag(release: Release, repository: hub.Repository) -> str:
    return f", tag {repository.tag(release.facts.tag)}" if release.facts.tag else ""
