"""sft: LoRA on the base model, so that its replies follow the emotion in the prompt."""

from __future__ import annotations

from pathlib import Path

from emotune import launch, params, records, tracking


def main(dialogues: Path, base: Path, out: Path, metrics: Path, history: Path) -> None:
    """Train a LoRA adapter on the train dialogues; write adapter and tokenizer, metrics and the loss curve."""
    p = params.load("system_prompt", "model", "template", "sft")
    from emotune import finetuning, models

    inputs = records.digests(dialogues=dialogues, base=base)
    with tracking.run("sft", p.model_dump(), inputs) as run:
        train = records.read_dialogues(dialogues / "train.jsonl")
        validation = records.read_dialogues(dialogues / "validation.jsonl")
        neutral = records.read_json(dialogues / "labels.json")["neutral"]
        tokenizer = models.load_tokenizer(base, p.template)
        model = models.load_base(base, p.model)
        with finetuning.workspace("sft", p.model_dump(), inputs) as folder:
            model, curve, measured = finetuning.sft(
                model, tokenizer, train, validation, neutral, p.sft, p.system_prompt, p.model, folder, run.log
            )
            if launch.first():
                models.save_adapter(model, tokenizer, base, out)
                records.write_csv(history, list(finetuning.SFT_CURVE), curve)
                records.write_json(metrics, measured)
        run.metrics(measured)


if __name__ == "__main__":
    launch.stage(main, parallel=True)
