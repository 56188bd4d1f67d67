"""base_model: a small Llama trained here on the dialogues without their emotions, or the pin of another model."""

from __future__ import annotations

from pathlib import Path

from emotune import launch, params, records, tracking


def main(dialogues: Path, out: Path, metrics: Path) -> None:
    """Write the embedded model and its tokenizer, or the name, commit and hashes of `model.base`."""
    p = params.load("data.labels", "model.base", "model.revision", "model.context", "pretrain")
    from emotune import models, pretraining

    inputs = records.digests(dialogues=dialogues)
    with tracking.run("base_model", p.model_dump(), inputs) as run:
        if p.model.base != models.EMBEDDED:
            found = models.resolve(p.model.base, p.model.revision)
            records.write_json(out / models.BASE_FILE, found)
            measured = {"files": len(found["files"])}
        else:
            train = records.read_dialogues(dialogues / "train.jsonl")
            validation = records.read_dialogues(dialogues / "validation.jsonl")
            tokenizer = pretraining.tokenizer(train, p.data.labels, p.pretrain.vocabulary)
            model, measured = pretraining.train(tokenizer, train, validation, p.pretrain, p.model.context, run.log)
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)
            records.write_json(out / models.BASE_FILE, {"name": models.EMBEDDED})
        records.write_json(metrics, measured)
        run.metrics(measured)


if __name__ == "__main__":
    launch.stage(main)
