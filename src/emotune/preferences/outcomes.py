"""Attempts -> what became of their prompts, each by itself, or those of one context together."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from emotune.preferences.candidates import Prompt
from emotune.preferences.params import Prefs, Reward
from emotune.preferences.reward import reconsidered
from emotune.preferences.selection import Candidate, Pair, contrast, faults, select

Candidates = tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a prompt: a pair or none, after how many attempts, why each that made none failed, and what each
    attempt's candidates were."""

    pair: Pair | None
    attempts: int
    failures: tuple[str, ...]
    candidates: tuple[Candidates, ...] = ()


NOTHING = Outcome(None, 0, ())


def after(outcome: Outcome, candidates: Candidates, emotion: str, p: Prefs) -> Outcome:
    """A prompt's outcome with one more attempt at it."""
    thresholds = p.target_score_range, p.min_chosen_score, p.min_clean_confidence
    result = select(candidates, emotion, *thresholds, p.rejected)
    pair, reasons = (result, ()) if isinstance(result, Pair) else (None, result)
    number, failures = outcome.attempts + 1, outcome.failures + reasons
    return Outcome(pair, number, failures, (*outcome.candidates, candidates))


def is_enough(outcome: Outcome, p: Prefs) -> bool:
    """Whether a prompt needs no further attempt: it has a pair, or a reply to choose, and its context the rest."""
    return outcome.pair is not None or (is_shared(p) and outcome.failures[-1:] == ("contrast",))


def is_shared(p: Prefs) -> bool:
    """Whether the prompts of one context make their pairs together."""
    return p.rejected == "contrast" and p.emotions == "every"


def paired(prompts: Sequence[Prompt], outcomes: Sequence[Outcome], p: Prefs, r: Reward) -> list[Outcome]:
    """The outcomes in order, with the pairs that the prompts of each context make together, where they do."""
    if not is_shared(p):
        return list(outcomes)
    contexts: dict[str, dict[str, Outcome]] = defaultdict(dict)
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        contexts[prompt.place][prompt.emotion] = outcome
    pairs = {place: pairs_of_context(context, p, r) for place, context in contexts.items()}
    return [
        replace(outcome, pair=pairs[prompt.place].get(prompt.emotion))
        for prompt, outcome in zip(prompts, outcomes, strict=True)
    ]


def pairs_of_context(outcomes: Mapping[str, Outcome], p: Prefs, r: Reward) -> dict[str, Pair]:
    """The pair of each emotion that makes one, of all candidates that one context has.

    An emotion's chosen reply is the best without a fault of its last attempt, else of all that was sampled for any. Two
    chosen replies that are each other's contrast are rejected for each other, those nearest in length first: what is
    chosen under one tag loses under another, so no reply wins everywhere. Whoever is left takes the contrast among its
    own candidates, else among all of the context.
    """
    attempts = {emotion: outcome.candidates for emotion, outcome in outcomes.items()}
    replies = [reply for own in attempts.values() for candidates in own for reply in candidates]

    def heard(emotion: str) -> list[Candidate]:
        return [reconsidered(reply, emotion, r) for reply in replies]

    def against(emotion: str, others: Iterable[Candidate]) -> Candidate | None:
        return contrast(chosen[emotion], others, emotion, p.target_score_range, p.min_clean_confidence)

    best = {
        emotion: _best(own[-1] if own else (), emotion, p) or _best(heard(emotion), emotion, p)
        for emotion, own in attempts.items()
    }
    chosen = {emotion: reply for emotion, reply in best.items() if reply}
    pairs: dict[str, Pair] = {}
    nearest = sorted(combinations(chosen, 2), key=lambda two: abs(len(chosen[two[0]].text) - len(chosen[two[1]].text)))
    for one, other in nearest:
        if one in pairs or other in pairs:
            continue
        mirrored = [against(a, [reconsidered(chosen[b], a, r)]) for a, b in ((one, other), (other, one))]
        if mirrored[0] and mirrored[1]:
            pairs |= {one: Pair(chosen[one], mirrored[0]), other: Pair(chosen[other], mirrored[1])}
    for emotion in chosen.keys() - pairs.keys():
        own = [reply for candidates in attempts[emotion] for reply in candidates]
        if rejected := against(emotion, own) or against(emotion, heard(emotion)):
            pairs[emotion] = Pair(chosen[emotion], rejected)
    return pairs


def _best(replies: Sequence[Candidate], emotion: str, p: Prefs) -> Candidate | None:
    """The reply of highest reward of those without a fault."""
    faultless = [c for c in replies if not faults(c, emotion, p.min_chosen_score, p.min_clean_confidence)]
    return max(faultless, key=lambda reply: reply.reward, default=None)
