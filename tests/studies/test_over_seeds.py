"""Laws of a study of seeds: what its table says of runs alike but for their seeds, and when the gate believes it."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML
from scipy import stats

from conftest import ROOT
from emotune.core import records
from emotune.core.sections import read_yaml
from emotune.evaluation import scores
from emotune.runs import tables
from emotune.studies import differences, evidence, findings, plan, queue

CONTENT = read_yaml(ROOT / "params.yaml")
LABELS = CONTENT["data"]["labels"]
FOLDER = ROOT / "experiments"
STUDY = plan.read(FOLDER, "seeds-daily-dialog")


def replies(hits: float, seed: int) -> list[dict[str, Any]]:
    """Two hundred dialogues of one reply, of which about a share of `hits` has the emotion asked for."""
    draw = random.Random(seed)
    rows = [{"id": str(n), "dialogue": str(n), "emotion": LABELS[n % 7]} for n in range(200)]
    judged = [row["emotion"] if draw.random() < hits else LABELS[(n + 1) % 7] for n, row in enumerate(rows)]
    return [
        row | {"judged": label, "judged_undivided": label, "reply": "Oh."}
        for row, label in zip(rows, judged, strict=True)
    ]


def evaluated(folder: Path, seed: int, hits: dict[str, float]) -> dict[str, Any]:
    """Write data/replies and metrics/evaluate.json as evaluate does, in so far as tables read them."""
    measured: dict[str, Any] = {"paired": {"sft_to_dpo": {}}}
    answers = {model: replies(share, 100 * seed + number) for number, (model, share) in enumerate(hits.items())}
    columns = {
        model: [[row[c] for row in rows] for c in ("dialogue", "emotion", "judged")] for model, rows in answers.items()
    }
    for model, rows in answers.items():
        for kind in (".control", ""):
            records.write_jsonl(folder / f"data/replies/{model}{kind}.jsonl", rows)
        scored = scores.score(*columns[model], LABELS, "neutral", 1000, 7)
        measured[model] = {"replies": scored, "control": scored}
    test = scores.paired(*columns["sft"], columns["dpo"][2], LABELS, "neutral", 1000, 7)
    measured["paired"]["sft_to_dpo"] = {"replies": test, "control": test}
    records.write_metrics(folder / "metrics/evaluate.json", measured)
    return measured


def done(folder: Path, setups: dict[str, plan.Setup], hits: list[dict[str, float]]) -> dict[str, queue.Trial]:
    """A commit for each run, with its params, replies and metrics."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=folder, check=True)
    trials = {}
    for seed, ((name, setup), shares) in enumerate(zip(setups.items(), hits, strict=True)):
        evaluated(folder, seed, shares)
        with (folder / "params.yaml").open("w") as file:
            YAML().dump(setup.params, file)
        git("add", "--all")
        git("-c", "user.email=a@b.c", "-c", "user.name=a", "commit", "--quiet", "--message", name)
        trials[name] = queue.Trial(name, "done", git("rev-parse", "HEAD"))
    return trials


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[evidence.Row], list[evidence.Row]]]:
    """The tables of three runs, whose dpo is better twice, and in one of the seeds not, in the folder that has them."""
    folder = tmp_path_factory.mktemp("seeds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_NO_ANALYTICS", "1")
        setups = plan.setups("seeds", STUDY, CONTENT, ROOT / "profiles")
        shares = [{"sft": 0.4, "dpo": 0.7}, {"sft": 0.4, "dpo": 0.4}, {"sft": 0.5, "dpo": 0.8}]
        own = evidence.tables_of(STUDY, setups, done(folder, setups, shares), folder / "costs.jsonl")
        for name, table in zip(("seeds", "seeds-effects"), own, strict=True):
            evidence.write(folder / f"metrics/studies/{name}.csv", table)
        yield own


def test_the_mean_and_the_spread_are_of_the_runs_and_the_interval_beside_them_of_the_first(ran: Any) -> None:
    rows, effects = ran
    [dpo] = [row for row in effects if (row["of"], row["metric"]) == ("dpo", "control")]
    values = [row["dpo control"] for row in rows]
    assert dpo["mean"] == pytest.approx(sum(values) / 3)
    assert (dpo["seeds"], dpo["lowest"], dpo["highest"]) == (3, min(values), max(values))
    assert [dpo["first value"], dpo["first low"]] == [rows[0]["dpo control"], rows[0]["dpo control low"]]
    # No replies that name a reference: nobody measured a perplexity.
    assert {row["metric"] for row in effects} == {"accuracy", "macro F1", "control"}


