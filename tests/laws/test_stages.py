"""Laws of the stages, each run on a tiny real model: what it writes, and on which models and data."""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import LABELS, STAGES, TINY, Pipeline, contents, declared, flags, run_stage, write_params
from emotune.core import records

pytestmark = pytest.mark.pipeline

TOKENIZER = {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
MODEL = {"base.json", "config.json", "generation_config.json", "model.safetensors"} | TOKENIZER
ADAPTER = {"adapter_config.json", "adapter_model.safetensors"} | TOKENIZER
WRITTEN = {
    "prepare": {
        "data/dialogues/labels.json",
        "data/dialogues/test.jsonl",
        "data/dialogues/train.jsonl",
        "data/dialogues/validation.jsonl",
        "metrics/prepare.json",
    },
    "base_model": {f"models/base/{name}" for name in MODEL} | {"metrics/base_model.json"},
    "judges": {
        "models/judges/evaluate.prior.json",
        "models/judges/evaluate.skops",
        "models/judges/evaluate_gibberish.skops",
        "models/judges/fit.skops",
        "models/judges/reward.prior.json",
        "models/judges/reward.skops",
        "models/judges/reward_gibberish.skops",
        "metrics/judges.json",
    },
    "baseline": {
        "data/replies/baseline.jsonl",
        "data/replies/baseline.control.jsonl",
        *(f"data/replies/prompted/{way}{kind}.jsonl" for way in ("zero-shot", "few-shot") for kind in ("", ".control")),
        "metrics/baseline.json",
        "metrics/confusion/baseline.csv",
    },
    "sft": {f"models/sft/{name}" for name in ADAPTER} | {"metrics/sft.json", "metrics/sft_history.csv"},
    "reward_model": {f"models/reward/{name}" for name in (*ADAPTER, "lexical.safetensors", "scale.json")}
    | {f"metrics/reward_model{name}" for name in (".json", "_history.csv", "_calibration.csv")},
    "generate_prefs": {
        "data/prefs/train.jsonl",
        "data/prefs/validation.jsonl",
        "metrics/best_of_n.csv",
        "metrics/prefs.json",
    },
    "dpo": {f"models/dpo/{name}" for name in ADAPTER} | {"metrics/dpo.json", "metrics/dpo_history.csv"},
    "evaluate": {
        "data/replies/sft.jsonl",
        "data/replies/sft.control.jsonl",
        "data/replies/dpo.jsonl",
        "data/replies/dpo.control.jsonl",
        "metrics/evaluate.json",
        "metrics/headline.json",
        "metrics/comparison.csv",
        "metrics/confusion/sft.csv",
        "metrics/confusion/dpo.csv",
    },
}
# Enough for pipelines of which only the end matters.
SHORT = TINY | {
    "pretrain.epochs": 1,
    "evaluate.prompts": 12,
    "evaluate.control_contexts": 1,
    "sft.epochs": 0.5,
    "reward_model.contrast_pairs": 40,
    "prefs.prompts": 12,
    "dpo.epochs": 1,
    "dpo.control_contexts": 1,
}
# Of the dialogues of a split; what trains looks at all of validation five times.
LINES = {"train": 150, "validation": 16, "test": 40}
ANSWERED = ("baseline", "sft", "dpo")
JOURNAL = ".work/journal.sqlite"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield value


def without(stage: str, done: Pipeline, folder: Path) -> Path:
    """A copy of a finished pipeline in which a stage has not run yet, nor sampled an attempt."""
    copy = folder / "copy"
    shutil.copytree(done.folder, copy)
    (copy / JOURNAL).unlink()
    for path in declared(stage):
        shutil.rmtree(copy / path) if (copy / path).is_dir() else (copy / path).unlink()
    return copy


# --- what a stage writes


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_writes_its_outs_and_nothing_else(stage: str, pipeline: Pipeline) -> None:
    written = {path for path in pipeline.written[stage] if not path.startswith(".work/")}
    assert written == WRITTEN[stage]
    outs = [Path(path) for path in declared(stage)]
    assert all(any(Path(path).is_relative_to(out) for out in outs) for path in written)


def test_a_stage_that_ended_leaves_no_checkpoint(pipeline: Pipeline) -> None:
    left = [path for path in contents(pipeline.folder) if path.startswith(".work/") and not path.endswith(".lock")]
    assert left == [JOURNAL]
    assert [path.name for path in pipeline.folder.glob(".work/*/*") if path.is_dir()] == []


def test_an_out_holds_no_path_of_this_machine(pipeline: Pipeline) -> None:
    here = os.fsencode(pipeline.folder)
    assert [path for path, content in contents(pipeline.folder).items() if here in content] == []


def test_metrics_and_curves_are_finite(pipeline: Pipeline) -> None:
    metrics = sorted(pipeline.folder.glob("metrics/*.json"))
    assert len(metrics) == len(STAGES) + 1
    for path in metrics:
        found = list(numbers(json.loads(path.read_text())))
        assert found, path
        assert all(map(math.isfinite, found)), path
    for path in pipeline.folder.glob("metrics/*_history.csv"):
        rows = list(csv.DictReader(path.open()))
        assert len(rows) >= 20
        assert all(math.isfinite(float(value)) for row in rows for value in row.values() if value)


def test_weights_are_finite(pipeline: Pipeline) -> None:
    from safetensors.torch import load_file

    for path in pipeline.folder.glob("models/*/*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values()), path


@pytest.mark.parametrize("model", ANSWERED)
def test_every_reply_is_a_row_with_what_the_judges_said(model: str, pipeline: Pipeline) -> None:
    replies = rows_of(pipeline.folder / f"data/replies/{model}.jsonl")
    control = rows_of(pipeline.folder / f"data/replies/{model}.control.jsonl")
    assert (len(replies), len(control)) == (40, 5 * len(LABELS))
    for row in (*replies, *control):
        assert {"id", "context", "emotion", "reply", "judged", "judged_undivided", "confidence"} <= row.keys()
        assert row["context"]
        assert all(isinstance(turn, str) for turn in row["context"])
        assert isinstance(row["reply"], str)
        assert {row["emotion"], row["judged"]} <= set(LABELS)
        assert 0 < row["confidence"] <= 1


def test_all_models_are_asked_the_same_questions(pipeline: Pipeline) -> None:
    for kind in ("", ".control"):
        asked = [
            [
                (row["id"], row["emotion"], row["context"], row.get("reference"))
                for row in rows_of(pipeline.folder / f"data/replies/{model}{kind}.jsonl")
            ]
            for model in ANSWERED
        ]
        assert asked[0] == asked[1] == asked[2]


def test_at_the_first_step_of_dpo_the_policy_is_the_reference(pipeline: Pipeline) -> None:
    before, first, *_ = csv.DictReader((pipeline.folder / "metrics/dpo_history.csv").open())
    assert (before["step"], first["step"]) == ("0", "1")
    assert float(first["loss"]) == pytest.approx(math.log(2), abs=1e-6)
    assert float(first["rewards/margins"]) == 0.0


def test_dpo_moves_the_adapter_that_sft_made(pipeline: Pipeline) -> None:
    weights = [(pipeline.folder / f"models/{name}/adapter_model.safetensors").read_bytes() for name in ("sft", "dpo")]
    assert len(weights[0]) == len(weights[1])
    assert weights[0] != weights[1]


# --- the same bytes


def test_preferences_do_not_depend_on_how_many_are_sampled_at_once(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from emotune.generation import local

    monkeypatch.setattr(local, "CPU_ROWS", 26)
    folder = without("generate_prefs", pipeline, tmp_path)
    capfd.readouterr()
    run_stage("generate_prefs", folder)
    assert contents(folder / "data/prefs") == contents(pipeline.folder / "data/prefs")
    # No journal answered in its place.
    metrics = records.read_metrics(folder / "metrics/prefs.json")
    assert metrics["attempts_total"] > metrics["prompts"]
    said = f"generate_prefs: {metrics['attempts_total']} attempts sampled, 0 taken from the journal"
    assert said in capfd.readouterr().out


# --- dpo and sft see the same tokens


def test_dpo_sees_the_token_ids_that_sft_would_see(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import DPOTrainer

    from emotune.core.dialogue import Turn
    from emotune.models import loading
    from emotune.prompts.prompter import Prompter

    class Caught(Exception):
        pass

    def instead_of_training(trainer: Any, **_: Any) -> None:
        raise Caught(trainer.eval_dataset)

    monkeypatch.setattr(DPOTrainer, "train", instead_of_training)
    with pytest.raises(Caught) as caught:
        run_stage("dpo", without("dpo", pipeline, tmp_path))
    prepared = caught.value.args[0]

    prompter = Prompter(loading.load_tokenizer(pipeline.folder / "models/sft", None), None, 256)
    pairs = rows_of(pipeline.folder / "data/prefs/validation.jsonl")
    assert len(prepared) == len(pairs) > 0
    for seen, pair in zip(prepared, pairs, strict=True):
        history = [Turn(**turn) for turn in pair["history"]]
        for side in ("chosen", "rejected"):
            ids, of_reply = prompter.reply_row(history, Turn("assistant", pair[side], pair["emotion"]))
            assert seen["prompt_ids"] + seen[f"{side}_ids"] == ids
            assert len(seen[f"{side}_ids"]) == sum(of_reply)
        # And what SFT would see, where the reply is a dialogue's last turn.
        turns = [*history, Turn("assistant", pair["chosen"], pair["emotion"])]
        assert seen["prompt_ids"] + seen["chosen_ids"] == prompter.training_row(turns)[0]


def test_dpo_without_a_validation_pair_trains_all_the_same(pipeline: Pipeline, tmp_path: Path) -> None:
    folder = without("dpo", pipeline, tmp_path)
    write_params(folder, TINY | {"dpo.epochs": 0.2})
    (folder / "data/prefs/validation.jsonl").write_text("")
    run_stage("dpo", folder)
    assert "validation_loss" not in records.read_metrics(folder / "metrics/dpo.json")


# --- other models, other data


def test_an_nf4_base_is_asked_and_trained_on_a_cpu(pipeline: Pipeline, tmp_path: Path) -> None:
    folder = tmp_path / "nf4"
    shutil.copytree(pipeline.folder, folder)
    write_params(folder, TINY | {"model.quantization": "nf4", "evaluate.prompts": 8, "sft.epochs": 0.1})
    run_stage("baseline", folder)
    run_stage("sft", folder)
    assert len(rows_of(folder / "data/replies/baseline.jsonl")) == 8
    assert records.read_metrics(folder / "metrics/sft.json")["steps"] == 4
    before, after = (contents(path / "models/sft")["adapter_model.safetensors"] for path in (pipeline.folder, folder))
    assert before != after


def test_the_whole_pipeline_runs_on_real_dialogues(shared: Path, tmp_path: Path) -> None:
    from emotune.data import sources

    real = tmp_path / "real"
    real.mkdir()
    for path in (shared / "daily_dialog").rglob("dialogues_*.txt"):
        lines = path.read_text("utf-8").splitlines(keepends=True)[: LINES[path.stem.split("_")[-1]]]
        (real / path.name).write_text("".join(lines), "utf-8")
    done = Pipeline(tmp_path)
    source = {"source": "folder", "path": "real", "revision": sources.fingerprint(real), "limit": 100}
    write_params(tmp_path, SHORT | {f"data.{name}": value for name, value in source.items()})
    done.run()
    for stage in STAGES:
        assert {path for path in done.written[stage] if not path.startswith(".work/")} == WRITTEN[stage]
    assert records.read_metrics(tmp_path / "metrics/prepare.json")["train"]["dialogues"] == 100


def test_the_whole_pipeline_runs_on_a_model_that_somebody_else_trained(
    shared: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    from emotune.models import pins

    tiny1m = shared / "models" / "tiny1m"
    folder = tmp_path / "foreign"
    for path in ("data/dialogues", "models/judges"):
        shutil.copytree(pipeline.folder / path, folder / path)
    for path in (folder / "data/dialogues").glob("*.jsonl"):
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[: LINES[path.stem] // 2]))
    write_params(folder, SHORT | {"model.base": str(tiny1m), "model.revision": pins.folder_revision(tiny1m)})
    for stage in STAGES:
        if stage not in ("prepare", "judges"):
            run_stage(stage, folder)
    # The pin, not the gigabytes.
    assert set(contents(folder / "models/base")) == {"base.json"}
    evaluated = records.read_metrics(folder / "metrics/evaluate.json")
    # It was pretrained on stories: the human replies are no riddle to it.
    assert evaluated["baseline"]["reference"]["perplexity"]["value"] < 512


# --- bad input is one message and exit code 2


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("prepare", {"template": "out_isnt"}, "template: .*'out_inst', .*got \"out_isnt\""),
        ("prepare", {"reward.weights": [1.0]}, r"reward\.weights must be three numbers >= 0 .*got \[1\.0\]"),
        ("base_model", {"model.base": "./models/nowhere"}, "model.base: no such folder .*models/nowhere; accepted: "),
        (
            "prepare",
            {"data.source": "folder", "data.path": "talk", "data.revision": "0" * 64},
            "no dialogues_emotion_train.txt; expected dialogues_train.txt, dialogues_emotion_train.txt, ",
        ),
    ],
    ids=["a template that does not exist", "one weight", "a missing model folder", "a data folder without labels"],
)
def test_bad_input_is_one_message_and_exit_code_2(
    stage: str, changes: dict[str, Any], message: str, pipeline: Pipeline, tmp_path: Path
) -> None:
    shutil.copytree(pipeline.folder / "data/dialogues", tmp_path / "data/dialogues")
    for split in ("train", "validation", "test"):
        (tmp_path / "talk").mkdir(exist_ok=True)
        (tmp_path / f"talk/dialogues_{split}.txt").write_text("Hello. __eou__ Hi! __eou__\n")
        if split != "train":
            (tmp_path / f"talk/dialogues_emotion_{split}.txt").write_text("0 4\n")
    write_params(tmp_path, TINY | changes)
    ended = subprocess.run(
        [sys.executable, "-m", "emotune.runs.stage", stage, *flags(stage)], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"emotune {stage}: ")
    assert re.search(message, ended.stderr), ended.stderr
