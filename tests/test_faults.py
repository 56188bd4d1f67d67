"""Faults to survive: whatever befalls a stage, it ends with the bytes of a run that nothing befell."""

import json
import multiprocessing
import os
import random
import re
import resource
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from conftest import TINY, Pipeline, contents, declared, flags, write_params
from emotune import journal, sampling

pytestmark = pytest.mark.pipeline

KILLS = 20
# Less of everything than the session's pipeline has, so that a run takes some seconds; but many batches and steps.
SMALL = TINY | {
    "sft.epochs": 1.5,
    "sft.batch_size": 2,
    "prefs.prompts": 40,
    "prefs.validation": 0.0,
    "prefs.sampling.max_new_tokens": 12,
    "dpo.epochs": 2.5,
}
KEPT_ROWS = {
    "data/dialogues/train.jsonl": 60,
    "data/dialogues/validation.jsonl": 6,
    "data/prefs/train.jsonl": 24,
    "data/prefs/validation.jsonl": 4,
}
JOURNAL = ".work/journal.sqlite"
# What takes most of the time of a stage that starts, and no thread with it.
IMPORTED = [
    "sklearn.pipeline",
    "transformers.models.llama.modeling_llama",
    "emotune.finetuning",
    "emotune.journal",
    "emotune.judges",
    "emotune.preferences",
]


@dataclass(frozen=True)
class Run:
    """A stage as a process of its own, started in a folder, and where what it says goes."""

    process: ForkServerProcess
    stdout: Path
    stderr: Path

    def ended(self) -> int:
        """Its exit code, once it has ended."""
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode

    def ended_well(self) -> str:
        """What it printed, once it has ended without an error."""
        assert self.ended() == 0, self.stderr.read_text("utf-8")
        return self.stdout.read_text("utf-8")

    def killed(self) -> bool:
        """Kill it; whether that came before its end."""
        self.process.kill()
        return self.ended() == -signal.SIGKILL


Start = Callable[..., Run]


def _run(stage: str, folder: Path, root: Path, limit: int | None) -> None:
    """What `python -m emotune.stages.<stage>` would do in a folder; runs in the process that was forked."""
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder.with_name(f"{folder.name}.{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ |= {"EMOTUNE_TRACKING": "off", "DVC_ROOT": str(root)}
    os.environ.pop("EMOTUNE_LAUNCH", None)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    # A batch holds six prompts, or else a run would be one batch.
    sampling.CPU_ROWS = 26
    sys.argv = [stage, *flags(stage)]
    runpy.run_module(f"emotune.stages.{stage}", run_name="__main__", alter_sys=True)


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Starts a stage in a folder within milliseconds: a server that has imported everything forks a process for it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    started = []

    def start(stage: str, folder: Path, root: Path | None = None, limit: int | None = None) -> Run:
        process = context.Process(target=_run, args=(stage, folder, root or folder, limit))
        process.start()
        started.append(process)
        return Run(process, *(folder.with_name(f"{folder.name}.{name}") for name in ("stdout", "stderr")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        start_of_server = context.Process(target=time.sleep, args=(0,))
        start_of_server.start()
        start_of_server.join()
    yield start
    for process in started:
        process.kill()
        process.join()


@dataclass(frozen=True)
class Alone:
    """A folder in which a stage ran undisturbed, what it printed and how long it took."""

    folder: Path
    printed: str
    seconds: float

    @property
    def files(self) -> dict[str, bytes]:
        return files(self.folder)

    @property
    def sampled(self) -> int:
        return counts(self.printed)[0]


def files(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder but the work of a run that has not ended."""
    return {path: content for path, content in contents(folder).items() if not path.startswith(".work/")}


def counts(printed: str) -> tuple[int, int]:
    """How many attempts generate_prefs sampled, and how many it took from the journal."""
    [(made, known)] = re.findall(r"generate_prefs: (\d+) attempts sampled, (\d+) taken from the journal", printed)
    return int(made), int(known)


def before(stage: str, ready: Path, folder: Path) -> Path:
    """A new folder in which a stage has not run yet."""
    shutil.copytree(ready, folder)
    for path in declared(stage):
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()
    return folder


@pytest.fixture(scope="module")
def ready(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's pipeline with fewer rows and no work folder."""
    folder = tmp_path_factory.mktemp("faults") / "ready"
    shutil.copytree(pipeline.folder, folder, ignore=shutil.ignore_patterns(".work"))
    for path, count in KEPT_ROWS.items():
        lines = (folder / path).read_bytes().splitlines(keepends=True)
        assert len(lines) > count, path
        (folder / path).write_bytes(b"".join(lines[:count]))
    write_params(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def alone(ready: Path, start: Start) -> dict[str, Alone]:
    """Each stage after a run that nothing befell."""
    done = {}
    for stage in ("generate_prefs", "sft", "dpo"):
        folder = before(stage, ready, ready.with_name(stage))
        began = time.monotonic()
        printed = start(stage, folder).ended_well()
        done[stage] = Alone(folder, printed, time.monotonic() - began)
    return done


def progress(stage: str, folder: Path) -> int:
    """What a killed stage can go on from: attempts in the journal, or the step of its last complete checkpoint."""
    if stage == "generate_prefs":
        return sum(held.attempts for held in journal.contents(folder / JOURNAL).held)
    complete = folder.glob(f".work/{stage}/*/checkpoint-*/complete")
    return max((int(path.parent.name.split("-")[1]) for path in complete), default=0)


def goes_on_from(stage: str, printed: str) -> int:
    """The progress that a run says it went on from."""
    if stage == "generate_prefs":
        return counts(printed)[1]
    found = re.search(r"going on from checkpoint-(\d+) in ", printed)
    return int(found[1]) if found else 0


# --- SIGKILL


@pytest.mark.parametrize("stage", ["generate_prefs", "sft", "dpo"])
def test_a_stage_killed_at_twenty_random_moments_ends_with_the_same_bytes(
    stage: str, alone: dict[str, Alone], ready: Path, start: Start, tmp_path: Path
) -> None:
    draw = random.Random(f"{stage} 7")
    folder = before(stage, ready, tmp_path / "0")
    there: set[int] = set()
    kills = ends = 0
    while kills < KILLS or ends == 0:
        found = progress(stage, folder)
        run = start(stage, folder)
        run.process.join(draw.uniform(0, alone[stage].seconds) if kills < KILLS else None)
        if run.killed():
            kills += 1
            there.add(progress(stage, folder))
        else:
            assert goes_on_from(stage, run.ended_well()) == found
            assert files(folder) == alone[stage].files
            ends += 1
            folder = before(stage, ready, tmp_path / str(ends))
    print(stage, "T", alone[stage].seconds, "ends", ends, sorted(there))
    # Before anything was kept, and after several different parts of the work.
    assert 0 in there
    assert len(there) >= 4
