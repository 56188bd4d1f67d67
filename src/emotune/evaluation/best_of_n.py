"""Over-optimisation: what the best of n replies gains by the reward that chose it, and by what had no part in that."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from emotune.evaluation import ranking

# Resamples behind an interval, and their seed.
RESAMPLES, SEED = 1000, 0
Table = Sequence[Sequence[float]]


def best_of(by: Sequence[float], values: Sequence[float], n: int) -> float:
    """The mean, over all subsets of n of the N replies, of the value of the one that is best `by`, the first of equals.

    Sum over i of C(i - 1, n - 1) / C(N, n) x the value of the i-th reply from the worst on: no subset is drawn, and the
    mean is unbiased (Nakano et al. 2021).
    """
    order = sorted(range(len(by)), key=lambda reply: (by[reply], -reply))
    return sum(math.comb(at, n - 1) * values[reply] for at, reply in enumerate(order)) / math.comb(len(by), n)


def divergence(n: int) -> float:
    """How far best of n is from what it chooses of, in nats: KL = ln n - (n - 1) / n (Gao et al. 2023)."""
    return math.log(n) - (n - 1) / n


def curve(by: Table, measures: Mapping[str, Table]) -> list[dict[str, float]]:
    """For n = 1, 2 ... all replies of a prompt: n, KL, and each measure's mean over the prompts [prompts][replies]."""
    means = {name: _bests(by, table) for name, table in measures.items()}
    return [
        {"n": n + 1, "kl": divergence(n + 1)} | {name: float(of[:, n].mean()) for name, of in means.items()}
        for n in range(min(map(len, by)))
    ]


def summary(dialogues: Sequence[Hashable], by: Table, measures: Mapping[str, Table]) -> dict[str, Any]:
    """Of each measure its gain from the mean reply to the best of all, and from which n on more choosing costs it.

    That is the n where its mean is highest, if it falls from there to the last so far that the 95 % interval of the
    difference, over dialogues, is below 0: there the curves part. Else None.
    """
    result: dict[str, Any] = {"prompts": len(by), "candidates": min(map(len, by))}
    for name, table in measures.items():
        bests = _bests(by, table)
        top = int(bests.mean(0).argmax())
        fall = ranking.mean(dialogues, (bests[:, -1] - bests[:, top]).tolist(), RESAMPLES, SEED)
        result[name] = {
            "gain": ranking.mean(dialogues, (bests[:, -1] - bests[:, 0]).tolist(), RESAMPLES, SEED),
            "parts_at": top + 1 if fall["high"] < 0 else None,
        }
    return result


def _bests(by: Table, values: Table) -> np.ndarray:
    """[prompts, n]: the expected value of the best of n."""
    each = range(1, min(map(len, by)) + 1)
    return np.array([[best_of(own, of, n) for n in each] for own, of in zip(by, values, strict=True)])
