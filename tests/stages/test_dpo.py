"""Laws of dpo: what is preferred is learned, against the reference that sft left; control is asked for on the way."""

import importlib.util
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict, load_peft_weights
from pydantic import ValidationError
from safetensors.torch import load_file

from emotune.core import records
from emotune.core.contract import Log
from emotune.core.dialogue import ASSISTANT, Dialogue, Turn
from emotune.core.errors import InputError
from emotune.evaluation.answers import control as questions_of
from emotune.evaluation.control import control_by
from emotune.generation.params import Sampling
from emotune.judges.params import EmotionChoice, EmotionJudge
from emotune.models import likelihood, loading
from emotune.prompts.prompter import Prompter
from emotune.stages.dpo import Params, Sampled, align, assert_first_step, assert_reference_is_policy
from emotune.stages.dpo import control_by as probe_of
from tiny import CHOICE, DPO, changed, ignore, pair, save_adapter, with_tags

SAMPLING = Sampling(
    temperature=1.0, top_k=50, top_p=1.0, repetition_penalty=1.0, min_new_tokens=1, max_new_tokens=8, guidance=1.0
)
JUDGE = EmotionJudge(emotion_judge=EmotionChoice(name="embedded", revision=None, labels=None, tau=0))


def params(**changes: Any) -> Params:
    return Params(
        dpo=changed(DPO, **changes),
        evaluate=JUDGE,
        history_turns=3,
        model=CHOICE,
        prefs=Sampled(sampling=SAMPLING),
        reward=JUDGE,
        system_prompt=None,
    )


@pytest.fixture
def adapter(base: Path, tokenizer: Any, tmp_path: Path) -> Path:
    return save_adapter(base, tokenizer, tmp_path / "adapter")


@pytest.fixture
def policy(base: Path, adapter: Path) -> Any:
    """The adapter as DPO trains it, beside its frozen reference."""
    model = loading.load_adapter(loading.load_base(base, CHOICE), adapter, trainable=True)
    model.load_adapter(str(adapter), adapter_name="ref", is_trainable=False)
    return model


def test_a_reference_that_is_the_policy_passes(policy: Any) -> None:
    assert_reference_is_policy(policy)


@pytest.mark.parametrize("kind", ["lora_A", "trainable_tokens_delta"])
def test_a_reference_with_one_other_number_is_refused(kind: str, policy: Any) -> None:
    weights = policy.named_parameters()
    name, weight = next((name, weight) for name, weight in weights if f"{kind}.ref" in name)
    with torch.no_grad():
        weight[0, 0] = weight[0, 0].nextafter(torch.tensor(torch.inf))
    own = name.replace(".ref", ".default").replace(".", r"\.")
    with pytest.raises(AssertionError, match=f"the reference lacks what the policy learned in sft: {own} differs"):
        assert_reference_is_policy(policy)


def test_a_policy_without_a_reference_is_refused(base: Path, adapter: Path) -> None:
    model = loading.load_adapter(loading.load_base(base, CHOICE), adapter, trainable=True)
    with pytest.raises(AssertionError, match="the reference lacks what the policy learned in sft"):
        assert_reference_is_policy(model)


def test_a_policy_that_cannot_learn_is_refused(base: Path, adapter: Path) -> None:
    model = loading.load_adapter(loading.load_base(base, CHOICE), adapter)
    with pytest.raises(AssertionError, match="the policy has no trainable adapter weights"):
        assert_reference_is_policy(model)


def test_the_tags_are_trained_and_the_reference_stays_what_sft_left(
    base: Path, tokenizer: Any, adapter: Path, tmp_path: Path
) -> None:
    before = load_file(adapter / "adapter_model.safetensors")
    aligned, _, _ = dpo_of_12_steps(base, adapter, tmp_path / "work", None)
    weights = partial(get_peft_model_state_dict, aligned, save_embedding_layers=False)
    policy, reference = weights(adapter_name="default"), weights(adapter_name="ref")
    assert reference.keys() == policy.keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in reference.items())
    [tags] = [name for name in before if "trainable_tokens_delta" in name]
    moved = (policy[tags] != before[tags]).any(1)
    trained = torch.tensor(aligned.peft_config["default"].trainable_token_indices)[moved]
    # Of the emotions that the adapter has embeddings of, all pairs ask for sadness.
    assert set(tokenizer.convert_ids_to_tokens(trained)) == {"Ġ[EMOTION]", "Ġ[/EMOTION]", "Ġsadness"}


