"""Accuracy, F1s, perplexity and distinct-n, each with an interval: pure numbers about replies.

Every classification metric is a function of a confusion matrix, and confusion matrices add up over dialogues. So a
bootstrap resample of dialogues is a weighted sum of their matrices, and `metrics_of` is the one law for the value, for
its interval and for the difference of two models.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emotune.core.dialogue import bare
from emotune.core.errors import InputError

Array = NDArray[Any]

LEVEL = 0.95
# What our templates write around the turns of a dialogue, and what other chat formats write before one.
PROMPT_TEXT = re.compile(r"\[/?(?:INST|(?:[UC]_)?EMOTION)\]|<</?SYS>>|(?<!\S)(?:user|assistant|system):", re.IGNORECASE)
METRICS = ("accuracy", "weighted_f1", "macro_f1", "micro_f1_without_neutral", "macro_accuracy")
# Those that count an emotion as often as people have it: a judge that was divided by how often that is is no judge of
# these.
BY_FREQUENCY = ("accuracy", "weighted_f1", "micro_f1_without_neutral")


def verdict_of(part: str, metric: str) -> str:
    """Which of a row's two verdicts a metric is of; `control` asks every emotion as often as any other."""
    return "judged_undivided" if part == "replies" and metric in BY_FREQUENCY else "judged"


def confusions(
    dialogue_ids: Sequence[Hashable], gold: Sequence[str], judged: Sequence[str], labels: Sequence[str]
) -> Array:
    """One confusion matrix per dialogue, [dialogues, labels, labels], dialogues in order of first appearance.

    InputError where the columns differ in length or a label is not one of `labels`.
    """
    rows, golds, answers = len(dialogue_ids), len(gold), len(judged)
    if not rows == golds == answers:
        raise InputError(f"{rows} dialogue ids, {golds} gold and {answers} judged labels: expected one of each a row")
    place = {label: index for index, label in enumerate(labels)}
    if unknown := [label for label in (*gold, *judged) if label not in place]:
        raise InputError(f"label {unknown[0]!r} is not one of {', '.join(labels)}")
    row_of: dict[Hashable, int] = {}
    at = [row_of.setdefault(dialogue, len(row_of)) for dialogue in dialogue_ids]
    counts = np.zeros((len(row_of), len(labels), len(labels)), dtype=np.int64)
    for row, true, answered in zip(at, gold, judged, strict=True):
        counts[row, place[true], place[answered]] += 1
    return counts


def confusion(gold: Sequence[str], judged: Sequence[str], labels: Sequence[str]) -> Array:
    """Counts [labels, labels]: how often each gold label (row) was judged to be each label (column)."""
    return confusions([0] * len(gold), gold, judged, labels).sum(axis=0)


def metrics_of(matrices: Array, neutral: int | None) -> dict[str, Array]:
    """The metrics of a stack of confusion matrices [..., labels, labels], each as an array [...].

    `accuracy`; `weighted_f1`, weighted by gold support; `macro_f1`, the mean over labels that occur in gold or judged;
    `micro_f1_without_neutral`, pooled over all labels but number `neutral` (DailyDialog's convention; None leaves
    nothing out); `macro_accuracy`, the mean recall over labels that occur in gold. Division by zero gives 0. These are
    scikit-learn's `f1_score`, with its default `labels`, and `balanced_accuracy_score`.
    """
    hits = np.diagonal(matrices, axis1=-2, axis2=-1)
    gold, judged = matrices.sum(axis=-1), matrices.sum(axis=-2)
    f1 = _ratio(2 * hits, gold + judged)
    rest = [label for label in range(matrices.shape[-1]) if label != neutral]
    return {
        "accuracy": _ratio(hits.sum(axis=-1), gold.sum(axis=-1)),
        "weighted_f1": _ratio((f1 * gold).sum(axis=-1), gold.sum(axis=-1)),
        "macro_f1": _ratio(f1.sum(axis=-1), (gold + judged > 0).sum(axis=-1)),
        "micro_f1_without_neutral": _ratio(2 * hits[..., rest].sum(axis=-1), (gold + judged)[..., rest].sum(axis=-1)),
        "macro_accuracy": _ratio(_ratio(hits, gold).sum(axis=-1), (gold > 0).sum(axis=-1)),
    }


