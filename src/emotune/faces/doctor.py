"""emotune doctor: what this machine has and lacks, for the embedded default and for each profile."""

import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import sqlite3
import sys
import textwrap
import threading
import tomllib
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

import psutil

from emotune.core import processes
from emotune.core.addresses import without_password
from emotune.core.errors import InputError
from emotune.core.nested import overlaid
from emotune.core.sections import read_yaml
from emotune.runs import estimate, params, tracking

GB = 1e9
# What the embedded default takes, rounded up: the largest stage's memory; cache, journal and checkpoints of a few runs.
MEMORY, DISK = 2 * GB, 1 * GB
# A model in 16 bits that is downloaded for a profile of seven billion parameters, and what is made of it.
DOWNLOAD = 20 * GB
# A store or a tracker that says nothing for so many seconds is not reachable.
PATIENCE = 4.0
# What Linux calls a processor's instructions for bfloat16: AMX, AVX-512, and Arm's.
PROCESSOR, BF16_FLAGS = Path("/proc/cpuinfo"), {"amx_bf16", "avx512_bf16", "bf16"}
# The Python that the pins of constraints.txt were measured with.
MEASURED = (3, 11)
JUDGED = ("emotion", "gibberish")
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


@dataclass(frozen=True)
class Finding:
    """One line: ok; warn, where something is slower, missing or lost without it; fail, where something cannot run."""

    state: Literal["ok", "warn", "fail"]
    subject: str
    found: str
    to_do: str = ""


@dataclass(frozen=True)
class Gpu:
    """The GPU that a stage would use; `memory` in bytes."""

    name: str
    memory: int
    free: int
    bf16: bool


class Lack(NamedTuple):
    """What a profile lacks, and whether that stops a run: what a run downloads, or its command names, does not."""

    what: str
    stops: bool = True


def examined(root: Path, pipeline: Path | None = None) -> tuple[list[Finding], list[Finding]]:
    """The lines of the machine, and those of the profiles; InputError where `root` is not the repository's.

    `pipeline` is the folder of the one that is asked for, where that is not the root's.
    """
    for name in ("dvc.yaml", "params.yaml", "constraints.txt", "pyproject.toml"):
        if not (root / name).is_file():
            raise InputError(f"doctor: no {name} in {root}: run it in the repository's root")
    try:
        gpu, broken = usable_gpu(), []
    except InputError as error:
        gpu, broken = None, [Finding("fail", "torch", str(error), "pip install -c constraints.txt torch")]
    return broken + machine(root, gpu, pipeline), profiles(root, gpu, pipeline)


def text(findings: list[Finding], width: int = 120) -> str:
    """Aligned lines, `state  subject  found`, and under it, where something is wrong, what to do."""
    column = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        says = f"{finding.found}; {finding.to_do}" if finding.to_do else finding.found
        head = f"{finding.state:4}  {finding.subject:{column}}  "
        below = " " * len(head)
        lines += textwrap.wrap(says, width, initial_indent=head, subsequent_indent=below, break_on_hyphens=False)
    return "\n".join(lines)


def usable_gpu() -> Gpu | None:
    """The first GPU that torch can use; importing torch takes a second or two. InputError where torch cannot start."""
    try:
        if importlib.util.find_spec("torch") is None:
            return None
        import torch

        if not torch.cuda.is_available():
            return None
        free, memory = torch.cuda.mem_get_info(0)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Gpu(torch.cuda.get_device_name(0), memory, free, bf16)
    except (ImportError, OSError, RuntimeError) as error:  # a wheel for another machine, a library or a driver too old
        raise InputError(f"torch does not start: {_reason(error)}") from None


def machine(root: Path, gpu: Gpu | None, pipeline: Path | None = None) -> list[Finding]:
    """What any run needs here. One `fail` among these lines means that the embedded default cannot run."""
    return [
        _python(),
        _packages(root),
        _git(),
        _processor(),
        _memory(root),
        *_graphics(gpu),
        _package("flash-attn", "model.attention: flash_attention_2 needs it: pip install -e '.[gpu]'"),
        _package("bitsandbytes", "model.quantization: nf4 needs it: pip install -e '.[dev]'"),
        _disk(root),
        *_dvc(root, pipeline or root),
        _tracker(root),
        _token(),
    ]


def _python() -> Finding:
    found = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info[:2] != MEASURED:
        return Finding("warn", "python", found, "measured with {}.{}".format(*MEASURED))
    return Finding("ok", "python", found)


