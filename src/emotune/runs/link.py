"""A DVC experiment, an MLflow run, a git commit or a published revision -> the other three.

They belong together where dvc.lock says the same: an experiment and a commit hold one, a published revision was made
of a commit, and an MLflow run names the hash of its stage's entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emotune.core import git, records
from emotune.core.errors import InputError
from emotune.runs import mirror
from emotune.runs.mirror import CACHED, Experiment, Family

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class State:
    """What a name means: one state of dvc.lock, as a commit has it, or a pipeline in MLflow."""

    locks: Mapping[str, str]
    commit: str | None = None
    family: Family | None = None

    def is_of(self, commit: str) -> bool:
        """Whether a commit has this state."""
        locks = _locks(commit)
        return self.family.fits(locks) if self.family else bool(locks) and locks == self.locks


def link(
    name: str,
    client: MlflowClient,
    experiment_id: str,
    published: Path,
    elsewhere: Callable[[str], Mapping[str, str] | None],
) -> list[tuple[str, str, str]]:
    """What a name belongs to: rows of a kind, an id and a remark; InputError says where it was looked for in vain.

    `published` holds a line of JSON for each push to the Hub: `repo`, `revision`, and the `commit` it was made of;
    `elsewhere` has such a line of a push by somebody else.
    """
    experiments, families = mirror.experiments(), mirror.families(client, experiment_id)
    pushes: list[Mapping[str, str]] = [*records.read_jsonl(published)] if published.exists() else []
    state = _state(name, experiments, families, pushes)
    if state is None and (push := elsewhere(name)):
        pushes += [push] if push not in pushes else []
        state = State(_locks(push["commit"]), push["commit"])
    if state is None:
        raise InputError(
            f"link: nothing is called {name!r}; looked among {len(experiments)} experiments of DVC, "
            f"{len(families)} pipelines and their stages in MLflow, git's commits, "
            f"and {len(pushes)} revisions in {published}; owner/name@revision is looked for on the Hub, too"
        )
    own = [state.family] if state.family else _most_complete([one for one in families if one.fits(state.locks)])
    # Not by name: DVC lets two experiments have one where they start from two commits.
    alike = [one for one in experiments if state.is_of(one.revision)]
    gone = sorted({family.name for family in own if family.name} - {one.name for one in alike})
    commits = _commits(state, experiments)
    rows = {
        "experiment": [(one.name, f"commit {one.revision}") for one in alike]
        + [(name, "DVC has it no more") for name in gone],
        "MLflow run": [(family.parent.info.run_id, _remark(family, len(state.locks))) for family in own],
        "git commit": [
            (commit, "its dvc.lock says this" if _locks(commit) else "no dvc.lock of it here: git fetch")
            for commit in commits
        ],
        "published": [
            (f"{push['repo']}@{push['revision']}", f"of commit {push['commit']}")
            for push in pushes
            if push["commit"] in commits or state.is_of(push["commit"])
        ],
    }
    return [(kind, *row) for kind, of_kind in rows.items() for row in of_kind or [("none", "")]]


def _state(
    name: str, experiments: Sequence[Experiment], families: Sequence[Family], pushes: Sequence[Mapping[str, Any]]
) -> State | None:
    """The state that a name of any kind means; None where nothing is called so."""
    # The newest: DVC lets one on another commit have the name of an older one.
    commit = next((one.revision for one in reversed(experiments) if one.name == name), None)
    if not commit:
        for family in families:
            if name in (family.name, *(run.info.run_id for run in (family.parent, *family.children))):
                return State(family.locks(), family=family)
    called = (push["commit"] for push in pushes if name in (push["revision"], f"{push['repo']}@{push['revision']}"))
    commit = commit or next(called, None)
    commit = commit or git.ask("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    return State(_locks(commit), commit) if commit else None


def _most_complete(families: Sequence[Family]) -> list[Family]:
    """Those with the most stages: a run that was stopped fits whatever took its place."""
    most = max((len(family.stages) for family in families), default=0)
    return [family for family in families if len(family.stages) == most]


def _remark(family: Family, stages: int) -> str:
    cached = sum(CACHED in run.data.tags for run in family.stages.values())
    return f"{len(family.stages)} of {stages} stages, {cached} of them from DVC's cache"


def _commits(state: State, experiments: Sequence[Experiment]) -> list[str]:
    """The commits that changed dvc.lock to this state, the newest first, and before them one that was named.

    Those that experiments left are none of them.
    """
    log = (git.ask("log", "--exclude=refs/exps/*", "--all", "--format=%H", "--", "dvc.lock") or "").split()
    commits = [commit for commit in log if state.is_of(commit)]
    if state.commit and state.commit not in [*commits, *(one.revision for one in experiments)]:
        commits.insert(0, state.commit)
    return commits


@cache
def _locks(commit: str) -> dict[str, str]:
    return mirror.locks(mirror.entries(commit))
