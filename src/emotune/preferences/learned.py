"""What the reward model says of sampled replies: kept beside them in the journal, so that other weights ask nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emotune.core.dialogue import Turn
from emotune.preferences import journal
from emotune.preferences.candidates import Wanted
from emotune.preferences.journal import Journal

if TYPE_CHECKING:
    from emotune.models.bradley_terry import RewardModel, Scale

# Answers, each what was said and a reply to it -> a number from 0 to 10 for each.
Score = Callable[[Sequence[tuple[Sequence[Turn], str]]], list[float]]


def scoring(opened: Callable[[], "tuple[RewardModel, Scale]"]) -> Score:
    """Scoring by the reward model that `opened` loads, when the first reply is there."""
    once = cache(opened)

    def score(answers: Sequence[tuple[Sequence[Turn], str]]) -> list[float]:
        if not answers:
            return []
        model, scale = once()
        return [scale.score(reward) for reward in model.rewards(answers)]

    return score


class Learned:
    """The learned scores of the replies of attempts, from a journal of their own key or else from the reward model."""

    def __init__(self, memo: Journal, score: Score) -> None:
        self._memo, self._score = memo, score

    def __call__(self, attempts: Sequence[Wanted], replies: Sequence[Sequence[str]]) -> list[list[float]]:
        """Of each attempt a score for each of its replies, in order; what is new is kept."""
        keys = [(prompt.digest, number) for prompt, number in attempts]
        scores = self._memo.find_many(keys)
        new = [n for n, key in enumerate(keys) if key not in scores]
        values = iter(self._score([(attempts[n][0].history, text) for n in new for text in replies[n]]))
        made = {keys[n]: [next(values) for _ in replies[n]] for n in new}
        self._memo.keep((*key, own) for key, own in made.items())
        return [made[key] if key in made else scores[key] for key in keys]


@contextmanager
def memos(
    path: Path,
    made_of: Mapping[str, Any],
    model: str,
    context: int,
    opened: Callable[[], "tuple[RewardModel, Scale]"],
) -> Iterator[tuple[Journal, Learned]]:
    """The journal at `path` of attempts that were made alike, and of what the reward model says of them.

    The latter go by that model's digest and by the tokens of `context` that it can read. Either is found without the
    other: attempts of runs that had no such model, and scores of attempts made before.
    """
    of_scores = {**made_of, "reward_model": model, "context": context}
    with journal.opened(path, made_of) as memo, journal.opened(path, of_scores, lambda _: None) as scores:
        yield memo, Learned(scores, scoring(opened))
