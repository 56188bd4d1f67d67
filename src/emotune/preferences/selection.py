"""Scored candidates of one prompt -> a pair, or the reasons why this attempt makes none."""

from collections.abc import Iterable, Sequence
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
    copy: bool = False
    # Of whoever is asked, whatever the emotion: None where no reward model was.
    learned_score: float | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A reply, and one that it is to be preferred to."""

    chosen: Candidate
    rejected: Candidate


# Of two replies of like length the longer one has at most so many times the characters of the other.
LIKE_LENGTH = 1.5


def select(
    candidates: Sequence[Candidate],
    asked: str,
    target_score_range: float,
    min_chosen_score: float,
    min_clean_confidence: float,
    rejected: str = "worst",
) -> Pair | tuple[str, ...]:
    """The candidate of highest reward (the first of equals) and the one it is preferred to, or every reason against it.

    That is the one of lowest reward (`worst`), or the best's `contrast`. Reasons: those of `faults`; with `worst` also
    `range` (best - worst below target_score_range) and `same` (both tie, or are the same text but for case and spaces);
    with `contrast`, where the best has no fault, `contrast` (no candidate is one).
    """
    best = max(candidates, key=lambda candidate: candidate.reward)
    reasons = faults(best, asked, min_chosen_score, min_clean_confidence)
    if rejected == "contrast":
        other = contrast(best, candidates, asked, target_score_range, min_clean_confidence)
        return reasons or (Pair(best, other) if other else ("contrast",))
    worst = min(candidates, key=lambda candidate: candidate.reward)
    near = ("range",) if best.reward - worst.reward < target_score_range else ()
    same = ("same",) if best.reward == worst.reward or bare(best.text) == bare(worst.text) else ()
    return near + reasons + same or Pair(best, worst)


def faults(reply: Candidate, asked: str, min_chosen_score: float, min_clean_confidence: float) -> tuple[str, ...]:
    """Why a reply may not be chosen where `asked` was asked for.

    Reasons: `score` (below min_chosen_score), `emotion` (not judged as asked), `gibberish` (not clean with
    min_clean_confidence), `ending` (it does not end in . ! or ?).
    """
    reasons = {
        "score": reply.reward < min_chosen_score,
        "emotion": reply.emotion != asked,
        "gibberish": not _is_clean(reply, min_clean_confidence),
        "ending": not is_finished(reply.text),
    }
    return tuple(reason for reason, holds in reasons.items() if holds)


def contrast(
    chosen: Candidate,
    candidates: Iterable[Candidate],
    asked: str,
    target_score_range: float,
    min_clean_confidence: float,
) -> Candidate | None:
    """The candidate that differs from the chosen one in its emotion, as far as can be: a pair of them teaches that.

    Of those that are clean, finished, of like length, judged to have another emotion than `asked`, and at least
    `target_score_range` below the chosen, the one whose emotion is surest, the first of equals; None where none is.
    """
    others = [
        reply
        for reply in candidates
        if reply.emotion != asked
        and _is_clean(reply, min_clean_confidence)
        and is_finished(reply.text)
        and _is_of_like_length(reply, chosen)
        and chosen.reward - reply.reward >= target_score_range
        and bare(reply.text) != bare(chosen.text)
    ]
    return max(others, key=lambda reply: reply.emotion_confidence, default=None)


def _is_clean(reply: Candidate, min_clean_confidence: float) -> bool:
    return reply.gibberish == CLEAN and reply.gibberish_confidence >= min_clean_confidence


def is_finished(text: str) -> bool:
    """Whether a reply ends like a sentence."""
    return text.endswith((".", "!", "?"))


def _is_of_like_length(one: Candidate, other: Candidate) -> bool:
    shorter, longer = sorted((len(one.text), len(other.text)))
    return longer <= LIKE_LENGTH * shorter
