"""What is known of a run, and what speaks against publishing it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emotune.core import git, records
from emotune.core.errors import InputError
from emotune.core.sections import read_yaml
from emotune.publish import cards, hub
from emotune.publish.licences import forbidden, licenses
from emotune.runs import lock, tables
from emotune.runs.params import Params, check

# Of repositories that a dry run names, which asks nobody whose the token is.
OWNER = "OWNER"
SIGNIFICANT = 0.05


def gathered(root: Path, metrics: Path, reason: str | None) -> cards.Facts:
    """All that cards say of a run, and what speaks against publishing it; nobody is asked whose the token is.

    InputError where the run is not complete, where a licence is not stated, and where the data's forbids the other.
    """
    content, locked = read_yaml(root / "params.yaml"), read_yaml(root / "dvc.lock")
    if absent := [name for name in cards.RUN if name not in (locked.get("stages") or {})]:
        raise InputError(f"{root / 'dvc.lock'}: has no {', '.join(absent)}; `dvc repro` runs what is missing")
    p = as_run(content, locked)
    data_license, license, base_license = licenses(p)
    commit, dirty = _commit(root)
    return cards.Facts(
        p=p,
        metrics=metrics,
        lock=locked,
        lock_sha256=_sha256(root / "dvc.lock"),
        commit=commit,
        dirty=dirty,
        repositories=repositories(p, p.publish.owner or OWNER),
        license=license,
        data_license=data_license,
        base_license=base_license,
        objections=objections(p, metrics, dirty, lock.stale(root)),
        reason=reason,
    )


def repositories(p: Params, owner: str) -> dict[str, hub.Repository]:
    """Where each part lies under an owner's name, in the order in which they are sent."""
    places = {name: getattr(p.publish, name).partition("@") for name in ("base", "sft", "dpo", "merged", "prefs")}
    return {
        name: hub.Repository(f"{owner}/{place}", branch or hub.MAIN, "dataset" if name == "prefs" else "model")
        for name, (place, _, branch) in places.items()
    }


def as_run(content: Mapping[str, Any], locked: Mapping[str, Any]) -> Params:
    """The params that dvc.lock says the stages ran with, and those of params.yaml for what no stage had."""
    whole = dict(content)
    for stage in locked["stages"].values():
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            for name in reversed(key.split(".")):
                value = {name: value}
            whole = _over(whole, value)
    return check(Params, whole, "dvc.lock")


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees as one, in which `above` has its way."""
    both = {
        key: _over(below[key], value) if isinstance(value, Mapping) and isinstance(below.get(key), Mapping) else value
        for key, value in above.items()
    }
    return {**below, **both}


def objections(p: Params, metrics: Path, dirty: bool, stale: Sequence[str]) -> list[str]:
    """The gate: what speaks against publishing, a line each, none where dpo is better and can be made again."""
    from emotune.preferences.audit import audit

    found = []
    paired = records.read_json(metrics / "evaluate.json")["paired"]["sft_to_dpo"]
    for name, (section, key) in tables.TESTED.items():
        test = paired[section][key]
        if test["difference"] <= 0 or test["p"] >= SIGNIFICANT:
            found.append(
                f"dpo is not better than sft in {name}: {test['difference']:+.3f} [{test['low']:+.3f}, "
                f"{test['high']:+.3f}], p {test['p']:.3f}, wanted more than 0 with p below {SIGNIFICANT}"
            )
    found += audit(records.read_json(metrics / "prefs.json"), p.prefs.audit)
    if dirty:
        found.append("the working tree has changes that are in no commit (`git status` names them)")
    return found + [f"dvc.lock is not current: {line}" for line in stale]


def wanted(name: str, facts: cards.Facts, merged: bool) -> bool:
    """Whether a part is published: a base model only if it was trained here, merged weights only if asked for."""
    if name == "merged" and merged and (why := forbidden(facts.base_license, facts.license)):
        raise InputError(
            f"--merged: the base model is under {facts.base_license}, {why}; this would be {facts.license}"
        )
    return {"base": facts.p.model.base == "embedded", "merged": merged}.get(name, True)


def _commit(root: Path) -> tuple[str, bool]:
    """The commit that the working tree is at, and whether anything in it is in no commit."""
    commit = git.ask("-C", str(root), "rev-parse", "HEAD")
    if commit is None:
        raise InputError(f"{root.resolve()}: git knows no commit here, and a card names the one it tells of")
    return commit, bool(git.told("-C", str(root), "status", "--porcelain"))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
