"""Laws of studies: what their files may say, what is queued, what DVC's queue really does, and what the table says."""

from __future__ import annotations

import csv
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from emotune.core import records
from emotune.core.errors import InputError
from emotune.core.sections import read_yaml
from emotune.evaluation import instructions, scores
from emotune.evaluation.instruction_params import Outputs
from emotune.faces import cli
from emotune.studies import differences, evidence, findings, plan, queue

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / "experiments"
CONTENT = read_yaml(PROJECT / "params.yaml")
BELOW = PROJECT / "instruct"
EVERY = sorted([*FOLDER.glob("*.yaml"), *BELOW.glob("experiments/*.yaml")])


# What a file says.


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_every_study_of_the_project_asks_for_params_that_are_accepted(path: Path) -> None:
    study, pipeline = plan.read(path.parent, path.stem), path.parents[1]
    content = read_yaml(pipeline / "params.yaml")
    if not study.of_instructions:
        content |= {"data": CONTENT["data"] | {"path": "somewhere"}}
    setups = plan.setups(path.stem, study, content, pipeline / "profiles")
    name = f"instruct-{path.stem}" if pipeline == BELOW else path.stem
    assert list(setups) == [f"{name}-{variant.name}" for variant in study.variants()]
    assert study.target in read_yaml(pipeline / "dvc.yaml")["stages"]
    different = {str(setup.params) for setup in setups.values()}
    assert len(different) == len(setups), "two runs of a study are the same experiment"


def test_choices_never_look_at_the_test_split() -> None:
    studies = [plan.read(path.parent, path.stem) for path in EVERY if not path.stem.endswith("-test")]
    # Of seeds nothing is chosen.
    assert {study.common["evaluate.split"] for study in studies if not study.seeds} == {"validation"}
    assert all("evaluate.split" not in study.common for study in studies if study.seeds)


def test_what_was_chosen_is_looked_at_once_on_test_beside_the_default() -> None:
    for name in (path.stem for path in EVERY if path.stem.endswith("-test")):
        study, chose = plan.read(FOLDER, name), plan.read(FOLDER, name.removesuffix("-test"))
        assert study.common == chose.common | {"evaluate.split": "test"}
        assert len(study.runs) == 2
        assert study.against == chose.against == study.runs[0].name
        assert all(run in chose.runs for run in study.runs)


def test_a_grid_is_every_combination_named_after_its_values() -> None:
    names = [variant.name for variant in plan.read(FOLDER, "sweep").variants()]
    assert len(names) == 32
    assert names[0] == "rank-8_alpha-16_rslora-true_learning_rate-0.001_epochs-1"
    templates = [variant.name for variant in plan.read(FOLDER, "templates").variants()]
    assert templates == ["out_inst", "out_inst_uni", "in_inst_uni", "in_inst"]


def test_a_profile_is_below_what_the_study_and_the_run_set() -> None:
    study = plan.read(FOLDER, "bases-7b")
    settings = plan.overrides(study, study.runs[0], CONTENT, PROJECT / "profiles")
    assert settings["model.base"] == "meta-llama/Llama-2-7b-chat-hf"
    assert settings["prefs.sampling.top_k"] == 5
    assert settings["evaluate.split"] == "validation"


