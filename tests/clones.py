"""The project in a git repository of its own, with tiny params, under real DVC and a real tracker."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, STAGES, TINY, Pipeline, declared, write_params
from emotune.core import records


@contextmanager
def dvc_init(folder: Path, **how: Any) -> Iterator[Any]:
    """A new DVC repository, opened in this process: what DVC would say goes to a stdout that pytest has long closed."""
    from dvc.logger import set_loggers_level
    from dvc.repo import Repo

    with set_loggers_level(logging.ERROR), Repo.init(str(folder), **how) as repo:
        yield repo


@dataclass(frozen=True)
class Clone:
    """A git repository with the project's files as they are now, tiny params, and a DVC cache of its own."""

    folder: Path
    # The folder of the python that it finds first: warm.py has one.
    python: Path = Path(sys.executable).parent

    @property
    def environment(self) -> dict[str, str]:
        """What keeps its commands away from the user's own git and DVC."""
        return {
            "PATH": os.pathsep.join([str(self.python), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(self.folder / "src"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.folder.parent / "dvc"),
            "DVC_GLOBAL_CONFIG_DIR": str(self.folder.parent / "dvc"),
            "COLUMNS": "200",
        }

    def __call__(self, *command: str) -> str:
        """What a command prints, which must not fail."""
        unset = ("DVC_ROOT", "DVC_EXP_NAME", "EMOTUNE_TRACKING", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")
        environment = {name: value for name, value in os.environ.items() if name not in unset} | self.environment
        ended = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    def ran(self, output: str) -> list[str]:
        """The stages that DVC says it ran, in order."""
        return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")]

    def ended(self) -> list[str]:
        """The stages that ended here, by the notes they leave."""
        return [line["stage"] for line in records.read_jsonl(self.folder / ".work/costs.jsonl")]

    @contextmanager
    def repo(self) -> Iterator[Any]:
        """DVC's own view of it, in this process: a command would import DVC each time."""
        from dvc.repo import Repo

        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            # DVC names stages by the way to their file from here.
            patch.chdir(self.folder)
            with Repo() as repo:
                yield repo

    def changed(self) -> set[str]:
        """The stages that `dvc repro` would run: those that DVC finds changed, and all that follows from them."""
        with self.repo() as repo:
            status = repo.status()
        changed = {stage for stage in STAGES if stage in status}
        for stage in STAGES:  # written in the order of the story, so one pass will do
            inputs = [Path(path) for path in STAGES[stage]["deps"]]
            outs = [Path(path) for before in changed for path in declared(before)]
            if any(path.is_relative_to(out) for path in inputs for out in outs):
                changed.add(stage)
        return changed

    @contextmanager
    def edited(self, name: str) -> Iterator[None]:
        """The clone as it would be with a remark at the end of a file."""
        path = self.folder / name
        before = path.read_bytes()
        path.write_bytes(before + b"# A remark\n")
        try:
            yield
        finally:
            path.write_bytes(before)

    @contextmanager
    def with_params(self, **changes: Any) -> Iterator[None]:
        """The clone as it would be with other values of some dotted keys."""
        path = self.folder / "params.yaml"
        before = path.read_bytes()
        write_params(self.folder, TINY | changes)
        try:
            yield
        finally:
            path.write_bytes(before)


def project(folder: Path, python: Path = Clone.python) -> Clone:
    """The project's files as they are now in a new repository, with tiny params, committed.

    But for another round and the instruction pipeline, whose outs no clone has.
    """
    tracked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(tracked, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith(("rounds/dvc.", "instruct/dvc.")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    write_params(folder, TINY)
    made = Clone(folder, python)
    made("git", "init", "--quiet", "--initial-branch", "main")
    made("git", "config", "user.name", "A tester")
    made("git", "config", "user.email", "tester@localhost")
    made("git", "add", ".")
    made("git", "commit", "--quiet", "-m", "The project, with tiny params")
    assert not (folder / ".dvc/cache").exists()
    return made


def reproduced(folder: Path, pipeline: Pipeline, python: Path = Clone.python) -> Clone:
    """The project with every out of a pipeline in its workspace and cache, and dvc.lock and metrics committed."""
    made = project(folder, python)
    for path in [path for stage in STAGES for path in declared(stage)]:
        copy = shutil.copytree if (pipeline.folder / path).is_dir() else shutil.copyfile
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        copy(pipeline.folder / path, folder / path)
    made("dvc", "commit", "--force", "--quiet")
    made("git", "commit", "--quiet", "--all", "-m", "What came of it")
    return made


def runs_of(clone: Clone) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{clone.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("emotune")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], max_results=1000)


def families(clone: Clone) -> dict[str, tuple[Any, list[Any]]]:
    """Each pipeline run with its stages' runs, by the name of its DVC experiment ('' for `dvc repro`)."""
    runs = runs_of(clone)
    parents = [run for run in runs if "emotune.pipeline" in run.data.tags]
    return {
        parent.data.tags.get("dvc.exp.name", ""): (
            parent,
            [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id],
        )
        for parent in parents
    }
