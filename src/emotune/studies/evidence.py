"""What came of a study: metrics/studies/NAME.csv, one row a run."""

import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emotune.core import git, processes, records
from emotune.evaluation import scores
from emotune.evaluation.scores import Array
from emotune.runs import costs, mirror, tables
from emotune.runs.params import Instructions, Params, checked
from emotune.runs.tables import STEP, Column, Figure
from emotune.studies import differences, queue
from emotune.studies.differences import LEVEL, ReplyRows
from emotune.studies.plan import JUDGE, UNTESTED, Setup, Study, is_seed
from emotune.studies.queue import Trial

Row = dict[str, Any]
# Of these less is better.
LOWER = ("perplexity", "mean of rows' perplexities", "bits/char", "prompt text")
COSTS = ("seconds", "peak memory bytes", "tokens per second")
NOISE = "noise"
# The column that says over how many tests of the study its p values are corrected.
TESTS = "tests"


def tables_of(
    study: Study, setups: Mapping[str, Setup], trials: Mapping[str, Trial], spent: Path
) -> tuple[list[Row], list[Row]]:
    """The study's two tables, all p of both after one correction by Holm: `_rows`, and of a grid `_effects`.

    Of a study of seeds the second is `_spread`, and each p stands for itself. The keys of both mappings are names of
    experiments, in the order of the study's variants.
    """
    rows, tests = _rows(study, setups, trials, spent)
    if study.seeds:
        return rows, _spread(study, rows, list(trials.values()))
    effects, others = _effects(study, list(trials.values()))
    correct([*tests, *others])
    return rows, effects


class Test(NamedTuple):
    """A difference, as `differences.drawn` gives it, and the row and metric that it is of."""

    row: Row
    key: str
    drawn: Array


def correct(tests: Sequence[Test]) -> None:
    """Put into each test's row its difference with interval, p after Holm's correction over them all, the verdict."""
    measured = [_tested(test.drawn) for test in tests]
    corrected = differences.holm({place: one["p"] for place, one in enumerate(measured)})
    for place, (row, key, _) in enumerate(tests):
        one, p = measured[place], corrected[place]
        row |= {f"{key} difference": one["difference"]}
        row |= {f"{key} difference {bound}": one[bound] for bound in ("low", "high")}
        row |= {f"{key} p": p, f"{key} verdict": "differs" if p < LEVEL else NOISE, TESTS: len(tests)}


def _tested(drawn: Array) -> dict[str, float]:
    """A difference with its interval and p by the samples of dialogues; of a row a seed, over the seeds too."""
    if drawn.ndim == 1:
        return scores.tested(drawn[0], drawn[1:])
    return {"difference": float(drawn[:, 0].mean()), **differences.over_seeds(drawn)}


def _rows(
    study: Study, setups: Mapping[str, Setup], trials: Mapping[str, Trial], spent: Path
) -> tuple[list[Row], list[Test]]:
    """A row a run: its overrides, its state and why it failed, metrics with intervals, cost; and what is to test."""
    attempts = _costs(spent)
    table: dict[str, Row] = {}
    for variant, (name, trial) in zip(study.variants(), trials.items(), strict=True):
        stages = _of_attempt(attempts.get(name, {}), trial.attempt)
        row: Row = {"run": variant.name, "status": trial.state}
        if trial.state == "failed":
            failures = [f"{stage}: {line['failed']}" for stage, line in stages.items() if line["failed"]]
            row["reason"] = "; ".join(failures) or queue.reason(trial)
        row |= {key: _cell(value) for key, value in setups[name].settings.items() if key not in study.common}
        if trial.state == "done":
            row |= _metrics(study, str(trial.commit))
        table[name] = row | _cost(stages, f"{'instruct/' * study.of_instructions}{study.target}")
    columns = itertools.product(study.models, () if study.seeds else study.tests)
    tests = [test for model, column in columns for test in _compare(study, model, column, table, trials)]
    return list(table.values()), tests


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)


def _metrics(study: Study, commit: str) -> Row:
    measured = records.metrics_in(json.loads(git.told("show", f"{commit}:./metrics/{study.target}.json")))
    row: Row = {}
    for model, (name, column) in itertools.product(study.models, study.columns.items()):
        figure = tables.figure(measured if study.target == "baseline" else measured[model], column)
        row |= {column_key(model, name, bound): value for bound, value in figure._asdict().items()}
    if JUDGE in study.show:
        judges = records.metrics_in(json.loads(git.told("show", f"{commit}:./metrics/judges.json")))
        row[JUDGE] = judges["evaluate"]["accuracy"]
    return row


