"""judges: three text classifiers, trained here or pinned on the Hub, and how good each is on the test split."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from emotune.core import records
from emotune.core.contract import Dep, Log, Metrics, Out
from emotune.core.sections import Section
from emotune.data.params import Labels
from emotune.judges.params import JudgeChoice
from emotune.judges.verdicts import GIBBERISH_LABELS, Judge


class Data(Section):
    """The emotions there are, and the seed of whatever is drawn."""

    labels: Labels
    seed: int


class Judged(Section):
    """Which judge, of all that a section says."""

    emotion_judge: JudgeChoice


class Params(Section):
    """Which three judges."""

    data: Data
    evaluate: Judged
    gibberish_judge: JudgeChoice
    reward: Judged


def main(p: Params, log: Log, dialogues: Dep, out: Out) -> Metrics:
    """Write the judge that rewards, the judge that evaluates and the judge of gibberish, and measure them."""
    from emotune.judges import corruption, emotion, files, gibberish

    train, test = (
        [turn for d in records.read_dialogues(dialogues / f"{split}.jsonl") for turn in d.turns]
        for split in ("train", "test")
    )
    texts = [turn.content for turn in train]
    emotions = [turn.emotion for turn in train]
    held_out = [turn.content for turn in test]
    corrupted = corruption.with_corruptions(held_out, random.Random(p.data.seed))

    measured = {}
    out.mkdir(parents=True, exist_ok=True)
    for name, choice, recipe in (
        ("reward", p.reward.emotion_judge, "words"),
        ("evaluate", p.evaluate.emotion_judge, "characters"),
    ):
        path = out / f"{name}.skops"
        if choice.name == files.EMBEDDED:
            files.save(emotion.train_emotion(texts, emotions, recipe, p.data.seed), path)
        judge = files.open_judge(path, choice)
        measured[name] = measure(judge, held_out, [turn.emotion for turn in test], p.data.labels)

    path = out / "gibberish.skops"
    if p.gibberish_judge.name == files.EMBEDDED:
        files.save(gibberish.train_gibberish(texts, p.data.seed), path)
    judge = files.open_judge(path, p.gibberish_judge)
    measured["gibberish"] = measure(judge, *corrupted, GIBBERISH_LABELS)
    return measured


def measure(judge: Judge, texts: Sequence[str], labels: Sequence[str], label_names: Sequence[str]) -> dict[str, Any]:
    """How often a judge finds the gold label: accuracy, weighted and macro F1, precision, recall and F1 per class."""
    from emotune.evaluation import scores

    judged = [label for label, _ in judge(texts)]
    metrics = scores.metrics_of(scores.confusion(labels, judged, label_names), None)
    return {
        **{name: float(metrics[name]) for name in ("accuracy", "weighted_f1", "macro_f1")},
        "per_class": scores.per_label(labels, judged, label_names),
    }
