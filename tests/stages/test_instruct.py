"""Laws of the instruction pipeline's stages, each on the tiny base model and rows of two tasks."""

import csv
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from conftest import ROOT, contents, run_stage, write_params
from emotune.core import records
from emotune.core.errors import InputError
from emotune.models import loading, pins
from emotune.prompts.prompter import Prompter
from emotune.runs import params
from emotune.stages.instruct import compare, sft
from emotune.training import trainer
from tiny import Two

STAGES = YAML(typ="safe").load((ROOT / "instruct/dvc.yaml").read_text("utf-8"))["stages"]
SMALL = {
    "shots": 2,
    "evaluate.limit": 12,
    "evaluate.resamples": 100,
    "evaluate.sampling.max_new_tokens": 6,
    "sft.epochs": 1,
    "sft.batch_size": 4,
    "sft.curve": [0.5],
    "sft.lora.rank": 2,
}
FEELINGS = ("glad", "sorry", "fine")


def row(split: str, number: int) -> dict[str, Any]:
    feeling = FEELINGS[number % 3]
    return {
        "id": f"{split}/{number}",
        "source": f"{split}/{number}",
        "task": ("name", "say")[number % 2],
        "instruction": "What does the speaker feel?" if number % 2 == 0 else f"Say that you are {feeling}, {number}.",
        "input": f"I am {feeling}, {number}." if number % 2 == 0 else "",
        "output": feeling if number % 2 == 0 else f"I am {feeling}.",
        "exact": number % 2 == 0,
    }


@pytest.fixture(scope="module")
def ran(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, set[str]]]:
    """A folder in which the stages ran that ask and train, and what each of them wrote there."""
    folder = tmp_path_factory.mktemp("repository") / "instruct"
    (folder.parent / ".git").mkdir()
    for split, count in (("train", 24), ("validation", 8), ("test", 12)):
        records.write_jsonl(folder / f"data/rows/{split}.jsonl", [row(split, number) for number in range(count)])
    shutil.copytree(base, folder / "models/base")
    write_params(folder, SMALL, "instruct")
    written = {}
    for stage in ("zero_shot", "few_shot", "sft", "compare"):
        before = contents(folder)
        run_stage(stage, folder, STAGES)
        after = contents(folder)
        written[stage] = {path for path in after if after[path] != before.get(path)}
    return folder, written


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def metrics(folder: Path, name: str) -> dict[str, Any]:
    return records.read_metrics(folder / f"metrics/{name}.json")