def column_key(model: str, column: str, bound: str = "value") -> str:
    """The name of a column of the CSV: `sft control`, `sft control low`."""
    return f"{model} {column}" + ("" if bound == "value" else f" {bound}")


def _costs(path: Path) -> dict[str, dict[str | None, dict[str, Row]]]:
    """What each attempt at each experiment cost, or on what it failed, by its stages."""
    spent: dict[str, dict[str | None, dict[str, Row]]] = {}
    for line in costs.lines(path):
        if line["experiment"]:
            spent.setdefault(line["experiment"], {}).setdefault(line.get("attempt"), {})[line["stage"]] = line
    return spent


def _of_attempt(attempts: Mapping[str | None, dict[str, Row]], attempt: str | None) -> dict[str, Row]:
    """The lines of an attempt; those of the only one where it is not known, or where older lines name none."""
    if len(attempts) == 1 and (attempt is None or None in attempts):
        return next(iter(attempts.values()))
    return attempts.get(attempt, {})


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


def _compare(
    study: Study, model: str, column: str, table: Mapping[str, Row], trials: Mapping[str, Trial]
) -> Iterator[Test]:
    """How a metric of each row differs from that of the study's reference, which its row says it is.

    Without the replies of both, whether their intervals overlap is all that can be said, and is put into the row.
    """
    key = column_key(model, column)
    measured = {name: row for name, row in table.items() if row.get(key) is not None}
    reference = _reference(study, column, key, measured)
    if reference is None:
        return
    first = measured.pop(reference)
    first[f"{key} verdict"] = "best" if study.against == "best" else "reference"
    for name, row in measured.items():
        if both := _drawn(study, column, model, [trials[reference], trials[name]]):
            yield Test(row, key, both[1] - both[0])
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


class Change(NamedTuple):
    """Another value of a grid's key in the place of its first."""

    key: str
    first: Any
    value: Any


def changes(study: Study) -> list[Change]:
    """What a grid of two keys or more changes: each value of a key in the place of its first.

    A seed is none of them: the others are measured over it.
    """
    keys = study.grid.items() if len(study.grid) > 1 else ()
    return [Change(key, first, value) for key, (first, *others) in keys if not is_seed(key) for value in others]


def comparisons(study: Study) -> int:
    """How many tests there are of a study that is done: runs with the reference, and changes, in each tested metric.

    Of seeds none: their p is no share of samples.
    """
    if study.seeds:
        return 0
    with_reference = len(study.variants()) - 1 if study.against else 0
    return (with_reference + len(changes(study))) * len(study.models) * len(study.tests)


def _effects(study: Study, trials: Sequence[Trial]) -> tuple[list[Row], list[Test]]:
    """What each change of a grid does: a row a change, and to test the mean over pairs of runs alike in the rest.

    Nothing where a run or its replies are not at hand. Intervals are over dialogues, and over the seeds of a grid of
    them, of which there are two or more.
    """
    own = changes(study) if all(trial.state == "done" for trial in trials) else []
    points = [variant.overrides for variant in study.variants()]
    table: list[Row] = [
        {
            "param": change.key,
            "from": _cell(change.first),
            "to": _cell(change.value),
            "pairs of runs": len(points) // len(study.grid[change.key]),
        }
        for change in own
    ]
    tests = []
    for model, column in itertools.product(study.models, study.tests if own else ()):
        drawn = _drawn(study, column, model, trials)
        if drawn is None:
            return [], []
        key = column_key(model, column)
        tests += [Test(row, key, _effect(change, points, drawn)) for row, change in zip(table, own, strict=True)]
    return table, tests


def _effect(change: Change, points: Sequence[Mapping[str, Any]], drawn: Sequence[Array]) -> Array:
    """The mean over the points of a grid that have the change's first value, each beside the one that it leads to.

    Where the grid has seeds, one such mean a seed [seeds, 1 + samples].
    """
    at = {json.dumps(point): values for point, values in zip(points, drawn, strict=True)}
    by_seed: dict[tuple[Any, ...], list[Array]] = {}
    for start in (point for point in points if point[change.key] == change.first):
        other = at[json.dumps({**start, change.key: change.value})]
        seeds = tuple(value for key, value in start.items() if is_seed(key))
        by_seed.setdefault(seeds, []).append(other - at[json.dumps(start)])
    means = [np.mean(own, axis=0) for own in by_seed.values()]
    return np.stack(means) if len(means) > 1 else means[0]


