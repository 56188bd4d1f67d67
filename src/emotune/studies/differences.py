"""How two models' answers differ, and whether that is noise: pure numbers, by a bootstrap over dialogues."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from emotune.evaluation import scores
from emotune.evaluation.instructions import KINDS
from emotune.evaluation.scores import Array
from emotune.studies.plan import COLUMNS

K = TypeVar("K", bound=Hashable)
# What a model answered and what was measured of it, a row of JSON a reply.
ReplyRows = Sequence[Mapping[str, Any]]
LEVEL = 0.05
# Metrics that are means over replies, and what each row has of them.
MEANS = {"hits_at_1": "found", "learned_score": "learned_score"}


def drawn(column: str, replies: ReplyRows, labels: Sequence[str], neutral: str, resamples: int, seed: int) -> Array:
    """A metric's value, then that over each bootstrap sample of dialogues [1 + resamples]: equal ids, equal samples."""
    part, metric, _ = COLUMNS[column]
    own = _contributions(part, metric, replies, labels)
    sums = np.concatenate([own.sum(axis=0, keepdims=True), scores.resampled(own, resamples, seed)])
    if part in ("replies", "control") and metric not in MEANS:
        at = labels.index(neutral) if neutral in labels else None
        return scores.metrics_of(sums, at)[metric]
    ratio = sums[..., 0] / sums[..., 1]
    return np.exp(ratio) if metric == "perplexity" else ratio


def _contributions(part: str, metric: str, replies: ReplyRows, labels: Sequence[str]) -> Array:
    """What each dialogue adds to a metric, in order of first appearance."""
    ids = [row["dialogue"] for row in replies]
    if part in ("replies", "control") and metric not in MEANS:
        verdict = scores.verdict_of(part, metric)
        return scores.confusions(ids, [row["emotion"] for row in replies], [row[verdict] for row in replies], labels)
    return scores.summed(ids, [_adds(part, metric, row) for row in replies])


def _adds(part: str, metric: str, row: Mapping[str, Any]) -> tuple[float, float]:
    """What a reply adds to both sums of a ratio: nothing where that is of human replies, and there is none."""
    if metric in MEANS:
        return row[MEANS[metric]], 1
    if part == "text":
        return scores.has_prompt_text(row["reply"]), 1
    if "reference" not in row:
        return 0, 0
    is_by_token = metric == "perplexity"
    return row["reference_nats"], row["reference_tokens"] if is_by_token else len(row["reference"]) * math.log(2)


def drawn_of_outputs(metric: str, replies: ReplyRows, resamples: int, seed: int) -> Array:
    """The same of replies to instructions, over the rows that the metric is of, and samples of their sources."""
    kind = next(kind for kind in KINDS if metric in kind.metrics)
    own = [row for row in replies if kind.has(row)]
    parts = scores.summed([row["source"] for row in own], [kind.adds(row) for row in own])
    sums = np.concatenate([parts.sum(axis=0, keepdims=True), scores.resampled(parts, resamples, seed)])
    return kind.metrics[metric](sums)


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """p values after Holm's correction: all comparisons together find a difference by mere chance in 5 % of studies."""
    corrected: dict[K, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda pair: pair[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        corrected[name] = largest
    return corrected


def enough(comparisons: int, least: int) -> int:
    """How many bootstrap samples, `least` or more, let a study of so many comparisons find a difference at all.

    The smallest p that samples give is 2 / (samples + 1). Corrected, it has to stay below a tenth of LEVEL.
    """
    return max(least, math.ceil(20 * comparisons / LEVEL))


def over_seeds(drawn: Array) -> dict[str, float]:
    """The mean of a figure over runs of several seeds: 95 % interval `low`, `high`, and two-sided `p` that it is 0.

    `drawn` [runs, 1 + samples] has each run's value, then those of bootstrap samples of dialogues, the same of all
    runs. The variance is that of another draw of both: s^2 / n, which falls with the runs, plus the bootstrap's of the
    mean itself, which does not, for all runs answer the same questions. What depends on run and dialogue alike is in
    both terms, so the interval is too wide rather than too narrow (Owen 2007, of crossed random effects); t has
    the degrees of freedom of Satterthwaite (1946), where the bootstrap's are many.
    """
    from scipy.stats import t

    runs, mean = len(drawn), float(drawn[:, 0].mean())
    of_seeds = float(drawn[:, 0].var(ddof=1)) / runs
    variance = of_seeds + float(drawn[:, 1:].mean(axis=0).var(ddof=1))
    freedom = (runs - 1) * (variance / of_seeds) ** 2 if of_seeds else math.inf
    error = math.sqrt(variance)
    half = float(t.ppf(1 - LEVEL / 2, freedom)) * error
    p = float(2 * t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    return {"low": mean - half, "high": mean + half, "p": p}
