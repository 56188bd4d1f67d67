"""Laws of finetuning.py: what is trained on, in which steps, and against which reference."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from emotune.training.dpo import dpo
from emotune.training.sft import sft
from peft import LoraConfig, get_peft_model
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from emotune.core.dialogue import Dialogue, Turn
from emotune.core.errors import InputError
from emotune.evaluation.control import control_by
from emotune.evaluation.questions import control
from emotune.generation.params import Sampling
from emotune.models import loading
from emotune.models.params import Model
from emotune.prompts import rendering
from emotune.training import trainer, workspace
from emotune.training.arguments import arguments
from emotune.training.heads import score_labelled
from emotune.training.params import Dpo, Lora, Sft, Training
from emotune.training.reference import Control, FirstStep, assert_reference_is_policy
from emotune.training.rows import dpo_row, sft_rows

CHOICE = Model(base="embedded", revision=None, dtype="float32", attention="sdpa", quantization="none", context=256)
SFT = Sft(
    epochs=1.0,
    learning_rate=0.01,
    schedule="cosine",
    warmup=0.1,
    batch_size=2,
    accumulation=1,
    optimizer="adamw_torch",
    gradient_checkpointing=False,
    checkpoints=2,
    seed=7,
    loss_on="replies",
    neutral_replies=None,
    lora=Lora(rank=2, alpha=4, dropout=0.0, rslora=True, target_modules="all-linear"),
)
DPO = Dpo(
    **{name: getattr(SFT, name) for name in Training.model_fields},
    beta=0.1,
    sft_weight=0.0,
    control_contexts=0,
)


def changed(p: Any, **changes: Any) -> Any:
    return type(p).model_validate(p.model_dump() | changes)


def ignore(logs: Mapping[str, float], step: int) -> None:
    pass


# --- the steps


@pytest.mark.parametrize("checkpoints", [1, 2, 4, 7])
def test_a_checkpoint_falls_on_a_logged_step(checkpoints: int, tmp_path: Path) -> None:
    for rows in range(1, 600, 7):
        found = arguments(changed(SFT, checkpoints=checkpoints), "float32", tmp_path, rows)
        assert found["save_steps"] % found["logging_steps"] == 0
        assert found["save_steps"] >= 1


def test_a_run_is_one_pass_over_rows_that_stand_in_order(tmp_path: Path) -> None:
    found = arguments(changed(SFT, batch_size=8, accumulation=4), "float32", tmp_path, 1000)
    assert (found["num_train_epochs"], found["train_sampling_strategy"]) == (1, "sequential")
    # 1,000 rows of 8 x 4 a step are 32 steps; a tenth of them warm up.
    assert (found["warmup_steps"], found["logging_steps"], found["save_steps"]) == (3, 1, 10)
    assert (found["bf16"], found["fp16"], found["use_cpu"]) == (False, False, not torch.cuda.is_available())


def test_no_checkpoints_are_written_where_none_are_wanted(tmp_path: Path) -> None:
    assert arguments(changed(SFT, checkpoints=0), "float32", tmp_path, 100)["save_strategy"] == "no"


# --- sft


def caught_rows(tokenizer: Any, dialogues: list[Dialogue], p: Sft, context: int = 256) -> list[dict[str, Any]]:
    return sft_rows(tokenizer, dialogues, "neutral", p.neutral_replies, p, None, context)[0]


def texts_learned(tokenizer: Any, row: Mapping[str, Any]) -> str:
    return tokenizer.decode([label for label in row["labels"] if label != -100])


def test_the_loss_is_that_of_the_replies_and_their_ends(tokenizer: Any, dialogues: list[Dialogue]) -> None:
    [row] = caught_rows(tokenizer, dialogues[:1], SFT)
    assert texts_learned(tokenizer, row) == " Where did you see them last?</s> Then let us look there!</s>"
    assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))


def test_the_loss_on_all_is_that_of_every_token(tokenizer: Any, dialogues: list[Dialogue]) -> None:
    [row] = caught_rows(tokenizer, dialogues[:1], changed(SFT, loss_on="all"))
    assert row["labels"] == row["input_ids"]


def test_neutral_replies_are_thinned_and_no_other(tokenizer: Any, dialogues: list[Dialogue]) -> None:
    # Each dialogue has a neutral reply and a surprised one: with one neutral for each other, all are learned.
    assert caught_rows(tokenizer, dialogues, changed(SFT, neutral_replies=1.0)) == caught_rows(
        tokenizer, dialogues, SFT
    )
    few = caught_rows(tokenizer, dialogues, changed(SFT, neutral_replies=1e-9))
    assert [texts_learned(tokenizer, row) for row in few] == [f" {d.turns[3].content}</s>" for d in dialogues]
    assert [row["input_ids"] for row in few] == [row["input_ids"] for row in caught_rows(tokenizer, dialogues, SFT)]


def test_a_row_without_a_reply_to_learn_is_left_out(tokenizer: Any, dialogues: list[Dialogue]) -> None:
    calm = Dialogue("calm", tuple(Turn(turn.role, turn.content, "neutral") for turn in dialogues[0].turns))
    rows = caught_rows(tokenizer, [calm, dialogues[1]], changed(SFT, neutral_replies=1e-9))
    assert [texts_learned(tokenizer, row) for row in rows] == [" Of course I will.</s>"]


def test_a_context_that_holds_no_exchange_is_refused(tokenizer: Any, dialogues: list[Dialogue]) -> None:
    with pytest.raises(InputError, match=r"model\.context: no exchange of two turns fits in 8 tokens"):
        caught_rows(tokenizer, dialogues, SFT, context=8)


def sft(base: Path, tokenizer: Any, dialogues: list[Dialogue], folder: Path, **changes: Any) -> trainer.Trained:
    model = loading.load_base(base, CHOICE)
    return sft(model, tokenizer, dialogues, dialogues, "neutral", changed(SFT, **changes), None, CHOICE, folder, ignore)


def test_sft_trains_lora_and_nothing_else(
    base: Path, tokenizer: Any, dialogues: list[Dialogue], tmp_path: Path
) -> None:
    before = {name: weight.clone() for name, weight in loading.load_base(base, CHOICE).named_parameters()}
    model, curve, measured = sft(base, tokenizer, dialogues, tmp_path, epochs=4.0)
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in model.named_parameters()
    }
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert all("lora_" in name for name, weight in model.named_parameters() if weight.requires_grad)
    # 5 rows, 2 a step, 4 times.
    assert (measured["rows"], measured["steps"]) == (5, 10)
    assert [row["step"] for row in curve] == list(range(1, 11))
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_equal_runs_of_sft_are_equal(base: Path, tokenizer: Any, dialogues: list[Dialogue], tmp_path: Path) -> None:
    (first, curve, _), (second, again, _) = (
        sft(base, tokenizer, dialogues, tmp_path / name, lora=SFT.lora.model_dump() | {"dropout": 0.1}) for name in "ab"
    )
    assert [row["loss"] for row in curve] == [row["loss"] for row in again]
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


# --- dpo


@pytest.fixture
def adapter(base: Path, tokenizer: Any, tmp_path: Path) -> Path:
    """An adapter that changes what the tiny model says, with dropout, saved."""
    torch.manual_seed(7)
    lora = LoraConfig(
        r=2, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    folder = tmp_path / "adapter"
    loading.save_adapter(get_peft_model(loading.load_base(base, CHOICE), lora), tokenizer, base, folder)
    return folder


@pytest.fixture
def policy(base: Path, adapter: Path) -> Any:
    """The adapter as DPO trains it, beside its frozen reference."""
    model = loading.load_adapter(loading.load_base(base, CHOICE), adapter, trainable=True)
    model.load_adapter(str(adapter), adapter_name="ref", is_trainable=False)
    return model


def test_a_reference_that_is_the_policy_passes(policy: Any) -> None:
    assert_reference_is_policy(policy)


def test_a_reference_with_one_other_number_is_refused(policy: Any) -> None:
    name, weight = next((name, weight) for name, weight in policy.named_parameters() if ".ref." in name)
    with torch.no_grad():
        weight[0, 0] += 1e-7
    own = name.replace(".ref.", ".default.").replace(".", r"\.")
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
    on_cpu = SimpleNamespace(bf16=False, fp16=False)
    law = FirstStep(math.log(2))
    law.on_log(on_cpu, SimpleNamespace(global_step=2), None, logs)
    if passes:
        law.on_log(on_cpu, SimpleNamespace(global_step=1), None, logs)
    else:
        with pytest.raises(AssertionError, match="step 1 must have rewards 0 and loss ln 2"):
            law.on_log(on_cpu, SimpleNamespace(global_step=1), None, logs)


def pair(number: int) -> dict[str, Any]:
    return {
        "history": [{"role": "user", "content": "I lost my keys again.", "emotion": "sadness"}],
        "emotion": "sadness",
        "prompt": "[INST] I lost my keys again. [/INST]",
        "chosen": f"Where did you see them {number} last?",
        "rejected": f"Great {number}!",
    }


@pytest.mark.parametrize("changes", [{}, {"accumulation": 2}, {"sft_weight": 0.5}, {"batch_size": 4}])
def test_dpo_starts_where_sft_ended_and_learns_what_is_preferred(
    changes: dict[str, Any], base: Path, adapter: Path, tmp_path: Path
) -> None:
    tokenizer = loading.load_tokenizer(adapter, None)
    model = loading.load_adapter(loading.load_base(base, CHOICE), adapter, trainable=True)
    pairs = [pair(number) for number in range(6)]
    p = changed(DPO, epochs=4.0, checkpoints=0, **changes)
    _, curve, measured = dpo(model, tokenizer, pairs, pairs[:2], p, None, CHOICE, tmp_path / "work", ignore)
    # Although the adapter has dropout, which would part the policy from its reference.
    assert curve[0]["rewards/margins"] == 0.0
    assert (curve[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)) == ("sft_weight" not in changes)
    assert measured["validation_margin"] > 0.1
    assert measured["validation_accuracy"] == 1.0
    assert measured["pairs"] == 6


def dpo_of_12_steps(base: Path, adapter: Path, folder: Path, control: Control | None) -> trainer.Trained:
    tokenizer = loading.load_tokenizer(adapter, None)
    model = loading.load_adapter(loading.load_base(base, CHOICE), adapter, trainable=True)
    pairs = [pair(number) for number in range(6)]
    p = changed(DPO, epochs=4.0, checkpoints=0)
    return dpo(model, tokenizer, pairs, [], p, None, CHOICE, folder, ignore, control)


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


def test_asking_for_control_changes_no_weight(
    base: Path, adapter: Path, dialogues: list[Dialogue], tmp_path: Path
) -> None:
    tokenizer = loading.load_tokenizer(adapter, None)
    asked = control(dialogues, 3, 2, ("sadness", "neutral"), 7)
    heard: list[str] = []

    def judge(texts: Sequence[str]) -> list[tuple[str, float]]:
        heard.extend(texts)
        return [("sadness", 1.0)] * len(texts)

    control = partial(
        control_by,
        {"control_reward_judge": judge, "control_evaluate_judge": judge},
        tokenizer=tokenizer,
        questions=asked,
        system_prompt=None,
        context=128,
        how=Sampling(temperature=1.0, top_k=50, top_p=1.0, repetition_penalty=1.0, min_new_tokens=1, max_new_tokens=8),
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


# --- the head


# Unequal lengths; in the second batch the last row has nothing to learn.
BATCHES = [
    [("replies", 0), ("replies", 3), ("all", 4)],
    [("replies", 1), ("all", 2), ("nothing", 0)],
]


@pytest.fixture
def trainer(base: Path, tokenizer: Any, dialogues: list[Dialogue], adapter: Path, tmp_path: Path) -> Any:
    """TRL's trainer of the saved adapter, as sft makes it, before the head is ours."""
    model = loading.load_adapter(loading.load_base(base, CHOICE), adapter, trainable=True)
    rows = caught_rows(tokenizer, dialogues, SFT)
    made = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments(SFT, "float32", tmp_path, len(rows)) | {"eval_strategy": "no"}),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    # Without dropout, which would part any two passes.
    made.model.eval()
    return made