def _spread(study: Study, rows: Sequence[Row], trials: Sequence[Trial]) -> list[Row]:
    """What seeds do: a row a model and metric, and one a tested metric's step from sft to dpo.

    Mean, standard deviation and bounds over the seeds that are done, beside the first's interval over dialogues; with
    the replies at hand, `differences.over_seeds`. Nothing where fewer than two are done.
    """
    runs = [(row, trial) for row, trial in zip(rows, trials, strict=True) if trial.state == "done"]
    done, own = [row for row, _ in runs], [trial for _, trial in runs]
    if len(done) < 2:
        return []
    table = []
    measured = [name for name in study.show if all(row.get(column_key("dpo", name)) is not None for row in done)]
    for column in measured:
        drawn = {m: _drawn(study, column, m, own) if column not in UNTESTED else None for m in study.models}
        for model in study.models:
            figures = [Figure(*(row.get(column_key(model, column, bound)) for bound in Figure._fields)) for row in done]
            table.append({"of": model, "metric": column} | _over_seeds(figures, drawn[model]))
        if column in study.tests and (before := drawn["sft"]) and (after := drawn["dpo"]):
            steps = [other - first for first, other in zip(before, after, strict=True)]
            tests = [scores.tested(step[0], step[1:]) for step in steps]
            figures = [Figure(test["difference"], test["low"], test["high"]) for test in tests]
            table.append({"of": STEP, "metric": column} | _over_seeds(figures, steps))
    return table


def _over_seeds(figures: Sequence[Figure], drawn: Sequence[Array] | None) -> Row:
    values = [float(figure.value or 0) for figure in figures]
    return {
        "seeds": len(values),
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values),
        "lowest": min(values),
        "highest": max(values),
        **{f"first {bound}": value for bound, value in figures[0]._asdict().items()},
        **(differences.over_seeds(np.stack(drawn)) if drawn else {}),
    }


def _drawn(study: Study, column: str, model: str, trials: Sequence[Trial]) -> list[Array] | None:
    """`differences.drawn` of each trial, with the params of the first; None without replies to the same questions.

    There are as many samples as a test needs that is one of the study's.
    """
    replies = [_replies(trial, model, study.columns[column]) for trial in trials]
    # A row of instructions that was too long for a model cost it nothing.
    questions = [[(row["id"], row.get("emotion"), "nats" in row) for row in own or ()] for own in replies]
    if not all(questions) or any(own != questions[0] for own in questions):
        return None
    p = checked(mirror.yaml_of(trials[0].commit, "params.yaml"), trials[0].name)
    assert isinstance(p, Params | Instructions)
    samples = differences.enough(comparisons(study), p.evaluate.resamples)
    labels = (p.data.labels, p.data.neutral) if isinstance(p, Params) else None
    return [_samples(trial, model, column, study.columns[column], labels, samples, p.evaluate.seed) for trial in trials]


@cache
def _samples(
    trial: Trial,
    model: str,
    name: str,
    column: Column,
    labels: tuple[Sequence[str], str] | None,
    resamples: int,
    seed: int,
) -> Array:
    replies = _replies(trial, model, column) or ()
    if labels is None:
        return differences.drawn_of_outputs(column.name, replies, resamples, seed)
    return differences.drawn(name, replies, *labels, resamples, seed)


def _replies(trial: Trial, model: str, column: Column) -> ReplyRows | None:
    return _read(trial.commit, Path(f"data/replies/{model}{'.control' if column.part == 'control' else ''}.jsonl"))


@cache
def _read(commit: str | None, path: Path) -> ReplyRows | None:
    """A model's replies and what the judges said of them, from DVC's cache or remote; None where neither has them."""
    import dvc.api
    from dvc.exceptions import DvcException

    try:
        own = path.absolute().relative_to(processes.root()).as_posix()
        text = dvc.api.read(own, rev=commit, encoding="utf-8")
    except (DvcException, OSError):
        return None
    return [json.loads(line) for line in text.splitlines()]


def write(path: Path, table: Sequence[Row]) -> None:
    """Write metrics/studies/NAME.csv; a column that no run has a value for is left out."""
    columns = dict.fromkeys(key for row in table for key, value in row.items() if value not in (None, ""))
    ordered = [*(c for c in columns if c not in COSTS), *(c for c in COSTS if c in columns)]
    records.write_csv(path, ordered, table)
