"""The reward of a reply, as published: a weighted sum of its emotion, its length and how much it is English."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from emotune.judges.verdicts import CLEAN, MILD
from emotune.preferences.params import Reward
from emotune.preferences.selection import Candidate


@dataclass(frozen=True, slots=True)
class Judged:
    """A reply and what the judges say of it: all of an attempt that no weight, threshold or length shape can change."""

    text: str
    tokens: int
    emotion: str
    emotion_confidence: float
    gibberish: str
    gibberish_confidence: float
    # Whether it is, word for word, a reply of the train split.
    copy: bool = False


# How long a reply is, by the names that `reward.length.unit` takes.
UNITS: dict[str, Callable[[Judged], int]] = {
    "characters": lambda reply: len(reply.text),
    "words": lambda reply: len(reply.text.split()),
    "tokens": lambda reply: reply.tokens,
}


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


# By the names that `reward.length.shape` takes.
SHAPES = {"published": length_score, "plateau": plateau_score}


def reward(components: Sequence[float], weights: Sequence[float], bias: float) -> float:
    """weights . (emotion, length, gibberish, and where there is a reward model the learned score) + bias."""
    return sum(weight * score for weight, score in zip(weights, components, strict=True)) + bias


def candidate(reply: Judged, emotion: str, r: Reward, learned: float | None = None) -> Candidate:
    """A judged reply with its component scores and its reward, where `emotion` was asked for.

    `learned` is what the reward model says of it, 0 to 10, where `r.model` says that it counts.
    """
    components = (
        emotion_score(reply.emotion, reply.emotion_confidence, emotion),
        SHAPES[r.length.shape](UNITS[r.length.unit](reply), r.length.low, r.length.high),
        gibberish_score(reply.gibberish, reply.gibberish_confidence),
    )
    return Candidate(
        reply.text,
        reply.emotion,
        reply.emotion_confidence,
        reply.gibberish,
        reply.gibberish_confidence,
        *components,
        reward([*components, *([] if learned is None else [learned])], r.weights, r.bias) - r.copy_penalty * reply.copy,
        reply.copy,
        learned,
    )


def reconsidered(reply: Candidate, emotion: str, r: Reward) -> Candidate:
    """A candidate as it would be where `emotion` had been asked for: its emotion's score changes, and its reward."""
    score = emotion_score(reply.emotion, reply.emotion_confidence, emotion)
    if score == reply.emotion_score:
        return reply
    return replace(reply, emotion_score=score, reward=reply.reward + r.weights[0] * (score - reply.emotion_score))
