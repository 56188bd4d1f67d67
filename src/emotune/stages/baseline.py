"""baseline: what the base model answers, asked in its own chat format, which knows no emotion."""

from __future__ import annotations

from pathlib import Path

from emotune import launch, params, records, tracking


def main(
    dialogues: Path, base: Path, judges: Path, replies: Path, control: Path, metrics: Path, confusion: Path
) -> None:
    """Ask the base model the test questions; write its replies and what they are worth."""
    p = params.load("history_turns", "system_prompt", "model", "gibberish_judge", "evaluate")
    from emotune import evaluation, models
    from emotune.judges import open_judge

    inputs = records.digests(dialogues=dialogues, base=base, judges=judges)
    with tracking.run("baseline", p.model_dump(), inputs) as run:
        names = records.read_json(dialogues / "labels.json")
        held_out = records.read_dialogues(dialogues / f"{p.evaluate.split}.jsonl")
        tokenizer = models.load_tokenizer(base, None)
        model = models.load_base(base, p.model)
        evaluating = open_judge(judges / "evaluate.skops", p.evaluate.emotion_judge)
        gibberish = open_judge(judges / "gibberish.skops", p.gibberish_judge)

        answers = evaluation.answer(
            model,
            tokenizer,
            held_out,
            names["labels"],
            p.evaluate,
            p.history_turns,
            p.system_prompt,
            p.model.context,
            evaluating,
            gibberish,
        )
        if not launch.first():
            return

        measured = evaluation.measure(answers, names["labels"], names["neutral"], p.evaluate)
        records.write_jsonl(replies, answers.replies)
        records.write_jsonl(control, answers.control)
        records.write_csv(confusion, ["emotion", "judged"], answers.replies)
        records.write_json(metrics, measured)
        run.metrics(measured)


if __name__ == "__main__":
    launch.stage(main, parallel=True)
