"""Laws of which experiments are a study's, of what becomes of older ones, and of its files, on git refs set by hand."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from clones import dvc_init
from conftest import ROOT
from emotune.core import records
from emotune.core.sections import read_yaml
from emotune.runs import lock, mirror
from emotune.studies import evidence, findings, plan, queue

pytestmark = pytest.mark.usefixtures("warm_module")

CONTENT = read_yaml(ROOT / "params.yaml")
STAGES = {
    "baseline": {
        "cmd": "echo",
        "deps": ["src/early"],
        "params": ["pretrain"],
        "outs": ["replies.jsonl"],
        "metrics": [{"metrics/baseline.json": {"cache": False}}],
    },
    "evaluate": {
        "cmd": "echo",
        "deps": ["replies.jsonl", "src/late.py"],
        "params": ["sft"],
        "outs": ["last.jsonl"],
        "metrics": [{"metrics/evaluate.json": {"cache": False}}],
    },
}
STUDY = plan.Study.model_validate(
    {
        "description": "Which size?",
        "target": "evaluate",
        "models": ("sft",),
        "show": ("accuracy",),
        "tests": ("accuracy",),
        "against": "best",
        "grid": {"pretrain.hidden_size": (64, 128)},
    }
)
SMALL, LARGE = "size-hidden_size-64", "size-hidden_size-128"


class Repository:
    """A repository of two stages that stand in dvc.lock as run with the params and the code of its first commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.setups = plan.setups("size", STUDY, CONTENT, ROOT / "profiles")

    def begin(self) -> None:
        for path in ("early/a.py", "early/deep/b.py", "late.py"):
            (self.folder / "src" / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / "src" / path).write_text(f"# {path}\n")
        self.write("dvc.yaml", {"stages": STAGES})
        self.write("params.yaml", CONTENT)
        self.git("init", "--quiet")
        self.git("config", "user.email", "somebody@example.org")
        self.git("config", "user.name", "somebody")
        with dvc_init(self.folder):
            pass
        self.locked("baseline", "evaluate")
        self.commit("start")

    def git(self, *words: str) -> str:
        return subprocess.run(["git", *words], cwd=self.folder, check=True, capture_output=True, text=True).stdout[:-1]

    def commit(self, message: str) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD")

    def write(self, path: str, content: Any) -> None:
        with (self.folder / path).open("w") as file:
            YAML().dump(content, file)

    def locked(self, *stages: str) -> None:
        """Stages of dvc.lock, and their metrics, as a run of them with the params and the code of now leaves them."""
        path = self.folder / "dvc.lock"
        content = read_yaml(path) if path.is_file() else {"schema": "2.0", "stages": {}}
        params = read_yaml(self.folder / "params.yaml")
        replies = hashlib.md5(json.dumps(params["pretrain"]).encode()).hexdigest()
        outs = {"replies.jsonl": replies, "last.jsonl": replies}
        for stage in stages:
            deps = [{"path": dep, "md5": outs.get(dep) or self.md5(dep)} for dep in STAGES[stage]["deps"]]
            had = {key: params[key] for key in STAGES[stage]["params"]}
            records.write_json(self.folder / f"metrics/{stage}.json", {"sft": {}} if stage == "evaluate" else {})
            own = [{"path": out, "md5": outs[out]} for out in STAGES[stage]["outs"]]
            content["stages"][stage] = {"cmd": "echo", "deps": deps, "params": {"params.yaml": had}, "outs": own}
        self.write("dvc.lock", content)

    def md5(self, path: str) -> str:
        whole = self.folder / path
        files = [file for file in whole.rglob("*") if file.is_file()] if whole.is_dir() else [whole]
        return lock.md5(
            {"" if file == whole else file.relative_to(whole).as_posix(): file.read_bytes() for file in files}
        )

    def ran(self, name: str, *stages: str) -> str:
        """What DVC leaves of an experiment on HEAD that ran so far; returns its commit."""
        head = self.git("rev-parse", "HEAD")
        self.write("params.yaml", self.setups[name].params)
        self.locked(*stages)
        revision = self.commit(f"dvc: commit experiment {name}")
        self.git("reset", "--quiet", "--hard", head)
        self.git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", revision)
        return revision

    def states(self, target: str = "evaluate") -> dict[str, str]:
        return {name: trial.state for name, trial in queue.trials(self.setups, target).items()}

    def experiments(self) -> dict[str, str]:
        return {experiment.name: experiment.revision for experiment in mirror.experiments()}


