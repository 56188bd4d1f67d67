"""Profiles, data sets and models put into params.yaml, whose comments and order stay."""

import json
import re
from collections.abc import Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from emotune.core import nested, records
from emotune.core.errors import InputError
from emotune.core.sections import check, read_yaml
from emotune.models import pins
from emotune.runs.params import Params, parse


def profiles(folder: Path) -> dict[str, str]:
    """The name of every profile in a folder, and what its first line says of it."""
    files = sorted(folder.glob("*.yaml"))
    return {path.stem: path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ") for path in files}


def read_profile(folder: Path, name: str) -> dict[str, Any]:
    """The keys that a profile sets; InputError lists the profiles there are where `name` is none of them."""
    if name not in profiles(folder):
        raise InputError(f"no profile {name!r}; there are {', '.join(profiles(folder))}")
    return read_yaml(folder / f"{name}.yaml")


def pinned_data(path: str) -> dict[str, str]:
    """`data.path`, and the fingerprint of what lies there, because DVC cannot hash it."""
    from emotune.data import sources

    return {"path": path, "revision": sources.fingerprint(path)}


def pinned_model(name: str) -> dict[str, str | None]:
    """`model.base` and `model.revision`: a Hub name and its commit, a local folder and its sha256, or `embedded`."""
    if name == pins.EMBEDDED:
        return {"base": name, "revision": None}
    if hub := re.fullmatch(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})", name):
        return {"base": hub[1], "revision": hub[2]}
    folder = pins.located(name)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"--model: {name} is no folder with a config.json; accepted: a saved transformers model, "
            "owner/model@commit with the commit's 40 digits, or embedded"
        )
    return {"base": name, "revision": pins.folder_revision(folder)}


def apply(path: Path, overlays: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Put overlays, each under the name that an error shows, into a params.yaml whose comments and order stay.

    Returns a line `key: old -> new` for each value that changed. The result is checked as a whole before anything is
    written, so a bad overlay changes nothing.
    """
    parse(path)
    whole = reduce(nested.overlaid, overlays.values(), read_yaml(path))
    checked = check(Params, whole, " + ".join([str(path), *overlays]))
    if "--data" in overlays and checked.data.source not in ("folder", "jsonl"):
        raise InputError(f"--data is read where data.source is folder or jsonl, and it is {checked.data.source}")
    yaml = YAML()
    yaml.width = 1000
    # Its own way to write null is to write nothing.
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    content = yaml.load(path.read_text(encoding="utf-8"))
    if changes := [change for overlay in overlays.values() for change in _merge(content, overlay)]:
        with records.replacing(path) as file:
            yaml.dump(content, file)
    return changes


def _merge(content: CommentedMap, overlay: Mapping[str, Any]) -> list[str]:
    """Set every key of the overlay in the content, section by section; a line for each value that differed."""
    changes = []
    for key, new in nested.settings(overlay, content):
        *above, last = key.split(".")
        section = reduce(getitem, above, content)
        # As JSON, in which 1, 1.0 and true differ as they do in params.yaml.
        if (was := json.dumps(section.get(last))) != (now := json.dumps(new)):
            section[last] = _in_one_line(new)
            changes.append(f"{key}: {was} -> {now}")
    return changes


def _in_one_line(value: Any) -> Any:
    """A list or mapping as `[a, b]` or `{a: b}`: `dvc exp run -S` loses comments after one that spans lines."""
    if not isinstance(value, list | dict):
        return value
    flow = CommentedSeq(value) if isinstance(value, list) else CommentedMap(value)
    flow.fa.set_flow_style()
    return flow
