"""What came of a study: metrics/studies/NAME.csv, one row a run."""

import itertools
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emotune.core import git, records
from emotune.core.sections import check
from emotune.evaluation import scores
from emotune.evaluation.scores import Array
from emotune.runs import mirror, tables
from emotune.runs.params import Params
from emotune.studies import differences, queue
from emotune.studies.differences import LEVEL, K, ReplyRows
from emotune.studies.plan import COLUMNS, JUDGE, Setup, Study
from emotune.studies.queue import Trial

Row = dict[str, Any]
# Of these less is better.
LOWER = ("perplexity", "bits/char", "prompt text")
COSTS = ("seconds", "peak memory bytes", "tokens per second")
NOISE = "noise"


def rows(study: Study, setups: Mapping[str, Setup], trials: Mapping[str, Trial], costs: Path) -> list[Row]:
    """A row a run: its overrides, its state and why it failed, metrics with intervals, tested differences, cost.

    The keys of both mappings are names of experiments, in the order of the study's variants.
    """
    spent = _costs(costs)
    table: dict[str, Row] = {}
    for variant, (name, trial) in zip(study.variants(), trials.items(), strict=True):
        stages = spent.get(name, {})
        row: Row = {"run": variant.name, "status": trial.state}
        if trial.state == "failed":
            failures = [f"{stage}: {line['failed']}" for stage, line in stages.items() if line["failed"]]
            row["reason"] = "; ".join(failures) or queue.reason(trial)
        row |= {key: _cell(value) for key, value in setups[name].settings.items() if key not in study.common}
        if trial.state == "done":
            row |= _metrics(study, str(trial.commit))
        table[name] = row | _cost(stages, study.target)
    for model, column in itertools.product(study.models, study.tests):
        _compare(study, model, column, table, trials)
    return list(table.values())


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)


def _metrics(study: Study, commit: str) -> Row:
    measured = json.loads(git.told("show", f"{commit}:metrics/{study.target}.json"))
    row: Row = {}
    for model, (name, column) in itertools.product(study.models, COLUMNS.items()):
        figure = tables.figure(measured if study.target == "baseline" else measured[model], column)
        row |= {column_key(model, name, bound): value for bound, value in figure._asdict().items()}
    if JUDGE in study.show:
        row[JUDGE] = json.loads(git.told("show", f"{commit}:metrics/judges.json"))["evaluate"]["accuracy"]
    return row


def column_key(model: str, column: str, bound: str = "value") -> str:
    """The name of a column of the CSV: `sft control`, `sft control low`."""
    return f"{model} {column}" + ("" if bound == "value" else f" {bound}")


def _costs(path: Path) -> dict[str, dict[str, Row]]:
    """What the last run of each stage of each experiment cost, or on what it failed."""
    costs: dict[str, dict[str, Row]] = {}
    for line in records.read_jsonl(path) if path.is_file() else ():
        if line["experiment"]:
            costs.setdefault(line["experiment"], {})[line["stage"]] = line
    return costs


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


# Differences.


def _compare(study: Study, model: str, column: str, table: Mapping[str, Row], trials: Mapping[str, Trial]) -> None:
    """Put into each row how a metric differs from that of the study's reference, and whether that is noise.

    Without the replies of both, whether their intervals overlap is all that can be said.
    """
    key = column_key(model, column)
    measured = {name: row for name, row in table.items() if row.get(key) is not None}
    reference = _reference(study, column, key, measured)
    if reference is None:
        return
    first = measured.pop(reference)
    first[f"{key} verdict"] = "best" if study.against == "best" else "reference"
    drawn = {name: _drawn(column, model, [trials[reference], trials[name]], len(measured)) for name in measured}
    tested = _tested(key, {name: both[1] - both[0] for name, both in drawn.items() if both})
    for name, row in measured.items():
        if name in tested:
            row |= tested[name]
        else:
            overlap = row[f"{key} low"] <= first[f"{key} high"] and first[f"{key} low"] <= row[f"{key} high"]
            row[f"{key} difference"] = row[key] - first[key]
            row[f"{key} verdict"] = f"intervals {'overlap' if overlap else 'apart'}"


def _reference(study: Study, column: str, key: str, measured: Mapping[str, Row]) -> str | None:
    """The experiment that the others are compared with: the one that the study names, or the best."""
    if study.against != "best":
        return next((name for name, row in measured.items() if row["run"] == study.against), None)
    best = min if column in LOWER else max
    return best(measured, key=lambda name: measured[name][key], default=None)