def _packages(root: Path) -> Finding:
    """Installed versions beside constraints.txt; a dependency of pyproject.toml that is absent is a failure."""
    installed: dict[str, str] = {}
    for own in metadata.distributions():
        # As an import does, the first on the path: setuptools, once imported, appends copies of its own.
        installed.setdefault(_normal(own.name), own.version.split("+")[0])
    lines = (root / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    needed = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    names = [re.split(r"[^\w.-]", dependency)[0] for dependency in needed]
    if missing := [name for name in names if _normal(name) not in installed]:
        return Finding("fail", "packages", f"absent: {', '.join(missing)}", "make test installs them")
    if others := [name for name, pin in pins.items() if installed.get(_normal(name), pin) != pin]:
        shown = ", ".join(f"{name} {installed[_normal(name)]} (not {pins[name]})" for name in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        return Finding("warn", "packages", f"{shown}{more}", "measured with constraints.txt: pip install -c it")
    held = sum(_normal(name) in installed for name in pins)
    return Finding("ok", "packages", f"{held} of {len(pins)} pins installed, each in its version")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _git() -> Finding:
    if shutil.which("git") is None:
        return Finding("fail", "git", "absent", "DVC and the stages ask it: install it")
    return Finding("ok", "git", "on the PATH")


def _processor() -> Finding:
    cores, threads = processes.cores(), os.environ.get("OMP_NUM_THREADS")
    found = f"{cores} cores, {f'{threads} threads (OMP_NUM_THREADS)' if threads else f'{cores} threads'}"
    if threads and threads.isdecimal() and int(threads) > cores:
        return Finding("warn", "cpu", found, "more threads than cores can cost a factor of twenty: unset it")
    return Finding("ok", "cpu", found)


def _memory(root: Path) -> Finding:
    """How much of it is free, and whether every stage fits, as `emotune estimate` has it."""
    seen, limit = psutil.virtual_memory(), Path("/sys/fs/cgroup/memory.max")
    # What a container leaves of the machine's memory.
    held = limit.read_text().strip() if limit.is_file() else ""
    total = min(seen.total, int(held)) if held.isdecimal() else seen.total
    available = min(seen.available, total)
    found = f"{available / GB:.1f} of {total / GB:.1f} GB free"
    if available < MEMORY:
        to_do = f"the embedded default takes {MEMORY / GB:.0f} GB"
        return Finding("fail" if total < MEMORY else "warn", "memory", found, to_do)
    p, here = params.whole(root / "params.yaml"), estimate.here()
    if not isinstance(p, params.Params):
        return Finding("ok", "memory", found)
    lacks = (estimate.excess(stage, p, root / "data/dialogues", here) for stage in estimate.STAGES)
    try:
        if lack := next(filter(None, lacks), ""):
            return Finding("warn", "memory", found, lack)
    except InputError:
        return Finding("ok", "memory", f"{found}, how much {p.model.base} takes is not known")
    return Finding("ok", "memory", f"{found}, every stage fits")


def _graphics(gpu: Gpu | None) -> list[Finding]:
    if gpu is None:
        idle = shutil.which("nvidia-smi") is not None
        to_do = "a driver is here: install torch with CUDA" if idle else "the 7b profiles need one, the others do not"
        return [Finding("warn", "gpu", "none that torch can use", to_do), _bf16_of_processor()]
    bf16 = Finding("ok", "bf16", "native")
    if not gpu.bf16:
        bf16 = Finding("warn", "bf16", "not native on this GPU", "model.dtype: float16 is faster on it")
    return [Finding("ok", "gpu", f"{gpu.name}, {gpu.free / GB:.1f} of {gpu.memory / GB:.1f} GB free"), bf16]


def _bf16_of_processor() -> Finding:
    """Whether the processor multiplies in bfloat16 itself; told by Linux alone."""
    words = set(PROCESSOR.read_text("utf-8").split()) if PROCESSOR.is_file() else set()
    if native := sorted(words & BF16_FLAGS):
        return Finding("ok", "bf16", f"native ({', '.join(native)}), no GPU: model.dtype: bfloat16 is fast")
    return Finding("ok", "bf16", "in software, no GPU: model.dtype: float32 is faster")


def _package(name: str, to_do: str) -> Finding:
    return Finding("ok", name, metadata.version(name)) if _installed(name) else Finding("warn", name, "absent", to_do)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package.replace("-", "_")) is not None


def _disk(root: Path) -> Finding:
    free = shutil.disk_usage(root).free
    found = f"{free / GB:.1f} GB free at {root}"
    if not os.access(root, os.W_OK):
        return Finding("fail", "disk", f"{root} cannot be written to", "clone where you may write")
    if free < DISK:
        return Finding("fail", "disk", found, f"the embedded default takes {DISK / GB:.0f} GB: make room")
    return Finding("ok", "disk", found)


def _dvc(root: Path, pipeline: Path) -> list[Finding]:
    """The repository's cache and remote, the pipeline's lock: three lines, or one that says why DVC cannot read it."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    from emotune.runs import lock

    try:
        with Repo(str(root)) as repo:
            locked = lock.compared(pipeline)
            return [_cache(Path(repo.cache.local_cache_dir)), _remote(repo), _lock(locked.differs, locked.lost)]
    except (DvcException, InputError) as error:
        return [Finding("fail", "dvc", " ".join(str(error).split()), "run emotune in the repository's root")]


def _cache(path: Path) -> Finding:
    folder = _nearest(path)
    if not os.access(folder, os.W_OK):
        return Finding("fail", "dvc cache", f"{path} cannot be written to", "dvc cache dir --local path")
    return Finding("ok", "dvc cache", f"{path}, {shutil.disk_usage(folder).free / GB:.1f} GB free")


def _remote(repo: Any) -> Finding:
    name = repo.config["core"].get("remote")
    if not name:
        return Finding("warn", "dvc remote", "none: data stay in this cache", "dvc remote add --default store url")
    url = repo.config["remote"].get(name, {}).get("url", "unknown")

    def look() -> str:
        store = repo.cloud.get_remote_odb(command="pull")
        try:
            store.fs.info(store.path)
        except FileNotFoundError:
            return "nothing pushed to it yet"
        return "answers"

    return _answering("dvc remote", f"{name}, {url}", lambda: _within(look), "dvc push and dvc pull will not work")


def _lock(differs: list[str], lost: list[str]) -> Finding:
    if differs:
        stages = {reason.split(":")[0] for reason in differs}
        return Finding("warn", "dvc.lock", f"not current: {', '.join(sorted(stages))}", "emotune current says why")
    if lost:
        return Finding("warn", "dvc.lock", f"current, but {len(lost)} of its outs are nowhere", "dvc repro makes them")
    return Finding("ok", "dvc.lock", "current")


def _tracker(root: Path) -> Finding:
    if tracking.off():
        return Finding("ok", "tracker", "off (EMOTUNE_TRACKING)")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
    return _answering("tracker", uri, lambda: _reached(uri), "runs go on untracked, with one warning")


def _reached(uri: str) -> str:
    """How a tracker answers; an exception, of whatever kind, where it does not."""
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if not path.exists():
            if not os.access(path.parent, os.W_OK):
                raise PermissionError(f"{path.parent} cannot be written to")
            return "the first stage makes it"
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as store:
            return f"{store.execute('select count(*) from runs').fetchone()[0]} runs"
    url = urlsplit(uri)
    if url.scheme in ("http", "https"):
        # Of a user and a password before the host, Python's opener makes a part of the host's name.
        request = urllib.request.Request(f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path.rstrip('/')}/health")
        if url.username:
            login = f"{unquote(url.username)}:{unquote(url.password or '')}"
            request.add_unredirected_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
        try:
            urllib.request.urlopen(request, timeout=PATIENCE).close()
        except urllib.error.HTTPError as refusal:
            return f"answers {refusal.code}"
        return "answers"
    port = url.port or PORTS.get(url.scheme.split("+")[0])
    if url.hostname is None or port is None:
        return "not asked: no server that doctor knows"
    socket.create_connection((url.hostname, port), timeout=PATIENCE).close()
    return f"port {port} answers"


def _answering(subject: str, address: str, ask: Callable[[], str], to_do: str) -> Finding:
    """What is heard from an address, or why nothing is; a password is shown neither in it nor in the reason."""
    shown = without_password(address)
    try:
        return Finding("ok", subject, f"{shown}: {ask()}")
    # Each kind of store has exceptions of its own; the line says which it was.
    except Exception as error:
        return Finding("warn", subject, f"{shown}: {without_password(_reason(error), address)}", to_do)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _within(call: Callable[[], str]) -> str:
    """What a call returns or raises; TimeoutError where that takes more than our patience (it is left to itself)."""
    answer: Future[str] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not answer.done():
        raise TimeoutError(f"no answer in {PATIENCE:.0f} seconds")
    return answer.result()


def _token() -> Finding:
    from huggingface_hub import constants, get_token

    offline = ", offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    if get_token() is None:
        to_do = "publishing and gated models need one: hf auth login, or HF_TOKEN"
        return Finding("warn", "hub token", f"absent{offline}", to_do)
    return Finding("ok", "hub token", f"present{offline}")


def profiles(root: Path, gpu: Gpu | None, pipeline: Path | None = None) -> list[Finding]:
    """What params.yaml as it is, and each profile put into it, would need and lacks here."""
    folder = pipeline or root
    params.whole(folder / "params.yaml")
    content = read_yaml(folder / "params.yaml")
    overlays = {path.stem: read_yaml(path) for path in sorted((folder / "profiles").glob("*.yaml"))}
    wholes = {"params.yaml": content} | {name: overlaid(content, overlay) for name, overlay in overlays.items()}
    return [_profile(root, name, whole, gpu) for name, whole in wholes.items()]


def _profile(root: Path, name: str, content: Mapping[str, Any], gpu: Gpu | None) -> Finding:
    """`fail` where a stage would stop, `warn` where something has to be brought first."""
    model, needs = content["model"], dict(_needs(name, content, gpu))
    lacks = [lack for lacking in needs.values() for lack in lacking] + _lacking_data(root, content)
    named = [content.get(part, {}).get(f"{kind}_judge") for part in ("reward", "evaluate") for kind in JUDGED]
    judges = [judge for judge in named if judge]
    for base, revision in [(model["base"], model["revision"]), *((j["name"], j["revision"]) for j in judges)]:
        lacks += _lacking_model(root, base, revision)
    own = {"embedded": "the model that comes with it", "scratch": "a model trained from nothing"}
    found = ", ".join([own.get(model["base"], model["base"]), *needs])
    if not lacks:
        return Finding("ok", name, found)
    to_do = f"lacks {', '.join(lack.what for lack in dict.fromkeys(lacks))}"
    return Finding("fail" if any(lack.stops for lack in lacks) else "warn", name, found, to_do)


def _needs(name: str, content: Mapping[str, Any], gpu: Gpu | None) -> Iterator[tuple[str, list[Lack]]]:
    """What a run needs beside its models and its data, and what of that is lacking."""
    without_gpu = [] if gpu else [Lack("a GPU")]
    if gigabytes := re.search(r"(\d+)gb$", name):
        # A card sold as 12 GB has 12 x 1024^3 bytes, less what its driver keeps: the decimal figure lets it pass.
        enough = gpu is None or gpu.memory >= int(gigabytes[1]) * GB
        small = [] if gpu is None or enough else [Lack(f"GPU memory: {gpu.name} has {gpu.memory / GB:.1f} GB")]
        yield f"a GPU of {gigabytes[1]} GB", without_gpu + small
    model, trained = content["model"], [content[name] for name in ("sft", "reward_model", "dpo") if name in content]
    if model["quantization"] == "nf4" or any("8bit" in one["optimizer"] for one in trained):
        yield "bitsandbytes", [] if _installed("bitsandbytes") else [Lack("bitsandbytes")]
    if model["attention"] == "flash_attention_2":
        yield "flash-attn on a GPU", ([] if _installed("flash-attn") else [Lack("flash-attn")]) + without_gpu
    if (content.get("generation") or content["questions"]["generation"])["engine"] == "server":
        yield "a server", [] if os.environ.get("EMOTUNE_SERVER") else [Lack("EMOTUNE_SERVER")]


def _lacking_data(root: Path, content: Mapping[str, Any]) -> list[Lack]:
    of_emotions = "data" in content
    data, what = (content["data"], "dialogues") if of_emotions else (content["rows"], "rows")
    if data["source"] not in ("folder", "jsonl"):
        return []
    if data["path"] is None:
        return [Lack(f"{what} ({'DATA=path' if of_emotions else 'rows.path'})", stops=False)]
    path = root / Path(data["path"]).expanduser()
    return [] if path.exists() else [Lack(f"{what} (no such path: {path})")]


def _lacking_model(root: Path, name: str, revision: str | None) -> list[Lack]:
    """A local folder that is not there, or a model of the Hub that is not whole in its cache."""
    folder = root / Path(name).expanduser()
    if name in ("embedded", "scratch") or folder.is_dir():
        return []
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        return [Lack(f"its model (no such folder: {folder})")]
    from huggingface_hub import constants

    if _downloaded(name, revision):
        return []
    if constants.HF_HUB_OFFLINE:
        return [Lack("its model (not downloaded, and HF_HUB_OFFLINE is set)")]
    free = shutil.disk_usage(_nearest(Path(constants.HF_HUB_CACHE))).free
    room = "" if free > DOWNLOAD else f" where {free / GB:.0f} GB are free"
    return [Lack(f"its model (the first run downloads it{room})", stops=False)]


def _nearest(path: Path) -> Path:
    """The path, or what of it there is."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _downloaded(name: str, revision: str | None) -> bool:
    """Whether the Hub's cache has weights at that commit: one file, or all that their index names."""
    cached = partial(estimate.cached_file, name, revision=revision)
    for whole in ("model.safetensors", "pytorch_model.bin"):
        if cached(whole):
            return True
        if index := cached(f"{whole}.index.json"):
            files = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            return all(cached(file) for file in files)
    return False
