"""Faults to survive: whatever befalls a stage, it ends with the bytes of a run that nothing befell."""

import gc
import itertools
import multiprocessing
import os
import random
import re
import resource
import runpy
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from conftest import TINY, Pipeline, contents, declared, flags, write_params
from emotune.generation import local
from emotune.preferences import journal

pytestmark = pytest.mark.pipeline

# Less of everything than the session's pipeline has, so that a run takes some seconds; but many batches and steps.
SMALL = TINY | {
    "sft.epochs": 1.0,
    "sft.batch_size": 2,
    "prefs.prompts": 40,
    "prefs.validation": 0.0,
    "prefs.sampling.max_new_tokens": 12,
    "dpo.epochs": 2.0,
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
    "trl.trainer.dpo_trainer",
    "trl.trainer.sft_trainer",
    "emotune.evaluation.control",
    "emotune.judges.files",
    "emotune.preferences.attempts",
    "emotune.preferences.journal",
    "emotune.training.trainer",
]


@dataclass(frozen=True)
class Run:
    """A stage as a process of its own, started in a folder, and the files of what it says."""

    process: ForkServerProcess
    folder: Path
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


@dataclass(frozen=True)
class End:
    """A sudden end: before or after the n-th call of a method by the process that awaits it."""

    owner: type
    method: str
    call: int
    after: bool = False

    def await_it(self) -> None:
        """Kill this process there."""
        whole, calls = getattr(self.owner, self.method), itertools.count(1)

        def killed(*args: Any, **kwargs: Any) -> Any:
            is_it = next(calls) == self.call
            if is_it and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = whole(*args, **kwargs)
            if is_it:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(self.owner, self.method, killed)


# Where a stage is at its weakest: it keeps a batch of attempts, calls a checkpoint complete, puts an out in its place.
ENDS = {
    "generate_prefs": [
        End(journal.Journal, "keep", 1),
        End(journal.Journal, "keep", 2, after=True),
        End(Path, "replace", 1),
    ],
    "sft": [
        End(Path, "touch", 1),
        End(Path, "touch", 1, after=True),
        End(Path, "touch", 2, after=True),
        End(Path, "rename", 1, after=True),
    ],
    "dpo": [End(Path, "touch", 1, after=True), End(Path, "touch", 2), End(Path, "replace", 2)],
}


