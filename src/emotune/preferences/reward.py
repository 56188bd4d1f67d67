"""Component scores of a reply -> its reward, as published: what the judges say and how long the reply is."""

from __future__ import annotations

from collections.abc import Sequence

from emotune.judges.verdicts import CLEAN, MILD


def emotion_score(judged: str, confidence: float, asked: str) -> float:
    """10 x confidence where the judge finds the emotion that was asked for, else 0."""
    return 10.0 * confidence if judged == asked else 0.0


def gibberish_score(judged: str, confidence: float) -> float:
    """10 x confidence for clean text, 5 x confidence for mild gibberish, -2 x confidence for anything worse."""
    return {CLEAN: 10.0, MILD: 5.0}.get(judged, -2.0) * confidence


def length_score(length: int, low: float, high: float) -> float:
    """The published length term for a reply of `length` units, with its cliff where |b| reaches 1 (length 2 x high).

    With a = (length - low) / low and b = (length - high) / high: a x 0.0001 where |a| < 1; |a + b| x 10 where
    |a| > 1 > |b|; otherwise b x 0.9.
    """
    a = (length - low) / low
    b = (length - high) / high
    if abs(a) < 1:
        return a * 0.0001
    if abs(a) > 1 > abs(b):
        return abs(a + b) * 10
    return b * 0.9


def plateau_score(length: int, low: float, high: float) -> float:
    """A length term without a cliff, 0 to 10 like the others: rising to `low`, 10 up to `high`, 0 again at 2 x high."""
    return 10.0 * max(0.0, min(1.0, length / low, 2 - length / high))


def reward(components: Sequence[float], weights: Sequence[float], bias: float) -> float:
    """weights . (emotion, length, gibberish) + bias."""
    return sum(weight * score for weight, score in zip(weights, components, strict=True)) + bias
