"""Laws of the pipeline under real DVC, in a clone: what runs again after a change, and what the trackers know of it."""

import csv
import io
import json
import os
import re
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
from emotune.runs.params import load

pytestmark = pytest.mark.pipeline

AFTER_SFT = {"sft", "generate_prefs", "dpo", "evaluate"}
AFTER_PREFS = {"generate_prefs", "dpo", "evaluate"}
IN_WORKSPACE, IN_QUEUE = [0.5, 0.2, 0.3], [0.3, 0.3, 0.4]


@dataclass(frozen=True)
class Clone:
    """A git repository with the project's files as they are now, tiny params, and a DVC cache of its own."""

    folder: Path

    def __call__(self, *command: str) -> str:
        """What a command prints, which must not fail."""
        venv = str(Path(sys.executable).parent)
        unset = ("DVC_ROOT", "DVC_EXP_NAME", "EMOTUNE_TRACKING", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")
        environment = {name: value for name, value in os.environ.items() if name not in unset} | {
            "PATH": os.pathsep.join([venv, os.environ["PATH"]]),
            "PYTHONPATH": str(self.folder / "src"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.folder.parent / "dvc"),
            "DVC_GLOBAL_CONFIG_DIR": str(self.folder.parent / "dvc"),
            "COLUMNS": "200",
        }
        ended = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    def ran(self, output: str) -> list[str]:
        """The stages that DVC says it ran, in order."""
        return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")]

    def ended(self) -> list[str]:
        """The stages that ended here, by the notes they leave."""
        return [line["stage"] for line in records.read_jsonl(self.folder / ".work/costs.jsonl")]

    def changed(self) -> set[str]:
        """The stages that `dvc repro` would run: those that DVC finds changed, and all that follows from them."""
        status = json.loads(self("dvc", "status", "--json"))
        found = {stage for stage in STAGES if stage in status}
        for stage in STAGES:  # written in the order of the story, so one pass will do
            inputs = [Path(path) for path in STAGES[stage]["deps"]]
            outs = [Path(path) for before in found for path in declared(before)]
            if any(path.is_relative_to(out) for path in inputs for out in outs):
                found.add(stage)
        return found

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


def project(folder: Path) -> Clone:
    """The project's files as they are now in a new repository, with tiny params, committed."""
    tracked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(tracked, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    write_params(folder, TINY)
    made = Clone(folder)
    made("git", "init", "--quiet", "--initial-branch", "main")
    made("git", "config", "user.name", "A tester")
    made("git", "config", "user.email", "tester@localhost")
    made("git", "add", ".")
    made("git", "commit", "--quiet", "-m", "The project, with tiny params")
    assert not (folder / ".dvc/cache").exists()
    return made


def reproduced(folder: Path, pipeline: Pipeline) -> Clone:
    """The project with every out of a pipeline in its workspace and cache, and dvc.lock and metrics committed."""
    made = project(folder)
    for path in [path for stage in STAGES for path in declared(stage)]:
        copy = shutil.copytree if (pipeline.folder / path).is_dir() else shutil.copyfile
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        copy(pipeline.folder / path, folder / path)
    made("dvc", "commit", "--force", "--quiet")
    made("git", "commit", "--quiet", "--all", "-m", "What came of it")
    return made


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The project after its first `dvc repro`, from an empty cache, with what came of it committed."""
    made = project(tmp_path_factory.mktemp("repro") / "clone")
    assert sorted(made.ran(made("dvc", "repro"))) == sorted(STAGES)
    made("git", "add", ".")
    made("git", "commit", "--quiet", "-m", "What came of it")
    return made


@pytest.fixture(scope="module")
def experiments(clone: Clone) -> tuple[str, str]:
    """What DVC printed of an experiment in the workspace, and of another from the queue."""
    here = clone("dvc", "exp", "run", "--name", "here", "-S", f"reward.weights={IN_WORKSPACE}")
    clone("dvc", "exp", "run", "--queue", "--name", "queued", "-S", f"reward.weights={IN_QUEUE}")
    return here, clone("dvc", "exp", "run", "--run-all")


# --- repro


def test_processes_of_dvc_write_the_bytes_that_one_process_writes(clone: Clone, pipeline: Pipeline) -> None:
    for stage in STAGES:
        for path in sorted(pipeline.written[stage]):
            if not path.startswith(".work/"):
                assert (clone.folder / path).read_bytes() == (pipeline.folder / path).read_bytes(), path


def test_a_run_leaves_nothing_for_git_but_the_lock_and_the_metrics(clone: Clone) -> None:
    committed = clone("git", "diff", "--name-only", "HEAD~1").split()
    assert [path for path in committed if path != "dvc.lock" and not path.startswith("metrics/")] == []
    assert clone("git", "status", "--porcelain") == ""


def test_a_second_repro_starts_no_stage(clone: Clone) -> None:
    before = clone.ended()
    output = clone("dvc", "repro")
    assert set(before) == set(STAGES)
    assert clone.ran(output) == []
    assert "Data and pipelines are up to date." in output
    assert clone.ended() == before


@pytest.mark.parametrize(
    ("key", "value", "affected"),
    [
        ("template", "in_inst", AFTER_SFT),
        ("sft.lora.rank", 8, AFTER_SFT),
        ("reward.weights", IN_WORKSPACE, AFTER_PREFS),
        ("reward.length.high", 30, AFTER_PREFS),
        ("prefs.candidates", 5, AFTER_PREFS),
        ("dpo.beta", 0.2, {"dpo", "evaluate"}),
        ("evaluate.prompts", 30, {"baseline", "evaluate"}),
        ("data.dialogues", 401, set(STAGES)),
    ],
)
def test_a_changed_param_affects_what_depends_on_it_alone(
    key: str, value: Any, affected: set[str], clone: Clone
) -> None:
    assert clone.changed() == set()
    with clone.with_params(**{key: value}):
        assert clone.changed() == affected


def test_a_comment_affects_nothing(clone: Clone) -> None:
    params_file, readme = clone.folder / "params.yaml", clone.folder / "README.md"
    before = {path: path.read_bytes() if path.exists() else b"" for path in (params_file, readme)}
    try:
        for path, content in before.items():
            path.write_bytes(b"# A remark\n" + content)
        assert clone.changed() == set()
    finally:
        for path, content in before.items():
            path.write_bytes(content)


# --- experiments


def test_a_float_in_scientific_notation_arrives_as_a_float(clone: Clone) -> None:
    path = clone.folder / "params.yaml"
    before = path.read_bytes()
    try:
        # `judges` does not depend on it, so nothing runs; the file is written all the same.
        clone("dvc", "exp", "run", "--name", "slow", "-S", "sft.learning_rate=2e-5", "judges")
        assert load("sft", path=path).sft.learning_rate == 0.00002
        assert clone.changed() == AFTER_SFT
    finally:
        path.write_bytes(before)
        clone("git", "checkout", "--quiet", ".")


def test_other_weights_run_what_they_affect_and_nothing_else(experiments: tuple[str, str], clone: Clone) -> None:
    assert clone.ran(experiments[0]) == ["generate_prefs", "dpo", "evaluate"]


def test_what_an_experiment_has_run_already_comes_from_the_cache(experiments: tuple[str, str], clone: Clone) -> None:
    output = clone("dvc", "exp", "run", "--temp", "--name", "again", "-S", f"reward.weights={IN_QUEUE}")
    assert clone.ran(output) == []
    assert re.findall(r"Stage '(\w+)' is cached - skipping run", output) == ["generate_prefs", "dpo", "evaluate"]


def test_exp_show_lists_the_experiments_with_their_weights(experiments: tuple[str, str], clone: Clone) -> None:
    rows = list(csv.DictReader(io.StringIO(clone("dvc", "exp", "show", "--csv"))))
    weights = {row["Experiment"]: json.loads(row["reward.weights"]) for row in rows if row["Experiment"]}
    assert weights["here"] == IN_WORKSPACE
    assert weights["queued"] == IN_QUEUE
    assert {row["State"] for row in rows if row["Experiment"] in weights} <= {"", "Success"}


def test_metrics_diff_shows_what_an_experiment_changed(experiments: tuple[str, str], clone: Clone) -> None:
    found = json.loads(clone("dvc", "metrics", "diff", "main", "queued", "--json"))
    assert set(found) == {"metrics/prefs.json", "metrics/dpo.json", "metrics/evaluate.json"}
    # No number of the baseline or of sft depends on the weights.
    assert {name.split(".")[0] for name in found["metrics/evaluate.json"]} <= {"dpo", "paired"}


def test_plots_show_and_diff_have_every_plot_of_dvc_yaml(experiments: tuple[str, str], clone: Clone) -> None:
    for command in (["show"], ["diff", "main", "queued"]):
        plots = json.loads(clone("dvc", "plots", *command, "--json"))
        shown = plots.get("data", plots)
        assert plots.get("errors", []) == []
        of_dpo = {f"dpo {what}" for what in ("loss", "margins", "reward accuracy", "log-probability", "control")}
        of_stages = {path for stage in STAGES.values() for named in stage.get("plots", []) for path in named}
        assert len(of_stages) == 6
        assert {name.split("::")[-1] for name in shown} == {"sft loss", "learning curve"} | of_dpo | of_stages


def test_the_page_of_plots_draws_without_a_network(clone: Clone, page: Any, tmp_path: Path) -> None:
    clone("dvc", "plots", "show", "--out", str(tmp_path))
    page.goto((tmp_path / "index.html").as_uri())
    page.wait_for_function("document.querySelectorAll('canvas.marks').length == 13")


# --- MLflow


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


def test_repro_is_one_mlflow_run_with_a_child_for_each_stage(clone: Clone) -> None:
    parent, children = families(clone)[""]
    assert parent.info.status == "FINISHED"
    by_stage = {run.data.tags["dvc.stage"]: run for run in children}
    assert len(children) == len(STAGES)
    assert set(by_stage) == set(STAGES)
    commit = clone("git", "rev-parse", "HEAD~1").strip()
    for run in children:
        assert run.info.status == "FINISHED"
        assert run.data.metrics
        assert run.data.tags["git.commit"] == commit
    deps = {stage: {tag for tag in run.data.tags if tag.startswith("dvc.dep.")} for stage, run in by_stage.items()}
    assert deps["dpo"] == {f"dvc.dep.{dep}" for dep in STAGES["dpo"]["deps"]}
    # What one stage read is what another wrote: the hashes join the runs.
    assert by_stage["dpo"].data.tags["dvc.dep.models/sft"] == by_stage["sft"].data.tags["dvc.out.models/sft"]
    assert by_stage["sft"].data.params["sft.lora.rank"] == "4"


def test_experiments_are_tracked_in_the_same_store_under_their_names(
    experiments: tuple[str, str], clone: Clone
) -> None:
    found = families(clone)
    assert {"", "here", "queued"} <= set(found)
    for name in ("here", "queued"):
        _, children = found[name]
        assert sorted(run.data.tags["dvc.stage"] for run in children) == sorted(AFTER_PREFS)


def test_a_tracked_run_writes_mlflow_into_the_repository_and_nowhere_in_its_outs(clone: Clone) -> None:
    stores = [path.relative_to(clone.folder).as_posix() for path in clone.folder.rglob("mlflow.db")]
    assert stores == ["mlflow.db"]
    assert not (clone.folder / "mlruns").exists()
