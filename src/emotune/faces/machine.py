"""What this machine has for any run: a line for each part."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import socket
import sqlite3
import sys
import threading
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import psutil

from emotune.core import processes
from emotune.core.addresses import without_password
from emotune.core.errors import InputError
from emotune.runs import tracking

T = TypeVar("T")
State = Literal["ok", "warn", "fail"]

GB = 1e9
# What the embedded default takes, rounded up: the largest stage's memory; cache, journal and checkpoints of a few runs.
MEMORY, DISK = 2 * GB, 1 * GB
# A store or a tracker that says nothing for so many seconds is not reachable.
PATIENCE = 4.0
# The Python that the pins of constraints.txt were measured with.
MEASURED = (3, 11)
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


@dataclass(frozen=True)
class Finding:
    """One line: ok; warn, where something is slower, missing or lost without it; fail, where something cannot run."""

    state: State
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


def findings(root: Path, gpu: Gpu | None) -> list[Finding]:
    """What any run needs here. One `fail` among these lines means that the embedded default cannot run."""
    return [
        _python(),
        _packages(root),
        _git(),
        _processor(),
        _memory(),
        *_graphics(gpu),
        _package("flash-attn", "flash_attn", "model.attention: flash_attention_2 needs it: pip install -e '.[gpu]'"),
        _package("bitsandbytes", "bitsandbytes", "model.quantization: nf4 needs it: pip install -e '.[dev]'"),
        _disk(root),
        *_dvc(root),
        _tracker(root),
        _token(),
    ]


def gpu() -> Gpu | None:
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
        raise InputError(f"torch does not start: {type(error).__name__}: {' '.join(str(error).split())}") from None


def _python() -> Finding:
    found = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info[:2] != MEASURED:
        return Finding("warn", "python", found, "measured with {}.{}".format(*MEASURED))
    return Finding("ok", "python", found)


def _packages(root: Path) -> Finding:
    """Installed versions beside constraints.txt; a dependency of pyproject.toml that is absent is a failure."""
    installed = {_normal(own.name): own.version.split("+")[0] for own in metadata.distributions()}
    lines = (root / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    needed = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    names = [re.split(r"[^\w.-]", dependency)[0] for dependency in needed]
    if missing := [name for name in names if _normal(name) not in installed]:
        return Finding("fail", "packages", f"absent: {', '.join(missing)}", "make test installs them")
    others = {name: own for name, pin in pins.items() if (own := installed.get(_normal(name), pin)) != pin}
    if others:
        shown = ", ".join(f"{name} {own} (not {pins[name]})" for name, own in list(others.items())[:3])
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
    threads = os.environ.get("OMP_NUM_THREADS")
    found = f"{processes.cores()} cores, {threads or processes.cores()} threads" + (
        " (OMP_NUM_THREADS)" if threads else ""
    )
    if threads and threads.isdecimal() and int(threads) > processes.cores():
        return Finding("warn", "cpu", found, "more threads than cores can cost a factor of twenty: unset it")
    return Finding("ok", "cpu", found)


def _memory() -> Finding:
    seen = psutil.virtual_memory()
    total, available = _limited(seen.total), min(seen.available, _limited(seen.total))
    found = f"{available / GB:.1f} of {total / GB:.1f} GB free"
    if available < MEMORY:
        state: State = "fail" if total < MEMORY else "warn"
        return Finding(state, "memory", found, f"the embedded default takes {MEMORY / GB:.0f} GB")
    return Finding("ok", "memory", found)


def _limited(total: int) -> int:
    """What a container leaves of the machine's memory."""
    limit = Path("/sys/fs/cgroup/memory.max")
    held = limit.read_text().strip() if limit.is_file() else ""
    return min(total, int(held)) if held.isdecimal() else total


def _graphics(gpu: Gpu | None) -> list[Finding]:
    if gpu is None:
        idle = shutil.which("nvidia-smi") is not None
        to_do = "a driver is here: install torch with CUDA" if idle else "the 7b profiles need one, the others do not"
        return [Finding("warn", "gpu", "none that torch can use", to_do), Finding("ok", "bf16", "in software: no GPU")]
    memory = f"{gpu.free / GB:.1f} of {gpu.memory / GB:.1f} GB free"
    return [
        Finding("ok", "gpu", f"{gpu.name}, {memory}"),
        Finding("ok", "bf16", "native")
        if gpu.bf16
        else Finding("warn", "bf16", "not native on this GPU", "model.dtype: float16 is faster on it"),
    ]


