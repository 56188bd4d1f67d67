"""judges: three text classifiers, trained here or pinned on the Hub, and how good each is on the test split."""

import random
from collections.abc import Sequence
from functools import partial
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
    from emotune.judges import files
    from emotune.judges.emotion import train_emotion
    from emotune.judges.gibberish import train_gibberish

    texts, emotions = columns(records.read_dialogues(dialogues / "train.jsonl"))
    held_out, gold = columns(records.read_dialogues(dialogues / "test.jsonl"))
    corrupted = with_corruptions(held_out, random.Random(p.data.seed))
    out.mkdir(parents=True, exist_ok=True)
    of_emotions, of_gibberish = (held_out, gold, p.data.labels), (*corrupted, GIBBERISH_LABELS)
    train = partial(train_emotion, texts, emotions, seed=p.data.seed)
    measured = {}
    for name, choice, trained, examples in (
        ("reward", p.reward.emotion_judge, partial(train, recipe="words"), of_emotions),
        ("evaluate", p.evaluate.emotion_judge, partial(train, recipe="characters"), of_emotions),
        ("gibberish", p.gibberish_judge, partial(train_gibberish, texts, p.data.seed), of_gibberish),
    ):
        # A judge that is named instead leaves no file.
        if choice.is_embedded:
            files.save(trained(), out / f"{name}.skops")
        measured[name] = measure(files.open_judge(out / f"{name}.skops", choice), *examples)
    return measured


def columns(dialogues: Sequence[Dialogue]) -> tuple[list[str], list[str]]:
    """The texts and the emotions of all turns, those of the user too."""
    turns = [turn for dialogue in dialogues for turn in dialogue.turns]
    return [turn.content for turn in turns], [turn.emotion for turn in turns]


def measure(judge: Judge, texts: Sequence[str], labels: Sequence[str], label_names: Sequence[str]) -> dict[str, Any]:
    """How often a judge finds the gold label: accuracy, weighted and macro F1, precision, recall and F1 per class."""
    from emotune.evaluation import scores

    judged = [label for label, _ in judge(texts)]
    metrics = scores.metrics_of(scores.confusion(labels, judged, label_names), None)
    return {
        **{name: float(metrics[name]) for name in ("accuracy", "weighted_f1", "macro_f1")},
        "per_class": scores.per_label(labels, judged, label_names),
    }
