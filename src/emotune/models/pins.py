"""What DVC cannot hash is pinned: which base model, and which content of it."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from emotune.core import processes, records, seeds
from emotune.core.errors import InputError

# The base model that comes with the package, and one that the base_model stage trains from nothing.
EMBEDDED, SCRATCH = "embedded", "scratch"
OWN = (EMBEDDED, SCRATCH)
BASE_FILE = "base.json"
WEIGHTS = Path(__file__).with_name("weights")
# Beside the weights: their sha256, and what they measured when they were made.
MADE = WEIGHTS.with_name("embedded.json")


def embedded() -> dict[str, Any]:
    """What was measured of the model that comes with the package; InputError where its files are not what was made."""
    made: dict[str, Any] = records.read_json(MADE)
    pinned, content = made.pop("sha256"), folder_revision(WEIGHTS) if WEIGHTS.is_dir() else None
    if content != pinned:
        raise InputError(
            f"model.base: embedded: {WEIGHTS} should have sha256 {pinned}, found {content}; `git checkout` brings the "
            "files back, `make base` makes them again"
        )
    return made


def place(base: str, revision: str | None, out: Path) -> dict[str, Any]:
    """The embedded model in a folder, or what pins another; returns what was measured of it, or how many files it has.

    InputError as `embedded` and `resolve` say.
    """
    if base != EMBEDDED:
        pinned = resolve(base, revision)
        records.write_json(out / BASE_FILE, pinned)
        return {"files": len(pinned["files"])}
    metrics = embedded()
    shutil.copytree(WEIGHTS, out, dirs_exist_ok=True)
    records.write_json(out / BASE_FILE, {"name": base})
    return metrics


def resolve(base: str, revision: str | None) -> dict[str, Any]:
    """What pins a base model that is not trained here: name, revision, and its files' hashes where they are local.

    InputError where a folder is missing or holds no model, where its content is not what `revision` pins, and where a
    Hub name comes without a commit.
    """
    folder = located(base)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"model.base: {base} holds no config.json: it is not a saved transformers model")
        files = _files(folder)
        content = records.content_hash(files)
        if revision != content:
            raise InputError(
                f"model.revision must pin the content of {base}, which DVC cannot hash: found sha256 {content}, "
                f"params.yaml has {revision}"
            )
        return {"name": base, "revision": content, "files": files}
    if base.startswith((".", "/", "~")) or base.count("/") != 1:
        raise InputError(
            f"model.base: no such folder {folder}; accepted: embedded, scratch, a local folder, a Hub name owner/model"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise InputError(f"model.revision must be a 40-digit commit of {base} on the Hub, not a branch; got {revision}")
    return {"name": base, "revision": revision, "files": {}}


def located(path: str) -> Path:
    """A path of params.yaml: a relative one starts at the repository, in a DVC experiment's workspace too."""
    return Path(os.environ.get("DVC_ROOT", "."), Path(path).expanduser())


def folder_revision(folder: Path) -> str:
    """The `model.revision` that pins a local folder as it is now."""
    return records.content_hash(_files(folder))


def _files(folder: Path) -> dict[str, str]:
    """The sha256 of each file in a model's folder by name, in order; what lies in folders below it does not count."""
    return {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}


def _sha256(path: Path) -> str:
    """A file's sha256, read from its content where size or times are not those of a file that was read before.

    A stage looks at the pin of its model at each use, and the weights of a large one take a minute to read.
    """
    now = path.stat()
    # The second time changes when the first is set back, as a copy does that keeps it.
    stamp = seeds.key(path.resolve(), now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    memo = processes.work("pins", str(stamp))
    known = memo.read_text("utf-8") if memo.exists() else ""
    if len(known) != 64:
        known = records.sha256(path)
        memo.parent.mkdir(parents=True, exist_ok=True)
        memo.write_text(known, "utf-8")
    return known


def where(folder: Path) -> dict[str, Any]:
    """from_pretrained's arguments for a stage's out: what lies there, or what the base_model stage pinned instead.

    InputError where a pinned folder no longer holds what that stage read: no stage would be run again for it.
    """
    pin = folder / BASE_FILE
    pinned: dict[str, Any] = records.read_json(pin) if pin.exists() else {"name": EMBEDDED}
    if pinned["name"] in OWN:
        return {"pretrained_model_name_or_path": str(folder)}
    if not pinned["files"]:
        return {"pretrained_model_name_or_path": pinned["name"], "revision": pinned["revision"]}
    local = located(pinned["name"])
    here = _files(local) if local.is_dir() else {}
    if changed := sorted({name for name, _ in here.items() ^ pinned["files"].items()}):
        raise InputError(
            f"model.base: {local} is no longer what the base_model stage read and model.revision pins, sha256 "
            f"{pinned['revision']}; other, lost or new: {', '.join(changed)}"
        )
    return {"pretrained_model_name_or_path": str(local)}