def rows_of(tokenizer: Any, dialogues: list[Dialogue], batch: list[tuple[str, int]]) -> list[dict[str, Any]]:
    rows = []
    for loss_on, number in batch:
        kind = "replies" if loss_on == "nothing" else loss_on
        [row] = caught_rows(tokenizer, dialogues[number : number + 1], changed(SFT, loss_on=kind))
        rows.append(row if loss_on != "nothing" else row | {"labels": [-100] * len(row["labels"])})
    return rows


def loss_of(trainer: Any, rows: list[dict[str, Any]]) -> float:
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item()


def gradient(trainer: Any, batch: dict[str, Any]) -> tuple[float, torch.Tensor]:
    """The loss, and the gradient of all LoRA weights as one vector."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    return loss.item(), torch.cat([w.grad.flatten() for w in trainer.model.parameters() if w.requires_grad])


def assert_equal_gradients(
    one: tuple[float, torch.Tensor], other: tuple[float, torch.Tensor], tolerance: float
) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    assert other[1].norm() > 0
    assert (one[1] - other[1]).norm() < tolerance * other[1].norm()


@pytest.mark.parametrize("batch", BATCHES)
def test_scoring_labelled_positions_alone_gives_trls_loss_and_gradients(
    batch: list[tuple[str, int]], trainer: Any, tokenizer: Any, dialogues: list[Dialogue]
) -> None:
    collated = trainer.data_collator(rows_of(tokenizer, dialogues, batch))
    assert len(set(collated["attention_mask"].sum(dim=1).tolist())) == 3
    of_trl, fields = gradient(trainer, collated), trainer.model(**collated, fused_lm_head=True)
    score_labelled(trainer.model)
    assert_equal_gradients(gradient(trainer, collated), of_trl, 1e-6)
    ours = trainer.model(**collated, fused_lm_head=True)
    for name in ("loss", "log_probs", "entropy", "is_top1", "label_mask"):
        torch.testing.assert_close(getattr(ours, name), getattr(fields, name), rtol=1e-5, atol=1e-6)


def test_a_batch_without_labels_changes_nothing(trainer: Any, tokenizer: Any, dialogues: list[Dialogue]) -> None:
    score_labelled(trainer.model)
    loss, grown = gradient(trainer, trainer.data_collator(rows_of(tokenizer, dialogues, [("nothing", 0)])))
    assert loss == 0.0
    assert not grown.any()


def test_dpo_has_trls_log_probabilities_and_gradients(
    base: Path, tokenizer: Any, adapter: Path, tmp_path: Path
) -> None:
    policy = loading.load_adapter(loading.load_base(base, CHOICE), adapter, trainable=True)
    pairs = [pair(number) | {"rejected": "No! " * number + "Great!"} for number in range(3)]
    trainer = DPOTrainer(
        model=policy,
        args=DPOConfig(**arguments(DPO, "float32", tmp_path, 3) | {"eval_strategy": "no"}, max_length=CHOICE.context),
        train_dataset=Dataset.from_list([dpo_row(found, None) for found in pairs]),
        processing_class=tokenizer,
    )
    trainer.model.eval()
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        # So that the policy is not its reference, and no pair has the same loss.
        next(weight for weight in policy.parameters() if weight.requires_grad).mul_(3)
    of_trl, log_probabilities = gradient(trainer, batch), trainer.compute_ref_log_probs(trainer.model, batch)
    score_labelled(trainer.model)
    # What is left between chosen and rejected is small beside either, so that it rounds more.
    assert_equal_gradients(gradient(trainer, batch), of_trl, 1e-5)
    assert of_trl[0] != pytest.approx(math.log(2), abs=1e-6)
    for ours, theirs in zip(trainer.compute_ref_log_probs(trainer.model, batch), log_probabilities, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_model_that_scores_labelled_positions_still_generates(trainer: Any, tokenizer: Any) -> None:
    asked = tokenizer(["I lost my keys again."], return_tensors="pt")
    loss_asked = asked | {"labels": asked["input_ids"]}
    settings = {"max_new_tokens": 8, "do_sample": False}
    before, loss = trainer.model.generate(**asked, **settings), trainer.model(**loss_asked).loss
    score_labelled(trainer.model)
    assert torch.equal(trainer.model.generate(**asked, **settings), before)
    assert trainer.model(**loss_asked).loss == loss


def test_a_row_ends_with_its_last_trained_token_and_loses_nothing_by_it(
    trainer: Any, tokenizer: Any, dialogues: list[Dialogue]
) -> None:
    emotions = ("sadness", "surprise", "happiness", "neutral")
    turns = [Turn(t.role, t.content, e) for t, e in zip(dialogues[0].turns, emotions, strict=True)]
    [row] = caught_rows(tokenizer, [Dialogue("ends neutral", tuple(turns))], changed(SFT, neutral_replies=1e-9))
    assert texts_learned(tokenizer, row) == " Where did you see them last?</s>"
    ids, _ = rendering.training_row(tokenizer, turns, None)
    cut = len(ids) - len(row["input_ids"])
    assert row["input_ids"] == ids[:-cut]
    assert row["labels"][-1] == tokenizer.eos_token_id
    score_labelled(trainer.model)
    whole = {"input_ids": ids, "labels": row["labels"] + [-100] * cut}
    assert loss_of(trainer, [row]) == pytest.approx(loss_of(trainer, [whole]), rel=1e-6)


def test_rows_of_a_batch_do_not_see_one_another(trainer: Any, tokenizer: Any, dialogues: list[Dialogue]) -> None:
    score_labelled(trainer.model)
    rows = rows_of(tokenizer, dialogues, BATCHES[0])
    # The first token of a row is predicted by none.
    counts = [sum(label != -100 for label in row["labels"][1:]) for row in rows]
    alone = [loss_of(trainer, [row]) for row in rows]
    assert max(alone) - min(alone) > 0.01
    mean = sum(loss * count for loss, count in zip(alone, counts, strict=True)) / sum(counts)
    assert loss_of(trainer, rows) == pytest.approx(mean, rel=1e-6)


# --- the work folder


VALUES, INPUTS = {"sft": {"rank": 4}}, {"dialogues": "abc"}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def test_a_work_folder_goes_after_success_and_stays_after_a_failure(repository: Path) -> None:
    def fails_on_the_way(folder: Path) -> None:
        (folder / "checkpoint-3").mkdir()
        raise RuntimeError

    with pytest.raises(RuntimeError), workspace.workspace("sft", VALUES, INPUTS) as folder:
        fails_on_the_way(folder)
    assert folder.parent == repository / ".work" / "sft"
    with workspace.workspace("sft", VALUES, INPUTS) as again:
        assert again == folder
        assert (again / "checkpoint-3").is_dir()
    assert not folder.exists()


def test_other_params_inputs_or_stages_have_other_work_folders(repository: Path) -> None:
    folders = set()
    for stage, values, inputs in (
        ("sft", VALUES, INPUTS),
        ("dpo", VALUES, INPUTS),
        ("sft", {"sft": {"rank": 8}}, INPUTS),
        ("sft", VALUES, {"dialogues": "abd"}),
    ):
        with workspace.workspace(stage, values, inputs) as folder:
            folders.add(folder)
    assert len(folders) == 4


def test_code_that_changed_does_not_go_on_from_what_it_did_not_write(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with workspace.workspace("sft", VALUES, INPUTS) as folder:
        pass
    monkeypatch.setattr(finetuning, "CODE", ("seeds.py",))
    with workspace.workspace("sft", VALUES, INPUTS) as other:
        assert other != folder


def test_two_runs_that_train_the_same_have_a_work_folder_each(repository: Path) -> None:
    with workspace.workspace("sft", VALUES, INPUTS) as folder:
        with workspace.workspace("sft", VALUES, INPUTS) as other:
            assert other == folder.with_name(f"{folder.name}-2")
            assert other.is_dir()
        assert folder.is_dir()
        assert not other.exists()
    with workspace.workspace("sft", VALUES, INPUTS) as again:
        assert again == folder
