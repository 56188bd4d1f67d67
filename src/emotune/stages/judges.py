"""judges: three text classifiers, trained here or pinned on the Hub, and how good each is on the test split."""

from __future__ import annotations

import random
from pathlib import Path

from emotune import launch, params, records, tracking


def main(dialogues: Path, out: Path, metrics: Path) -> None:
    """Write the judge that rewards, the judge that evaluates and the judge of gibberish, and measure them."""
    p = params.load("data.labels", "data.seed", "evaluate.emotion_judge", "gibberish_judge", "reward.emotion_judge")
    from emotune import judges

    inputs = records.digests(dialogues=dialogues)
    with tracking.run("judges", p.model_dump(), inputs) as run:
        train, test = (
            [turn for d in records.read_dialogues(dialogues / f"{split}.jsonl") for turn in d.turns]
            for split in ("train", "test")
        )
        texts = [turn.content for turn in train]
        emotions = [turn.emotion for turn in train]
        held_out = [turn.content for turn in test]
        corrupted = judges.with_corruptions(held_out, random.Random(p.data.seed))

        measured = {}
        out.mkdir(parents=True, exist_ok=True)
        for name, choice, recipe in (
            ("reward", p.reward.emotion_judge, "words"),
            ("evaluate", p.evaluate.emotion_judge, "characters"),
        ):
            path = out / f"{name}.skops"
            if choice.name == judges.EMBEDDED:
                judges.save(judges.train_emotion(texts, emotions, recipe, p.data.seed), path)
            judge = judges.open_judge(path, choice)
            measured[name] = judges.measure(judge, held_out, [turn.emotion for turn in test], p.data.labels)

        path = out / "gibberish.skops"
        if p.gibberish_judge.name == judges.EMBEDDED:
            judges.save(judges.train_gibberish(texts, p.data.seed), path)
        judge = judges.open_judge(path, p.gibberish_judge)
        measured["gibberish"] = judges.measure(judge, *corrupted, judges.GIBBERISH_LABELS)
        records.write_json(metrics, measured)
        run.metrics(measured)


if __name__ == "__main__":
    launch.stage(main)
