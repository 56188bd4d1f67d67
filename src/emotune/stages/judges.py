"""judges: four classifiers of texts, trained here or pinned on the Hub, and a matcher; how good each is on test."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from emotune.core import records
from emotune.core.contract import Dep, Log, Metrics, Out
from emotune.core.dialogue import ASSISTANT, Dialogue
from emotune.core.sections import Section
from emotune.data.params import Labels
from emotune.judges.corruption import with_corruptions
from emotune.judges.halves import halves
from emotune.judges.params import Judges, JudgesOf
from emotune.judges.verdicts import GIBBERISH_LABELS, Classifier, Judge, divided, most_probable

TAUS = tuple(n / 10 for n in range(16))
# In the file of a prior no share is less: it has six decimals, and nothing can be divided by 0.
LEAST = 1e-6

if TYPE_CHECKING:
    from emotune.judges.matcher import Matcher


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
    """Write the judges that reward and those that evaluate, one of emotions and one of gibberish each; measure them.

    One more that evaluates, the matcher, looks for a reply's context.
    """
    from emotune.judges import files
    from emotune.judges.emotion import shares, train_emotion
    from emotune.judges.gibberish import train_gibberish
    from emotune.judges.matcher import train_matcher

    train = records.read_dialogues(dialogues / "train.jsonl")
    validation, test = (records.read_dialogues(dialogues / f"{split}.jsonl") for split in ("validation", "test"))
    tuning, held_out = columns(validation), columns(test)
    corrupted = with_corruptions(held_out[0], random.Random(p.data.seed))
    out.mkdir(parents=True, exist_ok=True)
    seed = p.data.seed
    both = (train, train) if p.judges.share_dialogues else halves(train, seed)
    rewarding, evaluating = map(columns, both)
    measured = {}
    for name, emotions, texts, recipe in (
        ("reward", p.reward.emotion_judge, rewarding, "words"),
        ("evaluate", p.evaluate.emotion_judge, evaluating, "characters"),
    ):
        path = out / f"{name}.skops"
        # A judge that is named instead leaves no file.
        if emotions.is_embedded:
            files.save(train_emotion(*texts, recipe, seed), path)
        learned = shares(texts[1], recipe, seed) if emotions.is_embedded else None
        judge = with_prior(files.undivided(path, emotions), learned, emotions.tau, *tuning, p.data.labels)
        files.save_prior(judge, path)
        measured[name] = measure_both(judge, *held_out, p.data.labels)
    for name, choice, trained in (
        ("reward_gibberish", p.reward.gibberish_judge, partial(train_gibberish, rewarding[0], seed)),
        # With another seed it spoils other texts even of the same dialogues.
        ("evaluate_gibberish", p.evaluate.gibberish_judge, partial(train_gibberish, evaluating[0], seed + 1)),
    ):
        if choice.is_embedded:
            files.save(trained(), out / f"{name}.skops")
        measured[name] = measure(files.open_judge(out / f"{name}.skops", choice), *corrupted, GIBBERISH_LABELS)
    files.save(train_matcher(both[1], seed), out / "fit.skops")
    measured["fit"] = measure_fit(files.load_matcher(out / "fit.skops"), test, seed)
    return measured


def columns(dialogues: Sequence[Dialogue]) -> tuple[list[str], list[str]]:
    """The texts and the emotions of all turns, those of the user too."""
    turns = [turn for dialogue in dialogues for turn in dialogue.turns]
    return [turn.content for turn in turns], [turn.emotion for turn in turns]


def with_prior(
    judge: Classifier,
    learned: Mapping[str, float] | None,
    tau: float | None,
    texts: Sequence[str],
    gold: Sequence[str],
    label_names: Sequence[str],
) -> Classifier:
    """The judge, divided by the label shares that it learned from; where these are unknown, by its mean probabilities.

    Tau, where it is not given, is the one of `TAUS` that makes the macro recall of these human turns the highest, the
    least of equals. The means are of these turns too (Saerens et al. 2002).
    """
    probabilities = judge.probabilities(texts)
    means = dict(zip(judge.labels, probabilities.mean(0).tolist(), strict=True))
    prior = {label: max(round(share, 6), LEAST) for label, share in (learned or means).items()}

    def recall(tau: float) -> float:
        verdicts = most_probable(divided(probabilities, judge.labels, prior, tau), judge.labels)
        return _measured(gold, [label for label, _ in verdicts], label_names)["macro_recall"]

    return replace(judge, prior=prior, tau=max(TAUS, key=recall) if tau is None else tau)


def measure_both(
    judge: Classifier, texts: Sequence[str], gold: Sequence[str], label_names: Sequence[str]
) -> dict[str, Any]:
    """What an emotion judge is worth with tau 0 and, under `divided`, by its tau; its prior."""
    by_tau, undivided = ([label for label, _ in verdicts] for verdicts in judge.both(texts))
    return {
        **_measured(gold, undivided, label_names),
        "divided": _measured(gold, by_tau, label_names),
        "prior": judge.prior,
        "tau": judge.tau,
    }


def measure(judge: Judge, texts: Sequence[str], labels: Sequence[str], label_names: Sequence[str]) -> dict[str, Any]:
    """How often a judge finds the gold label."""
    return _measured(labels, [label for label, _ in judge(texts)], label_names)


def _measured(gold: Sequence[str], judged: Sequence[str], label_names: Sequence[str]) -> dict[str, Any]:
    """Accuracy, weighted and macro F1, macro recall; precision, recall and F1 per class."""
    from emotune.evaluation import scores

    metrics = scores.metrics_of(scores.confusion(gold, judged, label_names), None)
    return {
        **{name: float(metrics[name]) for name in ("accuracy", "weighted_f1", "macro_f1")},
        "macro_recall": float(metrics["macro_accuracy"]),
        "per_class": scores.per_label(gold, judged, label_names),
    }


def measure_fit(matcher: Matcher, dialogues: Sequence[Dialogue], seed: int) -> dict[str, float]:
    """How often a matcher finds the context of a human reply among ten in its emotion; what chance would; 1 / rank."""
    from emotune.judges.matcher import found, replies_of, tens

    replies = replies_of(dialogues, (ASSISTANT,))
    dealt = tens(replies.dialogues, replies.emotions, seed)
    hits, ranks = zip(*found(matcher, replies.contexts, replies.texts, dealt), strict=True)
    return {
        "hits_at_1": sum(hits) / len(hits),
        "mrr": sum(ranks) / len(ranks),
        "chance": sum(1 / len(ten) for ten in dealt) / len(dealt),
    }
