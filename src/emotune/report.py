"""What the metrics files say, as tables for the terminal and in Markdown for the README: no figure is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emotune import params, records
from emotune.errors import InputError

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
# What each benchmark's ratio is of: the file in benchmarks/results -> the claim.
CLAIMS = {
    "prefs_throughput": "accepted pairs per second, over the published procedure",
    "prefs_throughput-110m": "attempts per second, over the published procedure, 110 M random weights",
    "reward_sweep": "wall time of generate_prefs' first run, over that after a change of weights, published settings",
    "reward_sweep-none": "the same, settings of params.yaml, whose first run is short",
    "sft_throughput": "trained tokens per second, over `trl sft`",
    "scaling": "pairs sampled per second for the most prompts, over those for a tenth of them",
}
ABSENT = "–"
NEXT = """Where to look next
  emotune report --html report.html
                                   all of this and more as one page: charts, replies, costs, provenance
  data/replies/dpo.control.jsonl   the same contexts, answered in every emotion
  dvc metrics diff                 what changed since the last commit
  dvc plots show                   confusion, losses, margins
  mlflow ui --backend-store-uri sqlite:///mlflow.db"""


def text(metrics: Path, costs: Path, stages: Sequence[str]) -> str:
    """The report of `emotune report`: models side by side, what each step changed, the pairs, the stages' costs.

    `costs` has a line of JSON for each time that a stage ran here. Fits in 120 columns.
    """
    evaluated = records.read_json(metrics / "evaluate.json")
    spent = last_costs(costs, stages)
    paragraphs = [
        aligned(comparison(evaluated, "\n{}–{}")),
        "Difference [95 % interval], paired over the same questions\n" + aligned(differences(evaluated)),
        "Preference pairs\n" + aligned(preferences(metrics)),
    ]
    if spent:
        table = [
            [name, f"{one['seconds']:.1f} s", f"{one['peak_memory_bytes'] / 1e9:.2f} GB"] for name, one in spent.items()
        ]
        whole = ["all", f"{sum(one['seconds'] for one in spent.values()):.1f} s", ""]
        paragraphs.append(f"Last run of each stage, and its peak memory\n{aligned([*table, whole])}")
    return "\n\n".join([*paragraphs, NEXT])


def last_costs(path: Path, stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the last run of each stage cost that ended well here, in the order of the pipeline."""
    ended = {line["stage"]: line for line in (records.read_jsonl(path) if path.is_file() else ()) if not line["failed"]}
    return {name: ended[name] for name in stages if name in ended}


def stages(dvc_yaml: Path) -> list[str]:
    """The names of the pipeline's stages, in the order in which dvc.yaml tells them."""
    return list(params.read_yaml(dvc_yaml)["stages"])


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


def ratios(results: Path) -> Table:
    """A row a benchmark: its ratio, and of what to what."""
    table = [["benchmark", "ratio", "of"]]
    for name, claim in CLAIMS.items():
        if (results / f"{name}.json").is_file():
            found = records.read_json(results / f"{name}.json")
            table.append([f"`{found['benchmark']}.py`", f"{found['ratio']:.1f}", claim])
    return table


def sweep(results: Path) -> Table:
    """A row a weighting, in the order of the sweep: the share of attempts nobody had made, and the stage's time."""
    found = records.read_json(results / "reward_sweep.json")
    first = f"{found['first_seconds']:.0f}"
    return [
        ["weights", "new attempts", "seconds"],
        ["first run", "100%", first],
        ["the same again", "0%", f"{found['again_seconds']:.1f}"],
        *([str(run["weights"]), f"{run['new_attempts']:.1%}", f"{run['seconds']:.1f}"] for run in found["weightings"]),
    ]


def shapes(results: Path) -> Table:
    """A row a shape of the length term: how long the replies are that it chooses, in characters."""
    table = [
        ["length term", "pairs", "chosen, median", "chosen of 30 to 39", "chosen of 40 or more", "rejected, median"]
    ]
    for shape, found in records.read_json(results / "length_shapes.json")["shapes"].items():
        table.append(
            [
                shape,
                str(found["pairs"]),
                f"{found['chosen_median']:.0f}",
                f"{found['chosen_30_to_39']:.0%}",
                f"{found['chosen_40_or_more']:.0%}",
                f"{found['rejected_median']:.0f}",
            ]
        )
    return table


def filled(readme: str, metrics: Path, results: Path, name: str = "README.md") -> str:
    """The text with a table between each `<!-- begin:BLOCK -->` and its `<!-- end:BLOCK -->`.

    BLOCK is RUN (the models side by side), RUN-pairs (what each step changed), RUN-prefs or RUN-judges; the run
    `embedded` lies in metrics/ itself, any other in metrics/real/RUN. Or it is benchmarks, benchmarks-sweep or
    benchmarks-shapes, from the JSON files in `results`; or study-NAME, from experiments/NAME.yaml and
    metrics/studies/NAME.csv. InputError names a block that is not closed or that no metrics belong to.
    """
    begun = re.findall(r"<!-- begin:(.*?) -->", readme)
    if not begun:
        raise InputError(f"{name}: no block to fill; one begins with <!-- begin:embedded -->")

    def fill(block: re.Match[str]) -> str:
        begun.remove(block[1])
        return f"<!-- begin:{block[1]} -->\n{_content(block[1], metrics, results, name)}\n<!-- end:{block[1]} -->"

    result = re.sub(r"<!-- begin:(.*?) -->\n.*?<!-- end:\1 -->", fill, readme, flags=re.DOTALL)
    if begun:
        raise InputError(f"{name}: <!-- begin:{begun[0]} --> has no <!-- end:{begun[0]} -->")
    return result


def _content(block: str, metrics: Path, results: Path, name: str) -> str:
    if block.startswith("study-"):
        from emotune import evidence

        return evidence.block(block.removeprefix("study-"), metrics, Path("experiments"))
    return markdown(_block(block, metrics, results, name))


def _block(block: str, metrics: Path, results: Path, name: str) -> Table:
    of_benchmarks = {"benchmarks": ratios, "benchmarks-sweep": sweep, "benchmarks-shapes": shapes}
    if block in of_benchmarks:
        return of_benchmarks[block](results)
    tables: dict[str, Callable[[Path], Table]] = {
        "-pairs": lambda run: differences(records.read_json(run / "evaluate.json")),
        "-prefs": preferences,
        "-judges": judges,
        "": lambda run: comparison(records.read_json(run / "evaluate.json"), " [{}, {}]"),
    }
    suffix = next(suffix for suffix in tables if block.endswith(suffix))
    run = block.removesuffix(suffix)
    folder = metrics if run == "embedded" else metrics / "real" / run
    if not (folder / "evaluate.json").is_file():
        runs = ["embedded", *sorted(path.parent.name for path in metrics.glob("real/*/evaluate.json"))]
        raise InputError(f"{name}: <!-- begin:{block} --> belongs to no run; there are {', '.join(runs)}")
    return tables[suffix](folder)


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
