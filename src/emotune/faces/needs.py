"""What params.yaml, and each profile put into it, needs of this machine, and what of that is lacking."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from emotune.core.nested import overlaid
from emotune.core.sections import read_yaml
from emotune.faces.machine import GB, Finding, Gpu, State, nearest
from emotune.runs.params import parse

# A model in 16 bits that is downloaded for a profile of seven billion parameters, and what is made of it.
DOWNLOAD = 20 * GB


class Lack(NamedTuple):
    """What a profile lacks, and whether that stops a run: what a run downloads, or its command names, does not."""

    what: str
    stops: bool = True


def findings(root: Path, gpu: Gpu | None) -> list[Finding]:
    """What params.yaml as it is, and each profile put into it, would need and lacks here."""
    parse(root / "params.yaml")
    content = read_yaml(root / "params.yaml")
    profiles = {path.stem: read_yaml(path) for path in sorted((root / "profiles").glob("*.yaml"))}
    wholes = {"params.yaml": content} | {name: overlaid(content, profile) for name, profile in profiles.items()}
    return [_finding(root, name, whole, gpu) for name, whole in wholes.items()]


def _finding(root: Path, name: str, content: Mapping[str, Any], gpu: Gpu | None) -> Finding:
    """`fail` where a stage would stop, `warn` where something has to be brought first."""
    model = content["model"]
    needs = [model["base"] if model["base"] != "embedded" else "a model trained here"]
    lacks: list[Lack] = []
    for need, lacking in _needs(name, content, gpu):
        needs.append(need)
        lacks += lacking
    lacks += _lacking_data(root, content["data"])
    judges = [content["reward"]["emotion_judge"], content["evaluate"]["emotion_judge"], content["gibberish_judge"]]
    for base, revision in [(model["base"], model["revision"]), *((j["name"], j["revision"]) for j in judges)]:
        lacks += _lacking_model(root, base, revision)
    if not lacks:
        return Finding("ok", name, ", ".join(needs))
    state: State = "fail" if any(lack.stops for lack in lacks) else "warn"
    return Finding(state, name, ", ".join(needs), f"lacks {', '.join(lack.what for lack in dict.fromkeys(lacks))}")


def _needs(name: str, content: Mapping[str, Any], gpu: Gpu | None) -> Iterator[tuple[str, list[Lack]]]:
    """What a run needs beside its models and its data, and what of that is lacking."""
    if gigabytes := re.search(r"(\d+)gb$", name):
        yield f"a GPU of {gigabytes[1]} GB", _lacking_memory(int(gigabytes[1]), gpu)
    model = content["model"]
    if model["quantization"] == "nf4" or any("8bit" in content[stage]["optimizer"] for stage in ("sft", "dpo")):
        yield "bitsandbytes", _lacking_package("bitsandbytes", "bitsandbytes")
    if model["attention"] == "flash_attention_2":
        yield "flash-attn on a GPU", _lacking_package("flash-attn", "flash_attn") + ([] if gpu else [Lack("a GPU")])
    if content["generation"]["engine"] == "server":
        yield "a server", [] if os.environ.get("EMOTUNE_SERVER") else [Lack("EMOTUNE_SERVER")]


def _lacking_memory(gigabytes: int, gpu: Gpu | None) -> list[Lack]:
    if gpu is None:
        return [Lack("a GPU")]
    # A card sold as 12 GB has 12 x 1024^3 bytes, less what its driver keeps: the decimal figure lets it pass.
    enough = gpu.memory >= gigabytes * GB
    return [] if enough else [Lack(f"GPU memory: {gpu.name} has {gpu.memory / GB:.1f} GB")]


def _lacking_package(name: str, module: str) -> list[Lack]:
    return [] if importlib.util.find_spec(module) else [Lack(name)]


def _lacking_data(root: Path, data: Mapping[str, Any]) -> list[Lack]:
    if data["source"] not in ("folder", "jsonl"):
        return []
    if data["path"] is None:
        return [Lack("dialogues (DATA=path)", stops=False)]
    path = root / Path(data["path"]).expanduser()
    return [] if path.exists() else [Lack(f"dialogues (no such path: {path})")]


def _lacking_model(root: Path, name: str, revision: str | None) -> list[Lack]:
    """A local folder that is not there, or a model of the Hub that is not whole in its cache."""
    folder = root / Path(name).expanduser()
    if name == "embedded" or folder.is_dir():
        return []
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        return [Lack(f"its model (no such folder: {folder})")]
    from huggingface_hub import constants

    if _downloaded(name, revision):
        return []
    if constants.HF_HUB_OFFLINE:
        return [Lack("its model (not downloaded, and HF_HUB_OFFLINE is set)")]
    free = shutil.disk_usage(nearest(Path(constants.HF_HUB_CACHE))).free
    room = "" if free > DOWNLOAD else f" where {free / GB:.0f} GB are free"
    return [Lack(f"its model (the first run downloads it{room})", stops=False)]


def _downloaded(name: str, revision: str | None) -> bool:
    """Whether the Hub's cache has weights at that commit: one file, or all that their index names."""
    from huggingface_hub import try_to_load_from_cache

    def cached(file: str) -> str | None:
        path = try_to_load_from_cache(name, file, revision=revision)
        return path if isinstance(path, str) else None

    for whole in ("model.safetensors", "pytorch_model.bin"):
        if cached(whole):
            return True
        if index := cached(f"{whole}.index.json"):
            files = set(json.loads(Path(index).read_text("utf-8"))["weight_map"].values())
            return all(cached(file) for file in files)
    return False
