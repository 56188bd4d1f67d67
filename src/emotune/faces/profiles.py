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
from emotune.runs.params import Params, kind_of, whole


def profiles(folder: Path) -> dict[str, str]:
    """The name of every profile in a folder, and what its first line says of it."""
    files = sorted(folder.glob("*.yaml"))
    return {path.stem: path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ") for path in files}


def read_profile(folder: Path, name: str) -> dict[str, Any]:
    """The keys that a profile sets; InputError lists the profiles there are where `name` is none of them."""
    if name not in profiles(folder):
        raise InputError(f"no profile {name!r}; there are {', '.join(profiles(folder))}")
    return read_yaml(folder / f"{name}.yaml")


def pinned_data(path: str, params: Path) -> tuple[dict[str, Any], str]:
    """The keys of `data` for what lies at a path, and what that was recognised as.

    `source`, `path` and the fingerprint, because DVC cannot hash it; `labels` and `neutral` where it has other emotions
    than those of a params.yaml, whose source may be none yet.
    """
    from emotune.data import sources

    # Whatever its source is: the one that it would lack a path for is replaced.
    now = check(Params, nested.overlaid(read_yaml(params), {"data": {"source": "embedded"}}), str(params)).data
    corpus = sources.recognised(path)
    kind = {"folder": "DailyDialog", "jsonl": "JSONL"}[corpus.source]
    counts = (", ".join(f"{name} {n}" for name, n in all.items()) for all in (corpus.dialogues, corpus.emotions))
    said = "{}: {}; dialogues: {}; turns: {}".format(path, kind, *counts)
    pinned: dict[str, Any] = {"source": corpus.source, "path": path, "revision": corpus.revision}
    if corpus.emotions.keys() != set(now.labels):
        if len(corpus.emotions) < 2:
            raise InputError(f"--data {said}; there must be turns of two emotions or more")
        known = [name for name in (now.neutral, "neutral") if name in corpus.emotions]
        own = known[0] if known else max(sorted(corpus.emotions), key=corpus.emotions.__getitem__)
        pinned |= {"labels": [own, *sorted(corpus.emotions.keys() - {own})], "neutral": own}
        said += "" if known else f"; none is called neutral, so data.neutral is the most frequent: {own}"
    return pinned, said


def pinned_model(name: str) -> dict[str, str | None]:
    """`model.base` and `model.revision`: a Hub name and its commit, a local folder and its sha256, or one of ours."""
    if name in pins.OWN:
        return {"base": name, "revision": None}
    if hub := re.fullmatch(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})", name):
        return {"base": hub[1], "revision": hub[2]}
    folder = pins.located(name)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"--model: {name} is no folder with a config.json; accepted: a saved transformers model, "
            "owner/model@commit with the commit's 40 digits, embedded or scratch"
        )
    return {"base": name, "revision": pins.folder_revision(folder)}


def apply(path: Path, overlays: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Put overlays, each under the name that an error shows, into a params.yaml whose comments and order stay.

    Returns a line `key: old -> new` for each value that changed. The result is checked as a whole before anything is
    written, so a bad overlay changes nothing, and one may mend what was bad.
    """
    changed = reduce(nested.overlaid, overlays.values(), read_yaml(path))
    try:
        check(kind_of(path), changed, " + ".join([str(path), *overlays]))
    except InputError:
        whole(path)  # What was wrong before is no fault of an overlay.
        raise
    yaml = YAML()
    yaml.preserve_quotes = True
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
