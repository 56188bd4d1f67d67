"""A DVC experiment, an MLflow run, a git commit or a published revision -> the other three.

They belong together where dvc.lock says the same: an experiment and a commit hold one, a published revision was made
of a commit, and an MLflow run names the hash of its stage's entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emotune.core import git, records
from emotune.core.errors import InputError
from emotune.runs import mirror
from emotune.runs.mirror import CACHED, NAME, Experiment, Family

if TYPE_CHECKING:
    from mlflow import MlflowClient


Row = tuple[str, str, str]
KINDS = ("experiment", "MLflow run", "git commit", "published")


@dataclass(frozen=True)
class Known:
    """All that a name may be the name of."""

    experiments: Sequence[Experiment]
    families: Sequence[Family]
    published: Sequence[dict[str, Any]]


def link(name: str, client: MlflowClient, experiment: str, published: Path) -> list[Row]:
    """What a name belongs to: rows of a kind, an id and a remark; InputError says where it was looked for in vain.

    `published` holds a line of JSON for each push to the Hub: `repo`, `revision`, and the `commit` it was made of.
    """
    pushed = list(records.read_jsonl(published)) if published.exists() else []
    known = Known(mirror.experiments(), mirror.families(client, experiment), pushed)
    meant = _meant(name, known)
    if meant is None:
        raise InputError(
            f"link: nothing is called {name!r}; looked among {len(known.experiments)} experiments of DVC, "
            f"{len(known.families)} pipelines and their stages in MLflow, git's commits, "
            f"and {len(known.published)} revisions in {published}"
        )
    return _rows(meant, known)


def _meant(name: str, known: Known) -> Family | str | None:
    """The pipeline in MLflow, or the commit, that a name means."""
    for found in known.experiments:
        if found.name == name:
            return found.revision
    for family in known.families:
        ids = [run.info.run_id for run in (family.parent, *family.children)]
        if name in ids or family.parent.data.tags.get(NAME) == name:
            return family
    for row in known.published:
        if name in (row["revision"], f"{row['repo']}@{row['revision']}"):
            return str(row["commit"])
    return git.ask("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")


def _rows(meant: Family | str, known: Known) -> list[Row]:
    family = meant if isinstance(meant, Family) else None
    locks = family.locks() if family else _locks(str(meant))
    same = family.fits if family else lambda found: bool(found) and found == locks

    families = [family] if family else _most_complete([found for found in known.families if found.fits(locks)])
    listed = [found for found in known.experiments if same(_locks(found.revision))]
    gone = {found.parent.data.tags.get(NAME, "") for found in families} - {found.name for found in listed} - {""}
    holding = [commit for commit in _commits() if same(_locks(commit))]
    if not family and meant not in holding and meant not in [found.revision for found in known.experiments]:
        holding.insert(0, str(meant))
    rows = [("experiment", found.name, f"commit {found.revision}") for found in listed]
    rows += [("experiment", name, "DVC has it no more") for name in sorted(gone)]
    rows += [("MLflow run", found.parent.info.run_id, _told(found, len(locks))) for found in families]
    rows += [("git commit", commit, "its dvc.lock says this") for commit in holding]
    rows += [
        ("published", f"{row['repo']}@{row['revision']}", f"of commit {row['commit']}")
        for row in known.published
        if row["commit"] in holding or same(_locks(str(row["commit"])))
    ]
    absent = [kind for kind in KINDS if kind not in [row[0] for row in rows]]
    return sorted([*rows, *((kind, "none", "") for kind in absent)], key=lambda row: KINDS.index(row[0]))


def _most_complete(found: Sequence[Family]) -> list[Family]:
    """Those with the most stages: a run that was stopped fits whatever took its place."""
    most = max((len(family.stages) for family in found), default=0)
    return [family for family in found if len(family.stages) == most]


def _told(family: Family, stages: int) -> str:
    cached = sum(CACHED in run.data.tags for run in family.stages.values())
    return f"{len(family.stages)} of {stages} stages, {cached} of them from DVC's cache"


def _commits() -> list[str]:
    """The commits that changed dvc.lock, the newest first, without those that experiments left."""
    return (git.ask("log", "--exclude=refs/exps/*", "--all", "--format=%H", "--", "dvc.lock") or "").split()


@cache
def _locks(revision: str) -> dict[str, str]:
    return mirror.locks(mirror.entries(revision))
