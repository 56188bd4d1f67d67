"""Laws of the estimate: what a stage takes by term, the knob that saves most, and a door that says both."""

from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, write_params
from emotune.core.errors import InputError
from emotune.core.nested import overlaid
from emotune.core.sections import read_yaml
from emotune.faces.estimate import Counts, params_of, works
from emotune.runs import costs, estimate, sizes, stage
from emotune.runs.estimate import GB, Machine, Text
from emotune.runs.params import Params, parse

FULL = Text(longest=512, prompt=492, reply=30, size=0)
CPU, CARD = Machine(64 * 10**9, False), Machine(12 * 2**30, True)


def params(profile: str | None = None, **sections: Any) -> Params:
    content = read_yaml(ROOT / "params.yaml")
    overlay = read_yaml(ROOT / f"profiles/{profile}.yaml") if profile else {}
    return params_of(overlaid(overlaid(content, overlay), sections), "params.yaml")


def total(name: str, p: Params, machine: Machine = CPU) -> int:
    return sum(estimate.memory(name, p, FULL, machine).values())


@pytest.mark.parametrize("profile", ["llama2-7b-12gb", "mistral-7b-12gb"])
def test_the_profiles_of_a_card_of_12_gb_fit_on_one(profile: str) -> None:
    p = params(profile)
    for name in ("baseline", "sft", "generate_prefs", "dpo"):
        assert total(name, p, CARD) < CARD.memory, name


def test_checkpointing_and_a_smaller_batch_take_less_of_activations_alone() -> None:
    p = params(model={"base": "meta-llama/Llama-2-7b-chat-hf"})
    plain = estimate.memory("sft", p, FULL, CPU)
    for change in ({"gradient_checkpointing": True}, {"batch_size": 1}):
        less = estimate.memory("sft", params(model={"base": p.model.base}, sft=change), FULL, CPU)
        assert less["activations"] < plain["activations"] / 8
        assert less["weights"] == plain["weights"]


def test_dpo_holds_a_second_adapter_and_two_rows_a_pair() -> None:
    small = {"base": "meta-llama/Llama-2-7b-chat-hf"}
    p = params(model=small, sft={"batch_size": 8}, dpo={"batch_size": 4, "control_contexts": 0})
    sft, dpo = (estimate.memory(name, p, FULL._replace(longest=256), CPU) for name in ("sft", "dpo"))
    assert dpo["adapter"] == 2 * sft["adapter"]
    assert dpo["activations"] == sft["activations"]


def test_where_backward_keeps_little_validation_of_twice_the_rows_is_the_peak() -> None:
    p = params(model={"base": "HuggingFaceTB/SmolLM2-135M-Instruct", "dtype": "bfloat16"}, sft={"batch_size": 4})
    shape = sizes.shape(estimate.config_of(p), p.model.base)
    read = sizes.reading(shape, "bfloat16", 2 * 4 * p.model.context, adapted=True)
    scored = sizes.scores(shape, "bfloat16", 4 * p.model.context)
    plain, checkpointed = (
        estimate.memory("sft", changed(p, gradient_checkpointing=on), FULL, CPU) for on in (False, True)
    )
    assert checkpointed["activations"] + checkpointed["logits"] == max(read, scored)
    assert plain["activations"] > 2 * read


def changed(p: Params, **sft: Any) -> Params:
    return p.model_copy(update={"sft": p.sft.model_copy(update=sft)})


@pytest.mark.parametrize("memory", [16, 32, 64])
def test_sampling_takes_half_of_what_is_free_and_evaluate_what_weighing_replies_takes(memory: int) -> None:
    p = params(model={"base": "meta-llama/Llama-2-7b-chat-hf", "dtype": "bfloat16", "quantization": "nf4"})
    terms = estimate.memory("evaluate", p, FULL, Machine(memory * 10**9, False))
    shape = sizes.shape(estimate.config_of(p), p.model.base)
    weighed = sizes.reading(shape, "bfloat16", estimate.POSITIONS, adapted=True) + estimate.WEIGHED_BYTES
    working = sum(terms[name] for name in estimate.SAMPLING)
    assert weighed * 0.9 < working
    assert working < max(weighed, (memory * 10**9 - terms["weights"]) / 2) * 1.05


def test_a_reward_that_asks_the_reward_model_holds_it_beside_the_model_that_answers() -> None:
    base = {"base": "meta-llama/Llama-2-7b-chat-hf"}
    both = {"model": "trained", "weights": [0.5, 0.1, 0.2, 0.2]}
    one, two = (estimate.memory("generate_prefs", params(model=base, reward=own), FULL, CPU) for own in ({}, both))
    assert two["weights"] == 2 * one["weights"]


