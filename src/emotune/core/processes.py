"""The processes that run one stage, and what they share: rows, results, cores, a folder of work that outlives them.

Under torchrun or accelerate launch a stage runs as several processes. They share rows by `share` and put results
together by `gather`; in one process both are trivial, and nothing here imports torch.
"""

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
# So many objects a stage's libraries make while they are imported, and hardly any is garbage.
IMPORTED = 1_000_000


def root() -> Path:
    """The repository, also from the temporary workspace of a DVC experiment (DVC names it in DVC_ROOT)."""
    if named := os.environ.get("DVC_ROOT"):
        return Path(named).resolve()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


def work(*names: str) -> Path:
    """A path for what must outlive a killed stage and a temporary workspace: under .work, unknown to git and DVC."""
    return root().joinpath(".work", *names)


def cores() -> int:
    """The cores this process may run on, divided among the processes of its launcher on this machine."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def collect_when_imported() -> None:
    """Look for garbage only once so many objects were made as the imports make: they take a third less time so."""
    usual = gc.get_threshold()

    def collect_as_usual(*_: Any) -> None:
        gc.callbacks.remove(collect_as_usual)
        gc.set_threshold(*usual)

    if usual[0] < IMPORTED:
        gc.callbacks.append(collect_as_usual)
        gc.set_threshold(IMPORTED)


def processes() -> int:
    """How many processes run this stage."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Whether this is the process that writes: rank zero, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def share(rows: Sequence[T]) -> list[T]:
    """This process's part of the rows: every n-th of them, n processes."""
    return list(rows[int(os.environ.get("RANK", "0")) :: processes()])


def gather(rows: Sequence[T]) -> list[T]:
    """The parts that `share` made, one from each process, as one list in the order before it, in every process."""
    if processes() == 1:
        return list(rows)
    parts: list[Any] = [None] * processes()
    distributed().all_gather_object(parts, list(rows))
    return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


def wait() -> None:
    """Until every process is here."""
    if processes() > 1:
        distributed().barrier()


def distributed() -> Any:
    """torch.distributed, which one process needs not."""
    from torch import distributed

    return distributed
