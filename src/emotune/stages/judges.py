"""judges: four text classifiers, trained here or pinned on the Hub, and how good each is on the test split."""

import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from emotune.core import records
from emotune.core.contract import Dep, Log, Metrics, Out
from emotune.core.dialogue import Dialogue
from emotune.core.sections import Section
from emotune.data.params import Labels
from emotune.judges.corruption import with_corruptions
from emotune.judges.params import Judges, JudgesOf
from emotune.judges.verdicts import GIBBERISH_LABELS, Judge


class Data(Section):
    """The emotions there are, and the seed of whatever is drawn."""

    labels: Labels
    seed: int


class Params(Section):
    """Which judges reward, which evaluate, and what they learn from."""

    data: Data
    evaluate: JudgesOf
    judges: Judges
    reward: JudgesOf


def main(p: Params, log: Log, dialogues: Dep, out: Out) -> Metrics:
    """Write the judges that reward and those that evaluate, one of emotions and one of gibberish each; measure them."""
    from emotune.judges import files
    from emotune.judges.emotion import train_emotion
    from emotune.judges.gibberish import train_gibberish

    train = records.read_dialogues(dialogues / "train.jsonl")
    held_out, gold = columns(records.read_dialogues(dialogues / "test.jsonl"))
    corrupted = with_corruptions(held_out, random.Random(p.data.seed))
    out.mkdir(parents=True, exist_ok=True)
    of_emotions, of_gibberish = (held_out, gold, p.data.labels), (*corrupted, GIBBERISH_LABELS)
    seed = p.data.seed
    both = (train, train) if p.judges.share_dialogues else halves(train, seed)
    rewarding, evaluating = map(columns, both)
    measured = {}
    for name, choice, trained, examples in (
        ("reward", p.reward.emotion_judge, partial(train_emotion, *rewarding, "words", seed), of_emotions),
        ("reward_gibberish", p.reward.gibberish_judge, partial(train_gibberish, rewarding[0], seed), of_gibberish),
        ("evaluate", p.evaluate.emotion_judge, partial(train_emotion, *evaluating, "characters", seed), of_emotions),
        # With another seed it spoils other texts even of the same dialogues.
        (
            "evaluate_gibberish",
            p.evaluate.gibberish_judge,
            partial(train_gibberish, evaluating[0], seed + 1),
            of_gibberish,
        ),
    ):
        # A judge that is named instead leaves no file.
        if choice.is_embedded:
            files.save(trained(), out / f"{name}.skops")
        measured[name] = measure(files.open_judge(out / f"{name}.skops", choice), *examples)
    return measured


def halves(dialogues: Sequence[Dialogue], seed: int) -> tuple[list[Dialogue], list[Dialogue]]:
    """All dialogues dealt to two judges, none to both, by the rarest emotion of each: both see half of every emotion's.

    A rare emotion is in few dialogues, and chance alone might give most of them to one judge.
    """
    counts = Counter(turn.emotion for dialogue in dialogues for turn in dialogue.turns)
    rng = random.Random(f"halves {seed}")
    rarest = [min((counts[turn.emotion], turn.emotion) for turn in dialogue.turns) for dialogue in dialogues]
    order = sorted(range(len(dialogues)), key=lambda at: (rarest[at], rng.random()))
    first, second = ([dialogues[at] for at in sorted(order[side::2])] for side in (0, 1))
    return first, second


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
