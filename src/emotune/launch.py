"""How a stage starts and ends: flags from its main's signature, the user's launcher, errors in one screen, its cost.

Under EMOTUNE_LAUNCH (torchrun or accelerate launch, behind srun where there are several machines) a stage that was
started plainly starts itself again as several processes. They share rows by `share` and put results together by
`gather`; in one process both are trivial, and nothing here imports torch.
"""

from __future__ import annotations

import argparse
import errno
import inspect
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from emotune.errors import InputError

T = TypeVar("T")

# Processes that share rows may end hours apart, and one that waits is not one that failed.
PATIENCE = timedelta(days=7)
# No space left, a file above its limit, a quota, by their words: safetensors, tokenizers and torch raise errors of
# kinds of their own, and torch speaks of a position in the file alone.
FULL = (*map(os.strerror, (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)), "unexpected pos")
# The allocators of CPU and GPU; in what Python and NumPy lack, their error's kind says it.
NO_MEMORY = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
COUNTS = ("--nproc_per_node", "--nproc-per-node", "--num_processes", "--num-processes")


def root() -> Path:
    """The repository, also from the temporary workspace of a DVC experiment (DVC names it in DVC_ROOT)."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def work(*names: str) -> Path:
    """A path for what must outlive a killed stage and a temporary workspace: under .work, unknown to git and DVC."""
    return root().joinpath(".work", *names)


def cores() -> int:
    """The cores this process may run on, divided among the processes of its launcher on this machine."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def stage(main: Callable[..., None], parallel: bool = False) -> None:
    """Run a stage's `main` with a flag for each of its Path parameters, and note what it cost or on what it failed.

    InputError, a full disk and too little memory are one message and exit code 2. A `parallel` stage obeys
    EMOTUNE_LAUNCH; any other runs as one process whatever it says.
    """
    _take_code_of_this_workspace()
    name = Path(inspect.getfile(main)).stem
    parser = argparse.ArgumentParser(prog=f"python -m emotune.stages.{name}", description=inspect.getdoc(main))
    for parameter in inspect.signature(main).parameters:
        parser.add_argument(f"--{parameter.replace('_', '-')}", type=Path, required=True)
    paths = vars(parser.parse_args())
    began = time.monotonic()
    try:
        if parallel and os.environ.get("EMOTUNE_LAUNCH") and not os.environ.keys() & {"RANK", "EMOTUNE_LAUNCHED"}:
            sys.exit(_launch(name, began))
        _prepare(name, parallel)
        main(**paths)
        wait()
    except Exception as error:
        message = _explained(error)
        # What the process that started the launcher hears of, it notes itself.
        if first() and "EMOTUNE_LAUNCHED" not in os.environ:
            _note(name, began, message or f"{type(error).__name__}: {error}", *_memory())
        if message is None:
            raise
        _tell(f"emotune {name}: {message}")
        sys.exit(2)
    if first():
        _note(name, began, None, *_memory())
        print(f"{name} took {time.monotonic() - began:.1f} s", flush=True)
    if processes() > 1:
        _torch().destroy_process_group()


def _take_code_of_this_workspace() -> None:
    """Start this process again with the code that lies here, where another's was imported.

    DVC runs a queued experiment in a copy of the repository and hashes the code there; an editable install imports the
    repository's own, which may have been edited since.
    """
    here = Path("src").absolute()
    is_other = (here / "emotune").is_dir() and not (here / "emotune").samefile(Path(__file__).parent)
    if is_other and str(here) not in sys.path:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH")]))
        os.execv(sys.executable, sys.orig_argv)


_sampling = (0, 0.0)  # the tokens that this process's stage sampled, and the seconds it took


def sampled(tokens: int, seconds: float) -> None:
    """Count tokens that were sampled, and how long that took, towards the stage's line in costs.jsonl."""
    global _sampling
    _sampling = (_sampling[0] + tokens, _sampling[1] + seconds)


def _note(name: str, began: float, failed: str | None, memory: int | None, device: str | None) -> None:
    """Append what a stage cost, or on what it failed, to .work/costs.jsonl, which all experiments share.

    It is one write at the file's end, so that lines of runs side by side do not mix. Times are no bytes of an out.
    """
    tokens, seconds = _sampling
    line = {
        "experiment": os.environ.get("DVC_EXP_NAME"),
        "stage": name,
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_bytes": memory,
        "device": device,
        "tokens_per_second": round(tokens / seconds, 1) if tokens else None,
        "failed": None if failed is None else " ".join(failed.split()),
    }
    # A disk that is full was told of already.
    with suppress(OSError):
        work().mkdir(parents=True, exist_ok=True)
        with work("costs.jsonl").open("ab", buffering=0) as file:
            file.write(f"{json.dumps(line)}\n".encode())


def _memory() -> tuple[int, str]:
    """The most memory, in bytes, that this process ever held at once, and of what device: its GPU, or "cpu"."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated(), torch.cuda.get_device_name()
    # A process starts with the ru_maxrss of the one that started it, dvc's or a launcher's: Linux has a better one.
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text("utf-8"), re.MULTILINE) if status.exists() else None
    unit = 1 if sys.platform == "darwin" else 1024
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit, "cpu"


def _explained(error: Exception) -> str | None:
    """What to tell the user of an error that is not ours: input, a full disk, or too little memory; else None."""
    if isinstance(error, InputError):
        return str(error)
    reason = " ".join(str(error).split())
    if any(words in str(error) for words in FULL):
        return f"no room to write ({reason}): make room and start it again; nothing is half-written"
    if isinstance(error, MemoryError) or any(words in reason for words in NO_MEMORY):
        return f"out of memory: {reason or 'no more to be had'}; a smaller base model, batch or context takes less"
    return None


def processes() -> int:
    """How many processes run this stage."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Whether this is the process that writes: rank zero, or the only one."""
    return _rank() == 0


