"""What the metrics files say, as tables for the terminal and in Markdown for the README: no figure is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from emotune.core import records
from emotune.core.errors import InputError
from emotune.runs.tables import Table, aligned, comparison, differences, judges, last_costs, markdown, preferences

# What each benchmark's ratio is of: the file in benchmarks/results -> the claim.
CLAIMS = {
    "prefs_throughput": "accepted pairs per second, over the published procedure",
    "prefs_throughput-110m": "attempts per second, over the published procedure, 110 M random weights",
    "reward_sweep": "wall time of generate_prefs' first run, over that after a change of weights, published settings",
    "reward_sweep-none": "the same, settings of params.yaml, whose first run is short",
    "sft_throughput": "trained tokens per second, over `trl sft`",
    "scaling": "pairs sampled per second for the most prompts, over those for a tenth of them",
}
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
        from emotune.studies import findings

        return findings.block(block.removeprefix("study-"), metrics, Path("experiments"))
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