def test_reward_model_is_sft_s_step_under_an_adapter_of_its_own_without_a_word_s_score() -> None:
    base = {"base": "meta-llama/Llama-2-7b-chat-hf"}
    alike = {"rank": 8, "dropout": 0.0, "tags": False}
    p = params(model=base, sft={"batch_size": 8, "lora": alike}, reward_model={"batch_size": 4, "rank": 8})
    sft, own = (estimate.memory(name, p, FULL, CPU) for name in ("sft", "reward_model"))
    assert (own["logits"], sft["logits"] > 0) == (0, True)
    assert own | {"logits": 0, "libraries": 0} == sft | {"logits": 0, "libraries": 0}
    wide = params(model=base, sft={"lora": alike}, reward_model={"batch_size": 256, "rank": 8})
    assert estimate.memory("reward_model", wide, FULL, CPU)["adapter"] == own["adapter"]
    assert estimate.best_knob("reward_model", wide, FULL, CPU)[:2] == ("reward_model.batch_size", 1)


def test_the_knob_that_saves_most_of_heavy_weights_is_their_quantization() -> None:
    p = params(model={"base": "google/gemma-7b-it"})
    name, value, peak = estimate.best_knob("generate_prefs", p, FULL, CPU)
    assert (name, value) == ("model.quantization", "nf4")
    assert peak < total("generate_prefs", p) - 20 * GB


def test_the_knob_that_saves_most_of_a_wide_step_is_no_knob_of_its_weights() -> None:
    p = params(sft={"batch_size": 256}, model={"base": "HuggingFaceTB/SmolLM2-135M-Instruct"})
    assert estimate.best_knob("sft", p, FULL, CPU)[:2] == ("sft.batch_size", 1)


def test_a_stage_too_large_is_refused_with_number_limit_and_knob(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(estimate.TRY, raising=False)
    monkeypatch.setattr(estimate, "here", lambda: Machine(8 * 10**9, False))
    p = params(model={"base": "google/gemma-7b-it"})
    with pytest.raises(InputError) as refusal:
        estimate.assert_fits("generate_prefs", p, None)
    assert str(refusal.value).startswith("generate_prefs would take about 3")
    assert "this machine has 8.0 GB" in str(refusal.value)
    assert 'model.quantization: "nf4" saves most' in str(refusal.value)
    monkeypatch.setenv(estimate.TRY, "1")
    estimate.assert_fits("generate_prefs", p, None)


def test_a_stage_refuses_at_its_door_before_it_reads_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(tmp_path, {"model.base": "google/gemma-7b-it", "model.revision": 40 * "0"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(estimate, "here", lambda: Machine(8 * 10**9, False))
    monkeypatch.delenv("EMOTUNE_LAUNCH", raising=False)
    paths = [f"--{flag}={tmp_path / flag}" for flag in ("dialogues", "base", "out", "history")]
    with pytest.raises(SystemExit) as ended:
        stage.start(["sft", *paths, "--metrics=metrics/sft.json"])
    assert ended.value.code == 2
    assert "sft would take about" in capsys.readouterr().err
    [line] = costs.lines(tmp_path / ".work/costs.jsonl")
    assert line["failed"].startswith("sft would take about")
    # Processes share rows and, where they are told to, the model: each takes less than one would.
    monkeypatch.setenv("EMOTUNE_LAUNCH", "a line that starts no launcher")
    with pytest.raises(SystemExit):
        stage.start(["sft", *paths, "--metrics=metrics/sft.json"])
    assert "EMOTUNE_LAUNCH must be a line" in capsys.readouterr().err


def test_the_default_and_models_of_unknown_size_pass_the_door() -> None:
    for base in ("embedded", "nobody/knows-it"):
        estimate.assert_fits("sft", params(model={"base": base}), None)


def test_work_grows_with_what_is_asked_for() -> None:
    counts = Counts(dialogues=100, rows=100, tokens=10_000, prompt=50.0, reply=10.0, questions=40, said="")
    p = parse(ROOT / "params.yaml")
    once = works(p, FULL, counts)
    twice = works(p.model_copy(update={"sft": p.sft.model_copy(update={"epochs": 2 * p.sft.epochs})}), FULL, counts)
    assert twice["sft"].trained == 2 * once["sft"].trained == 2 * p.sft.epochs * 10_000
    assert twice["dpo"] == once["dpo"]
    assert once["generate_prefs"].written == p.prefs.prompts * p.prefs.candidates * 10