def _ratio(above: Array, below: Array) -> Array:
    """`above / below`, and 0 where `below` is 0."""
    return np.where(below > 0, above / np.where(below > 0, below, 1), 0.0)


def _place(label: str, labels: Sequence[str]) -> int | None:
    return labels.index(label) if label in labels else None


def per_label(gold: Sequence[str], judged: Sequence[str], labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and gold support of each label; division by zero gives 0."""
    matrix = confusion(gold, judged, labels)
    hits, support, answers = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    rates = {
        "precision": _ratio(hits, answers),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, support + answers),
    }
    return {
        label: {name: float(rate[i]) for name, rate in rates.items()} | {"support": int(support[i])}
        for i, label in enumerate(labels)
    }


# Intervals and tests.


def summed(drawn: Sequence[Hashable], rows: Sequence[Any]) -> Array:
    """What the rows of each dialogue (or source) add together, by first appearance: they are drawn as one."""
    places = {name: place for place, name in enumerate(dict.fromkeys(drawn))}
    sums = np.zeros((len(places), *np.shape(rows)[1:]))
    np.add.at(sums, [places[name] for name in drawn], np.array(rows, dtype=float))
    return sums


def resampled(contributions: Array, resamples: int, seed: int) -> Array:
    """Sums over bootstrap samples of dialogues: [dialogues, ...] -> [resamples, ...].

    A resample draws as many dialogues as there are, with replacement, and adds what each contributes. Equal
    `dialogues`, `resamples` and `seed` draw the same dialogues, whatever is added up.
    """
    dialogues = len(contributions)
    if not dialogues:
        raise InputError("a bootstrap needs at least 1 dialogue, got 0")
    draws = np.random.default_rng(seed).integers(dialogues, size=(resamples, dialogues))
    # How often each dialogue was drawn: a resample is then one row of a matrix product.
    of_resample = draws + dialogues * np.arange(resamples)[:, None]
    times = np.bincount(of_resample.ravel(), minlength=resamples * dialogues).reshape(resamples, dialogues)
    sums = times.astype(float) @ contributions.reshape(dialogues, -1).astype(float)
    return sums.reshape(resamples, *contributions.shape[1:])


def bootstrap(
    contributions: Array, statistic: Callable[[Array], Array], resamples: int, seed: int
) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic of sums over dialogues, dialogues resampled, not rows.

    `contributions` [dialogues, ...] is what each dialogue adds (a confusion matrix; nats and tokens; hits and trials);
    `statistic` maps sums [resamples, ...] to values [resamples]. Efron & Tibshirani (1993), chapter 13.
    """
    return _interval(statistic(resampled(np.asarray(contributions), resamples, seed)))


def _interval(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a rate: at 100 % it is not [1, 1] as the bootstrap. (0, 1) for no trials."""
    from scipy.stats import binomtest  # a second, which whoever only counts need not wait for

    if not trials:
        return 0.0, 1.0
    interval = binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def paired(
    dialogue_ids: Sequence[Hashable],
    gold: Sequence[str],
    judged_a: Sequence[str],
    judged_b: Sequence[str],
    labels: Sequence[str],
    neutral: str,
    resamples: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """For each metric what `tested` says of b - a, by a paired bootstrap.

    Both models are scored on the same resampled dialogues, so what makes a dialogue easy for both cancels.
    """
    a, b = (confusions(dialogue_ids, gold, judged, labels) for judged in (judged_a, judged_b))
    both = np.stack([a, b], axis=1)
    at = _place(neutral, labels)
    values, drawn = metrics_of(both.sum(axis=0), at), metrics_of(resampled(both, resamples, seed), at)
    return {name: tested(values[name][1] - values[name][0], drawn[name][:, 1] - drawn[name][:, 0]) for name in METRICS}


def tested(difference: float, samples: Array) -> dict[str, float]:
    """A `difference` and, by those of bootstrap samples, its 95 % percentile interval `low`, `high` and two-sided `p`.

    p = 2 min(P(difference <= 0), P(difference >= 0)) over the samples and the null itself, so never below
    2 / (samples + 1).
    """
    low, high = _interval(samples)
    rarer = int(min((samples <= 0).sum(), (samples >= 0).sum()))
    p = min(1.0, 2 * (rarer + 1) / (len(samples) + 1))
    return {"difference": float(difference), "low": low, "high": high, "p": p}


# The table's rows, ready for JSON.


def recall_share(own: Array, ceiling: Array, resamples: int, seed: int) -> dict[str, float]:
    """The macro recall of one stack of dialogues' confusion matrices over another's, with a 95 % interval.

    The dialogues of the two are drawn apart from each other. 0 where the other's is 0.
    """
    recalls = [
        metrics_of(np.concatenate([of.sum(axis=0, keepdims=True), resampled(of, resamples, seed + n)]), None)
        for n, of in enumerate((own, ceiling))
    ]
    shares = _ratio(*(recall["macro_accuracy"] for recall in recalls))
    low, high = _interval(shares[1:])
    return {"value": float(shares[0]), "low": low, "high": high}


def score(
    dialogue_ids: Sequence[Hashable],
    gold: Sequence[str],
    judged: Sequence[str],
    labels: Sequence[str],
    neutral: str,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Every metric as `{"value", "low", "high"}` (95 % over dialogues), with `labels`, `support` and `confusion`."""
    matrices = confusions(dialogue_ids, gold, judged, labels)
    drawn = metrics_of(resampled(matrices, resamples, seed), _place(neutral, labels))
    row = _row(matrices.sum(axis=0), labels, neutral)
    for name in METRICS:
        low, high = _interval(drawn[name])
        row[name] |= {"low": low, "high": high}
    return row


def majority(gold: Sequence[str], labels: Sequence[str], neutral: str) -> dict[str, Any]:
    """The row of a model that always answers the most frequent gold label (ties: first in `labels`); no intervals."""
    counts = Counter(gold)
    answer = max(labels, key=lambda label: counts[label])
    return _row(confusion(gold, [answer] * len(gold), labels), labels, neutral)


def _row(matrix: Array, labels: Sequence[str], neutral: str) -> dict[str, Any]:
    values = metrics_of(matrix, _place(neutral, labels))
    return {
        **{name: {"value": float(values[name])} for name in METRICS},
        "labels": list(labels),
        "support": dict(zip(labels, matrix.sum(axis=1).tolist(), strict=True)),
        # Rows gold, columns judged, both in the order of `labels`; a list, so that trackers take no number from it.
        "confusion": matrix.tolist(),
    }


# Language modelling and text.


def perplexity(nll_sum: float, tokens: int) -> float:
    """exp of the mean negative log-likelihood (nats) a token; comparable under one tokenizer only."""
    if tokens < 1:
        raise InputError(f"perplexity needs at least 1 token, got {tokens}")
    return math.exp(nll_sum / tokens)


def bits_per_character(nll_sum: float, characters: int) -> float:
    """The negative log-likelihood (nats, summed) in bits a character: comparable across tokenizers."""
    if characters < 1:
        raise InputError(f"bits per character needs at least 1 character, got {characters}")
    return nll_sum / math.log(2) / characters


def distinct(texts: Sequence[str], n: int, budget: int) -> float:
    """Distinct-n: different word n-grams over all word n-grams, in the first `budget` words. Li et al. (2016).

    Words are lower-cased and split at white space; texts are taken in order until the budget is spent, the last one
    cut there; no n-gram spans two texts. The budget is fixed because more words always repeat more: a model that
    speaks less than the budget is flattered. 0 where there is no n-gram.
    """
    grams: list[tuple[str, ...]] = []
    for text in texts:
        words = text.lower().split()[:budget]
        budget -= len(words)
        grams += zip(*(words[start:] for start in range(n)), strict=False)
    return len(set(grams)) / len(grams) if grams else 0.0


def ends_properly(text: str) -> bool:
    """Whether the text ends in `.`, `!` or `?` (white space after it aside)."""
    return text.rstrip().endswith((".", "!", "?"))


def copies_context(reply: str, context: Sequence[str]) -> bool:
    """Whether the reply is a whole turn of the context again, case and white space aside; an empty reply is not."""
    return bool(bare(reply)) and bare(reply) in map(bare, context)


def has_prompt_text(reply: str) -> bool:
    """Whether the reply holds a tag of our templates or the name of a role before a colon: text of a prompt, not talk.

    A tag may be the opening or the closing one, in any case; a role's name begins the reply or follows white space.
    """
    return PROMPT_TEXT.search(reply) is not None
