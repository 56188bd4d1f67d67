"""Scored candidates of one prompt -> a pair, or the reasons why this attempt makes none."""

from collections.abc import Sequence
from dataclasses import dataclass

from emotune.core.dialogue import bare
from emotune.judges.verdicts import CLEAN


@dataclass(frozen=True, slots=True)
class Candidate:
    """A reply with what the judges said of it, its component scores and its reward."""

    text: str
    emotion: str
    emotion_confidence: float
    gibberish: str
    gibberish_confidence: float
    emotion_score: float
    length_score: float
    gibberish_score: float
    reward: float


@dataclass(frozen=True, slots=True)
class Pair:
    """The best and the worst of one attempt."""

    chosen: Candidate
    rejected: Candidate


def select(
    candidates: Sequence[Candidate],
    asked: str,
    target_score_range: float,
    min_chosen_score: float,
    min_clean_confidence: float,
) -> Pair | tuple[str, ...]:
    """The candidates of highest and lowest reward (the first of equals), or every reason against that pair.

    Reasons: `range` (best - worst below target_score_range), `score` (best below min_chosen_score), `emotion` (the
    best is not judged as asked), `gibberish` (the best is not clean with min_clean_confidence), `ending` (the best
    does not end in . ! or ?), `same` (best and worst tie, or are the same text but for case and spaces).
    """
    best = max(candidates, key=lambda candidate: candidate.reward)
    worst = min(candidates, key=lambda candidate: candidate.reward)
    reasons = {
        "range": best.reward - worst.reward < target_score_range,
        "score": best.reward < min_chosen_score,
        "emotion": best.emotion != asked,
        "gibberish": best.gibberish != CLEAN or best.gibberish_confidence < min_clean_confidence,
        "ending": not best.text.endswith((".", "!", "?")),
        "same": best.reward == worst.reward or bare(best.text) == bare(worst.text),
    }
    failed = tuple(reason for reason, holds in reasons.items() if holds)
    return failed or Pair(best, worst)
