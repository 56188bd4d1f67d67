"""Control by several judges, step by step: whether a model pleases the judge that rewards, and no other."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emotune.core import processes
from emotune.evaluation import scores
from emotune.evaluation.answers import Question, requests_of
from emotune.generation import local
from emotune.generation.params import Sampling
from emotune.judges.verdicts import Judge
from emotune.prompts.prompter import Prompter

# Bootstrap samples of contexts behind the interval of the judges' gap.
GAP_RESAMPLES = 1000


def control_by(
    judges: Mapping[str, Judge],
    model: Any,
    prompter: Prompter,
    questions: Sequence[Question],
    sampling: Sampling,
    seed: int,
) -> dict[str, list[float]]:
    """For each judge, and each context of `control`, the share of the replies that it finds in the emotion asked for.

    Every process answers every question, in the same batches: a model that is spread over them answers only where all
    of them ask. So these are of what the least of them has memory for, and none of several may halve its own.
    """
    _, requests = requests_of(prompter, questions, sampling, seed)
    rows = min(local.CPU_ROWS, *processes.gather([local.fitting_rows(model, requests, sampling.max_new_tokens)]))
    alone = processes.processes() == 1
    replies = local.replies(model, prompter.tokenizer, requests, sampling, rows, halve=alone)
    texts = [reply.text for [reply] in replies]
    shares: dict[str, list[float]] = {}
    for name, judge in judges.items():
        hits: dict[str, list[bool]] = {}
        for (verdict, _), q in zip(judge(texts), questions, strict=True):
            hits.setdefault(q.dialogue, []).append(verdict == q.emotion)
        shares[name] = [sum(own) / len(own) for own in hits.values()]
    return shares


def judge_gap(control: Sequence[Mapping[str, Sequence[float]]], rewards: str, other: str, seed: int) -> dict[str, Any]:
    """Control by the judge that rewards and by the other, first and last, and how much more it rose by the former.

    `control` is what `control_by` said of the model, step by step. The gap's 95 % interval is over the contexts.
    """
    first, last = ({name: np.array(point[name]) for name in (rewards, other)} for point in (control[0], control[-1]))
    gaps = (last[rewards] - first[rewards]) - (last[other] - first[other])
    low, high = scores.bootstrap(gaps, lambda sums: sums / len(gaps), GAP_RESAMPLES, seed)
    return {
        **{f"{name}_first": float(shares.mean()) for name, shares in first.items()},
        **{f"{name}_last": float(shares.mean()) for name, shares in last.items()},
        "judge_gap": {"value": float(gaps.mean()), "low": low, "high": high},
    }