def away_from_the_users_dvc(patch: pytest.MonkeyPatch, folder: Path) -> None:
    for name in ("DVC_GLOBAL_CONFIG_DIR", "DVC_SITE_CACHE_DIR"):
        patch.setenv(name, str(folder))
    patch.setenv("DVC_NO_ANALYTICS", "1")
    patch.delenv("DVC_ROOT", raising=False)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a repository as it begins: look, do not touch."""
    folder = tmp_path_factory.mktemp("begun") / "repository"
    with pytest.MonkeyPatch.context() as patch:
        away_from_the_users_dvc(patch, folder.with_name("dvc"))
        Repository(folder).begin()
    return folder


@pytest.fixture
def repository(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    away_from_the_users_dvc(monkeypatch, tmp_path / "dvc")
    shutil.copytree(begun, tmp_path / "repository")
    monkeypatch.chdir(tmp_path / "repository")
    # What another test asked, maybe from another folder, is asked again.
    queue._md5_of.cache_clear()
    return Repository(tmp_path / "repository")


# Which experiments are a study's.


def test_an_experiment_that_ended_before_the_target_is_not_done(repository: Repository) -> None:
    repository.ran(SMALL, "baseline")
    repository.ran(LARGE, "baseline", "evaluate")
    assert repository.states("baseline") == {SMALL: "done", LARGE: "done"}
    assert repository.states("evaluate") == {SMALL: "absent", LARGE: "done"}


def test_nor_is_one_whose_target_is_of_code_before_it(repository: Repository) -> None:
    # Equal params and equal replies: of evaluate, dvc.lock has the run of the older code.
    (repository.folder / "src/late.py").write_text("# another\n")
    repository.commit("code that nobody ran")
    repository.write("params.yaml", repository.setups[SMALL].params)
    repository.locked("baseline", "evaluate")
    repository.commit("it ran")
    (repository.folder / "src/late.py").write_text("# a third\n")
    repository.commit("and again nobody ran it")
    repository.ran(SMALL, "baseline")
    assert repository.states("baseline")[SMALL] == "done"
    assert repository.states("evaluate")[SMALL] == "absent"


def test_nor_does_one_wait_that_was_queued_up_to_another_target(repository: Repository) -> None:
    queue.submit({SMALL: repository.setups[SMALL]}, "baseline")
    assert repository.states("baseline")[SMALL] == "queued"
    assert repository.states("evaluate")[SMALL] == "absent"


def test_dvc_s_hash_of_a_folder_is_ours(repository: Repository) -> None:
    from dvc.repo import Repo

    with Repo() as repo:
        deps = [dep for stage in repo.index.stages for dep in stage.deps if dep.def_path.startswith("src/")]
        assert {dep.def_path: dep.get_hash().value for dep in deps} == {
            path: repository.md5(path) for path in ("src/early", "src/late.py")
        }


def test_a_study_of_a_pipeline_below_is_queued_and_found_in_its_folder(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = repository.folder / "instruct"
    shutil.copytree(ROOT / "instruct/experiments", below / "experiments")
    stage = {"cmd": "echo", "deps": ["../src/early"], "params": ["sft"], "outs": ["out"]}
    repository.write("instruct/dvc.yaml", {"stages": {"compare": stage}})
    content = read_yaml(ROOT / "instruct/params.yaml")
    repository.write("instruct/params.yaml", content)
    repository.commit("another pipeline")
    monkeypatch.chdir(below)
    study = plan.read(Path("experiments"), "loss-on")
    first, other, *_ = setups = plan.setups("loss-on", study, content, ROOT / "instruct/profiles")
    assert first == "instruct-loss-on-loss_on-replies_seed-7"
    queue.submit({first: setups[first]}, "compare")
    queued = queue.trials(setups, "compare")
    assert [trial.state for trial in queued.values()] == ["queued", *["absent"] * 5]
    assert mirror.yaml_of(queued[first].commit, "params.yaml") == setups[first].params
    # What DVC leaves of one that ran.
    head, had = repository.git("rev-parse", "HEAD"), setups[other].params
    deps = [{"path": "../src/early", "md5": repository.md5("src/early")}]
    locked = {"cmd": "echo", "deps": deps, "params": {"params.yaml": {"sft": had["sft"]}}}
    repository.write("instruct/params.yaml", had)
    repository.write("instruct/dvc.lock", {"schema": "2.0", "stages": {"compare": locked}})
    revision = repository.commit("dvc: commit experiment")
    repository.git("reset", "--quiet", "--hard", head)
    repository.git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{other}", revision)
    assert queue.trials(setups, "compare")[other].state == "done"
    (repository.folder / "src/early/a.py").write_text("# another\n")
    assert queue.trials(setups, "compare")[other].state == "absent"


# What becomes of older ones.


def test_what_ran_stays_until_what_replaces_it_has_run(repository: Repository) -> None:
    old = repository.ran(SMALL, "baseline", "evaluate")
    large = repository.ran(LARGE, "baseline", "evaluate")
    code = repository.folder / "src/late.py"
    before = code.read_text()
    code.write_text("# a comment more\n")
    assert queue.submit(repository.setups, "evaluate")[SMALL].state == "absent"
    assert repository.experiments() == {f"{SMALL}+former": old, f"{LARGE}+former": large}
    assert repository.states() == {SMALL: "queued", LARGE: "queued"}
    code.write_text(before)
    assert repository.states() == {SMALL: "done", LARGE: "done"}
    queue.submit(repository.setups, "evaluate")
    assert repository.experiments() == {f"{SMALL}+former": old, f"{LARGE}+former": large}
    code.write_text("# a comment more\n")
    new = repository.ran(SMALL, "baseline", "evaluate")
    code.write_text("# a comment more\n")
    queue.submit(repository.setups, "evaluate")
    assert repository.experiments() == {SMALL: new, f"{LARGE}+former": large}


# A worker that does not answer.


@contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """One that does nothing, and that is called with these words."""
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(120)", *words]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE) as sleeping:
        # Linux does not tell its words from the first moment.
        sleeping.stdout.readline()
        try:
            yield sleeping
        finally:
            sleeping.kill()


def test_a_run_whose_worker_lives_is_not_killed_though_it_does_not_answer(repository: Repository) -> None:
    from dvc.repo import Repo

    queue.submit({SMALL: repository.setups[SMALL]}, "evaluate")
    celery = Repo().experiments.celery_queue
    [entry] = celery.iter_queued()
    # As a worker does that takes it.
    broker = Path(celery.wdir) / "broker"
    for message in (broker / "in").iterdir():
        message.rename(broker / "processed" / message.name)
    assert [one.name for one in celery.iter_active()] == [SMALL]
    node = f"dvc-exp-{hashlib.sha256(celery.wdir.encode()).hexdigest()[:6]}-1@localhost"
    with process("queue-worker", node), process() as run:
        note = Path(celery.pid_dir) / entry.stash_rev / f"{entry.stash_rev}.json"
        out = {"pid": run.pid, "stdin": None, "stdout": os.devnull, "stderr": None, "returncode": None}
        records.write_json(note, out)
        queue.start(1)
        assert run.poll() is None
        assert repository.states()[SMALL] == "running"
        assert queue._workers(celery) == {node}
    assert queue._workers(celery) == set()


# What its rows say.


def cost(attempt: str | None, stage: str, seconds: float, failed: str | None = None) -> dict[str, Any]:
    line = {"experiment": SMALL, "attempt": attempt, "stage": stage, "seconds": seconds, "failed": failed}
    return line | {"peak_memory_bytes": 5, "tokens_per_second": None}


def row(tmp_path: Path, trial: queue.Trial, *lines: dict[str, Any]) -> dict[str, Any]:
    records.write_jsonl(tmp_path / "costs.jsonl", lines)
    setups = plan.setups("size", STUDY, CONTENT, ROOT / "profiles")
    own, _ = evidence.tables_of(
        STUDY, setups, {SMALL: trial, LARGE: queue.Trial(LARGE, "absent")}, tmp_path / "costs.jsonl"
    )
    return own[0]


def test_a_row_has_the_costs_and_the_failure_of_its_own_attempt(tmp_path: Path) -> None:
    lines = [cost("one", "baseline", 8.0), cost("one", "evaluate", 4.0, "a bug"), cost("two", "evaluate", 2.0, "full")]
    second = row(tmp_path, queue.Trial(SMALL, "failed", attempt="two"), *lines)
    assert (second["seconds"], second["reason"]) == (2.0, "evaluate: full")
    # The third had everything from the cache.
    assert "seconds" not in row(tmp_path, queue.Trial(SMALL, "running", attempt="three"), *lines)


def test_lines_that_name_no_attempt_are_read_as_they_were(tmp_path: Path) -> None:
    older = [cost(None, "baseline", 8.0), cost(None, "evaluate", 2.0)]
    for line in older:
        del line["attempt"]
    assert row(tmp_path, queue.Trial(SMALL, "running", attempt="one"), *older)["seconds"] == 10.0
    assert row(tmp_path, queue.Trial(SMALL, "running"), *older)["seconds"] == 10.0


def test_where_the_queue_was_cleared_the_only_attempt_is_the_one(tmp_path: Path) -> None:
    only, other = cost("one", "baseline", 8.0), cost("two", "baseline", 2.0)
    assert row(tmp_path, queue.Trial(SMALL, "running"), only)["seconds"] == 8.0
    assert "seconds" not in row(tmp_path, queue.Trial(SMALL, "running"), only, other)


def test_a_table_with_runs_that_are_not_at_hand_stays(repository: Repository) -> None:
    path = Path("metrics/studies/size.csv")
    runs = [{"run": f"hidden_size-{size}", "status": "done", "seconds": 7.0} for size in (64, 128)]
    records.write_csv(path, ["run", "status", "seconds"], runs)
    before = path.read_bytes()
    repository.commit("a table of both")
    repository.ran(SMALL, "baseline", "evaluate")
    told = findings.outcome("size", STUDY, repository.setups, Path("metrics"), Path(".work/costs.jsonl"))
    assert path.read_bytes() == before
    assert f"{path} stays as it is: no experiment here is hidden_size-128, which it tells of" in told
    with Path(".work/studies/size.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done", "absent"]
    repository.ran(LARGE, "baseline", "evaluate")
    findings.outcome("size", STUDY, repository.setups, Path("metrics"), Path(".work/costs.jsonl"))
    assert path.read_bytes() != before
