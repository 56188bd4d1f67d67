"""Where checkpoints lie: a folder for all that the result depends on, held by one run."""

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from emotune.core import processes, records

PACKAGE = Path(__file__).parents[1]
# What decides, with its own file, params, inputs and libraries, what a checkpoint of a stage that trains holds.
ROOMS = ("core", "evaluation", "generation", "judges", "models", "prompts", "training")
LIBRARIES = ("torch", "transformers", "trl", "peft")


@contextmanager
def workspace(stage: str, values: Mapping[str, Any], inputs: Mapping[str, str]) -> Iterator[Path]:
    """The folder for a stage's checkpoints, held by this run alone; it stays after a failure, goes after success.

    Its name is made of all that the result depends on (params, inputs, code, versions), so nothing else can go on from
    it. Where another run trains the same at this moment, this one has a folder of its own.
    """
    versions = {name: version(name) for name in LIBRARIES}
    code = {path: records.digest(PACKAGE / path) for path in (*ROOMS, f"stages/{stage}.py")}
    made_of = json.dumps([values, inputs, code, versions], sort_keys=True)
    name = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    with _free(stage, name) if processes.first() else nullcontext(Path()) as own:
        folder = processes.gather([own])[0]
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        processes.wait()
        if processes.first():
            shutil.rmtree(folder)


@contextmanager
def _free(stage: str, name: str) -> Iterator[Path]:
    """The first of NAME, NAME-2, NAME-3 ... in the stage's work folder that no other run holds, held until the end."""
    processes.work(stage).mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = processes.work(stage, name if number == 1 else f"{name}-{number}")
        lock = FileLock(f"{folder}.lock")
        with suppress(Timeout):
            lock.acquire(timeout=0)
            break
    try:
        yield folder
    finally:
        lock.release()