def test_a_step_that_one_run_is_sure_of_is_not_one_over_seeds_that_disagree(ran: Any) -> None:
    _, effects = ran
    [step] = [row for row in effects if (row["of"], row["metric"]) == ("sft → dpo", "control")]
    assert step["first low"] > 0.1
    assert step["mean"] > 0.1
    assert step["low"] < 0
    assert step["p"] > 0.05


def test_the_gate_s_test_is_over_seeds_where_the_study_has_this_very_run_and_only_there(ran: Any) -> None:
    _, effects = ran
    whole = records.read_metrics(Path("metrics/evaluate.json"))
    steps = tables.steps_over_seeds(Path("metrics/studies"), whole)
    [row] = [row for row in effects if (row["of"], row["metric"]) == ("sft → dpo", "macro F1")]
    assert set(steps) == {"macro F1", "control"}
    assert steps["macro F1"] == pytest.approx(
        {"difference": row["mean"], "low": row["low"], "high": row["high"], "p": row["p"], "seeds": 3}, abs=1e-6
    )
    whole["dpo"]["control"]["macro_accuracy"]["value"] += 1e-6
    assert tables.steps_over_seeds(Path("metrics/studies"), whole) == {}
    assert tables.steps_over_seeds(Path("nowhere"), whole) == {}


def test_the_block_is_the_table_and_says_so_where_nobody_has_run_it(ran: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = findings.block("seeds-effects", Path("metrics"), FOLDER)
    assert text.startswith("|  | metric | mean over seeds | sd | lowest–highest | p | one seed, over dialogues |\n")
    assert "\n| sft → dpo | control | +0." in text
    runs = findings.block("seeds", Path("metrics"), FOLDER)
    assert runs.startswith("| run | model | accuracy | macro F1 | control | perplexity |\n")
    monkeypatch.chdir(ROOT)
    for folder, name in ((Path("experiments"), "seeds"), (Path("instruct/experiments"), "instruct/prompt")):
        block = findings.block(f"{Path(name).name}-effects", Path("none"), folder)
        assert block == f"Not measured yet: `emotune study {name}` does."


def test_one_run_has_no_spread(ran: Any) -> None:
    setups = plan.setups("seeds", STUDY, CONTENT, ROOT / "profiles")
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    trials = {name: queue.Trial(name, "absent") for name in setups} | {
        "seeds-seed-7": queue.Trial("seeds-seed-7", "done", head)
    }
    assert evidence.tables_of(STUDY, setups, trials, Path("costs.jsonl"))[1] == []


def test_over_seeds_the_mean_s_variance_is_that_of_seeds_over_their_number_and_that_of_dialogues() -> None:
    samples = np.tile([-0.05, 0.05], 500)
    steps = np.array([0.1, 0.3, 0.2, 0.2])
    # All runs rise and fall with the same dialogues: seeds s^2 / 4 = 0.02 / 3 / 4, dialogues 0.05^2 * 1000 / 999.
    drawn = np.concatenate([steps[:, None], steps[:, None] + samples], axis=1)
    found = differences.over_seeds(drawn)
    of_seeds, of_dialogues = 0.02 / 3 / 4, 0.05**2 * 1000 / 999
    freedom = 3 * ((of_seeds + of_dialogues) / of_seeds) ** 2
    half = stats.t.ppf(0.975, freedom) * math.sqrt(of_seeds + of_dialogues)
    assert (found["low"], found["high"]) == pytest.approx((0.2 - half, 0.2 + half))
    assert found["p"] == pytest.approx(2 * stats.t.sf(0.2 / math.sqrt(of_seeds + of_dialogues), freedom))


def test_more_seeds_do_not_shrink_what_is_the_dialogues() -> None:
    samples = np.random.default_rng(7).normal(0.2, 0.05, 4000)
    equal = np.concatenate([np.full((500, 1), 0.2), np.tile(samples, (500, 1))], axis=1)
    found = differences.over_seeds(equal)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 0.05, rel=0.05)
    assert found["p"] < 0.001


def test_two_seeds_that_do_not_agree_are_no_evidence() -> None:
    """A run that no resample contradicts, beside one that says the opposite: t of one degree of freedom."""
    found = differences.over_seeds(np.array([[0.3] * 101, [-0.1] * 101]))
    assert (found["low"], found["high"]) == pytest.approx((0.1 - 12.7062 * 0.2, 0.1 + 12.7062 * 0.2), abs=1e-4)
    assert found["p"] == pytest.approx(0.704833, abs=1e-6)


def test_runs_that_never_differ_are_no_evidence_either() -> None:
    assert differences.over_seeds(np.zeros((3, 101))) == {"low": 0.0, "high": 0.0, "p": 1.0}
