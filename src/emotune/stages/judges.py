"""judges: three text classifiers, trained here or pinned on the Hub, and how good each is on the test split."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from emotune.core import records
from emotune.core.contract import Dep, Log, Metrics, Out
from emotune.core.dialogue import Dialogue
from emotune.core.sections import Section
from emotune.data.params import Labels
from emotune.judges.corruption import with_corruptions
from emotune.judges.params import EmotionJudge, JudgeChoice
from emotune.judges.verdicts import GIBBERISH_LABELS, Judge


class Data(Section):
    """The emotions there are, and the seed of whatever is drawn."""

    labels: Labels
    seed: int


class Params(Section):
    """Which three judges."""

    data: Data
    evaluate: EmotionJudge
    gibberish_judge: JudgeChoice
    reward: EmotionJudge


def main(p: Params, log: Log, dialogues: Dep, out: Out) -> Metrics:
    """Write the judge that rewards, the judge that evaluates and the judge of gibberish, and measure them."""
    from emotune.judges.emotion import train_emotion
    from emotune.judges.gibberish import train_gibberish

    texts, emotions = columns(records.read_dialogues(dialogues / "train.jsonl"))
    held_out, gold = columns(records.read_dialogues(dialogues / "test.jsonl"))
    corrupted = with_corruptions(held_out, random.Random(p.data.seed))
    out.mkdir(parents=True, exist_ok=True)
    rewarding = judge_of(
        out / "reward.skops", p.reward.emotion_judge, lambda: train_emotion(texts, emotions, "words", p.data.seed)
    )
    evaluating = judge_of(
        out / "evaluate.skops",
        p.evaluate.emotion_judge,
        lambda: train_emotion(texts, emotions, "characters", p.data.seed),
    )
    of_gibberish = judge_of(out / "gibberish.skops", p.gibberish_judge, lambda: train_gibberish(texts, p.data.seed))
    return {
        "reward": measure(rewarding, held_out, gold, p.data.labels),
        "evaluate": measure(evaluating, held_out, gold, p.data.labels),
        "gibberish": measure(of_gibberish, *corrupted, GIBBERISH_LABELS),
    }


def columns(dialogues: Sequence[Dialogue]) -> tuple[list[str], list[str]]:
    """The texts and the emotions of all turns, those of the user too."""
    turns = [turn for dialogue in dialogues for turn in dialogue.turns]
    return [turn.content for turn in turns], [turn.emotion for turn in turns]


def judge_of(path: Path, choice: JudgeChoice, train: Callable[[], Any]) -> Judge:
    """The embedded judge, trained and written to `path`; or the one that is named instead, and nothing is written."""
    from emotune.judges import files

    if choice.is_embedded:
        files.save(train(), path)
    return files.open_judge(path, choice)


def measure(judge: Judge, texts: Sequence[str], labels: Sequence[str], label_names: Sequence[str]) -> dict[str, Any]:
    """How often a judge finds the gold label: accuracy, weighted and macro F1, precision, recall and F1 per class."""
    from emotune.evaluation import scores

    judged = [label for label, _ in judge(texts)]
    metrics = scores.metrics_of(scores.confusion(labels, judged, label_names), None)
    return {
        **{name: float(metrics[name]) for name in ("accuracy", "weighted_f1", "macro_f1")},
        "per_class": scores.per_label(labels, judged, label_names),
    }
