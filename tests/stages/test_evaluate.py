"""Laws of evaluate: the models are compared over the same human replies, whatever each of their templates adds."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from conftest import LABELS, ROOT, run_stage, write_params
from emotune.core import records
from emotune.core.dialogue import Dialogue
from emotune.core.sections import read_yaml
from emotune.models import loading
from emotune.prompts.prompter import Prompter

SYSTEM = "Answer in one sentence."


def lay_out(tuned: Path, dialogues: list[Dialogue], tmp_path: Path) -> None:
    """What evaluate reads, but for the baseline's answers."""
    shutil.copytree(tuned, tmp_path / "models")
    # What it says of the replies is no matter here.
    shutil.copy(tuned / "judges/evaluate.skops", tmp_path / "models/judges/evaluate_gibberish.skops")
    train = [replace(dialogue, id=f"train/{dialogue.id}") for dialogue in dialogues]
    for split, own in (("test", dialogues), ("train", train), ("validation", dialogues)):
        records.write_jsonl(tmp_path / f"data/dialogues/{split}.jsonl", map(asdict, own))
    records.write_json(tmp_path / "data/dialogues/labels.json", {"labels": LABELS, "neutral": "neutral"})
    records.write_metrics(tmp_path / "metrics/prefs.json", {"pairs": 9, "yield_total": 0.9})
    records.write_metrics(tmp_path / "metrics/dpo.json", {})


def test_what_one_models_template_leaves_no_room_for_no_perplexity_has(
    tuned: Path, dialogues: list[Dialogue], tmp_path: Path
) -> None:
    lay_out(tuned, dialogues, tmp_path)
    # The base model's template holds the longest question and its answer, and the others', with tags, do not.
    native = Prompter(loading.load_tokenizer(tuned / "base", None), SYSTEM, 256)
    longest = max(len(native.reply_row(d.turns[at - 1 : at], d.turns[at])[0]) for d in dialogues for at in (1, 3))
    write_params(
        tmp_path,
        {
            "model.context": longest,
            "system_prompt": SYSTEM,
            "baseline.ways": ["plain"],
            "evaluate.control_contexts": 1,
            "evaluate.resamples": 100,
            "evaluate.sampling.max_new_tokens": 4,
        },
    )
    for stage in ("baseline", "evaluate"):
        run_stage(stage, tmp_path)
    assert records.read_metrics(tmp_path / "metrics/baseline.json")["reference"]["left_out_too_long"] == 0
    evaluated = records.read_metrics(tmp_path / "metrics/evaluate.json")
    [left_out] = {evaluated[model]["reference"]["left_out_too_long"] for model in ("baseline", "sft", "dpo")}
    assert 0 < left_out < 10
    for model in ("sft", "dpo"):
        rows = list(records.read_jsonl(tmp_path / f"data/replies/{model}.jsonl"))
        assert sum("reference" not in row for row in rows) == left_out
    # Whether they answer is measured of all, and joint of whoever was asked in every emotion.
    assert all(
        {"hits_at_1", "lift", "in_train"} < set(evaluated[model]["replies"])
        for model in ("baseline", "sft", "dpo", "human")
    )
    assert set(records.read_json(tmp_path / "metrics/headline.json")["dpo"]) == {"f1", "control", "fit", "joint", "ppl"}
    assert "hits_at_1" in evaluated["paired"]["sft_to_dpo"]["replies"]
    # The reward model hears all of them, and says which of two it would rather have.
    for model in ("baseline", "sft", "dpo", "human"):
        assert 0 < evaluated[model]["replies"]["learned_score"]["value"] < 10
    assert 0 <= evaluated["paired"]["sft_to_dpo"]["replies"]["learned_wins"]["value"] <= 1
    for model in ("sft", "dpo"):
        rows = list(records.read_jsonl(tmp_path / f"data/replies/{model}.jsonl"))
        for name, metric in (("found", "hits_at_1"), ("learned_score", "learned_score")):
            mean = sum(row[name] for row in rows) / len(rows)
            assert mean == pytest.approx(evaluated[model]["replies"][metric]["value"], abs=2e-6)


def test_every_emotion_but_neutral_is_guided_and_the_baseline_knows_none(
    tuned: Path, dialogues: list[Dialogue], tmp_path: Path
) -> None:
    lay_out(tuned, dialogues, tmp_path)
    replies: list[dict[str, list[str]]] = []
    few = {
        "baseline.ways": ["plain"],
        "evaluate.control_contexts": 2,
        "evaluate.resamples": 100,
        "evaluate.sampling.max_new_tokens": 6,
    }
    for guidance in (1.0, 8.0):
        write_params(tmp_path, few | {"evaluate.sampling.guidance": guidance})
        for stage in ("baseline", "evaluate"):
            run_stage(stage, tmp_path)
        files = {name: tmp_path / f"data/replies/{name}.control.jsonl" for name in ("baseline", "sft", "dpo")}
        rows = {name: list(records.read_jsonl(path)) for name, path in files.items()}
        replies.append({name: [row["reply"] for row in own] for name, own in rows.items()})
    plain, guided = replies
    assert guided["baseline"] == plain["baseline"]
    for name in ("sft", "dpo"):
        same = [one == other for one, other in zip(plain[name], guided[name], strict=True)]
        assert same == [row["emotion"] == "neutral" for row in rows[name]]
    evaluated = records.read_metrics(tmp_path / "metrics/evaluate.json")
    assert evaluated["guidance"] == 8.0
    # Another round is judged by the same questions, here of a validation split that is the test split.
    shutil.copytree(tuned / "dpo", tmp_path / "models/rounds/dpo")
    run_stage("rounds", tmp_path, read_yaml(ROOT / "rounds/stages.yaml")["stages"])
    rounds = records.read_metrics(tmp_path / "metrics/rounds/rounds.json")
    for name in ("sft", "dpo"):
        assert rounds[name]["text"] == evaluated[name]["text"]
        assert rounds[name]["control"].items() <= evaluated[name]["control"].items()
    assert rounds["dpo_2"] == rounds["dpo"]
