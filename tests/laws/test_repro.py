"""Laws of the pipeline under real DVC, in a clone: what runs again after a change, and what the trackers know of it."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from clones import Clone, families, project
from conftest import STAGES, Pipeline
from emotune.runs.params import parse

pytestmark = pytest.mark.pipeline

AFTER_SFT = {"sft", "generate_prefs", "dpo", "evaluate"}
AFTER_PREFS = {"generate_prefs", "dpo", "evaluate"}
WEIGHTS = [0.5, 0.2, 0.3]


@pytest.fixture(scope="module")
def clone(warm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The project after its first `dvc repro`, from an empty cache, with what came of it committed."""
    made = project(tmp_path_factory.mktemp("repro") / "clone", warm_python)
    assert sorted(made.ran(made("dvc", "repro"))) == sorted(STAGES)
    made("git", "add", ".")
    made("git", "commit", "--quiet", "-m", "What came of it")
    return made


@pytest.fixture(scope="module")
def experiment(clone: Clone) -> str:
    """What DVC printed of an experiment, after which the workspace is what is committed again."""
    printed = clone("dvc", "exp", "run", "--name", "keener", "-S", f"reward.weights={WEIGHTS}")
    clone("git", "checkout", "--quiet", ".")
    clone("dvc", "checkout", "--quiet")
    return printed


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
        ("reward.weights", WEIGHTS, AFTER_PREFS),
        ("reward.length.high", 30, AFTER_PREFS),
        ("reward_model.margin", 0.5, AFTER_PREFS | {"reward_model"}),
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


@pytest.mark.parametrize(
    ("name", "affected"),
    [
        ("runs/tracking.py", set()),
        ("runs/stage.py", set()),
        ("faces/page.py", set()),
        ("publish/cards.py", set()),
        ("studies/evidence.py", set()),
        ("prompts/formats/in_inst.jinja", set()),
        ("stages/dpo.py", {"dpo", "evaluate"}),
        ("evaluation/scores.py", set(STAGES) - {"prepare", "base_model", "sft"}),
        ("preferences/reward.py", AFTER_PREFS),
        ("training/trainer.py", AFTER_SFT | {"reward_model"}),
        ("core/seeds.py", set(STAGES)),
    ],
)
def test_edited_code_affects_the_stages_that_import_it_alone(name: str, affected: set[str], clone: Clone) -> None:
    with clone.edited(f"src/emotune/{name}"):
        assert clone.changed() == affected


# --- experiments


def test_a_float_in_scientific_notation_arrives_as_a_float(clone: Clone) -> None:
    path = clone.folder / "params.yaml"
    before = path.read_bytes()
    try:
        # `judges` does not depend on it, so nothing runs; the file is written all the same.
        clone("dvc", "exp", "run", "--name", "slow", "-S", "sft.learning_rate=2e-5", "judges")
        assert parse(path).sft.learning_rate == 0.00002
        assert clone.changed() == AFTER_SFT
    finally:
        path.write_bytes(before)
        clone("git", "checkout", "--quiet", ".")


def test_other_weights_run_what_they_affect_and_nothing_else(experiment: str, clone: Clone) -> None:
    assert clone.ran(experiment) == ["generate_prefs", "dpo", "evaluate"]


def test_what_an_experiment_has_run_already_comes_from_the_cache(experiment: str, clone: Clone) -> None:
    output = clone("dvc", "exp", "run", "--temp", "--name", "again", "-S", f"reward.weights={WEIGHTS}")
    assert clone.ran(output) == []
    assert re.findall(r"Stage '(\w+)' is cached - skipping run", output) == ["generate_prefs", "dpo", "evaluate"]


def test_exp_show_lists_the_experiments_with_their_weights(experiment: str, clone: Clone) -> None:
    rows = list(csv.DictReader(io.StringIO(clone("dvc", "exp", "show", "--csv"))))
    [keener] = [row for row in rows if row["Experiment"] == "keener"]
    assert json.loads(keener["reward.weights"]) == WEIGHTS


def test_metrics_diff_shows_what_an_experiment_changed(experiment: str, clone: Clone) -> None:
    found = json.loads(clone("dvc", "metrics", "diff", "main", "keener", "--json"))
    assert set(found) == {"metrics/headline.json"}
    # No number of the baseline or of sft depends on the weights.
    shown = {name.split(".")[0] for name in found["metrics/headline.json"]}
    assert "dpo" in shown
    assert shown <= {"dpo", "gibberish", "judge_gap", "pairs", "yield"}


def test_plots_show_and_diff_have_every_plot_of_dvc_yaml(experiment: str, clone: Clone) -> None:
    for command in (["show"], ["diff", "main", "keener"]):
        plots = json.loads(clone("dvc", "plots", *command, "--json"))
        shown = plots.get("data", plots)
        assert plots.get("errors", []) == []
        of_dpo = {f"dpo {what}" for what in ("loss", "margins", "reward accuracy", "log-probability", "control")}
        of_stages = {path for stage in STAGES.values() for named in stage.get("plots", []) for path in named}
        assert len(of_stages) == 9
        others = {"sft loss", "reward_model loss", "reward_model accuracy", "best of n", "learning curve"}
        assert {name.split("::")[-1] for name in shown} == others | of_dpo | of_stages


def test_the_page_of_plots_draws_without_a_network(clone: Clone, page: Any, tmp_path: Path) -> None:
    clone("dvc", "plots", "show", "--out", str(tmp_path))
    page.goto((tmp_path / "index.html").as_uri())
    page.wait_for_function("document.querySelectorAll('canvas.marks').length == 19")


# --- MLflow


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


def test_experiments_are_tracked_in_the_same_store_under_their_names(experiment: str, clone: Clone) -> None:
    found = families(clone)
    assert {"", "keener"} <= set(found)
    _, children = found["keener"]
    assert sorted(run.data.tags["dvc.stage"] for run in children) == sorted(AFTER_PREFS)


def test_a_tracked_run_writes_mlflow_into_the_repository_and_nowhere_in_its_outs(clone: Clone) -> None:
    stores = [path.relative_to(clone.folder).as_posix() for path in clone.folder.rglob("mlflow.db")]
    assert stores == ["mlflow.db"]
    assert not (clone.folder / "mlruns").exists()