def test_each_stage_writes_its_outs_and_nothing_else(ran: tuple[Path, dict[str, set[str]]]) -> None:
    adapter = {"adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "tokenizer.json"}
    assert ran[1] == {
        "zero_shot": {"data/replies/zero_shot.jsonl", "metrics/zero_shot.json"},
        "few_shot": {"data/replies/few_shot.jsonl", "metrics/few_shot.json"},
        "sft": {f"models/sft/{name}" for name in (*adapter, "tokenizer_config.json")}
        | {"metrics/sft.json", "metrics/sft_history.csv", "metrics/learning_curve.csv"},
        "compare": {"data/replies/sft.jsonl", "data/replies/side_by_side.jsonl"}
        | {"metrics/compare.json", "metrics/headline.json", "metrics/comparison.csv"},
    }


def test_all_three_are_asked_the_same_and_few_shot_behind_examples(ran: tuple[Path, Any]) -> None:
    asked = {
        name: list(records.read_jsonl(ran[0] / f"data/replies/{name}.jsonl"))
        for name in ("zero_shot", "few_shot", "sft")
    }
    ids = [own["id"] for own in asked["sft"]]
    assert all([own["id"] for own in rows] == ids for rows in asked.values())
    assert len(set(ids)) == 12
    assert {name: {own["shots"] for own in rows} for name, rows in asked.items()} == {
        "zero_shot": {0},
        "few_shot": {2},
        "sft": {0},
    }
    beside = list(records.read_jsonl(ran[0] / "data/replies/side_by_side.jsonl"))
    assert [own["few_shot"] for own in beside] == [own["reply"] for own in asked["few_shot"]]


def test_compare_says_again_what_zero_shot_and_few_shot_measured(ran: tuple[Path, Any]) -> None:
    compared = metrics(ran[0], "compare")
    for name in ("zero_shot", "few_shot"):
        assert compared[name]["overall"] == metrics(ran[0], name)["overall"]
    assert compared["sft"]["tasks"].keys() == {"name", "say"}
    assert "exact_match" in compared["sft"]["tasks"]["name"]
    assert "exact_match" not in compared["sft"]["tasks"]["say"]
    assert compared["published"] == {"zero_shot": 5.45, "few_shot": 4.74, "sft": 4.81}
    # Even a random model learns which words there are.
    assert compared["paired"]["zero_shot_to_sft"]["perplexity"]["high"] < 0
    headline = records.read_json(ran[0] / "metrics/headline.json")
    assert headline["sft"]["ppl"] == round(compared["sft"]["overall"]["perplexity"]["value"], 3)


def test_the_curves_are_of_the_validation_outputs(ran: tuple[Path, Any]) -> None:
    trained = metrics(ran[0], "sft")
    points = table(ran[0] / "metrics/learning_curve.csv")
    assert [point["rows"] for point in points] == ["12", "24"]
    assert float(points[1]["validation_loss"]) == trained["validation_loss"]
    watched = [point for point in table(ran[0] / "metrics/sft_history.csv") if point["eval_loss"]]
    assert watched
    for point in watched:
        assert float(point["eval_perplexity"]) == pytest.approx(math.exp(float(point["eval_loss"])), rel=1e-5)


def test_the_template_travels_in_the_tokenizer_of_the_tuned_model(ran: tuple[Path, Any]) -> None:
    tokenizer = loading.load_tokenizer(ran[0] / "models/sft", None)
    said = [{"role": "user", "content": "Go on.", "input": "A: Hello."}]
    text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert text == "<s>### Instruction:\nGo on.\n\n### Input:\nA: Hello.\n\n### Response:\n"


def test_sft_goes_on_where_it_was_killed(
    ran: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".git").mkdir()
    folder = tmp_path / "instruct"
    shutil.copytree(ran[0], folder, ignore=shutil.ignore_patterns("sft*", "learning_curve*"))
    stop = trainer._Listener.on_save

    def killed(listener: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        stop(listener, args, state, control, **more)
        if state.max_steps == 6 and state.global_step >= 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Listener, "on_save", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stage("sft", folder, STAGES)
    assert not (folder / "models/sft").exists()
    capsys.readouterr()
    run_stage("sft", folder, STAGES)
    assert re.search(r"going on from checkpoint-3 in .*/24\n", capsys.readouterr().out)
    for name in ("models/sft/adapter_model.safetensors", "metrics/sft_history.csv", "metrics/learning_curve.csv"):
        assert (folder / name).read_bytes() == (ran[0] / name).read_bytes()
    assert not [path for path in (tmp_path / ".work/instruct/sft").iterdir() if path.is_dir()]


Change = Callable[..., sft.Params]


@pytest.fixture
def p(ran: tuple[Path, Any]) -> Change:
    """sft's params with values of its section changed."""

    def changed(**changes: Any) -> sft.Params:
        own = params.whole(ran[0] / "params.yaml").model_dump(mode="json")
        own["sft"] |= changes
        return sft.Params.model_validate_json(json.dumps({name: own[name] for name in sft.Params.model_fields}))

    return changed


@pytest.mark.parametrize(
    ("changes", "seen", "learned"),
    [
        ({}, "### Instruction:", "I am glad.</s>"),
        ({"loss_on": "all"}, "### Instruction:", "<s>### Instruction:\nSay it.\n\n### Response:\nI am glad.</s>"),
        ({"prompt": "out"}, "<s>I am glad.", "I am glad.</s>"),
    ],
)
def test_what_is_seen_and_what_is_learned(
    ran: tuple[Path, Any], p: Change, changes: Mapping[str, str], seen: str, learned: str
) -> None:
    prompter = Prompter(loading.load_tokenizer(ran[0] / "models/sft", None), None, 256)
    one = row("train", 0) | {"instruction": "Say it.", "input": "", "output": "I am glad."}
    [made], left_out = sft.training_rows(prompter, iter([one]), p(**changes))
    assert left_out == 0
    assert seen in prompter.tokenizer.decode(made["input_ids"])
    assert ("Instruction" in prompter.tokenizer.decode(made["input_ids"])) == (changes.get("prompt") != "out")
    assert prompter.tokenizer.decode([label for label in made["labels"] if label >= 0]) == learned


def test_rows_longer_than_the_context_are_counted_and_none_at_all_is_an_error(ran: tuple[Path, Any], p: Change) -> None:
    prompter = Prompter(loading.load_tokenizer(ran[0] / "models/sft", None), None, 160)
    rows = [row("train", 0), row("train", 1) | {"output": "glad " * 200}]
    made, left_out = sft.training_rows(prompter, iter(rows), p())
    assert (len(made), left_out) == (1, 1)
    with pytest.raises(InputError, match=r"model\.context: no row of 1 fits in 160 tokens"):
        sft.training_rows(prompter, iter(rows[1:]), p())


def test_ever_more_rows_up_to_all() -> None:
    assert sft.counts(1000, (0.5, 0.125)) == [125, 500, 1000]
    assert sft.counts(3, (0.1, 0.2)) == [1, 3]
    assert sft.counts(9, ()) == [9]


@pytest.mark.parametrize("stage", ["zero_shot", "few_shot", "compare"])
def test_two_processes_answer_instructions_with_the_bytes_of_one(
    stage: str, ran: tuple[Path, dict[str, set[str]]], tmp_path: Path
) -> None:
    folder = shutil.copytree(ran[0], tmp_path / "instruct")
    for path in ran[1][stage]:
        (folder / path).unlink()
    Two(stage, folder, stages=STAGES).outputs()
    shutil.rmtree(folder / ".work", ignore_errors=True)
    assert contents(folder) == contents(ran[0])


def test_two_processes_take_the_steps_of_one_on_instructions(
    ran: tuple[Path, dict[str, set[str]]], tmp_path: Path
) -> None:
    (tmp_path / ".git").mkdir()
    folder = shutil.copytree(ran[0], tmp_path / "instruct")
    for path in ran[1]["sft"]:
        (folder / path).unlink()
    # Each model of the learning curve has a first step, which one of the two tells of.
    assert "".join(Two("sft", folder, stages=STAGES).outputs()).count("step 1 of ") == 2
    assert metrics(folder, "sft") == pytest.approx(metrics(ran[0], "sft"), rel=1e-4)
    for name in ("sft_history", "learning_curve"):
        ours, alone = (table(path / f"metrics/{name}.csv") for path in (folder, ran[0]))
        assert [{key for key in one if one[key]} for one in ours] == [{key for key in one if one[key]} for one in alone]
        for one, other in zip(ours, alone, strict=True):
            numbers = ({key: float(value) for key, value in values.items() if value} for values in (one, other))
            assert next(numbers) == pytest.approx(next(numbers), rel=1e-4, abs=1e-5)
    ours, alone = (load_file(path / "models/sft/adapter_model.safetensors") for path in (folder, ran[0]))
    assert ours.keys() == alone.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], alone[name], rtol=1e-4, atol=1e-5)


def test_a_base_model_of_another_size_learns_as_the_embedded_one_did(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    folder = tmp_path / "instruct"
    folder.mkdir()
    small = {"dialogues": 60, "hidden_size": 16, "layers": 1, "heads": 2}
    write_params(
        folder, {"model.base": "scratch"} | {f"pretrain.{key}": value for key, value in small.items()}, "instruct"
    )
    run_stage("base_model", folder, STAGES)
    config = records.read_json(folder / "models/base/config.json")
    assert (config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]) == (16, 1, 2)
    assert loading.load_base(folder / "models/base", params.whole(folder / "params.yaml").model).num_parameters() > 0
    assert metrics(folder, "base_model")["vocabulary"] <= 1500
    write_params(folder, {}, "instruct")
    run_stage("base_model", folder, STAGES)
    assert (folder / "models/base/model.safetensors").read_bytes() == (pins.WEIGHTS / "model.safetensors").read_bytes()


def test_a_headline_lacks_what_no_row_has() -> None:
    assert compare.of_headline({"perplexity": {"value": 1.23456}}) == {"ppl": 1.235}