STUDY = """description: Which size?
target: baseline
models: [baseline]
show: [accuracy, bits/char]
tests: [accuracy]
against: best
runs:
  - name: small
    overrides: {pretrain.hidden_size: 64}
  - name: large
    overrides: {pretrain.hidden_size: 128}
  - name: huge
    overrides: {pretrain.hidden_size: 512}
published:
  Llama-2-7B: {accuracy: 0.718, f1: 0.760}
"""
STUDY_RUNS = STUDY[STUDY.index("runs:") : STUDY.index("published:")].strip()
GRID = STUDY[: STUDY.index("runs:")] + "grid: {pretrain.hidden_size: [64, 128], pretrain.heads: [4, 2]}\n"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("target: baseline", "target: sft", r"size.yaml: target: Input should be 'baseline', 'evaluate' or 'compare'"),
        ("against: best", "against: tiny", r"against must be best or one of small, large, huge, got 'tiny'"),
        ("against: best\n", "", r"against must be best or one of small, large, huge, got None"),
        ("tests: [accuracy]", "tests: [luck]", r"tests takes accuracy, .*; got luck"),
        ("tests: [accuracy]", "tests: [words]", r"tests takes accuracy, .*; got words"),
        ("tests: [accuracy]", "tests: [fit]", r"tests takes accuracy, .*; got fit"),
        ("name: large", "name: small", r"must name each run once, and two are small"),
        ("name: large", "name: la rge", r"runs\.1\.name: String should match pattern"),
        ("runs:", "queue: 3\nruns:", r"size.yaml: queue: Extra inputs are not permitted"),
        (STUDY_RUNS, "seeds: [7, 8]", r"seeds must be two or more, with models: \[sft, dpo\], .*, and no against"),
        ("models: [baseline]", "models: [dpo]", r"models takes baseline up to baseline; got dpo"),
        ("target: baseline", "target: compare", r"models takes zero_shot, few_shot, sft up to compare; got baseline"),
    ],
)
def test_a_wrong_study_is_one_message(tmp_path: Path, before: str, after: str, message: str) -> None:
    (tmp_path / "size.yaml").write_text(STUDY.replace(before, after))
    with pytest.raises(InputError, match=message):
        plan.read(tmp_path, "size")


