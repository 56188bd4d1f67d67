"""How strong models are by people's votes, and whether people agree: pure numbers about votes.

What a question's votes add up to is an array, and these add up over questions: so a bootstrap resamples questions, as
elsewhere dialogues.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emotune.preferences.votes import BOTH_BAD, BOTH_GOOD, Vote

Array = NDArray[Any]
# A strength moves by less in a step: done.
STILL = 1e-9


def by_question(votes: Sequence[Vote]) -> list[list[Vote]]:
    """The votes on each question, in order of its first."""
    questions: dict[str, list[Vote]] = {}
    for vote in votes:
        questions.setdefault(vote.question, []).append(vote)
    return list(questions.values())


def wins(votes: Sequence[Vote], adapters: Sequence[str]) -> Array:
    """How often the row's model won over the column's, [questions, models, models].

    Both good or both bad is half a win each. Votes on two replies of one model say nothing of it.
    """
    place = {adapter: n for n, adapter in enumerate(adapters)}
    questions = by_question(votes)
    counts = np.zeros((len(questions), len(adapters), len(adapters)))
    for number, own in enumerate(questions):
        for vote in own:
            one, other = place[vote.left.adapter], place[vote.right.adapter]
            if one == other:
                continue
            share = {BOTH_GOOD: 0.5, BOTH_BAD: 0.5}.get(vote.choice, float(vote.winner is vote.left))
            counts[number, one, other] += share
            counts[number, other, one] += 1 - share
    return counts


def groups(total: Array) -> list[int]:
    """The number of the group that each model is of, [models, models] -> [models]: strengths compare within a group.

    Two models are of one group where votes compare them, directly or through others.
    """
    group = list(range(len(total)))
    for one, other in zip(*np.nonzero(total), strict=True):
        old, new = group[one], group[other]
        group = [new if number == old else number for number in group]
    order = list(dict.fromkeys(group))
    return [order.index(number) for number in group]


def strengths(sums: Array, total: Array) -> Array:
    """Bradley–Terry strengths ln p, [..., models, models] -> [..., models], of mean 0 in each group of `total`.

    P(i wins over j) = p_i / (p_i + p_j), p the most likely by the MM algorithm (Hunter 2004). Every two models that
    `total` compares have one vote more, half a win each: who never lost is not infinitely strong.
    """
    compared = (total + total.T) > 0
    won = sums + 0.5 * compared
    games = won + np.swapaxes(won, -1, -2)
    group = np.array(groups(total))
    logs = np.zeros(won.shape[:-1])
    for _ in range(10_000):
        p = np.exp(logs)
        below = (games / (p[..., :, None] + p[..., None, :])).sum(-1)
        new = np.where(below > 0, np.log(np.where(below > 0, won.sum(-1) / np.where(below > 0, below, 1), 1)), 0.0)
        for number in set(group.tolist()):
            new[..., group == number] -= new[..., group == number].mean(-1, keepdims=True)
        moved, logs = np.abs(new - logs).max(initial=0.0), new
        if moved < STILL:
            break
    return logs


def coincidences(votes: Sequence[Vote]) -> Array:
    """How often two voters said the one and the other of a question, [questions, answers, answers].

    The answers are one reply, the other, both good and both bad. A question of m votes adds 1 / (m - 1) for each
    ordered pair of these, so m in all; one that a single voter answered adds nothing.
    """
    questions = by_question(votes)
    counts = np.zeros((len(questions), 4, 4))
    for number, own in enumerate(questions):
        answers = np.bincount([_answer(vote) for vote in own], minlength=4)
        if len(own) > 1:
            counts[number] = (np.outer(answers, answers) - np.diag(answers)) / (len(own) - 1)
    return counts


def _answer(vote: Vote) -> int:
    """A number for what was said, the same whichever reply stood on the left."""
    if vote.winner is None or vote.loser is None:
        return [BOTH_GOOD, BOTH_BAD].index(vote.choice) + 2
    return int((vote.winner.adapter, vote.winner.reply) > (vote.loser.adapter, vote.loser.reply))


def alpha(sums: Array) -> Array:
    """Krippendorff's alpha of coincidences [..., answers, answers], all answers alike unlike: [...].

    1 - observed / expected disagreement (Krippendorff 2011): 1 where voters agree, 0 where they do as if by chance.
    1 where all say the same.
    """
    each = sums.sum(-1)
    n = each.sum(-1)
    observed = n - np.trace(sums, axis1=-2, axis2=-1)
    expected = (n**2 - (each**2).sum(-1)) / np.maximum(n - 1, 1)
    return np.where(expected > 0, 1 - observed / np.where(expected > 0, expected, 1), 1.0)


def agreeing(votes: Sequence[Vote], scores: Sequence[tuple[float, float]]) -> Counter[str]:
    """How often a score of left and right reply was higher for the one preferred (`with`), the other, or for neither.

    Votes that prefer none count as none.
    """
    counts: Counter[str] = Counter()
    for vote, (left, right) in zip(votes, scores, strict=True):
        if vote.winner is not None:
            gap = (left - right) * (1 if vote.winner is vote.left else -1)
            counts["equal" if gap == 0 else "with" if gap > 0 else "against"] += 1
    return counts