def _tested(key: str, differences_of: Mapping[K, Array]) -> dict[K, Row]:
    """Of each difference, as `differences.drawn` gives it: its interval, p after Holm's correction, and the verdict."""
    tests = {name: scores.tested(drawn[0], drawn[1:]) for name, drawn in differences_of.items()}
    corrected = differences.holm({name: test["p"] for name, test in tests.items()})
    return {
        name: {
            f"{key} difference": test["difference"],
            f"{key} difference low": test["low"],
            f"{key} difference high": test["high"],
            f"{key} p": corrected[name],
            f"{key} verdict": "differs" if corrected[name] < LEVEL else NOISE,
        }
        for name, test in tests.items()
    }


class Change(NamedTuple):
    """Another value of a grid's key in the place of its first."""

    key: str
    first: Any
    value: Any


def effects(study: Study, trials: Sequence[Trial]) -> list[Row]:
    """What each value of a grid changes against the first of its key: the mean over pairs of runs alike in the rest.

    A row a change; none for a study of fewer than two keys, or where a run or its replies are not at hand. Intervals
    are over dialogues, and p is Holm's over the changes.
    """
    if len(study.grid) < 2 or any(trial.state != "done" for trial in trials):
        return []
    points = [variant.overrides for variant in study.variants()]
    changes = [Change(key, first, value) for key, (first, *others) in study.grid.items() for value in others]
    table: list[Row] = [
        {
            "param": change.key,
            "from": _cell(change.first),
            "to": _cell(change.value),
            "pairs of runs": len(points) // len(study.grid[change.key]),
        }
        for change in changes
    ]
    for model, column in itertools.product(study.models, study.tests):
        drawn = _drawn(column, model, trials, len(changes))
        if drawn is None:
            return []
        means = {place: _effect(change, points, drawn) for place, change in enumerate(changes)}
        for place, cells in _tested(column_key(model, column), means).items():
            table[place] |= cells
    return table


def _effect(change: Change, points: Sequence[Mapping[str, Any]], drawn: Sequence[Array]) -> Array:
    """The mean over the points of a grid that have the change's first value, each beside the one that it leads to."""
    at = {json.dumps(point): values for point, values in zip(points, drawn, strict=True)}
    starts = [point for point in points if point[change.key] == change.first]
    pairs = [(at[json.dumps(start)], at[json.dumps({**start, change.key: change.value})]) for start in starts]
    return np.mean([other - first for first, other in pairs], axis=0)


def _drawn(column: str, model: str, trials: Sequence[Trial], comparisons: int) -> list[Array] | None:
    """`differences.drawn` of each trial, with the params of the first; None without replies to the same questions.

    There are as many samples as a test that is one of so many comparisons needs.
    """
    replies = [_replies(trial, model, column) for trial in trials]
    questions = [[(row["id"], row["emotion"]) for row in own or ()] for own in replies]
    if not all(questions) or any(own != questions[0] for own in questions):
        return None
    p = check(Params, mirror.yaml_of(trials[0].commit, "params.yaml"), trials[0].name)
    samples = differences.enough(comparisons, p.evaluate.resamples)
    return [_samples(trial, model, column, p.data.labels, p.data.neutral, samples, p.evaluate.seed) for trial in trials]


@cache
def _samples(
    trial: Trial, model: str, column: str, labels: Sequence[str], neutral: str, resamples: int, seed: int
) -> Array:
    return differences.drawn(column, _replies(trial, model, column) or (), labels, neutral, resamples, seed)


def _replies(trial: Trial, model: str, column: str) -> ReplyRows | None:
    return _read(trial.commit, f"data/replies/{model}{'.control' if COLUMNS[column].part == 'control' else ''}.jsonl")


@cache
def _read(commit: str | None, path: str) -> ReplyRows | None:
    """A model's replies and what the judges said of them, from DVC's cache or remote; None where neither has them."""
    import dvc.api
    from dvc.exceptions import DvcException

    try:
        text = dvc.api.read(path, rev=commit, encoding="utf-8")
    except (DvcException, OSError):
        return None
    return [json.loads(line) for line in text.splitlines()]


def write(path: Path, table: Sequence[Row]) -> None:
    """Write metrics/studies/NAME.csv; a column that no run has a value for is left out."""
    columns = dict.fromkeys(key for row in table for key, value in row.items() if value not in (None, ""))
    ordered = [*(c for c in columns if c not in COSTS), *(c for c in COSTS if c in columns)]
    records.write_csv(path, ordered, table)
