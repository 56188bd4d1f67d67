"""dpo: the sft adapter, moved towards the replies it was found to prefer by Direct Preference Optimization."""

from __future__ import annotations

from pathlib import Path

from emotune import launch, params, records, tracking


def main(base: Path, sft: Path, prefs: Path, out: Path, metrics: Path, history: Path) -> None:
    """Align the sft adapter on the pairs; write adapter and tokenizer, metrics and the curves."""
    p = params.load("system_prompt", "model", "dpo")
    from emotune import finetuning, models

    inputs = records.digests(base=base, sft=sft, prefs=prefs)
    with tracking.run("dpo", p.model_dump(), inputs) as run:
        train = list(records.read_jsonl(prefs / "train.jsonl"))
        validation = list(records.read_jsonl(prefs / "validation.jsonl"))
        tokenizer = models.load_tokenizer(sft, None)
        model = models.load_adapter(models.load_base(base, p.model), sft, trainable=True)
        # Where the base really lies: PEFT would look for it on the Hub under the name that the adapter was saved with.
        model.peft_config["default"].base_model_name_or_path = model.get_base_model().config._name_or_path
        with finetuning.workspace("dpo", p.model_dump(), inputs) as folder:
            model, curve, measured = finetuning.dpo(
                model, tokenizer, train, validation, p.dpo, p.system_prompt, p.model, folder, run.log
            )
            if launch.first():
                models.save_adapter(model, tokenizer, base, out)
                records.write_csv(history, list(finetuning.DPO_CURVE), curve)
                records.write_json(metrics, measured)
        run.metrics(measured)


if __name__ == "__main__":
    launch.stage(main, parallel=True)
