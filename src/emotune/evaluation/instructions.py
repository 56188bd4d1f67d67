"""What held-out rows of instructions cost a model, and what it answers them, by task and overall.

Perplexity is told in both ways in which it is published: `perplexity`, exp of the mean negative log-likelihood over all
tokens of the outputs, and `mean_row_perplexity`, the mean over rows of each row's own, in which a few rows of a bad
surprise weigh more.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emotune.core import records, seeds
from emotune.core.contract import Log
from emotune.core.dialogue import Turn, normal_form
from emotune.core.errors import InputError
from emotune.evaluation import scores
from emotune.evaluation.answers import likelihoods, replies_to
from emotune.evaluation.instruction_params import Outputs
from emotune.generation.engine import Request
from emotune.prompts.instructions import NO_EMOTION, Row, exchange
from emotune.prompts.params import Format
from emotune.prompts.prompter import Prompter

Rows = list[dict[str, Any]]
Statistic = Callable[[scores.Array], scores.Array]


class Kind(NamedTuple):
    """Metrics that are functions of sums over rows: of which rows, and what each of these adds."""

    has: Callable[[Mapping[str, Any]], bool]
    adds: Callable[[Mapping[str, Any]], tuple[float, ...]]
    metrics: Mapping[str, Statistic]


def _tokens(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.casefold()))


def token_f1(reply: str, output: str) -> float:
    """Twice the words that two texts share over the words of both (Rajpurkar et al. 2016); 1 where neither has any."""
    ours, right = _tokens(reply), _tokens(output)
    return 2 * (ours & right).total() / (ours.total() + right.total()) if ours or right else 1.0


def is_right(reply: str, output: str) -> bool:
    """Whether a reply is the one right answer, case, spaces and punctuation aside."""
    return normal_form(reply) == normal_form(output)


KINDS = (
    Kind(
        lambda row: "nats" in row,
        lambda row: (row["nats"], row["tokens"], math.exp(row["nats"] / row["tokens"]), 1),
        {
            "perplexity": lambda sums: np.exp(sums[..., 0] / sums[..., 1]),
            "mean_row_perplexity": lambda sums: sums[..., 2] / sums[..., 3],
        },
    ),
    # A row says that one answer alone is right.
    Kind(
        lambda row: row.get("exact", False),
        lambda row: (is_right(row["reply"], row["output"]), token_f1(row["reply"], row["output"]), 1),
        {
            "exact_match": lambda sums: sums[..., 0] / sums[..., 2],
            "f1": lambda sums: sums[..., 1] / sums[..., 2],
        },
    ),
)


def held_out(rows: Path, p: Outputs) -> list[Row]:
    """The rows that every model is asked: all of the split, or `limit` of them, drawn by seed."""
    path = rows / f"{p.split}.jsonl"
    own: list[Row] = list(records.read_jsonl(path))
    if not own:
        raise InputError(f"{path}: no rows to ask")
    random.Random(seeds.key(p.seed, "instructions")).shuffle(own)
    return own[: p.limit]


def answer(
    model: Any,
    prompter: Prompter,
    rows: Sequence[Row],
    examples: Sequence[Sequence[Row]],
    format: Format,
    p: Outputs,
    log: Log,
) -> Rows:
    """Each row with the model's reply and what its output costs (`nats`, `tokens`), each behind its own examples.

    Examples that leave no room are not shown, the first ones first; `shots` says how many are. A row whose output does
    not fit behind its instruction alone has no cost, and an instruction that leaves no room for a reply is `cut` in
    front. Several processes share the work; each returns all.
    """
    histories = [_history(prompter, row, own, format, p) for row, own in zip(rows, examples, strict=True)]
    prompts = [prompter.fitting_prompt(turns, NO_EMOTION, p.sampling.max_new_tokens) for turns in histories]
    requests = [Request(ids, (seeds.key(p.seed, row["id"]),)) for row, (_, ids, _) in zip(rows, prompts, strict=True)]
    replies = replies_to(model, prompter.tokenizer, requests, p.sampling, log)
    outputs = [exchange(row, format)[1] for row in rows]
    wholes = [prompter.fitting_row(turns, output) for turns, output in zip(histories, outputs, strict=True)]
    costs = iter(likelihoods(model, prompter.tokenizer.pad_token_id, [whole for whole in wholes if whole]))
    answers = [
        {
            **row,
            "reply": reply.text,
            "ended": reply.ended,
            "shots": len(turns) // 2,
            "cut": len(ids) < len(prompter.ids(turns, NO_EMOTION)),
            **(dict(zip(("nats", "tokens"), next(costs), strict=True)) if whole else {}),
        }
        for row, turns, (_, ids, _), reply, whole in zip(rows, histories, prompts, replies, wholes, strict=True)
    ]
    # As they are written, so that whoever reads them measures the same.
    return [records.rounded(row) for row in answers]


def _history(prompter: Prompter, row: Row, examples: Sequence[Row], format: Format, p: Outputs) -> tuple[Turn, ...]:
    """The row's instruction behind those of the examples, as many as leave room for its output and for a reply."""
    instruction, output = exchange(row, format)
    turns = [turn for example in examples for turn in exchange(example, format)]
    tokens = sum(prompter.reply_row((instruction,), output)[1])
    return prompter.fitting_history((*turns, instruction), NO_EMOTION, max(tokens, p.sampling.max_new_tokens))


def measure(rows: Rows, p: Outputs) -> dict[str, Any]:
    """Every metric overall and by task, as `{"value", "low", "high"}` (95 % over the rows' sources)."""
    tasks = {task: [row for row in rows if row["task"] == task] for task in sorted({row["task"] for row in rows})}
    return {
        "overall": _measured(rows, p),
        "tasks": {task: _measured(own, p) | {"rows": len(own)} for task, own in tasks.items()},
        "rows": len(rows),
        "left_out_too_long": sum("nats" not in row for row in rows),
        "instructions_cut": sum(row["cut"] for row in rows),
        "shots_mean": sum(row["shots"] for row in rows) / len(rows),
    }


def _measured(rows: Rows, p: Outputs) -> dict[str, Any]:
    result = {}
    for kind in KINDS:
        if own := [row for row in rows if kind.has(row)]:
            parts = scores.summed([row["source"] for row in own], [kind.adds(row) for row in own])
            for name, metric in kind.metrics.items():
                low, high = scores.bootstrap(parts, metric, p.resamples, p.seed)
                result[name] = {"value": float(metric(parts.sum(axis=0))), "low": low, "high": high}
    return result


def compare(before: Rows, after: Rows, p: Outputs) -> dict[str, Any]:
    """Paired tests of two models over the same rows: differences after - before, the rows' sources resampled."""
    result = {}
    for kind in KINDS:
        pairs = [pair for pair in zip(before, after, strict=True) if all(map(kind.has, pair))]
        assert all(one["id"] == other["id"] for one, other in pairs)
        if pairs:
            adds = [[kind.adds(row) for row in pair] for pair in pairs]
            parts = scores.summed([row["source"] for row, _ in pairs], adds)
            drawn = scores.resampled(parts, p.resamples, p.seed)
            for name, metric in kind.metrics.items():
                value, samples = metric(parts.sum(axis=0)), metric(drawn)
                result[name] = scores.tested(value[1] - value[0], samples[:, 1] - samples[:, 0])
    return result
