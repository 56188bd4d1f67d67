"""What is known of a run that is published: settings, licences, places on the Hub, and what speaks against it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from emotune.core import git, records
from emotune.core.errors import InputError
from emotune.core.nested import overlaid
from emotune.core.sections import S, check, read_yaml
from emotune.models import pins
from emotune.publish import gate
from emotune.publish.gate import Licenses
from emotune.publish.hub import MAIN, Repository
from emotune.runs import lock
from emotune.runs.params import Instructions, Params, kind_of

# The parts, in the order in which they are sent, and the stage that makes each.
STAGES = {"base": "base_model", "sft": "sft", "dpo": "dpo", "merged": "dpo", "prefs": "generate_prefs"}
INSTRUCTED = {"base": "base_model", "sft": "sft", "rows": "rows"}
DATA_SETS = ("prefs", "rows")
# The name under which metrics/evaluate.json has a model's figures.
MEASURED = {"base": "baseline", "sft": "sft", "dpo": "dpo", "merged": "dpo"}
ADAPTERS = ("sft", "dpo")
# Those that a complete run has.
COMPLETE = ("prepare", *dict.fromkeys(STAGES.values()), "evaluate")
# Of repositories that a dry run names, which asks nobody whose the token is.
OWNER = "OWNER"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the cards of one publication share, whichever pipeline it is of."""

    root: Path
    metrics: Path
    # As the stages ran: what dvc.lock has, and for the rest params.yaml.
    p: Params | Instructions
    # The parts, in the order in which they are sent, and the stage that makes each.
    stages: ClassVar[Mapping[str, str]]
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


@dataclass(frozen=True, kw_only=True)
class Facts(Run):
    """Those of the emotion pipeline."""

    p: Params
    stages = STAGES


@dataclass(frozen=True, kw_only=True)
class InstructionFacts(Run):
    """Those of the instruction pipeline."""

    p: Instructions
    stages = INSTRUCTED


def facts_of(root: Path, metrics: Path, reason: str | None) -> Facts | InstructionFacts:
    """All that cards say of a run, and what speaks against publishing it; nobody is asked whose the token is.

    InputError where the run is not complete, where a licence is not stated, and where the data's forbids the other.
    """
    content, locked = read_yaml(root / "params.yaml"), read_yaml(root / "dvc.lock")
    is_of_emotions = kind_of(root / "params.yaml") is not Instructions
    complete = COMPLETE if is_of_emotions else (*INSTRUCTED.values(), "compare")
    if absent := [name for name in complete if name not in (locked.get("stages") or {})]:
        raise InputError(f"{root / 'dvc.lock'}: has no {', '.join(absent)}; `dvc repro` runs what is missing")
    commit = git.ask("-C", str(root), "rev-parse", "HEAD")
    if commit is None:
        raise InputError(f"{root.resolve()}: git knows no commit here, and a card names the one it tells of")
    dirty = bool(git.told("-C", str(root), "status", "--porcelain"))
    told: dict[str, Any] = {
        "root": root,
        "metrics": metrics,
        "lock": locked,
        "lock_sha256": records.sha256(root / "dvc.lock"),
        "commit": commit,
        "dirty": dirty,
        "reason": reason,
    }
    if is_of_emotions:
        p = as_run(content, locked)
        places = _places(p, STAGES)
        return Facts(p=p, objections=gate.objections(p, metrics, dirty, lock.stale(root)), **places, **told)
    instructed = _as_run(content, locked, Instructions)
    places = _places(instructed, INSTRUCTED)
    objections = gate.objections_to_instructed(metrics, dirty, lock.stale(root))
    return InstructionFacts(p=instructed, objections=objections, **places, **told)


def _places(p: Params | Instructions, stages: Mapping[str, str]) -> dict[str, Any]:
    """Where the parts go, and under which licences."""
    return {"repositories": repositories(p, p.publish.owner or OWNER, stages), "licenses": gate.licenses(p)}


def as_run(content: Mapping[str, Any], locked: Mapping[str, Any]) -> Params:
    """The params that dvc.lock says the stages ran with, and those of params.yaml for what no stage had."""
    return _as_run(content, locked, Params)


def _as_run(content: Mapping[str, Any], locked: Mapping[str, Any], kind: type[S]) -> S:
    whole = dict(content)
    for stage in locked["stages"].values():
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            for name in reversed(key.split(".")):
                value = {name: value}
            whole = overlaid(whole, value)
    return check(kind, whole, "dvc.lock")


def repositories(p: Params | Instructions, owner: str, stages: Mapping[str, str]) -> dict[str, Repository]:
    """Where each part lies under an owner's name."""
    places = {part: getattr(p.publish, part).partition("@") for part in stages}
    return {
        part: Repository(f"{owner}/{name}", branch or MAIN, "dataset" if part in DATA_SETS else "model")
        for part, (name, _, branch) in places.items()
    }


def is_folder(name: str) -> bool:
    """Whether what a model or judge is called is a path of this machine, and not a name on the Hub."""
    return name.startswith((".", "/", "~")) or name.count("/") != 1 or Path(name).is_dir()
