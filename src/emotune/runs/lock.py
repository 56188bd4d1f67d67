"""Whether dvc.lock is current, also where the data are absent: there `dvc status` calls every stage changed."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emotune.core.addresses import without_password
from emotune.core.errors import InputError
from emotune.core.sections import read_yaml

ABSENT = object()
IN_WORKSPACE, IN_CACHE, IN_REMOTE, NOWHERE, UNKNOWN = "workspace", "cache", "remote", "nowhere", "unknown"
# The stage that makes each model; those of the instruction pipeline.
MAKERS = {"baseline": "base_model", "sft": "sft", "dpo": "dpo"}
INSTRUCTED = {"zero-shot": "base_model", "sft": "sft"}


@dataclass(frozen=True)
class Comparison:
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
    comparison = compared(root)
    return comparison.differs + comparison.lost


def compared(root: Path) -> Comparison:
    """Every stage of the dvc.yaml in `root` beside its entry in dvc.lock, in the order of dvc.yaml."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            return _comparison(repo, root / "dvc.lock")
    except DvcException as error:
        raise InputError(f"{root.resolve()}: DVC says: {' '.join(str(error).split())}") from None


def _comparison(repo: Any, path: Path) -> Comparison:
    comparison = Comparison([], [], {place: [] for place in (IN_WORKSPACE, IN_CACHE, IN_REMOTE)})
    entries = (read_yaml(path).get("stages") or {}) if path.is_file() else {}
    # Another pipeline of the repository has a lock of its own.
    own = path.with_name("dvc.yaml").resolve()
    stages = [stage for stage in repo.index.stages if Path(stage.path).resolve() == own]
    writers = {out.fs_path: out for stage in stages for out in stage.outs}
    for stage in stages:
        if stage.name not in entries:
            comparison.differs.append(f"{stage.name}: not in dvc.lock")
            continue
        comparison.differs.extend(f"{stage.name}: {difference}" for difference in _of_inputs(stage, writers))
        for out in stage.outs:
            place, fault = _of_out(out, repo)
            if place in comparison.outs:
                comparison.outs[place].append(out.def_path)
            if fault:
                faults = comparison.lost if place == NOWHERE else comparison.differs
                faults.append(f"{stage.name}: out {out.def_path} {fault}")
    return comparison


def _of_inputs(stage: Any, writers: Mapping[str, Any]) -> Iterator[str]:
    """What differs from dvc.lock in a stage's command, params and deps; `writers` has all outs by their path."""
    if stage.cmd_changed:
        yield "cmd is not that of dvc.lock"
    for dep in stage.deps:
        if dep.hash_name == "params":
            now, then = dep.read_params(), dep.hash_info.value or {}
            for key in dep.params:
                yield from _of_param(key, now.get(key, ABSENT), then.get(key, ABSENT))
        elif fault := _of_dep(dep, writers.get(dep.fs_path)):
            yield f"dep {dep.def_path} {fault}"


def _of_param(key: str, now: Any, then: Any) -> Iterator[str]:
    """A line for each value under a dotted key that is not the locked one."""
    if isinstance(now, Mapping) and isinstance(then, Mapping):
        for name in {**then, **now}:
            yield from _of_param(f"{key}.{name}", now.get(name, ABSENT), then.get(name, ABSENT))
    elif now != then:
        yield f"param {key} is {_shown(now)}, and {_shown(then)} in dvc.lock"


def _shown(value: Any) -> str:
    return "absent" if value is ABSENT else json.dumps(value, default=str, ensure_ascii=False)


def _of_dep(dep: Any, written: Any) -> str:
    """What is wrong with a file or folder that a stage reads; `written` is the out of another stage that it is."""
    if not dep.hash_info:
        return "is not in dvc.lock"
    if written is not None:  # what lies in the workspace is compared where it is an out
        return "" if dep.hash_info == written.hash_info else f"is not what {written.stage.name} left there"
    if not dep.exists:
        return "is absent"
    return "is not that of dvc.lock" if dep.changed_checksum() else ""


def _of_out(out: Any, repo: Any) -> tuple[str, str]:
    """Where an out is, and what is wrong with it."""
    if not out.hash_info:
        return UNKNOWN, "is not in dvc.lock"
    if out.exists:
        return IN_WORKSPACE, "is not that of dvc.lock" if out.changed_checksum() else ""
    if not out.use_cache:
        return UNKNOWN, "is absent, and git keeps it, not DVC"
    if _has(out.cache, out.hash_info):
        return IN_CACHE, ""
    lack = _not_in_remote(repo, out.hash_info)
    return (NOWHERE, f"is in neither workspace nor cache, and {lack}") if lack else (IN_REMOTE, "")


