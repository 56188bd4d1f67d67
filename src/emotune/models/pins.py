"""What DVC cannot hash is pinned: which base model, and which content of it."""

import os
import re
from pathlib import Path
from typing import Any

from emotune.core import records
from emotune.core.errors import InputError

EMBEDDED = "embedded"
BASE_FILE = "base.json"


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
            f"model.base: no such folder {folder}; accepted: embedded, a local folder, a Hub name owner/model"
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
    return {path.name: records.sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}


def where(folder: Path) -> dict[str, Any]:
    """from_pretrained's arguments for a stage's out: what lies there, or what the base_model stage pinned instead."""
    pin = folder / BASE_FILE
    pinned = records.read_json(pin) if pin.exists() else {"name": EMBEDDED}
    if pinned["name"] == EMBEDDED:
        return {"pretrained_model_name_or_path": str(folder)}
    if not pinned["files"]:
        return {"pretrained_model_name_or_path": pinned["name"], "revision": pinned["revision"]}
    local = located(pinned["name"])
    missing = [name for name in pinned["files"] if not (local / name).is_file()]
    if missing:
        raise InputError(f"model.base: {local} has lost {', '.join(missing)} since the base_model stage read it")
    return {"pretrained_model_name_or_path": str(local)}
