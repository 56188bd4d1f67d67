"""What came of a study: metrics/studies/NAME.csv, one row a run, and the table that it makes."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from emotune.core import records
from emotune.core.errors import InputError
from emotune.evaluation import scores
from emotune.evaluation.scores import Array
from emotune.runs.params import Params, check
from emotune.studies import queue
from emotune.studies.plan import COLUMNS, JUDGE, Study
from emotune.studies.queue import Experiment

Row = dict[str, Any]
Answers = list[dict[str, Any]]
# Of these less is better.
LOWER = ("perplexity", "bits/char", "prompt text")
LEVEL = 0.05
COSTS = ("seconds", "peak memory bytes", "tokens per second")
NOISE = "noise"


def rows(
    asked: Study, settings: Mapping[str, Mapping[str, Any]], made: Mapping[str, Experiment], costs: Path
) -> list[Row]:
    """A row a run: its overrides, its state and why it failed, metrics with intervals, tested differences, cost.

    The keys of the three mappings' values are experiments, in the order of the study's runs.
    """
    spent = costs_of(costs)
    table = []
    for run, (name, experiment) in zip(asked.asked(), made.items(), strict=True):
        row: Row = {"run": run.name, "status": experiment.state, "reason": ""}
        row |= {key: _cell(value) for key, value in settings[name].items() if key not in asked.common}
        if experiment.state == "failed":
            row["reason"] = _failure(spent.get(name, {})) or queue.reason(experiment)
        if experiment.state == "done":
            row |= _metrics(asked, experiment)
        table.append(row | _cost(spent.get(name, {}), asked.target))
    for model in asked.models:
        _test(asked, model, table, list(made.values()))
    return table


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)


def _metrics(asked: Study, made: Experiment) -> Row:
    found = _json(made, f"metrics/{asked.target}.json")
    row: Row = {}
    for model in asked.models:
        own = found if asked.target == "baseline" else found[model]
        for column, (part, name, _) in COLUMNS.items():
            value = own.get(part, {}).get(name)
            bounds = value if isinstance(value, Mapping) else {"value": value}
            row |= {column_key(model, column, bound): bounds.get(bound) for bound in ("value", "low", "high")}
    if JUDGE in asked.show:
        row[JUDGE] = _json(made, "metrics/judges.json")["evaluate"]["accuracy"]
    return row


def column_key(model: str, column: str, bound: str = "value") -> str:
    return f"{model} {column}" + ("" if bound == "value" else f" {bound}")


def _json(made: Experiment, path: str) -> Any:
    return json.loads(queue.shown(str(made.commit), path))


# Costs, as stages note them.


def costs_of(path: Path) -> dict[str, dict[str, Row]]:
    """What the last run of each stage of each experiment cost, or on what it failed."""
    found: dict[str, dict[str, Row]] = {}
    if path.is_file():
        for line in records.read_jsonl(path):
            if line["experiment"]:
                found.setdefault(line["experiment"], {})[line["stage"]] = line
    return found


def _cost(stages: Mapping[str, Row], target: str) -> Row:
    """Seconds of all stages that ran and were not restored, the most memory of any, the target's tokens a second."""
    if not stages:
        return {}
    memory = [line["peak_memory_bytes"] for line in stages.values() if line["peak_memory_bytes"] is not None]
    return {
        "seconds": sum(line["seconds"] for line in stages.values()),
        "peak memory bytes": max(memory, default=None),
        "tokens per second": stages.get(target, {}).get("tokens_per_second"),
    }


def _failure(stages: Mapping[str, Row]) -> str:
    return "; ".join(f"{name}: {line['failed']}" for name, line in stages.items() if line["failed"])


# Differences.


