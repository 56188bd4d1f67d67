"""How many pairs other thresholds would give, of what this run sampled: nothing is sampled to say it."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from emotune.preferences.candidates import Prompt
from emotune.preferences.outcomes import NOTHING, Outcome, after, is_enough, paired
from emotune.preferences.params import Prefs, Reward

THRESHOLDS = ("min_chosen_score", "target_score_range")
Row = dict[str, Any]


def what_if(
    prompts: Sequence[Prompt], outcomes: Sequence[Outcome], labels: Sequence[str], p: Prefs, r: Reward
) -> list[Row]:
    """The pairs of each emotion by the thresholds of params (first), and by others, each from strict to loose.

    Looser thresholds and fewer attempts give exactly so many pairs. Stricter ones give at least as many: where a
    prompt had its pair, no further attempt was sampled.
    """
    table = []
    for score, gap, attempts in dict.fromkeys(settings(outcomes, p)):
        other = p.model_copy(update={**dict(zip(THRESHOLDS, (score, gap), strict=True)), "attempts": attempts})
        # Spare attempts are beyond those of params.
        most = None if attempts == p.attempts else attempts
        again = [_replayed(o, prompt.emotion, other, most) for prompt, o in zip(prompts, outcomes, strict=True)]
        results = zip(prompts, paired(prompts, again, other, r), strict=True)
        pairs = Counter(prompt.emotion for prompt, outcome in results if outcome.pair)
        row = {"min_chosen_score": score, "target_score_range": gap, "attempts": attempts}
        table.append(row | {"pairs": {label: pairs[label] for label in labels}})
    return table


def settings(outcomes: Sequence[Outcome], p: Prefs) -> Iterator[tuple[float, float, int]]:
    """What to try: min_chosen_score, target_score_range and attempts, those of params first.

    The scores are deciles of the prompts' best replies that are judged as asked, rounded down: they travel with the
    corpus and its judges. The ranges are quarters of that of params; the last lower both together.
    """
    score, gap, attempts = p.min_chosen_score, p.target_score_range, p.attempts
    as_asked = [
        [reply.reward for replies in outcome.candidates for reply in replies if reply.emotion_score > 0]
        for outcome in outcomes
    ]
    best = sorted(max(rewards) for rewards in as_asked if rewards)
    deciles = sorted({math.floor(10 * best[len(best) * k // 10]) / 10 for k in range(10) if best}, reverse=True)
    yield score, gap, attempts
    yield from ((other, gap, attempts) for other in deciles)
    yield from ((score, gap * k / 4, attempts) for k in (5, 3, 2, 1, 0))
    yield from (
        (other, math.floor(10 * gap * max(0, other) / (score or 1)) / 10, attempts)
        for other in deciles
        if other < score
    )
    yield from ((score, gap, max(1, attempts * k // 5)) for k in (4, 3, 2, 1))


def remedy(measured: Mapping[str, Any], is_enough: Callable[[Mapping[str, int]], bool]) -> str:
    """The nearest lower thresholds that give pairs enough, and how many; else that the lowest do not, and how many."""
    as_set, *others = measured.get("what_if") or [{"attempts": 0}]
    lower = [
        row
        for row in others
        if row["attempts"] == as_set["attempts"] and all(row[name] <= as_set[name] for name in THRESHOLDS)
    ]
    if not lower:
        return ""
    enough = next((row for row in lower if is_enough(row["pairs"])), None)
    row = enough or max(lower, key=lambda row: sum(row["pairs"].values()))
    changes = " and ".join(f"prefs.{name}: {row[name]:g}" for name in THRESHOLDS if row[name] != as_set[name])
    pairs = f"{sum(row['pairs'].values())} of {measured['prompts']} prompts would make a pair"
    fewest = f", {min(row['pairs'].values())} or more for each emotion"
    return f"; {'with' if enough else 'no lower threshold is enough: even with'} {changes}, {pairs}{fewest}"


def _replayed(outcome: Outcome, emotion: str, p: Prefs, most: int | None) -> Outcome:
    """What the first of a prompt's attempts make of it, at most so many."""
    again = NOTHING
    for candidates in outcome.candidates[:most]:
        again = after(again, candidates, emotion, p)
        if is_enough(again, p):
            break
    return again
