"""A new LoRA adapter on a base model, trained by TRL on rows of ids and labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emotune.core.contract import Log
from emotune.core.seeds import order
from emotune.models.params import Model
from emotune.training.params import Tuning

# The label of a token that no loss is taken of.
UNLEARNED = -100
# A row: `input_ids` and, of each, its label.
Rows = Sequence[Mapping[str, list[int]]]


def tune(
    model: Any,
    tokenizer: Any,
    rows: Rows,
    held_out: Rows,
    tags: list[int] | None,
    p: Tuning,
    choice: Model,
    folder: Path,
    log: Log,
) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    """The base model under a new adapter, to which the embeddings of the `tags` belong; its curve and its metrics.

    The loss is the mean over the labelled tokens. It goes on from the last complete checkpoint in `folder`.
    """
    from emotune.training import distributed, heads, trainer

    sft = _trainer(model, tokenizer, rows, held_out[: trainer.VALIDATION_ROWS], tags, p, choice, folder)
    heads.score_labelled(sft.model)
    nothing = {"input_ids": [tokenizer.pad_token_id], "labels": [UNLEARNED]}
    distributed.share_rows(sft, nothing, mean_over_all_tokens)
    curve = trainer.train(sft, log)
    metrics = {
        "rows": len(rows),
        "steps": sft.state.global_step,
        "trained_tokens": sum(label != UNLEARNED for row in rows for label in row["labels"]),
        "trainable_parameters": sum(q.numel() for q in sft.model.parameters() if q.requires_grad),
        "train_loss": trainer.values(curve, "loss")[-1],
        "validation_loss": sft.evaluate()["eval_loss"],
    }
    return distributed.whole(sft.model), curve, metrics


def _trainer(
    model: Any,
    tokenizer: Any,
    rows: Rows,
    held_out: Rows,
    tags: list[int] | None,
    p: Tuning,
    choice: Model,
    folder: Path,
) -> Any:
    """TRL's trainer of a new adapter, over rows in training order."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from emotune.training.trainer import adapter_in_float32, arguments

    in_order = order([len(row["input_ids"]) for row in rows], p.epochs, p.batch_size, p.seed)
    shared, lora = arguments(p, choice.dtype, folder, len(in_order)), p.lora
    with adapter_in_float32(model):
        return SFTTrainer(
            model=model,
            args=SFTConfig(**shared, max_length=choice.context, packing=False),
            train_dataset=Dataset.from_list([rows[i] for i in in_order]),
            eval_dataset=Dataset.from_list(held_out),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                use_rslora=lora.rslora,
                target_modules=lora.target_modules
                if lora.target_modules == "all-linear"
                else list(lora.target_modules),
                trainable_token_indices=tags,
                task_type="CAUSAL_LM",
            ),
        )


def mean_over_all_tokens(trainer: Any, of_trl: Any, model: Any, inputs: Any, **more: Any) -> Any:
    """TRL's loss, in validation too the mean over the tokens of all processes."""
    from emotune.training import distributed

    if model.training:
        return of_trl(model, inputs, **more)
    rows, tokens = distributed.sums(trainer, inputs["labels"][:, 1:] != UNLEARNED)
    return of_trl(model, inputs, num_items_in_batch=tokens) * distributed.validation_weight(trainer, rows)
