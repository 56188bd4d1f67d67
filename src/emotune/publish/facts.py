"""What is known of a run that is published: settings, licences, places on the Hub, and what speaks against it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emotune.core import git, records
from emotune.core.errors import InputError
from emotune.core.nested import overlaid
from emotune.core.sections import check, read_yaml
from emotune.models import pins
from emotune.publish import gate
from emotune.publish.gate import Licenses
from emotune.publish.hub import MAIN, Repository
from emotune.runs import lock
from emotune.runs.params import Params

# The parts, in the order in which they are sent, and the stage that makes each.
STAGES = {"base": "base_model", "sft": "sft", "dpo": "dpo", "merged": "dpo", "prefs": "generate_prefs"}
# The name under which metrics/evaluate.json has a model's figures.
MEASURED = {"base": "baseline", "sft": "sft", "dpo": "dpo", "merged": "dpo"}
ADAPTERS = ("sft", "dpo")
# Those that a complete run has.
COMPLETE = ("prepare", *dict.fromkeys(STAGES.values()), "evaluate")
# Of repositories that a dry run names, which asks nobody whose the token is.
OWNER = "OWNER"


@dataclass(frozen=True)
class Facts:
    """What the cards of one publication share."""

    root: Path
    metrics: Path
    # As the stages ran: what dvc.lock has, and for the rest params.yaml.
    p: Params
    lock: Mapping[str, Any]
    lock_sha256: str
    commit: str
    dirty: bool
    repositories: Mapping[str, Repository]
    licenses: Licenses
    # What spoke against publishing, and why it was done all the same.
    objections: Sequence[str]
    reason: str | None
    # The release that the parts are sent as.
    tag: str | None = None
    # The commit that our own base model has on the Hub; None where that is not known before it is sent.
    base_commit: str | None = None

    @property
    def base(self) -> Repository | None:
        """The base model's place on the Hub: ours where it comes from here, None where it lies in a folder alone."""
        name = self.p.model.base
        if name in pins.OWN:
            return self.repositories["base"]
        return None if is_folder(name) else Repository(name, MAIN, "model")

    @property
    def pinned_base(self) -> Repository | None:
        """The base model's place, at the revision that an adapter was trained on: another base moves none of them."""
        if self.base is None:
            return None
        own = self.base_commit or self.base.revision(self.tag)
        return replace(self.base, branch=own if self.p.model.base in pins.OWN else self.p.model.revision or MAIN)

    def released(self, part: str) -> Repository:
        """The place of a part, at the release that it is sent as: its card loads what it was sent with."""
        place = self.repositories[part]
        return replace(place, branch=place.revision(self.tag))


def facts_of(root: Path, metrics: Path, reason: str | None) -> Facts:
    """All that cards say of a run, and what speaks against publishing it; nobody is asked whose the token is.

    InputError where the run is not complete, where a licence is not stated, and where the data's forbids the other.
    """
    content, locked = read_yaml(root / "params.yaml"), read_yaml(root / "dvc.lock")
    if absent := [name for name in COMPLETE if name not in (locked.get("stages") or {})]:
        raise InputError(f"{root / 'dvc.lock'}: has no {', '.join(absent)}; `dvc repro` runs what is missing")
    p = as_run(content, locked)
    commit = git.ask("-C", str(root), "rev-parse", "HEAD")
    if commit is None:
        raise InputError(f"{root.resolve()}: git knows no commit here, and a card names the one it tells of")
    dirty = bool(git.told("-C", str(root), "status", "--porcelain"))
    return Facts(
        root=root,
        metrics=metrics,
        p=p,
        lock=locked,
        lock_sha256=records.sha256(root / "dvc.lock"),
        commit=commit,
        dirty=dirty,
        repositories=repositories(p, p.publish.owner or OWNER),
        licenses=gate.licenses(p),
        objections=gate.objections(p, metrics, dirty, lock.stale(root)),
        reason=reason,
    )


def as_run(content: Mapping[str, Any], locked: Mapping[str, Any]) -> Params:
    """The params that dvc.lock says the stages ran with, and those of params.yaml for what no stage had."""
    whole = dict(content)
    for stage in locked["stages"].values():
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            for name in reversed(key.split(".")):
                value = {name: value}
            whole = overlaid(whole, value)
    return check(Params, whole, "dvc.lock")


def repositories(p: Params, owner: str) -> dict[str, Repository]:
    """Where each part lies under an owner's name."""
    places = {part: getattr(p.publish, part).partition("@") for part in STAGES}
    return {
        part: Repository(f"{owner}/{name}", branch or MAIN, "dataset" if part == "prefs" else "model")
        for part, (name, _, branch) in places.items()
    }


def is_folder(name: str) -> bool:
    """Whether what a model or judge is called is a path of this machine, and not a name on the Hub."""
    return name.startswith((".", "/", "~")) or name.count("/") != 1 or Path(name).is_dir()
