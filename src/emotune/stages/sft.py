"""sft: LoRA on the base model, so that its replies follow the emotion in the prompt."""

from __future__ import annotations

from emotune.core import processes, records
from emotune.core.contract import Dep, Inputs, Log, Metrics, Out
from emotune.core.sections import Section
from emotune.core.seeds import order
from emotune.models.params import Model
from emotune.prompts.params import Template
from emotune.training.params import Sft

PARALLEL = True
# What a history row shows, under the trainer's own names.
CURVE = ["step", "loss", "eval_loss", "learning_rate", "grad_norm"]


class Params(Section):
    """The base model, and how it is tuned."""

    model: Model
    sft: Sft
    system_prompt: str | None
    template: Template


def main(p: Params, log: Log, inputs: Inputs, dialogues: Dep, base: Dep, out: Out, history: Out) -> Metrics:
    """Train a LoRA adapter on whole dialogues; write adapter and tokenizer, and the loss curve.

    The loss is the mean negative log-likelihood of every reply and its end token (`loss_on: replies`), or of every
    token (`all`). With `neutral_replies` only so many neutral replies are trained on, and rows without any reply to
    train on are left out. A dialogue longer than the context is cut between turns.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from emotune.models import loading
    from emotune.training import distributed, trainer
    from emotune.training.arguments import arguments
    from emotune.training.heads import score_labelled
    from emotune.training.rows import sft_rows
    from emotune.training.workspace import workspace

    tokenizer = loading.load_tokenizer(base, p.template)
    model = loading.load_base(base, p.model)
    neutral = records.read_json(dialogues / "labels.json")["neutral"]
    rows, left_out = sft_rows(
        tokenizer,
        records.read_dialogues(dialogues / "train.jsonl"),
        neutral,
        p.sft.neutral_replies,
        p.sft,
        p.system_prompt,
        p.model.context,
    )
    held_out, _ = sft_rows(
        tokenizer,
        records.read_dialogues(dialogues / "validation.jsonl"),
        neutral,
        None,
        p.sft,
        p.system_prompt,
        p.model.context,
    )
    in_order = order([len(row["input_ids"]) for row in rows], p.sft.epochs, p.sft.batch_size, p.sft.seed)
    modules = p.sft.lora.target_modules
    with workspace("sft", p.model_dump(mode="json"), inputs) as folder:
        sft = SFTTrainer(
            model=model,
            args=SFTConfig(
                **arguments(p.sft, p.model.dtype, folder, len(in_order)), max_length=p.model.context, packing=False
            ),
            train_dataset=Dataset.from_list([rows[i] for i in in_order]),
            eval_dataset=Dataset.from_list(held_out[: trainer.VALIDATION_ROWS]),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=p.sft.lora.rank,
                lora_alpha=p.sft.lora.alpha,
                lora_dropout=p.sft.lora.dropout,
                use_rslora=p.sft.lora.rslora,
                target_modules=modules if isinstance(modules, str) else list(modules),
                task_type="CAUSAL_LM",
            ),
        )
        score_labelled(sft.model)
        distributed.share_rows(sft, p.sft.batch_size, {"input_ids": [tokenizer.pad_token_id], "labels": [-100]})
        distributed.mean_over_all_tokens(sft)
        curve = trainer.train(sft, log)
        measured = {
            "rows": len(rows),
            "steps": sft.state.global_step,
            "trained_tokens": sum(label != -100 for row in rows for label in row["labels"]),
            "turns_left_out_too_long": left_out,
            "trainable_parameters": sum(q.numel() for q in sft.model.parameters() if q.requires_grad),
            "train_loss": trainer.last(curve, "loss"),
            "validation_loss": sft.evaluate()["eval_loss"],
        }
        adapted = distributed.whole(sft.model)
        if processes.first():
            loading.save_adapter(adapted, tokenizer, base, out)
            records.write_csv(history, CURVE, curve)
    return measured