def _test(asked: Study, model: str, table: Sequence[Row], made: Sequence[Experiment]) -> None:
    """Put into each row how it differs from the study's reference, and whether that is noise."""
    done = [place for place, experiment in enumerate(made) if experiment.state == "done"]
    for column in asked.tests:
        key = column_key(model, column)
        ranked = sorted(
            (place for place in done if table[place].get(key) is not None),
            key=lambda place: table[place][key] * (1 if column in LOWER else -1),
        )
        named = [place for place in ranked if table[place]["run"] == asked.against]
        if not ranked or (asked.against != "best" and not named):
            continue
        first = named[0] if named else ranked[0]
        others = [place for place in ranked if place != first]
        tests = {place: paired(column, model, made[first], made[place], len(others)) for place in others}
        corrected = holm({place: test["p"] for place, test in tests.items() if test})
        table[first][f"{key} verdict"] = "best" if asked.against == "best" else "reference"
        for place, test in tests.items():
            row = table[place]
            if test:
                _put(row, key, test, corrected[place])
            else:
                row[f"{key} difference"] = row[key] - table[first][key]
                row[f"{key} verdict"] = "intervals " + ("overlap" if _overlap(row, table[first], key) else "apart")


def _overlap(one: Row, other: Row, key: str) -> bool:
    return bool(one[f"{key} low"] <= other[f"{key} high"] and other[f"{key} low"] <= one[f"{key} high"])


