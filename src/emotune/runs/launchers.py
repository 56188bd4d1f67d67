"""One stage as several processes: EMOTUNE_LAUNCH (torchrun or accelerate launch, behind srun for several machines).

A stage that was started plainly starts itself again under the launcher, and waits.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

from emotune.core import processes
from emotune.core.errors import InputError
from emotune.runs.costs import Cost

# Processes that share rows may end hours apart, and one that waits is not one that failed.
PATIENCE = timedelta(days=7)
COUNTS = ("--nproc_per_node", "--nproc-per-node", "--num_processes", "--num-processes")


def is_wanted() -> bool:
    """Whether this process should start itself again under a launcher."""
    return bool(os.environ.get("EMOTUNE_LAUNCH")) and not os.environ.keys() & {"RANK", "EMOTUNE_LAUNCHED"}


def is_under_one() -> bool:
    """Whether another process of ours waits for this one, and notes what became of it."""
    return "EMOTUNE_LAUNCHED" in os.environ


def launch(name: str, cost: Cost) -> int:
    """This stage once more, under the user's launcher; returns the exit code, 2 where a process met an InputError."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    words = words_of(os.environ["EMOTUNE_LAUNCH"], path)
    told = processes.work("launch", f"{name}.{os.getpid()}")
    told.parent.mkdir(parents=True, exist_ok=True)
    told.unlink(missing_ok=True)
    environment = os.environ | {"PATH": path, "EMOTUNE_LAUNCHED": str(told)}
    if "OMP_NUM_THREADS" not in os.environ:
        environment |= {"OMP_NUM_THREADS": str(processes.cores()), "EMOTUNE_SHARE_CORES": "1"}
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
        cost.note(message.removeprefix(f"emotune {name}: "), measured=False)
        return 2
    if code:
        cost.note(f"exit code {code} of the launcher", measured=False)
    return code if code >= 0 else 128 - code


def assert_launched(name: str, parallel: bool) -> None:
    """InputError where a stage of one process was started as several, or several were asked for and one came."""
    if processes.processes() > 1 and not parallel:
        raise InputError(f"{name} runs as one process: start it plainly, not as {processes.processes()}")
    if is_under_one() and processes.processes() == 1 and (wanted := wanted_by(os.environ["EMOTUNE_LAUNCH"])) > 1:
        raise InputError(
            f"EMOTUNE_LAUNCH asked for {wanted} processes and one came (accelerate launch does that on a CPU; there "
            f"torchrun --nproc_per_node {wanted} starts them): {os.environ['EMOTUNE_LAUNCH']}"
        )


def join() -> None:
    """The group of processes, as accelerate's, so that the trainers find it: NCCL on GPUs, gloo on CPUs."""
    import torch
    from accelerate import PartialState

    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "1"
    PartialState(cpu=on_cpu, timeout=PATIENCE)


def take_one_gpu() -> None:
    """One process takes one GPU, the first that it may see: a trainer that sees several splits batches among them."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[0].strip()


def tell(message: str) -> None:
    """Say it once: to the process that started the launcher where there is one and nobody told it before."""
    try:
        with Path(os.environ["EMOTUNE_LAUNCHED"]).open("x", encoding="utf-8") as file:
            file.write(message)
    except FileExistsError:
        pass
    except (KeyError, OSError):
        print(message, file=sys.stderr)


def words_of(line: str, path: str) -> list[str]:
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


def wanted_by(line: str) -> int:
    """How many processes EMOTUNE_LAUNCH asks for, by a flag or in accelerate's configuration; 1 where it says none."""
    words = [part for word in shlex.split(line) for part in word.split("=", 1)]
    values = dict(pairwise(words))
    counts = [values[flag] for flag in COUNTS if flag in values]
    if not counts and "--config_file" in values:
        text = Path(values["--config_file"]).read_text(encoding="utf-8")
        counts = re.findall(r"^num_processes: *(\d+)", text, flags=re.MULTILINE)
    return int(counts[0]) if counts and counts[0].isdigit() else 1