@pytest.mark.parametrize(
    ("loss", "rewards", "passes"),
    [
        (math.log(2), (0.0, 0.0), True),
        (0.6917, (0.0, 0.0), False),
        (math.log(2), (0.0196, 0.0196), False),
        (math.log(2), (0.0, -0.0005), False),
    ],
)
def test_at_step_1_rewards_are_0_and_the_loss_is_ln_2(loss: float, rewards: tuple[float, float], passes: bool) -> None:
    logs = {"loss": loss, "rewards/chosen": rewards[0], "rewards/rejected": rewards[1]}
    if passes:
        assert_first_step(math.log(2), logs, False)
    else:
        with pytest.raises(AssertionError, match="step 1 must have rewards 0 and loss ln 2"):
            assert_first_step(math.log(2), logs, False)


@pytest.mark.parametrize(
    "changes", [{}, {"accumulation": 2}, {"sft_weight": 0.5}, {"batch_size": 4}, {"loss": "sigmoid_norm", "beta": 2.0}]
)
def test_dpo_starts_where_sft_ended_and_learns_what_is_preferred(
    changes: dict[str, Any], base: Path, adapter: Path, tmp_path: Path
) -> None:
    tokenizer = loading.load_tokenizer(adapter, None)
    model = loading.load_adapter(loading.load_base(base, CHOICE), adapter, trainable=True)
    pairs = [pair(number) for number in range(6)]
    p = params(epochs=4.0, checkpoints=0, **changes)
    _, curve, measured = align(model, tokenizer, pairs, pairs[:2], p, tmp_path / "work", ignore)
    # Although the adapter has dropout, which would part the policy from its reference.
    assert curve[0]["rewards/margins"] == 0.0
    assert (curve[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)) == ("sft_weight" not in changes)
    assert measured["validation_margin"] > 0.05
    assert measured["validation_accuracy"] == 1.0
    assert measured["pairs"] == 6


