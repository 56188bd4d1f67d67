"""How a stage starts: flags from its main's signature, threads bound, errors in one screen, seconds noted."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from emotune.errors import InputError


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


def stage(main: Callable[..., None]) -> None:
    """Run a stage's `main` with a flag for each of its Path parameters; InputError is one message and exit code 2."""
    name = Path(inspect.getfile(main)).stem
    parser = argparse.ArgumentParser(prog=f"python -m emotune.stages.{name}", description=inspect.getdoc(main))
    for parameter in inspect.signature(main).parameters:
        parser.add_argument(f"--{parameter.replace('_', '-')}", type=Path, required=True)
    paths = vars(parser.parse_args())
    # Set before torch is imported. More threads than cores can cost a factor of twenty.
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # What the libraries will change some day is no news to whoever runs a stage.
    warnings.simplefilter("ignore", FutureWarning)
    began = time.monotonic()
    try:
        main(**paths)
    except InputError as error:
        print(f"emotune {name}: {error}", file=sys.stderr)
        sys.exit(2)
    seconds = time.monotonic() - began
    note = work("seconds", name)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(f"{seconds:.1f}\n", encoding="utf-8")
    print(f"{name} took {seconds:.1f} s", flush=True)
