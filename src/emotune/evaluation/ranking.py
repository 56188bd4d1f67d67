"""How well numbers that replies are given order them: accuracy over pairs, best of four, calibration, who wins."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from emotune.evaluation import scores

# Of the calibration curve: bins of equal width from a coin's confidence to certainty.
BINS = 10


def wins(margins: Sequence[float]) -> list[float]:
    """1 for a margin above 0, 0 for one below, half for a tie."""
    return (0.5 * (1 + np.sign(np.asarray(margins, dtype=float)))).tolist()


def mean(dialogues: Sequence[Hashable], values: Sequence[float], resamples: int, seed: int) -> dict[str, float]:
    """The mean over rows, with its 95 % interval over dialogues."""
    sums = scores.summed(dialogues, [(value, 1) for value in values])
    low, high = scores.bootstrap(sums, lambda drawn: drawn[:, 0] / drawn[:, 1], resamples, seed)
    total, count = sums.sum(0)
    return {"value": float(total / count), "low": low, "high": high}


def best_of(margins: Sequence[Sequence[float]]) -> list[float]:
    """Of each group of one right reply and several wrong ones, by its margins over them, whether it is found.

    Where k wrong ones tie with it and none is better, 1 / (k + 1).
    """
    return [0.0 if min(own) < 0 else 1 / (1 + sum(margin == 0 for margin in own)) for own in margins]


def calibration(margins: Sequence[float]) -> tuple[float, list[dict[str, Any]]]:
    """The expected calibration error of sigmoid(margin), and its curve: mean confidence, accuracy and pairs by bin.

    The reply of higher reward is said to be the better one with confidence sigmoid(|margin|). ECE is the mean over
    pairs of |accuracy - confidence| of their bin (Guo et al. 2017).
    """
    margin = np.asarray(margins, dtype=float)
    confidence, right = 1 / (1 + np.exp(-np.abs(margin))), np.asarray(wins(margins))
    bins = np.minimum((2 * BINS * (confidence - 0.5)).astype(int), BINS - 1)
    curve = [
        {
            "confidence": float(confidence[bins == own].mean()),
            "accuracy": float(right[bins == own].mean()),
            "pairs": int((bins == own).sum()),
        }
        for own in np.unique(bins)
    ]
    return sum(abs(row["accuracy"] - row["confidence"]) * row["pairs"] for row in curve) / len(margin), curve