def test_without_a_loss_of_pairs_the_chosen_replies_alone_are_learned(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    model = loading.load_adapter(loading.load_base(base, CHOICE), adapter, trainable=True)
    pairs = [pair(number) for number in range(6)]
    p = params(epochs=4.0, checkpoints=0, batch_size=6, loss="none", sft_weight=2.0)
    _, curve, _ = align(model, loading.load_tokenizer(adapter, None), pairs, [], p, tmp_path / "work", ignore)
    costs = nats(base, adapter, "chosen", pairs)
    # 2 x the nats of a token of the chosen replies: nothing of ln 2, whatever is rejected.
    assert curve[0]["loss"] == pytest.approx(2 * sum(nats for nats, _ in costs) / sum(n for _, n in costs), abs=1e-4)
    assert curve[-1]["loss"] < curve[0]["loss"]
    with pytest.raises(ValidationError, match="sft_weight must be above 0 where loss is none"):
        params(loss="none", sft_weight=0.0)


# Another round.


@pytest.fixture
def learned(base: Path, adapter: Path, tmp_path: Path) -> Path:
    """The adapter after some steps of dpo: where another round begins."""
    folder = tmp_path / "learned"
    tokenizer = loading.load_tokenizer(adapter, None)
    model = loading.load_adapter(loading.load_base(base, CHOICE), adapter, trainable=True)
    p = params(epochs=4.0, checkpoints=0, learning_rate=0.05)
    aligned, _, _ = align(model, tokenizer, [pair(number) for number in range(6)], [], p, tmp_path / "first", ignore)
    loading.save_adapter(aligned, tokenizer, base, folder)
    return folder


def nats(base: Path, adapter: Path, side: str, pairs: Sequence[Mapping[str, Any]]) -> list[likelihood.Cost]:
    """What each pair's reply costs a model that was loaded for nothing else, and of how many tokens it is."""
    prompter = Prompter(loading.load_tokenizer(adapter, None), None, CHOICE.context)
    rows = [
        prompter.fitting_row([Turn(**turn) for turn in own["history"]], Turn(ASSISTANT, own[side], own["emotion"]))
        for own in pairs
    ]
    model = loading.load_tuned(base, CHOICE, adapter)
    batch = [row for row in rows if row is not None]
    [costs] = likelihood.negative_log_likelihoods(model, prompter.tokenizer.pad_token_id, [batch])
    return costs


def second_round(base: Path, learned: Path, adapter: Path, folder: Path, log: Log) -> Any:
    model = loading.load_adapter(loading.load_base(base, CHOICE), learned, trainable=True)
    pairs = [pair(number) for number in range(6)]
    p = params(epochs=4.0, checkpoints=2, batch_size=6, learning_rate=0.02)
    return align(model, loading.load_tokenizer(learned, None), pairs, [], p, folder, log, None, adapter)


def test_another_round_goes_on_from_dpo_and_is_measured_from_sft(
    base: Path, adapter: Path, learned: Path, tmp_path: Path
) -> None:
    aligned, curve, _ = second_round(base, learned, adapter, tmp_path / "second", ignore)
    pairs = [pair(number) for number in range(6)]
    for side in ("chosen", "rejected"):
        costs = zip(nats(base, adapter, side, pairs), nats(base, learned, side, pairs), strict=True)
        # beta ln(policy / reference), of models that never met: a mean over the six pairs of the first step.
        reward = statistics.fmean(0.1 * (of_reference - of_policy) for (of_reference, _), (of_policy, _) in costs)
        assert curve[0][f"rewards/{side}"] == pytest.approx(reward, abs=1e-4)
        assert abs(reward) > 0.01
    reference = get_peft_model_state_dict(aligned, adapter_name="ref")
    saved = load_peft_weights(str(adapter))
    assert reference.keys() == saved.keys()
    assert all(torch.equal(weight, saved[name]) for name, weight in reference.items())


def test_another_round_that_was_killed_goes_on_to_the_same_weights(
    base: Path, adapter: Path, learned: Path, tmp_path: Path
) -> None:
    def die_at_step_3(logs: Mapping[str, float], step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    whole, curve, _ = second_round(base, learned, adapter, tmp_path / "a", ignore)
    with pytest.raises(KeyboardInterrupt):
        second_round(base, learned, adapter, tmp_path / "b", die_at_step_3)
    assert list((tmp_path / "b").glob("checkpoint-*"))
    again, same, _ = second_round(base, learned, adapter, tmp_path / "b", ignore)
    assert [row["loss"] for row in curve] == [row["loss"] for row in same]
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(("rank", "tags", "named"), [(3, True, "lora_A"), (2, False, "token_adapter")])
def test_a_reference_of_another_shape_is_refused(
    rank: int, tags: bool, named: str, base: Path, tokenizer: Any, policy: Any, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    bare = get_peft_model(loading.load_base(base, CHOICE), lora)
    other = with_tags(base, tokenizer, r=rank) if tags else bare
    other.save_pretrained(tmp_path / "other", selected_adapters=["default"])
    with pytest.raises(InputError, match=f"other does not fit the policy: .*{named}"):
        loading.load_reference(policy, tmp_path / "other")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_4_bit_weights_the_adapter_is_float32_and_a_killed_run_goes_on_to_the_same_weights(
    dtype: str, base: Path, adapter: Path, tmp_path: Path
) -> None:
    choice = changed(CHOICE, quantization="nf4", dtype=dtype)
    p = params(epochs=4.0, checkpoints=2).model_copy(update={"model": choice})

    def run(folder: Path, log: Log) -> tuple[dict[str, torch.Tensor], list[float]]:
        tokenizer = loading.load_tokenizer(adapter, None)
        model = loading.load_adapter(loading.load_base(base, choice), adapter, trainable=True)
        model.peft_config["default"].base_model_name_or_path = str(base)
        aligned, curve, _ = align(model, tokenizer, [pair(number) for number in range(6)], [], p, folder, log)
        weights = {name: weight for name, weight in aligned.named_parameters() if "lora_" in name}
        return weights, [row["loss"] for row in curve]

    def die_at_step_9(logs: Mapping[str, float], step: int) -> None:
        if step == 9:
            raise KeyboardInterrupt

    weights, losses = run(tmp_path / "a", ignore)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", die_at_step_9)
    assert (tmp_path / "b" / "checkpoint-8").is_dir()
    again, same_losses = run(tmp_path / "b", ignore)
    assert losses == same_losses
    assert weights.keys() == again.keys()
    assert all(
        weight.dtype == again[name].dtype and torch.equal(weight, again[name]) for name, weight in weights.items()
    )


def dpo_of_12_steps(base: Path, adapter: Path, folder: Path, control: Any) -> Any:
    tokenizer = loading.load_tokenizer(adapter, None)
    model = loading.load_adapter(loading.load_base(base, CHOICE), adapter, trainable=True)
    pairs = [pair(number) for number in range(6)]
    p = params(epochs=4.0, checkpoints=0)
    return align(model, tokenizer, pairs, [], p, folder, ignore, control)


def test_control_by_both_judges_is_asked_for_at_five_steps(base: Path, adapter: Path, tmp_path: Path) -> None:
    found = iter([([0.5, 0.0], 0.25), ([1.0, 0.0], 0.25), ([0.5, 0.5], 0.5), ([1.0, 1.0], 0.5), ([1.0, 1.0], 0.375)])

    def control(model: Any) -> dict[str, list[float]]:
        assert not model.training
        by_reward, by_other = next(found)
        return {"control_reward_judge": by_reward, "control_evaluate_judge": [by_other] * 2}

    _, curve, _ = dpo_of_12_steps(base, adapter, tmp_path / "work", control)
    rows = [row for row in curve if "control_reward_judge" in row]
    assert [(row["step"], row["control_reward_judge"], row["control_evaluate_judge"]) for row in rows] == [
        (0, 0.25, 0.25),
        (3, 0.5, 0.25),
        (6, 0.5, 0.5),
        (9, 1.0, 0.5),
        (12, 1.0, 0.375),
    ]
    assert rows[0]["control"] == {"control_reward_judge": [0.5, 0.0], "control_evaluate_judge": [0.25, 0.25]}
    assert [row["step"] for row in curve] == list(range(13))


@pytest.mark.parametrize(("guidance", "twin"), [(1.0, None), (1.5, "calm")])
def test_control_is_asked_for_as_the_candidates_were_guided(
    adapter: Path, dialogues: list[Dialogue], tmp_path: Path, guidance: float, twin: str | None
) -> None:
    records.write_jsonl(tmp_path / "validation.jsonl", map(asdict, dialogues))
    records.write_json(tmp_path / "labels.json", {"labels": ["calm", "sadness"], "neutral": "calm"})
    sampling = SAMPLING.model_copy(update={"guidance": guidance})
    p = params(control_contexts=1).model_copy(update={"prefs": Sampled(sampling=sampling)})
    probe: Any = probe_of({}, loading.load_tokenizer(adapter, None), tmp_path, p)
    assert probe.keywords["prompter"].neutral == twin


def test_asking_for_control_changes_no_weight(
    base: Path, adapter: Path, dialogues: list[Dialogue], tmp_path: Path
) -> None:
    tokenizer = loading.load_tokenizer(adapter, None)
    asked = questions_of(dialogues, 3, 2, ("sadness", "neutral"), 7)
    heard: list[str] = []

    def judge(texts: Sequence[str]) -> list[tuple[str, float]]:
        heard.extend(texts)
        return [("sadness", 1.0)] * len(texts)

    control = partial(
        control_by,
        {"control_reward_judge": judge, "control_evaluate_judge": judge},
        prompter=Prompter(tokenizer, None, 128),
        questions=asked,
        sampling=SAMPLING,
        seed=7,
    )
    (with_it, curve, _), (without, plain, _) = (
        dpo_of_12_steps(base, adapter, tmp_path / name, found) for name, found in (("a", control), ("b", None))
    )
    assert len(heard) == 2 * 5 * len(asked)
    # Half of the questions ask for sadness, and both judges find nothing else.
    assert {row["control_reward_judge"] for row in curve if "control" in row} == {0.5}
    assert [row["loss"] for row in curve if "loss" in row] == [row["loss"] for row in plain]
    pairs = zip(with_it.parameters(), without.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
