"""The metrics of the instruction pipeline as tables: is a prompt enough, or a few examples, or is it worth to train?"""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

from emotune.core import records
from emotune.runs.tables import INTERVAL, Figure, Table, difference, number

MODELS = {"zero_shot": "zero-shot", "few_shot": "few-shot", "sft": "sft"}
# What is measured of the outputs: its heading and its form.
METRICS = {
    # Of a small model that has never seen such an output it is a number of seven digits.
    "perplexity": ("perplexity", ".4g"),
    "mean_row_perplexity": ("mean of rows' perplexities", ".4g"),
    "exact_match": ("exact match", ".3f"),
    "f1": ("F1", ".3f"),
}


def models(metrics: Path) -> Table:
    """A row a model that was asked the held-out rows, with the perplexity that was published of its kind."""
    compared = records.read_metrics(metrics / "compare.json")
    known = [name for name in METRICS if name in compared["sft"]["overall"]]
    table = [["", *(METRICS[name][0] for name in known), "published perplexity"]]
    for model, name in MODELS.items():
        overall = compared[model]["overall"]
        cells = [number(_figure(overall[metric]), METRICS[metric][1], INTERVAL) for metric in known]
        table.append([name, *cells, f"{compared['published'][model]:.2f}"])
    return table


def _figure(value: Mapping[str, float]) -> Figure:
    return Figure(*map(value.get, Figure._fields))


def steps(metrics: Path) -> Table:
    """A row a step from one model to another: what it changed in each metric, with interval and p."""
    paired = records.read_metrics(metrics / "compare.json")["paired"]
    known = [name for name in METRICS if name in paired["zero_shot_to_sft"]]
    table = [["", *(heading for name in known for heading in (METRICS[name][0], "p"))]]
    for step, tests in paired.items():
        cells = (
            cell for name in known for cell in (difference(tests[name], METRICS[name][1]), f"{tests[name]['p']:.3f}")
        )
        table.append([" → ".join(MODELS[model] for model in step.split("_to_")), *cells])
    return table


def tasks(metrics: Path) -> Table:
    """A row a task: its rows, and of each model the perplexity of the outputs and the share of right answers."""
    compared = records.read_metrics(metrics / "compare.json")
    table = [["task", "rows", *(f"{name}, {head}" for name in MODELS.values() for head in ("perplexity", "exact"))]]
    for task, own in compared["sft"]["tasks"].items():
        measured = (compared[model]["tasks"][task] for model in MODELS)
        cells = (
            number((values.get(metric, {}).get("value"),), form, "")
            for values in measured
            for metric, form in (("perplexity", ".4g"), ("exact_match", ".3f"))
        )
        table.append([task, str(own["rows"]), *cells])
    return table


def curve(metrics: Path) -> Table:
    """A row a share of the train rows: how many rows, and the perplexity of validation outputs after them."""
    return _points(metrics / "learning_curve.csv", "rows", "validation_perplexity", "train rows")


def history(metrics: Path) -> Table:
    """A row a look at the validation outputs in training: after how many steps, and their perplexity then."""
    return _points(metrics / "sft_history.csv", "step", "eval_perplexity", "steps")


def _points(path: Path, x: str, y: str, head: str) -> Table:
    with path.open(encoding="utf-8", newline="") as file:
        points = [[point[x], f"{float(point[y]):.4g}"] for point in csv.DictReader(file) if point[y]]
    return [[head, "validation perplexity"], *points]


# Those of compare.json.
COMPARED: dict[str, Callable[[Path], Table]] = {"instruct": models, "instruct-steps": steps, "instruct-tasks": tasks}
BLOCKS = COMPARED | {"instruct-curve": curve, "instruct-history": history}