def share(rows: Sequence[T]) -> list[T]:
    """This process's part of the rows: every n-th of them, n processes."""
    return list(rows[_rank() :: processes()])


def gather(rows: Sequence[T]) -> list[T]:
    """The parts that `share` made, one from each process, as one list in the order before it, in every process."""
    if processes() == 1:
        return list(rows)
    parts: list[Any] = [None] * processes()
    _torch().all_gather_object(parts, list(rows))
    return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


def wait() -> None:
    """Until every process is here."""
    if processes() > 1:
        _torch().barrier()


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _torch() -> Any:
    from torch import distributed

    return distributed


def _prepare(name: str, parallel: bool) -> None:
    """Threads, what the libraries say, and the group of processes, before anything imports torch."""
    # More threads than cores can cost a factor of twenty; one thread, torchrun's choice, leaves the others idle.
    if "EMOTUNE_SHARE_CORES" in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(cores())
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # What the libraries will change some day is no news to whoever runs a stage.
    warnings.simplefilter("ignore", FutureWarning)
    if processes() > 1 and not parallel:
        raise InputError(f"{name} runs as one process: start it plainly, not as {processes()}")
    if "EMOTUNE_LAUNCHED" in os.environ and processes() == 1 and (asked := _asked(os.environ["EMOTUNE_LAUNCH"])) > 1:
        raise InputError(
            f"EMOTUNE_LAUNCH asked for {asked} processes and one came (accelerate launch does that on a CPU; there "
            f"torchrun --nproc_per_node {asked} starts them): {os.environ['EMOTUNE_LAUNCH']}"
        )
    if processes() > 1:
        _join()


def _join() -> None:
    """The group of processes, as accelerate's, so that the trainers find it: NCCL on GPUs, gloo on CPUs."""
    import torch
    from accelerate import PartialState

    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "1"
    PartialState(cpu=on_cpu, timeout=PATIENCE)


def _launch(name: str, began: float) -> int:
    """This stage once more, under the user's launcher; returns the exit code, 2 where a process met an InputError."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    words = _words(os.environ["EMOTUNE_LAUNCH"], path)
    told = work("launch", f"{name}.{os.getpid()}")
    told.parent.mkdir(parents=True, exist_ok=True)
    told.unlink(missing_ok=True)
    environment = os.environ | {"PATH": path, "EMOTUNE_LAUNCHED": str(told)}
    if "OMP_NUM_THREADS" not in os.environ:
        environment |= {"OMP_NUM_THREADS": str(cores()), "EMOTUNE_SHARE_CORES": "1"}
    module = sys.modules["__main__"].__spec__
    command = [*words, *(["-m", module.name] if module else [sys.argv[0]]), *sys.argv[1:]]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    signals: list[int] = []

    def stop(number: int, frame: object) -> None:
        signals.append(number)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    assert process.stderr is not None
    while chunk := os.read(process.stderr.fileno(), 1 << 16):
        # What the launcher and the other processes say of a stage that was stopped is pages, and no news.
        if not signals and not told.exists():
            sys.stderr.buffer.write(chunk)
            sys.stderr.buffer.flush()
    code = process.wait()
    if signals:
        return 128 + signals[0]
    if told.exists():
        message = told.read_text(encoding="utf-8")
        print(message, file=sys.stderr)
        told.unlink()
        _note(name, began, message.removeprefix(f"emotune {name}: "), None, None)
        return 2
    if code:
        _note(name, began, f"exit code {code} of the launcher", None, None)
    return code if code >= 0 else 128 - code


def _words(line: str, path: str) -> list[str]:
    """The words of EMOTUNE_LAUNCH; InputError where they start no launcher that is here."""
    try:
        words = shlex.split(line)
    except ValueError:
        words = []
    names = [Path(word).name for word in words]
    if "torchrun" not in names and ("accelerate", "launch") not in pairwise(names):
        raise InputError(
            f"EMOTUNE_LAUNCH must be a line with torchrun or accelerate launch in it, such as "
            f"'torchrun --nproc_per_node 4'; got {line!r}"
        )
    launcher = words[names.index("torchrun" if "torchrun" in names else "accelerate")]
    for program in dict.fromkeys((words[0], launcher)):
        if shutil.which(program, path=path) is None:
            raise InputError(f"EMOTUNE_LAUNCH: {program} is installed neither beside {sys.executable} nor on PATH")
    return words


def _asked(line: str) -> int:
    """How many processes EMOTUNE_LAUNCH asks for, by a flag or in accelerate's configuration; 1 where it says none."""
    words = [part for word in shlex.split(line) for part in word.split("=", 1)]
    values = dict(pairwise(words))
    counts = [values[flag] for flag in COUNTS if flag in values]
    if not counts and "--config_file" in values:
        text = Path(values["--config_file"]).read_text(encoding="utf-8")
        counts = re.findall(r"^num_processes: *(\d+)", text, flags=re.MULTILINE)
    return int(counts[0]) if counts and counts[0].isdigit() else 1


def _tell(message: str) -> None:
    """Say it once: to the process that started the launcher where there is one and nobody told it before."""
    try:
        with Path(os.environ["EMOTUNE_LAUNCHED"]).open("x", encoding="utf-8") as file:
            file.write(message)
    except FileExistsError:
        pass
    except (KeyError, OSError):
        print(message, file=sys.stderr)
