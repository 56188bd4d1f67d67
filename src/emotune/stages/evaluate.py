"""evaluate: sft and dpo answer what the baseline answered; all three side by side, with intervals and paired tests."""

from __future__ import annotations

from pathlib import Path

from emotune import launch, params, records, tracking


def main(
    dialogues: Path,
    base: Path,
    judges: Path,
    sft: Path,
    dpo: Path,
    baseline_replies: Path,
    baseline_control: Path,
    sft_replies: Path,
    sft_control: Path,
    dpo_replies: Path,
    dpo_control: Path,
    metrics: Path,
    sft_confusion: Path,
    dpo_confusion: Path,
    comparison: Path,
) -> None:
    """Ask sft and dpo the test questions; write their replies, and the table of all three."""
    p = params.load("history_turns", "system_prompt", "model", "gibberish_judge", "evaluate")
    from emotune import evaluation, models
    from emotune.judges import open_judge

    inputs = records.digests(
        dialogues=dialogues,
        base=base,
        judges=judges,
        sft=sft,
        dpo=dpo,
        baseline_replies=baseline_replies,
        baseline_control=baseline_control,
    )
    with tracking.run("evaluate", p.model_dump(), inputs) as run:
        names = records.read_json(dialogues / "labels.json")
        labels, neutral = names["labels"], names["neutral"]
        held_out = records.read_dialogues(dialogues / f"{p.evaluate.split}.jsonl")
        evaluating = open_judge(judges / "evaluate.skops", p.evaluate.emotion_judge)
        gibberish = open_judge(judges / "gibberish.skops", p.gibberish_judge)

        answers = {
            "baseline": evaluation.Answers(
                list(records.read_jsonl(baseline_replies)), list(records.read_jsonl(baseline_control))
            )
        }
        for name, adapter in (("sft", sft), ("dpo", dpo)):
            answers[name] = evaluation.answer(
                models.load_tuned(base, p.model, adapter),
                models.load_tokenizer(adapter, None),
                held_out,
                labels,
                p.evaluate,
                p.history_turns,
                p.system_prompt,
                p.model.context,
                evaluating,
                gibberish,
            )
        if not launch.first():
            return

        measured = {name: evaluation.measure(found, labels, neutral, p.evaluate) for name, found in answers.items()}
        measured["majority"] = evaluation.majority(answers["sft"], labels, neutral)
        measured["paired"] = {
            f"{before}_to_{after}": evaluation.compare(answers[before], answers[after], labels, neutral, p.evaluate)
            for before, after in (("baseline", "sft"), ("sft", "dpo"))
        }

        records.write_jsonl(sft_replies, answers["sft"].replies)
        records.write_jsonl(sft_control, answers["sft"].control)
        records.write_jsonl(dpo_replies, answers["dpo"].replies)
        records.write_jsonl(dpo_control, answers["dpo"].control)
        records.write_csv(sft_confusion, ["emotion", "judged"], answers["sft"].replies)
        records.write_csv(dpo_confusion, ["emotion", "judged"], answers["dpo"].replies)
        records.write_csv(comparison, ["model", "metric", "value", "low", "high"], evaluation.table(measured))
        records.write_json(metrics, measured)
        run.metrics(measured)


if __name__ == "__main__":
    launch.stage(main, parallel=True)
