"""dpo: the sft adapter, moved towards the replies it was found to prefer by Direct Preference Optimization."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from emotune import launch, params, records, tracking


def main(
    dialogues: Path, base: Path, sft: Path, prefs: Path, judges: Path, out: Path, metrics: Path, history: Path
) -> None:
    """Align the sft adapter on the pairs; write adapter and tokenizer, metrics and the curves."""
    p = params.load(
        "history_turns",
        "system_prompt",
        "model",
        "reward.emotion_judge",
        "evaluate.emotion_judge",
        "prefs.sampling",
        "dpo",
    )
    from emotune import evaluation, finetuning, models
    from emotune.judges import open_judge

    inputs = records.digests(dialogues=dialogues, base=base, sft=sft, prefs=prefs, judges=judges)
    with tracking.run("dpo", p.model_dump(), inputs) as run:
        train = list(records.read_jsonl(prefs / "train.jsonl"))
        validation = list(records.read_jsonl(prefs / "validation.jsonl"))
        tokenizer = models.load_tokenizer(sft, None)
        model = models.load_adapter(models.load_base(base, p.model), sft, trainable=True)
        # Where the base really lies: PEFT would look for it on the Hub under the name that the adapter was saved with.
        model.peft_config["default"].base_model_name_or_path = model.get_base_model().config._name_or_path
        questions = evaluation.control(
            records.read_dialogues(dialogues / "validation.jsonl"),
            p.history_turns,
            p.dpo.control_contexts,
            records.read_json(dialogues / "labels.json")["labels"],
            p.dpo.seed,
        )
        both = {
            "control_reward_judge": open_judge(judges / "reward.skops", p.reward.emotion_judge),
            "control_evaluate_judge": open_judge(judges / "evaluate.skops", p.evaluate.emotion_judge),
        }
        control = partial(
            evaluation.control_by,
            both,
            tokenizer=tokenizer,
            questions=questions,
            system_prompt=p.system_prompt,
            context=p.model.context,
            how=p.prefs.sampling,
            seed=p.dpo.seed,
        )
        with finetuning.workspace("dpo", p.model_dump(), inputs) as folder:
            model, curve, measured = finetuning.dpo(
                model,
                tokenizer,
                train,
                validation,
                p.dpo,
                p.system_prompt,
                p.model,
                folder,
                run.log,
                control if questions else None,
            )
            if questions:
                asked = [row["control"] for row in curve if "control" in row]
                measured |= evaluation.judge_gap(asked, "control_reward_judge", "control_evaluate_judge", p.dpo.seed)
            if launch.first():
                models.save_adapter(model, tokenizer, base, out)
                records.write_csv(history, list(finetuning.DPO_CURVE), curve)
                records.write_json(metrics, measured)
        run.metrics(measured)


if __name__ == "__main__":
    launch.stage(main, parallel=True)
