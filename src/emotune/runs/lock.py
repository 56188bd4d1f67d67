"""Whether dvc.lock is current, also where the data are absent: there `dvc status` calls every stage changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emotune.core.errors import InputError

ABSENT = object()
IN_WORKSPACE, IN_CACHE, IN_REMOTE = "workspace", "cache", "remote"


@dataclass(frozen=True)
class Compared:
    """dvc.lock beside the files here."""

    # What disagrees with it: a line each, which begins with the stage.
    differs: list[str]
    # Outs that it names and nobody has, in the same form.
    lost: list[str]
    # The other outs, by where they are: workspace, cache or remote. What lies in several is named under the first.
    outs: dict[str, list[str]]


def stale(root: Path) -> list[str]:
    """The reasons why dvc.lock is not current, none where it is: a line each, which begins with the stage.

    Current means that every command, param, dep and out of dvc.yaml is, in dvc.lock, what it is in the files here; that
    each stage read there what the one before it left; and that each out is in the workspace, in the cache or in the
    default remote. An out which only the cache or the remote has makes nothing stale. Nothing is run, written or
    fetched. InputError where `root` holds no DVC repository, or one that DVC cannot read.
    """
    found = compared(root)
    return found.differs + found.lost


def compared(root: Path) -> Compared:
    """Every stage of dvc.yaml beside its entry in dvc.lock, in the order of dvc.yaml."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            return _compared(repo, root)
    except DvcException as error:
        raise InputError(f"{root.resolve()}: DVC says: {' '.join(str(error).split())}") from None


def _compared(repo: Any, root: Path) -> Compared:
    found = Compared([], [], {place: [] for place in (IN_WORKSPACE, IN_CACHE, IN_REMOTE)})
    stages = repo.index.stages
    made = {out.fs_path: out for stage in stages for out in stage.outs}
    locked = _locked(root / "dvc.lock")
    for stage in stages:
        if stage.name not in locked:
            found.differs.append(f"{stage.name}: not in dvc.lock")
            continue
        reasons = ["cmd is not that of dvc.lock"] if stage.cmd_changed else []
        for dep in stage.deps:
            reasons += _of_params(dep) if dep.hash_name == "params" else _of_dep(dep, made.get(dep.fs_path))
        for out in stage.outs:
            if not out.hash_info:
                reasons.append(f"out {out.def_path} is not in dvc.lock")
            elif out.exists:
                reasons += [f"out {out.def_path} is not that of dvc.lock"] if out.changed_checksum() else []
                found.outs[IN_WORKSPACE].append(out.def_path)
            elif not out.use_cache:
                reasons.append(f"out {out.def_path} is absent, and git keeps it, not DVC")
            elif _has(out.cache, out.hash_info):
                found.outs[IN_CACHE].append(out.def_path)
            elif lack := _not_in_remote(repo, out.hash_info):
                found.lost.append(f"{stage.name}: out {out.def_path} is in neither workspace nor cache, and {lack}")
            else:
                found.outs[IN_REMOTE].append(out.def_path)
        found.differs.extend(f"{stage.name}: {reason}" for reason in reasons)
    return found


def _locked(path: Path) -> Mapping[str, Any]:
    """The stages of dvc.lock; none where there is no such file."""
    from emotune.core.sections import read_yaml

    return dict(read_yaml(path).get("stages") or {}) if path.is_file() else {}


def _of_dep(dep: Any, made: Any) -> list[str]:
    """What is wrong with a file or folder that a stage reads; `made` is the out of another stage that it is."""
    if not dep.hash_info:
        return [f"dep {dep.def_path} is not in dvc.lock"]
    if made is not None:  # what lies in the workspace is compared where it is an out
        return (
            [] if dep.hash_info == made.hash_info else [f"dep {dep.def_path} is not what {made.stage.name} left there"]
        )
    if not dep.exists:
        return [f"dep {dep.def_path} is absent"]
    return [f"dep {dep.def_path} is not that of dvc.lock"] if dep.changed_checksum() else []


def _of_params(dep: Any) -> list[str]:
    now, locked = dep.read_params(), dep.hash_info.value or {}
    return [line for key in dep.params for line in _turned(key, now.get(key, ABSENT), locked.get(key, ABSENT))]


def _turned(key: str, now: Any, locked: Any) -> Iterator[str]:
    """A line for each value under a dotted key that is not the locked one."""
    if isinstance(now, Mapping) and isinstance(locked, Mapping):
        for name in {**locked, **now}:
            yield from _turned(f"{key}.{name}", now.get(name, ABSENT), locked.get(name, ABSENT))
    elif now != locked:
        yield f"param {key} is {_shown(now)}, and {_shown(locked)} in dvc.lock"


def _shown(value: Any) -> str:
    return "absent" if value is ABSENT else json.dumps(value, default=str, ensure_ascii=False)


def _has(store: Any, wanted: Any) -> bool:
    """Whether a cache or a remote has an object; of a folder, all files too."""
    from dvc_data.hashfile.tree import ObjectFormatError, Tree

    try:
        store.fs.info(store.oid_to_path(wanted.value))  # `exists` says no, too, of a store that cannot be reached
        files = {file.value for _, _, file in Tree.load(store, wanted)} if wanted.isdir else set()
    except (FileNotFoundError, ObjectFormatError):
        return False
    return files <= set(store.oids_exist(list(files)))


def _not_in_remote(repo: Any, wanted: Any) -> str:
    """Why the default remote cannot bring an object; empty where it can."""
    name = repo.config["core"].get("remote")
    if not name:
        return "there is no remote"
    try:
        return "" if _has(repo.cloud.get_remote_odb(command="pull"), wanted) else f"not in the remote {name}"
    # Each kind of store has exceptions of its own, and all mean that it did not answer: the line says which.
    except Exception as error:
        return f"the remote {name} did not answer: {type(error).__name__}: {' '.join(str(error).split())}"