def _has(store: Any, hash: Any) -> bool:
    """Whether a cache or a remote has an object; of a folder, all files too."""
    from dvc_data.hashfile.tree import ObjectFormatError, Tree

    try:
        store.fs.info(store.oid_to_path(hash.value))  # `exists` says no, too, of a store that cannot be reached
        files = {file.value for _, _, file in Tree.load(store, hash)} if hash.isdir else set()
    except (FileNotFoundError, ObjectFormatError):
        return False
    return files <= set(store.oids_exist(list(files)))


def _not_in_remote(repo: Any, hash: Any) -> str:
    """Why the default remote cannot bring an object; empty where it can."""
    name = repo.config["core"].get("remote")
    if not name:
        return "there is no remote"
    try:
        return "" if _has(repo.cloud.get_remote_odb(command="pull"), hash) else f"not in the remote {name}"
    # Each kind of store has exceptions of its own, and all mean that it did not answer: the line says which.
    except Exception as error:
        reason = f"the remote {name} did not answer: {type(error).__name__}: {' '.join(str(error).split())}"
        return without_password(reason, repo.config["remote"].get(name, {}).get("url", ""))


def doubts(root: Path) -> dict[str, str]:
    """Why dvc.lock does not vouch for what is here of a stage, by the stage, in the order of dvc.yaml.

    It does where the stage had the params and the code that are here, read what the stages before it left, and wrote
    the metrics that are here; and where it vouches for those before it. Only files are read: DVC takes a second, and
    asks a remote.
    """
    stages, locked, params = (
        read_yaml(root / name) if (root / name).is_file() else {} for name in ("dvc.yaml", "dvc.lock", "params.yaml")
    )
    entries = locked.get("stages") or {}
    written = {out["path"]: (name, out.get("md5")) for name in entries for out in entries[name].get("outs", [])}
    reasons: dict[str, str] = {}
    for name, stage in stages.get("stages", {}).items():
        own = [*stage.get("metrics", []), *stage.get("plots", [])]
        shown = {path for out in own for path in ([out] if isinstance(out, str) else out)}
        doubt = _of_entry(root, entries[name], shown, params, written) if name in entries else iter(["not in dvc.lock"])
        before = (written[dep["path"]][0] for dep in entries.get(name, {}).get("deps", []) if dep["path"] in written)
        follows = (f"follows {writer}" for writer in before if writer in reasons)
        if reason := next(itertools.chain(doubt, follows), None):
            reasons[name] = reason
    return reasons


def _of_entry(
    root: Path, entry: Mapping[str, Any], shown: Set[str], params: Mapping[str, Any], written: Mapping[str, Any]
) -> Iterator[str]:
    """What speaks against an entry of dvc.lock, by itself; `shown` are the paths of its metrics and plots."""
    for key, then in entry.get("params", {}).get("params.yaml", {}).items():
        now: Any = params
        for part in key.split("."):
            now = now.get(part, ABSENT) if isinstance(now, Mapping) else ABSENT
        yield from _of_param(key, now, then)
    for dep in entry.get("deps", []):
        path = dep["path"]
        if path in written and dep.get("md5") != written[path][1]:
            yield f"dep {path} is not what {written[path][0]} left there"
        elif path.removeprefix("../").startswith("src/") and dep.get("md5") != _md5_of(root / path):
            yield f"dep {path} is not that of dvc.lock"
    for out in entry.get("outs", []):
        if out["path"] in shown and out.get("md5") != _md5_of(root / out["path"]):
            yield f"{out['path']} is not that of dvc.lock"


def _md5_of(path: Path) -> str | None:
    """`md5` of a file or folder here, None where there is none."""
    if path.is_file():
        return md5({"": path.read_bytes()})
    below = [file for file in path.rglob("*") if file.is_file() and file.parent.name != "__pycache__"]
    return md5({file.relative_to(path).as_posix(): file.read_bytes() for file in below}) if below else None


def md5(files: Mapping[str, bytes]) -> str:
    """DVC's hash of a folder, by the contents of its files under their names in it; of one file where that is ""."""
    hashes = {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in files.items()}
    if "" in hashes:
        return hashes[""]
    rows = [{"md5": hashes[name], "relpath": name} for name in sorted(hashes, key=lambda name: name.split("/"))]
    return hashlib.md5(json.dumps(rows).encode(), usedforsecurity=False).hexdigest() + ".dir"
