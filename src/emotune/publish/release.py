"""What is published: under which licence, whether it may be, and each part as a folder that the Hub will hold."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emotune.core import records
from emotune.publish import hub
from emotune.publish.check import checked
from emotune.publish.gate import gathered, repositories, wanted
from emotune.publish.parts import built


def publish(
    root: Path,
    metrics: Path,
    notes: Path,
    *,
    into: Path | None,
    check: bool,
    reason: str | None,
    merged: bool,
    tag: str | None,
    public: bool,
) -> int:
    """Send all parts, or write them to the folder `into`, or compare them with what the Hub has; 1 where refused.

    `notes` gets a line of JSON for what was sent: `repo`, `revision`, and the `commit` that it was made of.
    A broken gate refuses to send, unless a `reason` overrides it; a licence that the data forbids refuses everything.
    """
    facts = gathered(root, metrics, reason)
    names = [name for name in facts.repositories if wanted(name, facts, merged)]
    if facts.objections and not check:
        print("Not to be published:", *facts.objections, sep="\n  ")
        if not reason and not into:
            print('Nothing was sent. `--force "reason"` publishes all the same, and the cards carry the reason.')
            return 1
    if into:
        built(root, facts, names, into)
        for name in names:
            print(_listed(facts.repositories[name], into / name, public, tag))
        return int(bool(facts.objections and not reason))
    if facts.p.publish.owner is None:
        facts = dataclasses.replace(facts, repositories=repositories(facts.p, hub.account()))
    with tempfile.TemporaryDirectory() as folder:
        built(root, facts, names, Path(folder))
        if check:
            return checked(root, facts, names, Path(folder), tag)
        plans = [hub.compared(facts.repositories[name], Path(folder, name), tag, public) for name in names]
        for plan in plans:
            revision = plan.head
            if plan.done:
                print(f"{plan.repository.url}: nothing to send")
            else:
                print(f"{plan.repository.url}: {len(plan.send)} files, {plan.bytes:,} bytes", flush=True)
                revision = hub.push(plan, public, f"emotune {facts.commit[:12]}")
                print(
                    f"{plan.repository.url}: at {revision[:12]}" + (f", tag {plan.repository.tag(tag)}" if tag else "")
                )
            _note(notes, {"repo": plan.repository.id, "revision": revision, "commit": facts.commit})
    return 0


def _note(notes: Path, line: Mapping[str, Any]) -> None:
    """Add a line, unless it is there: a call that was killed after it had sent something finds nothing to send."""
    known = list(records.read_jsonl(notes)) if notes.exists() else []
    if line not in known:
        records.write_jsonl(notes, [*known, line])


def _listed(repository: hub.Repository, folder: Path, public: bool, tag: str | None) -> str:
    """What would be sent to a repository that holds nothing."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    about = f"{'public' if public else 'private'} {repository.kind}{f', tag {repository.tag(tag)}' if tag else ''}"
    lines = [f"{path.stat().st_size:>12,}  {path.relative_to(folder).as_posix()}" for path in files]
    return "\n".join([f"{repository.url} ({about}), from {folder}:", *lines])
