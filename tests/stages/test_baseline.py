"""Laws of baseline: the plain answers depend on no other way, examples are of train alone, and evaluate shows all."""

from dataclasses import replace
from pathlib import Path

import pytest
from test_evaluate import lay_out

from conftest import contents, run_stage, write_params
from emotune.core import records
from emotune.core.dialogue import Dialogue
from emotune.models.loading import load_tokenizer
from emotune.prompts.prompter import Prompter
from emotune.runs.params import parse
from emotune.stages.baseline import told

FEW = {
    "baseline.shots": 2,
    "evaluate.control_contexts": 2,
    "evaluate.prompts": 8,
    "evaluate.resamples": 100,
    "evaluate.sampling.max_new_tokens": 4,
}
ALL = {f"prompted/{way}{kind}.jsonl" for way in ("few-shot", "zero-shot") for kind in ("", ".control")}
PLAIN = {"baseline.jsonl", "baseline.control.jsonl"}


def test_each_way_is_asked_the_same_and_stands_in_every_table(
    tuned: Path, dialogues: list[Dialogue], tmp_path: Path
) -> None:
    lay_out(tuned, dialogues, tmp_path)
    write_params(tmp_path, FEW)
    run_stage("baseline", tmp_path)
    replies = contents(tmp_path / "data/replies")
    assert set(replies) == PLAIN | ALL
    asked = [[row["id"] for row in records.read_jsonl(tmp_path / f"data/replies/{name}")] for name in sorted(replies)]
    controls, natural = asked[::2], asked[1::2]
    assert [len(own) for own in asked] == [14, 8] * 3
    assert all(own == controls[0] for own in controls)
    assert all(own == natural[0] for own in natural)
    measured = records.read_metrics(tmp_path / "metrics/baseline.json")
    # Of the seven emotions that contexts are asked in, people's replies have but two.
    assert measured["few-shot"]["prompts"] == {"of": 20, "shots_mean": 1.0, "fewer_shots": 10}
    assert measured["zero-shot"]["prompts"]["shots_mean"] == 0
    costs = [of["reference"]["perplexity"]["value"] for of in (measured, measured["zero-shot"], measured["few-shot"])]
    assert len(set(costs)) == 3
    run_stage("evaluate", tmp_path)
    evaluated = records.read_metrics(tmp_path / "metrics/evaluate.json")
    assert evaluated["best_prompt"] in ("zero-shot", "few-shot")
    assert {"macro_accuracy", "joint"} <= set(evaluated["paired"]["best_prompt_to_sft"]["control"])
    assert {"hits_at_1", "lift"} <= set(evaluated["few-shot"]["replies"])
    headline = records.read_json(tmp_path / "metrics/headline.json")
    assert set(headline["zero-shot"]) == set(headline["dpo"])
    # Asked in no other way, the base model says the same.
    write_params(tmp_path, FEW | {"baseline.ways": ["plain"]})
    run_stage("baseline", tmp_path)
    assert contents(tmp_path / "data/replies").items() >= {name: replies[name] for name in PLAIN}.items()
    assert list((tmp_path / "data/replies/prompted").iterdir()) == []
    plain = records.read_metrics(tmp_path / "metrics/baseline.json")
    assert plain == {name: of for name, of in measured.items() if name not in ("zero-shot", "few-shot")}
    run_stage("evaluate", tmp_path)
    alone = records.read_metrics(tmp_path / "metrics/evaluate.json")
    assert not {"best_prompt", "zero-shot", "few-shot"} & set(alone)
    assert "best_prompt_to_sft" not in alone["paired"]
    assert all(evaluated[name] == alone[name] for name in ("baseline", "sft", "dpo", "human"))


@pytest.mark.parametrize("examples", ["random", "similar"])
def test_no_example_is_of_a_dialogue_that_is_asked(base: Path, dialogues: list[Dialogue], examples: str) -> None:
    p = parse().baseline.model_copy(update={"examples": examples, "shots": 9})
    plain = Prompter(load_tokenizer(base, None), None, 256)
    held_out, train = dialogues[:2], dialogues[2:]
    few = told(p, plain, train, held_out, ("neutral", "surprise"))["few-shot"]
    replies = {turn.content for dialogue in train for turn in dialogue.turns}
    shown = few.examples("I lost my keys again.", "neutral")
    assert len(shown) == 3
    assert {one.reply for one in shown} < replies
    with pytest.raises(AssertionError, match="a dialogue that is asked"):
        told(p, plain, [*train, replace(train[0], id=held_out[0].id)], held_out, ("neutral", "surprise"))