def test_an_unknown_study_names_those_there_are() -> None:
    with pytest.raises(InputError, match=r"no study 'base'; there are bases, bases-7b, "):
        plan.read(FOLDER, "base")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("pretrain.size", r"unknown key pretrain\.size"),
        ("template.size", r"template\.size is no key of params.yaml: template is a value, not a section"),
    ],
)
def test_an_override_that_params_yaml_has_not_is_refused_before_anything_is_queued(key: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan.effective(CONTENT, {key: 3}, "experiments/size.yaml, size-small")


@pytest.mark.parametrize(
    "value", ["owner/it's \\ a model", "1e5", "null", 2e-05, None, True, [0.4, 0.25], {"a b": "c"}]
)
def test_dvc_reads_back_the_value_that_was_meant(tmp_path: Path, value: Any) -> None:
    from dvc.utils.hydra import apply_overrides

    (tmp_path / "params.yaml").write_text("key: 1\n")
    apply_overrides(tmp_path / "params.yaml", [f"key={plan.hydra(value)}"])
    assert YAML(typ="safe", pure=True).load(tmp_path / "params.yaml") == {"key": value}


def test_the_code_of_a_stage_is_its_own_and_that_of_all_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    stages = read_yaml(PROJECT / "dvc.yaml")["stages"]
    baseline = queue.code_of(stages, "baseline")
    assert {"src/emotune/data", "src/emotune/stages/base_model.py", "src/emotune/stages/baseline.py"} <= set(baseline)
    assert not {"src/emotune/training", "src/emotune/stages/sft.py", "src/emotune/faces"} & set(baseline)
    assert "src/emotune/prompts/formats/*.jinja" in queue.code_of(stages, "evaluate")


def test_runs_of_a_study_of_seeds_are_alike_but_for_three_seeds_that_move_together() -> None:
    study = plan.read(FOLDER, "seeds")
    assert [variant.name for variant in study.variants()] == [f"seed-{n}" for n in (7, 8, 9, 10, 11)]
    setups = plan.setups("seeds", study, CONTENT, PROJECT / "profiles")
    assert setups["seeds-seed-9"].settings == {"sft.seed": 9, "prefs.seed": 9, "dpo.seed": 9}
    # The first is the run of params.yaml, which DVC has.
    assert setups["seeds-seed-7"].params == plan.effective(CONTENT, {}, "params.yaml")


# What a difference is.

LABELS = ["neutral", "fear"]
Rows = list[dict[str, Any]]


def answers(judged: str, nats: float, reply: str = "Oh.") -> Rows:
    """A hundred dialogues of one reply, asked for in fear; `judged` has a letter for each, f or n."""
    return [
        {
            "id": f"{n}",
            "dialogue": f"{n}",
            "emotion": "fear",
            "judged": {"f": "fear", "n": "neutral"}[judge],
            "judged_undivided": {"f": "fear", "n": "neutral"}[judge],
            "reply": reply if n < 30 else "Oh.",
            "reference": "Help me!",
            "reference_nats": nats,
            "reference_tokens": 4,
        }
        for n, judge in enumerate(judged)
    ]


def difference(column: str, first: Rows, other: Rows, resamples: int) -> dict[str, float]:
    of_first, of_other = (differences.drawn(column, rows, LABELS, "neutral", resamples, 7) for rows in (first, other))
    values = of_other - of_first
    return scores.tested(values[0], values[1:])


def test_a_difference_is_the_other_minus_the_first_with_its_interval() -> None:
    first, other = answers("f" * 50 + "n" * 50, 4.0), answers("f" * 80 + "n" * 20, 8.0, "user: what?")
    found = difference("accuracy", first, other, 1000)
    assert found["difference"] == pytest.approx(0.3)
    # 30 of 100 dialogues change, and each resample has about as many.
    assert 0.2 < found["low"] < 0.25 < 0.35 < found["high"] < 0.4
    assert found["p"] == pytest.approx(2 / 1001)
    # e^2 - e, and (8 - 4) nats over 8 characters in bits: the same for every dialogue.
    perplexity = difference("perplexity", first, other, 100)
    assert perplexity["difference"] == pytest.approx(4.670774)
    bits = difference("bits/char", first, other, 100)
    assert bits["difference"] == pytest.approx(0.721348)
    prompt = difference("prompt text", first, other, 100)
    assert prompt["difference"] == pytest.approx(0.3)


def test_a_metric_of_a_study_is_by_the_verdict_that_a_runs_is() -> None:
    rows = [{**row, "judged": "fear"} for row in answers("f" * 50 + "n" * 50, 4.0)]
    values = {
        column: differences.drawn(column, rows, LABELS, "neutral", 100, 7)[0]
        for column in ("accuracy", "weighted F1", "F1 w/o neutral", "macro F1", "control")
    }
    f1 = pytest.approx(2 / 3)
    assert values == {"accuracy": 0.5, "weighted F1": f1, "F1 w/o neutral": f1, "macro F1": 1, "control": 1}


def test_what_rows_say_of_a_reply_is_tested_by_its_mean() -> None:
    same = answers("f" * 100, 4.0)
    first, other = ([row | {"found": 0.5, "learned_score": score} for row in same] for score in (4.0, 6.5))
    learned = difference("learned score", first, other, 100)
    assert (learned["difference"], learned["low"], learned["high"]) == (2.5, 2.5, 2.5)
    assert difference("fit", first, other, 100)["difference"] == 0
    assert differences.drawn("fit", first, LABELS, "neutral", 100, 7)[0] == 0.5


def test_equal_answers_do_not_differ() -> None:
    same = answers("f" * 50 + "n" * 50, 4.0)
    assert difference("macro F1", same, same, 100) == {
        "difference": 0.0,
        "low": 0.0,
        "high": 0.0,
        "p": 1.0,
    }


@pytest.mark.parametrize("comparisons", [1, 3, 31, 127, 1000])
def test_any_number_of_comparisons_leaves_a_plain_difference_one(comparisons: int) -> None:
    samples = differences.enough(comparisons, 1000)
    assert samples >= 1000
    # All that the bootstrap can say of a difference that no sample contradicts.
    plain = scores.tested(1.0, np.ones(samples))["p"]
    corrected = differences.holm(dict.fromkeys(range(comparisons), plain))
    assert max(corrected.values()) < differences.LEVEL / 10


def test_holm_s_correction() -> None:
    assert differences.holm({4: 0.01, 7: 0.04, 9: 0.03, 2: 0.005}) == pytest.approx(
        {2: 0.02, 4: 0.03, 9: 0.06, 7: 0.06}
    )


def test_holm_is_over_every_metric_and_model_of_every_row() -> None:
    """Three tests that no sample contradicts, and one of two runs that do not differ: four in all, in two rows."""
    plain, equal = np.ones(1000), np.zeros(1000)
    first: dict[str, Any] = {}
    second: dict[str, Any] = {}
    tests = [
        evidence.Test(first, "sft control", plain),
        evidence.Test(first, "dpo control", plain),
        evidence.Test(second, "sft control", plain),
        evidence.Test(second, "sft macro F1", equal),
    ]
    evidence.correct(tests)
    # 1000 less the value itself: the smallest p is 2 / 1000.
    assert [first["sft control p"], first["dpo control p"], second["sft control p"]] == pytest.approx([0.008] * 3)
    assert (second["sft macro F1 p"], second["sft macro F1 verdict"]) == (1.0, "noise")
    assert first["tests"] == second["tests"] == 4


def test_a_table_says_over_how_many_tests_it_is_corrected_and_an_older_one_that_it_was_by_metric() -> None:
    study = plan.read(FOLDER, "templates")
    newer = pd.DataFrame({"run": ["best", "other"], "tests": [None, 12.0]})
    assert findings.note(study, newer).endswith("p after Holm over all 12 tests of the study.")
    assert findings.note(study, newer[["run"]]).endswith("p after Holm over the comparisons by each model and metric.")


def test_a_metric_of_instructions_differs_as_compare_has_it_over_the_same_sources() -> None:
    """Two rows a source, of which the first says that one reply alone is right."""
    rows = [
        {"id": f"{n}", "source": f"{n // 2}", "nats": 4.0, "tokens": 2, "exact": n % 2 == 0, "output": "Oslo."}
        for n in range(40)
    ]
    before = [row | {"reply": "Bergen"} for row in rows]
    after = [row | {"reply": "oslo" if n < 10 else "Rome", "nats": 2.0} for n, row in enumerate(rows)]
    p = Outputs.model_validate(read_yaml(BELOW / "params.yaml")["evaluate"])
    for name in ("perplexity", "f1", "exact_match"):
        one, other = (differences.drawn_of_outputs(name, own, p.resamples, p.seed) for own in (before, after))
        values = other - one
        assert scores.tested(values[0], values[1:]) == instructions.compare(before, after, p)[name]
    assert other[0] == 0.25


def test_a_grid_of_seeds_says_what_a_change_does_over_them_and_no_seed_is_a_change() -> None:
    study = plan.read(BELOW / "experiments", "loss-on")
    [change] = evidence.changes(study)
    assert (change.key, change.first, change.value) == ("sft.loss_on", "replies", "all")
    assert (study.against, evidence.comparisons(study)) == (None, 2)
    points = [variant.overrides for variant in study.variants()]
    # A value and three samples a run: of replies, then of all, each by seed.
    runs = np.array([[1, 1, 2, 0], [2, 2, 3, 1], [3, 3, 4, 2], [2, 2, 2, 2], [4, 4, 4, 4], [6, 6, 6, 6]], dtype=float)
    effect = evidence._effect(change, points, list(runs))
    assert effect.tolist() == [[1, 1, 0, 2], [2, 2, 1, 3], [3, 3, 2, 4]]
    row: dict[str, Any] = {}
    evidence.correct([evidence.Test(row, "sft F1", effect)])
    assert row["sft F1 difference"] == 2
    over = differences.over_seeds(effect)
    assert (row["sft F1 difference low"], row["sft F1 p"]) == (over["low"], over["p"])
    # The seeds move it by one: the variance of the mean is 1 / 3, and that of the samples beside it.
    assert over["low"] < 2 - 1.96 * np.sqrt(1 / 3 + 1)


@pytest.mark.parametrize(("name", "tests"), [("bases", 4), ("learned-reward", 12), ("loss-on", 8), ("sweep", 72)])
def test_the_tests_of_a_study_are_counted_over_runs_changes_models_and_metrics(name: str, tests: int) -> None:
    assert evidence.comparisons(plan.read(FOLDER, name)) == tests


# What DVC's queue does with it.

# A stage whose model is as good as its hidden size, less with two heads, and that finds no memory for the largest.
STAGE = """
import time

import numpy

from emotune.core import records
from emotune.core.contract import Log, Metrics, Out
from emotune.core.sections import Section
from emotune.evaluation import scores
from emotune.models.params import Pretrain
from emotune.stages.ours import Baseline  # a section of params.yaml


class Params(Section):
    pretrain: Pretrain


def main(p: Params, log: Log, replies: Out, control: Out) -> Metrics:
    size = p.pretrain.hidden_size
    if size == 512:
        numpy.ones(1 << 60, "int8")
    time.sleep(size / 64)
    size -= 16 * (p.pretrain.heads == 2)
    labels = ["neutral", "fear"]
    rows = [{"id": str(n), "dialogue": str(n), "emotion": "fear", "reply": "Oh.",
             **dict.fromkeys(("judged", "judged_undivided"), labels[n % 128 < size])} for n in range(256)]
    for path in (replies, control):
        records.write_jsonl(path, rows)
    columns = [[row[name] for row in rows] for name in ("dialogue", "emotion", "judged")]
    return {"replies": scores.score(*columns, labels, "neutral", 100, 7)}
"""
NO_MEMORY = "baseline: out of memory: Unable to allocate 1.00 EiB for an array"
DVC_YAML = """stages:
  baseline:
    cmd: >-
      python -m emotune.runs.stage baseline
      --replies data/replies/baseline.jsonl --control data/replies/baseline.control.jsonl
      --metrics metrics/baseline.json
    deps: [src/emotune/core, src/emotune/stages/baseline.py]
    params: [pretrain]
    outs: [data/replies/baseline.jsonl, data/replies/baseline.control.jsonl]
    metrics:
      - metrics/baseline.json: {cache: false}
"""


class Repository:
    """A small repository with a real DVC pipeline of one stage, and two studies of it."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder, self.python = folder, python
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
        self.env |= {"DVC_NO_ANALYTICS": "1", "EMOTUNE_TRACKING": "off", "PYTHONPATH": str(PROJECT / "src")}
        shutil.copytree(PROJECT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        ours = folder / "src/emotune/stages/baseline.py"
        ours.rename(ours.with_name("ours.py"))
        for path, text in {
            "src/emotune/stages/baseline.py": STAGE,
            "dvc.yaml": DVC_YAML,
            "experiments/size.yaml": STUDY,
            "experiments/both.yaml": GRID,
            "data/replies/.gitignore": "*.jsonl\n",
            ".gitignore": "__pycache__/\n",
            ".dvcignore": "__pycache__/\n",
        }.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        shutil.copy(PROJECT / "params.yaml", folder)
        self("git", "init", "--quiet")
        self("git", "config", "user.email", "somebody@example.org")
        self("git", "config", "user.name", "somebody")
        self.dvc("init", "--quiet")
        self.commit("start")

    def __call__(self, *words: str) -> str:
        done = subprocess.run(words, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def dvc(self, *words: str) -> str:
        return self(f"{self.python}/dvc", *words)

    def emotune(self, *words: str) -> str:
        """What a command prints, which must not fail, in this process: another would import pandas and DVC first."""
        for known in (evidence._read, evidence._samples):
            known.cache_clear()
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.folder)
            # Whose dvc it starts.
            patch.setattr(sys, "executable", f"{self.python}/python")
            for name, value in self.env.items():
                patch.setenv(name, value)
            assert cli.main(words) == 0, out.getvalue() + err.getvalue()
        return out.getvalue()

    def commit(self, message: str) -> None:
        self("git", "add", "--all")
        self("git", "commit", "--quiet", "--message", message)

    def rows(self) -> dict[str, dict[str, str]]:
        with (self.folder / "metrics/studies/size.csv").open() as file:
            return {row["run"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def ran(warm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Repository, str]]:
    """A study that was interrupted while its first run ran, then continued to its end; and what it printed then.

    The other one was queued behind it, for the same worker.
    """
    repository = Repository(tmp_path_factory.mktemp("repository"), warm_python)
    # Of another day's attempt at one of its experiments.
    older = {"experiment": "size-small", "attempt": "0" * 40, "stage": "baseline", "seconds": 9000.0, "failed": None}
    records.write_jsonl(repository.folder / ".work/costs.jsonl", [older | {"peak_memory_bytes": 5}])
    said = repository.emotune("study", "size", "--queue-only")
    assert said.splitlines() == ["size-small: queued", "size-large: queued", "size-huge: queued"]
    repository.emotune("study", "both", "--queue-only")
    # As in a terminal: Ctrl-C reaches the foreground's process group.
    watching = subprocess.Popen(
        [sys.executable, "-m", "emotune.faces.cli", "study", "size"],
        cwd=repository.folder,
        env=repository.env,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert watching.stdout is not None
    first = [watching.stdout.readline() for _ in range(3)]
    assert first == ["size-small: queued already\n", "size-large: queued already\n", "size-huge: queued already\n"]
    assert any("running" in line for line in iter(watching.stdout.readline, ""))
    os.killpg(watching.pid, signal.SIGINT)
    rest = watching.communicate(timeout=30)[0]
    assert watching.returncode == 130
    assert "What is queued goes on without this terminal." in rest
    said = repository.emotune("study", "size")
    repository.emotune("study", "both")
    yield repository, said
    repository.dvc("queue", "stop", "--kill")


@pytest.mark.pipeline
def test_an_interrupted_study_goes_on_and_ends_with_a_row_a_run(ran: tuple[Repository, str]) -> None:
    repository, _ = ran
    rows = repository.rows()
    assert [(name, row["status"]) for name, row in rows.items()] == [
        ("small", "done"),
        ("large", "done"),
        ("huge", "failed"),
    ]
    assert rows["small"]["pretrain.hidden_size"] == "64"
    assert 1 <= float(rows["small"]["seconds"]) < 600
    assert [rows[name]["baseline accuracy"] for name in ("small", "large")] == ["0.5", "1.0"]


@pytest.mark.pipeline
def test_a_run_that_fails_is_a_row_that_says_why(ran: tuple[Repository, str]) -> None:
    repository, said = ran
    reason = repository.rows()["huge"]["reason"]
    assert reason.startswith(NO_MEMORY)
    assert reason.endswith("; a smaller base model, batch or context takes less")
    assert "failed: baseline: out of" in said


@pytest.mark.pipeline
def test_the_best_is_first_and_the_others_differ_from_it_by_a_paired_test(ran: tuple[Repository, str]) -> None:
    repository, said = ran
    rows = repository.rows()
    assert rows["large"]["baseline accuracy verdict"] == "best"
    assert rows["small"]["baseline accuracy difference"] == "-0.5"
    # 2 / 101 for the one comparison of two runs: the third failed.
    assert rows["small"]["baseline accuracy p"] == "0.001998"
    assert rows["small"]["baseline accuracy verdict"] == "differs"
    assert said.index("large  ") < said.index("small  ", said.index("run  "))


@pytest.mark.pipeline
def test_published_bars_stand_beside_ours_in_a_block_of_the_readme(ran: tuple[Repository, str]) -> None:
    repository, _ = ran
    (repository.folder / "README.md").write_text("<!-- begin:study-size -->\n<!-- end:study-size -->\n")
    repository.emotune("report", "--readme", "README.md")
    text = (repository.folder / "README.md").read_text()
    assert text.startswith("<!-- begin:study-size -->\n| run | accuracy | bits/char | accuracy − best | seconds | peak")
    assert "\n| Llama-2-7B | – | – | – | – | – | 0.718 | 0.760 |\n" in text
    assert "\n| small | 0.500 [" in text
    assert f"\n| huge | failed: {NO_MEMORY} with shape (1152921504606846976,) and data type int8 | – | – |" in text


@pytest.mark.pipeline
def test_what_is_done_is_not_queued_again_even_after_a_commit(ran: tuple[Repository, str]) -> None:
    repository, _ = ran
    repository.commit("the table")
    before = repository("git", "for-each-ref", "refs/exps/*/*/*")
    assert before.count("/size-") == 2
    said = repository.emotune("study", "size", "--queue-only")
    assert said.splitlines() == ["size-small: done already", "size-large: done already", "size-huge: queued"]
    repository.dvc("queue", "remove", "--queued")
    assert repository("git", "for-each-ref", "refs/exps/*/*/*") == before


@pytest.mark.pipeline
def test_other_params_or_other_code_are_another_experiment(ran: tuple[Repository, str]) -> None:
    repository, _ = ran
    study = plan.read(repository.folder / "experiments", "size")
    setups = plan.setups("size", study, CONTENT, PROJECT / "profiles")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository.folder)
        states = {trial.name: trial.state for trial in queue.trials(setups, "baseline").values()}
        assert (states["size-small"], states["size-large"]) == ("done", "done")
        other = plan.setups("size", study, CONTENT | {"history_turns": 4}, PROJECT / "profiles")
        assert {trial.state for trial in queue.trials(other, "baseline").values()} == {"absent"}
        for file in ("stages/baseline.py", "core/records.py"):
            code = repository.folder / "src/emotune" / file
            text = code.read_text()
            code.write_text(text + "\n")
            assert {trial.state for trial in queue.trials(setups, "baseline").values()} == {"absent"}
            code.write_text(text)


@pytest.mark.pipeline
def test_a_study_of_which_nothing_ran_leaves_its_file_alone(ran: tuple[Repository, str]) -> None:
    repository, _ = ran
    (repository.folder / "experiments/other.yaml").write_text(STUDY)
    with pytest.raises(AssertionError, match="no experiment here has the params of study other"):
        repository.emotune("report", "other")
    assert not (repository.folder / "metrics/studies/other.csv").exists()


@pytest.mark.pipeline
def test_of_a_grid_the_table_says_what_each_change_does_all_else_alike(ran: tuple[Repository, str]) -> None:
    repository, _ = ran
    said = repository.emotune("study", "both").split("What one change does, all else alike\n")[1]
    with (repository.folder / "metrics/studies/both-effects.csv").open() as file:
        rows = {row["param"]: row for row in csv.DictReader(file)}
    # Of 128 places 64 or 128 are met, 16 fewer with two heads.
    expected = {"pretrain.hidden_size": ("64", "128", 0.5), "pretrain.heads": ("4", "2", -0.125)}
    for key, (first, value, effect) in expected.items():
        row = rows[key]
        assert (row["from"], row["to"], row["pairs of runs"]) == (first, value, "2")
        assert float(row["baseline accuracy difference"]) == effect
        bounds = [float(row[f"baseline accuracy difference {bound}"]) for bound in ("low", "high")]
        assert bounds[0] < effect < bounds[1]
        assert row["baseline accuracy verdict"] == "differs"
        # No sample contradicts any of the study's five tests: three runs with the best, and two changes.
        assert row["baseline accuracy p"] == "0.004998"
    assert "pretrain.heads 4 → 2 " in said
    (repository.folder / "README.md").write_text("<!-- begin:study-both-effects -->\n<!-- end:study-both-effects -->\n")
    repository.emotune("report", "--readme", "README.md")
    text = (repository.folder / "README.md").read_text()
    assert "| change | pairs of runs | baseline accuracy |" in text
    assert "| pretrain.hidden_size 64 → 128 | 2 | differs +0.500 [" in text


@pytest.mark.pipeline
def test_without_the_replies_the_intervals_are_compared(ran: tuple[Repository, str]) -> None:
    repository, _ = ran
    cache = repository.folder / ".dvc/cache"
    away = cache.rename(cache.with_name("away"))
    repository.emotune("report", "size")
    rows = repository.rows()
    away.rename(cache)
    assert rows["large"]["baseline accuracy verdict"] == "best"
    assert rows["small"]["baseline accuracy verdict"] == "intervals apart"
    assert rows["small"]["baseline accuracy difference"] == "-0.5"
    assert rows["small"].get("baseline accuracy p", "") == ""