def holm(p_values: Mapping[int, float]) -> dict[int, float]:
    """p values after Holm's correction: all comparisons together find a difference by mere chance in 5 % of studies."""
    corrected: dict[int, float] = {}
    largest = 0.0
    for rank, (place, p) in enumerate(sorted(p_values.items(), key=lambda pair: pair[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        corrected[place] = largest
    return corrected


def enough(comparisons: int, least: int) -> int:
    """How many bootstrap samples, `least` or more, let a study of so many comparisons find a difference at all.

    The smallest p that samples give is 2 / (samples + 1). Corrected, it has to stay below a tenth of LEVEL.
    """
    return max(least, math.ceil(20 * comparisons / LEVEL))


def paired(column: str, model: str, first: Experiment, other: Experiment, comparisons: int) -> dict[str, float] | None:
    """`difference` other - first, its 95 % interval and p, by a bootstrap over the dialogues that both answered.

    p is one of so many comparisons, and not yet corrected. None where the replies are not at hand, or answer other
    questions.
    """
    found = _drawn(column, model, [first, other], comparisons)
    return tested(found[1] - found[0]) if found else None


def effects(asked: Study, made: Sequence[Experiment]) -> list[Row]:
    """What each value of a grid changes against the first of its key: the mean over pairs of runs alike in the rest.

    A row a change; none for a study of fewer than two keys, or where a run or its replies are not at hand. Intervals
    are over dialogues, and p is Holm's over the changes.
    """
    if len(asked.grid) < 2 or any(experiment.state != "done" for experiment in made):
        return []
    places = {json.dumps(run.overrides): place for place, run in enumerate(asked.asked())}
    changes = [(key, value, first) for key, (first, *others) in asked.grid.items() for value in others]
    table: list[Row] = [
        {"param": key, "from": _cell(first), "to": _cell(value), "pairs of runs": len(places) // len(asked.grid[key])}
        for key, value, first in changes
    ]
    for model, column in itertools.product(asked.models, asked.tests):
        found = _drawn(column, model, made, len(changes))
        if found is None:
            return []
        tests = {}
        for row, (key, value, first) in enumerate(changes):
            pairs = [
                (place, places[json.dumps(run.overrides | {key: value})])
                for place, run in enumerate(asked.asked())
                if run.overrides[key] == first
            ]
            tests[row] = tested(np.mean([found[b] - found[a] for a, b in pairs], axis=0))
        corrected = holm({row: test["p"] for row, test in tests.items()})
        for row, test in tests.items():
            _put(table[row], column_key(model, column), test, corrected[row])
    return table


def _put(row: Row, key: str, test: Mapping[str, float], p: float) -> None:
    row |= {f"{key} {name}": test[name] for name in ("difference", "difference low", "difference high")}
    row |= {f"{key} p": p, f"{key} verdict": "differs" if p < LEVEL else NOISE}


def _drawn(column: str, model: str, made: Sequence[Experiment], comparisons: int) -> list[Array] | None:
    """`drawn` of each experiment, with the params of the first; None where replies are absent or of other questions."""
    answers = [_answers(experiment, model, COLUMNS[column][0] == "control") for experiment in made]
    if any(own is None for own in answers):
        return None
    questions = [[(row["id"], row["emotion"]) for row in own or ()] for own in answers]
    if any(own != questions[0] for own in questions):
        return None
    p = check(Params, queue.params_of(str(made[0].commit)), made[0].name)
    samples = enough(comparisons, p.evaluate.resamples)
    how = (p.data.labels, p.data.neutral, samples, p.evaluate.seed)
    return [_drawn_of(experiment, model, column, *how) for experiment in made]


@cache
def _drawn_of(
    made: Experiment, model: str, column: str, labels: Sequence[str], neutral: str, resamples: int, seed: int
) -> Array:
    answers = _answers(made, model, COLUMNS[column][0] == "control")
    return drawn(column, answers or [], labels, neutral, resamples, seed)


@cache
def _answers(made: Experiment, model: str, control: bool) -> Answers | None:
    """A model's replies and what the judges said of them, from DVC's cache or remote; None where neither has them."""
    import dvc.api
    from dvc.exceptions import DvcException

    path = f"data/replies/{model}{'.control' if control else ''}.jsonl"
    try:
        text = dvc.api.read(path, rev=made.commit, encoding="utf-8")
    except (DvcException, OSError):
        return None
    return [json.loads(line) for line in text.splitlines()]


def drawn(column: str, answers: Answers, labels: Sequence[str], neutral: str, resamples: int, seed: int) -> Array:
    """A metric's value, then that over each bootstrap sample of dialogues [1 + resamples]: equal ids, equal samples."""
    part, name, _ = COLUMNS[column]
    own = _contributions(part, name, answers, labels)

    def values(sums: Array) -> Array:
        if part in ("replies", "control"):
            at = labels.index(neutral) if neutral in labels else None
            return scores.metrics_of(sums, at)[name]
        ratio = sums[..., 0] / sums[..., 1]
        return np.exp(ratio) if name == "perplexity" else ratio

    return values(np.concatenate([own.sum(axis=0, keepdims=True), scores.resampled(own, resamples, seed)]))


def tested(differences: Array) -> dict[str, float]:
    """A difference of what `drawn` gives, with its 95 % percentile interval and two-sided p, as `scores.paired`."""
    value, samples = differences[0], differences[1:]
    low, high = np.quantile(samples, [(1 - scores.LEVEL) / 2, (1 + scores.LEVEL) / 2])
    rarer = int(min((samples <= 0).sum(), (samples >= 0).sum()))
    return {
        "difference": float(value),
        "difference low": float(low),
        "difference high": float(high),
        "p": min(1.0, 2 * (rarer + 1) / (len(samples) + 1)),
    }


def _contributions(part: str, name: str, answers: Answers, labels: Sequence[str]) -> Array:
    """What each dialogue adds to a metric, in order of first appearance."""
    ids = [row["dialogue"] for row in answers]
    if part in ("replies", "control"):
        return scores.confusions(ids, [row["emotion"] for row in answers], [row["judged"] for row in answers], labels)
    places = {name: place for place, name in enumerate(dict.fromkeys(ids))}
    sums = np.zeros((len(places), 2))
    for row in answers:
        if part == "text":
            sums[places[row["dialogue"]]] += (scores.has_prompt_text(row["reply"]), 1)
        elif "reference" in row:
            size = row["reference_tokens"] if name == "perplexity" else len(row["reference"]) * np.log(2)
            sums[places[row["dialogue"]]] += (row["reference_nats"], size)
    return sums


# The file, and the table.


def write(path: Path, table: Sequence[Row]) -> None:
    """Write metrics/studies/NAME.csv; a column that no run has a value for is left out."""
    columns = list(dict.fromkeys(key for row in table for key, value in row.items() if value not in (None, "")))
    ordered = [*(c for c in columns if c not in COSTS), *(c for c in COSTS if c in columns)]
    records.write_csv(path, ordered, table)


def read(path: Path) -> list[Row]:
    """The rows of such a file; InputError where there is none."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; `emotune study {path.stem}` makes it")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