def _run(stage: str, folder: Path, root: Path, limit: int | None, end: End | None) -> None:
    """What `python -m emotune.runs.stage` would do in a folder; runs in the process that was forked."""
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder.with_name(f"{folder.name}.{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ |= {"EMOTUNE_TRACKING": "off", "DVC_ROOT": str(root)}
    os.environ.pop("EMOTUNE_LAUNCH", None)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    # A batch holds six prompts, or else a run would be one batch.
    local.CPU_ROWS = 26
    # What was there before the fork is never garbage, and to look through it takes half a second.
    gc.freeze()
    # Its own lock is a semaphore, which a killed process would leave behind.
    tqdm.set_lock(threading.RLock())
    if end is not None:
        end.await_it()
    sys.argv = ["emotune.runs.stage", stage, *flags(stage)]
    runpy.run_module("emotune.runs.stage", run_name="__main__", alter_sys=True)


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Starts a stage in a folder within milliseconds: a server that has imported everything forks a process for it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    started = []

    def start(
        stage: str, folder: Path, root: Path | None = None, limit: int | None = None, end: End | None = None
    ) -> Run:
        process = context.Process(target=_run, args=(stage, folder, root or folder, limit, end))
        process.start()
        started.append(process)
        return Run(process, folder, *(folder.with_name(f"{folder.name}.{name}") for name in ("stdout", "stderr")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        # The server starts with its first process, and with the environment of then.
        first = context.Process(target=time.sleep, args=(0,))
        first.start()
        first.join()
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
    def work(self) -> int:
        """The attempts that it sampled, or the steps that it trained."""
        steps = re.findall(r"step \d+ of (\d+)", self.printed)
        return int(steps[0]) if steps else counts(self.printed)[0]


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
        # Beside attempts it holds what the reward model and the evaluating judges said of their replies.
        kept = journal.contents(folder / JOURNAL).held
        return sum(held.attempts for held in kept if not {"reward_model", "evaluate"} & held.made_of.keys())
    complete = folder.glob(f".work/{stage}/*/checkpoint-*/complete")
    return max((int(path.parent.name.split("-")[1]) for path in complete), default=0)


def goes_on_from(printed: str) -> int:
    """The progress that a run says it went on from."""
    if "attempts sampled" in printed:
        return counts(printed)[1]
    found = re.search(r"going on from checkpoint-(\d+) in ", printed)
    return int(found[1]) if found else 0


def assert_goes_on_to_the_same_bytes(run: Run, found: int, alone: Alone) -> None:
    """A run goes on from what was found before it, and ends with the files of one that nothing befell."""
    printed = run.ended_well()
    assert goes_on_from(printed) == found
    assert files(run.folder) == alone.files


# --- SIGKILL


@pytest.mark.parametrize("stage", ENDS)
def test_a_stage_killed_wherever_it_writes_ends_with_the_same_bytes(
    stage: str, alone: dict[str, Alone], ready: Path, start: Start, tmp_path: Path
) -> None:
    folder = before(stage, ready, tmp_path / "here")
    there = [0]
    for end in ENDS[stage]:
        assert start(stage, folder, end=end).ended() == -signal.SIGKILL, end
        there.append(progress(stage, folder))
    assert_goes_on_to_the_same_bytes(start(stage, folder), there[-1], alone[stage])
    # Nothing that was kept is lost.
    assert there == sorted(there)
    assert len(set(there)) >= 3


# --- two runs at once


def test_two_runs_at_once_share_a_journal_and_most_of_the_work(
    alone: dict[str, Alone], ready: Path, start: Start, tmp_path: Path
) -> None:
    folders = [before("generate_prefs", ready, tmp_path / name) for name in ("one", "other")]
    runs = [start("generate_prefs", folder, root=tmp_path) for folder in folders]
    made = [counts(run.ended_well())[0] for run in runs]
    assert [files(folder) == alone["generate_prefs"].files for folder in folders] == [True, True]
    assert min(made) > 0
    # Some of the fifteen batches are made by both: the first, the last, and where one catches up with the other.
    assert sum(made) <= 1.5 * alone["generate_prefs"].work


# --- a damaged journal


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(random.Random(7).randbytes(6000))


@pytest.mark.parametrize("damage", [truncate, overwrite])
def test_what_a_damaged_journal_has_lost_is_sampled_again(
    damage: Callable[[Path], None], alone: dict[str, Alone], start: Start, tmp_path: Path
) -> None:
    folder = before("generate_prefs", alone["generate_prefs"].folder, tmp_path / "here")
    damage(folder / JOURNAL)
    printed = start("generate_prefs", folder).ended_well()
    assert files(folder) == alone["generate_prefs"].files
    assert len(re.findall(r"journal \S+: damaged, so it is set aside as ", printed)) == 1
    assert counts(printed) == (alone["generate_prefs"].work, 0)


# --- a full disk


@pytest.mark.parametrize(
    ("stage", "changes", "limit"),
    [
        ("generate_prefs", {}, 33_000),
        ("sft", {}, 60_000),
        ("sft", {"sft.checkpoints": 0}, 30_000),
        ("dpo", {"dpo.checkpoints": 0}, 45_000),
    ],
    ids=["pairs", "a checkpoint's optimizer", "an adapter", "the tokenizer beside an adapter"],
)
def test_a_full_disk_is_one_message_and_nothing_half_written(
    stage: str,
    changes: dict[str, int],
    limit: int,
    alone: dict[str, Alone],
    start: Start,
    tmp_path: Path,
) -> None:
    folder = before(stage, alone[stage].folder, tmp_path / "here")
    write_params(folder, SMALL | changes)
    whole = alone[stage].files | {"params.yaml": (folder / "params.yaml").read_bytes()}

    run = start(stage, folder, limit=limit)
    assert run.ended() == 2
    told = run.stderr.read_text("utf-8")
    assert "Traceback" not in told
    assert told.count(f"emotune {stage}: ") == 1
    assert "make room and start it again" in told
    # What is there is whole.
    assert files(folder).items() <= whole.items()

    assert start(stage, folder).ended_well()
    assert files(folder) == whole