def _package(name: str, module: str, to_do: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding("warn", name, "absent", to_do)
    return Finding("ok", name, metadata.version(name))


def _disk(root: Path) -> Finding:
    free = shutil.disk_usage(root).free
    found = f"{free / GB:.1f} GB free at {root}"
    if not os.access(root, os.W_OK):
        return Finding("fail", "disk", f"{root} cannot be written to", "clone where you may write")
    if free < DISK:
        return Finding("fail", "disk", found, f"the embedded default takes {DISK / GB:.0f} GB: make room")
    return Finding("ok", "disk", found)


def _dvc(root: Path) -> list[Finding]:
    """Cache, remote and lock of the repository, in three lines, or one that says why DVC cannot read it."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    from emotune.runs import lock

    try:
        with Repo(str(root)) as repo:
            locked = lock.compared(root)
            return [_cache(Path(repo.cache.local_cache_dir)), _remote(repo), _lock(locked.differs, locked.lost)]
    except (DvcException, InputError) as error:
        return [Finding("fail", "dvc", " ".join(str(error).split()), "run emotune in the repository's root")]


def _cache(path: Path) -> Finding:
    folder = nearest(path)
    if not os.access(folder, os.W_OK):
        return Finding("fail", "dvc cache", f"{path} cannot be written to", "dvc cache dir --local path")
    return Finding("ok", "dvc cache", f"{path}, {shutil.disk_usage(folder).free / GB:.1f} GB free")


def _remote(repo: Any) -> Finding:
    name = repo.config["core"].get("remote")
    if not name:
        return Finding("warn", "dvc remote", "none: data stay in this cache", "dvc remote add --default store url")
    shown = f"{name}, {without_password(repo.config['remote'].get(name, {}).get('url', 'unknown'))}"

    def look() -> str:
        store = repo.cloud.get_remote_odb(command="pull")
        try:
            store.fs.info(store.path)
        except FileNotFoundError:
            return "nothing pushed to it yet"
        return "answers"

    try:
        return Finding("ok", "dvc remote", f"{shown}: {_within(PATIENCE, look)}")
    # Each kind of store has exceptions of its own; the line says which it was.
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Finding(
            "warn", "dvc remote", without_password(f"{shown}: {reason}"), "dvc push and dvc pull will not work"
        )


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
    shown = without_password(uri)
    try:
        return Finding("ok", "tracker", f"{shown}: {_reached(uri)}")
    except (OSError, sqlite3.Error, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Finding(
            "warn", "tracker", without_password(f"{shown}: {reason}"), "runs go on untracked, with one warning"
        )


def _reached(uri: str) -> str:
    """How a tracker answers; OSError, sqlite3.Error or ValueError where it does not."""
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if not path.exists():
            if not os.access(path.parent, os.W_OK):
                raise PermissionError(f"{path.parent} cannot be written to")
            return "the first stage makes it"
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as store:
            runs = store.execute("select count(*) from runs").fetchone()[0]
        return f"{runs} runs"
    url = urlsplit(uri)
    if url.scheme in ("http", "https"):
        try:
            urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=PATIENCE).close()
        except urllib.error.HTTPError as refusal:
            return f"answers {refusal.code}"
        return "answers"
    port = url.port or PORTS.get(url.scheme.split("+")[0])
    if url.hostname is None or port is None:
        return "not asked: no server that doctor knows"
    socket.create_connection((url.hostname, port), timeout=PATIENCE).close()
    return f"port {port} answers"


def _token() -> Finding:
    from huggingface_hub import constants, get_token

    offline = ", offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    if get_token() is None:
        to_do = "publishing and gated models need one: hf auth login, or HF_TOKEN"
        return Finding("warn", "hub token", f"absent{offline}", to_do)
    return Finding("ok", "hub token", f"present{offline}")


def nearest(path: Path) -> Path:
    """The path, or what of it there is."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _within(seconds: float, call: Callable[[], T]) -> T:
    """What a call returns or raises; TimeoutError where it takes longer (it is left to itself)."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answer.done():
        raise TimeoutError(f"no answer in {seconds:.0f} seconds")
    return answer.result()
