"""A run's metrics as tables: no figure is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emotune.core import records
from emotune.core.sections import read_yaml

Table = list[list[str]]
# In what part of a model's measurements a column's value lies, and its decimals.
COLUMNS = {
    "accuracy": ("replies", "accuracy", 3),
    "weighted F1": ("replies", "weighted_f1", 3),
    "macro F1": ("replies", "macro_f1", 3),
    "F1 w/o neutral": ("replies", "micro_f1_without_neutral", 3),
    "control": ("control", "macro_accuracy", 3),
    "perplexity": ("reference", "perplexity", 1),
    "bits/char": ("reference", "bits_per_character", 2),
    "distinct-2": ("text", "distinct_2", 3),
    "words": ("text", "words_mean", 1),
}
MODELS = ("majority", "baseline", "sft", "dpo")
STEPS = {"baseline → sft": "baseline_to_sft", "sft → dpo": "sft_to_dpo"}
TESTED = {"macro F1": ("replies", "macro_f1"), "control": ("control", "macro_accuracy")}
JUDGED = {"accuracy": "accuracy", "weighted F1": "weighted_f1", "macro F1": "macro_f1"}
ABSENT = "–"


def last_costs(path: Path, stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the last run of each stage cost that ended well here, in the order of the pipeline."""
    ended = {line["stage"]: line for line in (records.read_jsonl(path) if path.is_file() else ()) if not line["failed"]}
    return {name: ended[name] for name in stages if name in ended}


def stages(dvc_yaml: Path) -> list[str]:
    """The names of the pipeline's stages, in the order in which dvc.yaml tells them."""
    return list(read_yaml(dvc_yaml)["stages"])


def comparison(evaluated: Mapping[str, Any], interval: str) -> Table:
    """A row a model; `interval` formats the bounds of a value's 95 % interval, to stand after it."""
    table = [["", *COLUMNS]]
    for model in MODELS:
        row = [model]
        for part, name, digits in COLUMNS.values():
            found = evaluated[model].get(part, {}).get(name)
            row.append(_value(found, digits, interval))
        table.append(row)
    return table


def differences(evaluated: Mapping[str, Any]) -> Table:
    """A row a step: what it changed in macro F1 and in control, with interval and p."""
    table = [["", *(heading for metric in TESTED for heading in (metric, "p"))]]
    for step, key in STEPS.items():
        row = [step]
        for part, name in TESTED.values():
            test = evaluated["paired"][key][part][name]
            row += [f"{test['difference']:+.3f} [{test['low']:+.3f}, {test['high']:+.3f}]", f"{test['p']:.3f}"]
        table.append(row)
    return table


def preferences(metrics: Path) -> Table:
    """How many prompts made a pair, in how many attempts, and how far apart chosen and rejected are."""
    found = records.read_json(metrics / "prefs.json")
    return [
        ["pairs", "of prompts", "yield", "attempts a prompt", "median gap", "longer one chosen"],
        [
            str(found["pairs"]),
            str(found["prompts"]),
            f"{found['pairs'] / found['prompts']:.0%}",
            f"{found['attempts_total'] / found['prompts']:.1f}",
            f"{found['gap']['median']:.2f}",
            f"{found['chosen_is_longer']:.0%}",
        ],
    ]


def judges(metrics: Path) -> Table:
    """How often each judge finds the label that people gave, on the test split."""
    table = [["judge", *JUDGED]]
    for name, found in records.read_json(metrics / "judges.json").items():
        table.append([name.replace("_", " "), *(f"{found[metric]:.3f}" for metric in JUDGED.values())])
    return table


def markdown(table: Table) -> str:
    """A Markdown table: the first row is its head, all columns but the first stand at the right; a `|` is escaped."""
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def aligned(table: Table) -> str:
    """Plain text, columns two spaces apart, the first at the left, the others at the right; a cell may hold lines."""
    lines: Table = []
    for row in table:
        cells = [cell.split("\n") for cell in row]
        lines += [[cell[i] if i < len(cell) else "" for cell in cells] for i in range(max(map(len, cells)))]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join("  ".join([left.ljust(first), *map(str.rjust, right, others)]).rstrip() for left, *right in lines)


def _value(found: Any, digits: int, interval: str) -> str:
    if found is None:
        return ABSENT
    if not isinstance(found, Mapping):
        return f"{found:.{digits}f}"
    bounds = [f"{found[bound]:.{digits}f}" for bound in ("low", "high") if bound in found]
    return f"{found['value']:.{digits}f}" + (interval.format(*bounds) if bounds else "")
