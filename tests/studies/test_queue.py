"""Laws of two experiments that `dvc queue start -j 2` runs at once: each gets what it gets alone, from one journal."""

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from clones import Clone, families, reproduced
from conftest import TINY, Pipeline, run_stage, write_params

pytestmark = pytest.mark.pipeline

# Both sample the same new candidates, at the same moments; what they make of them differs.
NEW = {"prefs.seed": 8, "prefs.prompts": 30, "dpo.epochs": 2}
WEIGHTS = {"even": [0.3, 0.3, 0.4], "keen": [0.9, 0.0, 0.1]}
# Not to evaluate, whose processes would double the time: it shares nothing but the tracker.
LAST, RUN = "dpo", ["generate_prefs", "dpo"]
METRICS = ("metrics/prefs.json", "metrics/dpo.json", "metrics/dpo_history.csv")
PATIENCE = 600


@pytest.fixture(scope="module")
def queue(pipeline: Pipeline, warm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """The project after both experiments went through its queue; its workers are gone when the tests are."""
    clone = reproduced(tmp_path_factory.mktemp("queue") / "clone", pipeline, warm_python)
    for name, weights in WEIGHTS.items():
        values = [word for key, value in NEW.items() for word in ("-S", f"{key}={value}")]
        clone("dvc", "exp", "run", "--queue", "--name", name, *values, "-S", f"reward.weights={weights}", LAST)
    try:
        # Its workers keep what it writes to: whoever reads that to its end would wait for them.
        clone("sh", "-c", "dvc queue start -j 2 > /dev/null 2>&1")
        assert ended(clone) >= 2
        yield clone
    finally:
        with suppress(AssertionError):
            clone("dvc", "queue", "stop", "--kill")
        _, alive = psutil.wait_procs(workers(clone), timeout=20)
        for process in alive:
            process.kill()


def ended(clone: Clone) -> int:
    """Wait until no experiment is queued or running, which DVC does not do; returns how many workers were seen."""
    until = time.monotonic() + PATIENCE
    seen = set()
    while {"Queued", "Running"} & set(status(clone).values()):
        assert time.monotonic() < until, clone("dvc", "queue", "status")
        for process in workers(clone):
            with suppress(psutil.Error):  # it may have ended since
                seen |= {process.pid} if "queue-worker" in process.cmdline() else set()
        time.sleep(2)
    return len(seen)


def status(clone: Clone) -> dict[str, str]:
    """How each experiment of the queue stands, as `dvc queue status` says it."""
    with clone.repo() as repo:
        return {entry["name"]: entry["status"] for entry in repo.experiments.celery_queue.status()}


def workers(clone: Clone) -> list[psutil.Process]:
    """The processes in the background that this clone's DVC started: the clone is in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(clone.folder) in process.environ().get("PYTHONPATH", ""):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def alone(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each experiment in which its stages ran by themselves, with a journal of their own."""
    folders = {}
    for name, weights in WEIGHTS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        for kind in ("data", "models", "metrics"):
            shutil.copytree(pipeline.folder / kind, folders[name] / kind)
        write_params(folders[name], TINY | NEW | {"reward.weights": weights})
        for stage in RUN:
            run_stage(stage, folders[name])
    return folders


def attempts(folder: Path) -> set[tuple[str, str, int, str]]:
    """What a journal holds: of what, which prompt, which attempt, and what came of it."""
    with closing(sqlite3.connect(folder / ".work/journal.sqlite")) as db:
        return set(db.execute("SELECT made_of, prompt, attempt, value FROM attempts JOIN contexts ON context = id"))


def test_both_experiments_succeed(queue: Clone) -> None:
    assert status(queue) == {"even": "Success", "keen": "Success"}


@pytest.mark.parametrize("name", WEIGHTS)
def test_an_experiment_measures_what_it_measures_alone(name: str, queue: Clone, alone: dict[str, Path]) -> None:
    (commit,) = [ref for ref in queue("git", "for-each-ref", "--format=%(refname)").split() if ref.endswith(f"/{name}")]
    for path in METRICS:
        assert queue("git", "show", f"{commit}:{path}") == (alone[name] / path).read_text(), path


def test_the_experiments_differ(alone: dict[str, Path]) -> None:
    chosen, others = ((folder / "data/prefs/train.jsonl").read_text() for folder in alone.values())
    assert chosen != others


def test_both_write_one_journal_and_each_attempt_once(queue: Clone, alone: dict[str, Path]) -> None:
    assert list(queue.folder.rglob("journal.sqlite")) == [queue.folder / ".work/journal.sqlite"]
    even, keen = (attempts(folder) for folder in alone.values())
    assert even & keen
    assert attempts(queue.folder) == even | keen


def test_each_experiment_is_one_run_with_its_own_stages_and_weights(queue: Clone) -> None:
    found = families(queue)
    assert set(found) == set(WEIGHTS)
    for name, weights in WEIGHTS.items():
        parent, children = found[name]
        assert parent.info.status == "FINISHED"
        assert sorted(run.data.tags["dvc.stage"] for run in children) == ["dpo", "generate_prefs"]
        (prefs,) = [run for run in children if run.data.tags["dvc.stage"] == "generate_prefs"]
        assert json.loads(prefs.data.params["reward.weights"]) == weights


def test_the_workspace_is_as_it_was(queue: Clone) -> None:
    assert queue("git", "status", "--porcelain") == ""
    assert "Data and pipelines are up to date." in queue("dvc", "status")


def test_no_worker_stays_once_it_is_told_to_stop(queue: Clone) -> None:
    queue("dvc", "queue", "stop")
    _, alive = psutil.wait_procs(workers(queue), timeout=30)
    assert alive == []
