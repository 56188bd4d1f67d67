"""What others say of sampled replies, the reward model and the judge that evaluates.

It is kept beside the replies in the journal, so that other weights ask nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from emotune.preferences import journal
from emotune.preferences.candidates import Wanted
from emotune.preferences.journal import Journal

if TYPE_CHECKING:
    from emotune.models.bradley_terry import RewardModel, Scale
    from emotune.models.lexical import Answer

    # A number from 0 to 10 for each.
    Score = Callable[[Sequence[Answer]], list[float]]

T = TypeVar("T")


def scoring(opened: Callable[[], tuple[RewardModel, Scale]]) -> Score:
    """Scoring by the reward model that `opened` loads, when the first reply is there."""
    once = cache(opened)

    def score(answers: Sequence[Answer]) -> list[float]:
        if not answers:
            return []
        model, scale = once()
        return [scale.score(reward) for reward in model.rewards(answers)]

    return score


class Said(Generic[T]):
    """What one of them says of the replies of attempts, from a journal of its own key or else because it is asked."""

    def __init__(self, memo: Journal, ask: Callable[[Sequence[Answer]], list[T]]) -> None:
        self._memo, self._ask = memo, ask

    def __call__(self, attempts: Sequence[Wanted], replies: Sequence[Sequence[str]]) -> list[list[T]]:
        """Of each attempt something for each of its replies, in order; what is new is kept."""
        keys = [(prompt.digest, number) for prompt, number in attempts]
        there = self._memo.find_many(keys)
        new = [n for n, key in enumerate(keys) if key not in there]
        values = iter(self._ask([(attempts[n][0].history, text) for n in new for text in replies[n]]))
        made = {keys[n]: [next(values) for _ in replies[n]] for n in new}
        self._memo.keep((*key, own) for key, own in made.items())
        return [made[key] if key in made else there[key] for key in keys]


Learned = Said[float]


@contextmanager
def kept(path: Path, made_of: Mapping[str, Any], ask: Callable[[Sequence[Answer]], list[T]]) -> Iterator[Said[T]]:
    """What `ask` says of attempts, kept in the journal at `path` by all that it is made of."""
    with journal.opened(path, made_of, lambda _: None) as memo:
        yield Said(memo, ask)


@contextmanager
def memos(
    path: Path,
    made_of: Mapping[str, Any],
    model: str,
    context: int,
    opened: Callable[[], tuple[RewardModel, Scale]],
) -> Iterator[tuple[Journal, Learned]]:
    """The journal at `path` of attempts that were made alike, and of what the reward model says of them.

    The latter go by that model's digest and by the tokens of `context` that it can read. Either is found without the
    other: attempts of runs that had no such model, and scores of attempts made before.
    """
    of_scores = {**made_of, "reward_model": model, "context": context}
    with journal.opened(path, made_of) as memo, kept(path, of_scores, scoring(opened)) as learned:
        yield memo, learned
