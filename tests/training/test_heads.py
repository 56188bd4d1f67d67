"""Laws of heads.py: what scores the labelled positions alone has TRL's losses and gradients."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils._python_dispatch import TorchDispatchMode
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from emotune.core.dialogue import Dialogue, Turn
from emotune.models import loading
from emotune.prompts.prompter import Prompter
from emotune.stages import dpo, sft
from emotune.stages.dpo import dpo_row
from emotune.training import heads
from emotune.training.heads import score_labelled
from emotune.training.trainer import arguments
from tiny import CHOICE, DPO, SFT, changed, ignore, pair, rows_of, save_adapter, tied, with_tags

# Unequal lengths; in the second batch the last row has nothing to learn.
BATCHES = [
    [("replies", 0), ("replies", 3), ("all", 4)],
    [("replies", 1), ("all", 2), ("nothing", 0)],
]
# The tiny tokenizer has 400 tokens.
THREE_POSITIONS = 3 * 400 + 399


@pytest.fixture
def adapter(base: Path, tokenizer: Any, tmp_path: Path) -> Path:
    return save_adapter(base, tokenizer, tmp_path / "adapter")


@pytest.fixture
def trainer(base: Path, tokenizer: Any, dialogues: list[Dialogue], adapter: Path, tmp_path: Path) -> Any:
    """TRL's trainer of the saved adapter, as sft makes it, before the head is ours."""
    model = loading.load_adapter(loading.load_base(base, CHOICE), adapter, trainable=True)
    return sft_trainer(model, tokenizer, dialogues, tmp_path)


def sft_trainer(model: Any, tokenizer: Any, dialogues: list[Dialogue], tmp_path: Path) -> Any:
    rows = rows_of(tokenizer, dialogues, SFT)
    made = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments(SFT, "float32", tmp_path, len(rows)) | {"eval_strategy": "no"}),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    # Without dropout, which would part any two passes.
    made.model.eval()
    return made


def rows_in(batch: list[tuple[str, int]], tokenizer: Any, dialogues: list[Dialogue]) -> list[dict[str, Any]]:
    rows = []
    for loss_on, number in batch:
        kind = "replies" if loss_on == "nothing" else loss_on
        [row] = rows_of(tokenizer, dialogues[number : number + 1], changed(SFT, loss_on=kind))
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


@pytest.fixture(params=["at once", "in chunks"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary of which all positions of a batch fit in memory, and one of which three do."""
    if request.param == "in chunks":
        monkeypatch.setattr(heads, "SCORES", THREE_POSITIONS)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("batch", BATCHES)
def test_scoring_labelled_positions_alone_gives_trls_loss_and_gradients(
    batch: list[tuple[str, int]], trainer: Any, tokenizer: Any, dialogues: list[Dialogue]
) -> None:
    collated = trainer.data_collator(rows_in(batch, tokenizer, dialogues))
    assert len(set(collated["attention_mask"].sum(dim=1).tolist())) == 3
    of_trl, fields = gradient(trainer, collated), trainer.model(**collated, fused_lm_head=True)
    score_labelled(trainer.model)
    assert_equal_gradients(gradient(trainer, collated), of_trl, 2e-6)
    ours = trainer.model(**collated, fused_lm_head=True)
    for name in ("loss", "log_probs", "entropy", "is_top1", "label_mask"):
        torch.testing.assert_close(getattr(ours, name), getattr(fields, name), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("chunks")
def test_tags_that_are_scored_with_too_have_trls_loss_and_gradients(
    base: Path, tokenizer: Any, dialogues: list[Dialogue], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_tags(tied(base, tmp_path / "base"), tokenizer, r=2, init_lora_weights=False)
    trainer = sft_trainer(model, tokenizer, dialogues, tmp_path)
    collated = trainer.data_collator(rows_in(BATCHES[0], tokenizer, dialogues))
    with monkeypatch.context() as as_on_a_gpu:
        as_on_a_gpu.setattr(heads, "PLAIN_HEADS", ())
        score_labelled(trainer.model)
    of_trl = gradient(trainer, collated)
    score_labelled(trainer.model)
    assert_equal_gradients(gradient(trainer, collated), of_trl, 2e-6)
    # Those that no row of the batch has are given a gradient by the softmax alone.
    assert model.get_input_embeddings().token_adapter.trainable_tokens_delta["default"].grad.any(1).all()


def test_a_batch_without_labels_changes_nothing(trainer: Any, tokenizer: Any, dialogues: list[Dialogue]) -> None:
    score_labelled(trainer.model)
    loss, grown = gradient(trainer, trainer.data_collator(rows_in([("nothing", 0)], tokenizer, dialogues)))
    assert loss == 0.0
    assert not grown.any()


@pytest.mark.usefixtures("chunks")
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


class Widest(TorchDispatchMode):
    """The most numbers that scores in float32 had, of all that were made: what is as wide as the vocabulary."""

    numbers = 0
    HEAD = (32, 400)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **kwargs or {})
        for tensor in results if isinstance(results, tuple | list) else [results]:
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float32 or tensor.shape == self.HEAD:
                continue
            if tensor.shape[-1:] == (400,):
                self.numbers = max(self.numbers, tensor.numel())
        return results


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_no_step_holds_the_scores_of_more_positions_than_a_chunk_has(
    stage: str,
    base: Path,
    adapter: Path,
    tokenizer: Any,
    dialogues: list[Dialogue],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heads, "SCORES", THREE_POSITIONS)
    section = {"model": CHOICE, "system_prompt": None}
    with Widest() as widest:
        if stage == "sft":
            p = sft.Params(**section, sft=SFT, template="out_inst_uni")
            model = loading.load_base(base, CHOICE)
            sft.tune(model, tokenizer, dialogues, dialogues[:2], "neutral", p, tmp_path / "work", ignore)
        else:
            p = dpo.Params.model_construct(**section, dpo=changed(DPO, sft_weight=1.0))
            model = loading.load_adapter(loading.load_base(base, CHOICE), adapter, trainable=True)
            pairs = [pair(number) for number in range(4)]
            dpo.align(model, tokenizer, pairs, pairs[:2], p, tmp_path / "work", ignore)
    assert 400 < widest.numbers <= THREE_POSITIONS


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
    [row] = rows_of(tokenizer, [Dialogue("ends neutral", tuple(turns))], changed(SFT, neutral_replies=1e-9))
    learned = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(learned) == " Where did you see them last?</s>"
    ids, _ = Prompter(tokenizer, None, 256).training_row(turns)
    cut = len(ids) - len(row["input_ids"])
    assert row["input_ids"] == ids[:-cut]
    assert row["labels"][-1] == tokenizer.eos_token_id
    score_labelled(trainer.model)
    whole = {"input_ids": ids, "labels": row["labels"] + [-100] * cut}
    assert loss_of(trainer, [row]) == pytest.approx(loss_of(trainer, [whole]), rel=1e-6)


def test_rows_of_a_batch_do_not_see_one_another(trainer: Any, tokenizer: Any, dialogues: list[Dialogue]) -> None:
    score_labelled(trainer.model)
    rows = rows_in(BATCHES[0], tokenizer, dialogues)
    # The first token of a row is predicted by none.
    counts = [sum(label != -100 for label in row["labels"][1:]) for row in rows]
    alone = [loss_of(trainer, [row]) for row in rows]
    assert max(alone) - min(alone) > 0.01
    mean = sum(loss * count for loss, count in zip(alone, counts, strict=True)) / sum(counts)
    assert loss_of(trainer, rows) == pytest.approx(mean, rel=1e-6)
