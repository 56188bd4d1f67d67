"""What the metrics files say, as tables for the terminal and for README and docs: no figure is typed by hand."""

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emotune.core import records
from emotune.core.errors import InputError
from emotune.runs import instruction_tables
from emotune.runs.tables import (
    INTERVAL,
    Table,
    aligned,
    all_replies,
    comparison,
    differences,
    judges,
    last_costs,
    markdown,
    preferences,
    prompting,
    replies,
    reward_model,
)

# What each benchmark's ratio is of: the file in benchmarks/results -> the claim.
CLAIMS = {
    "prefs_throughput": "accepted pairs per second, over the published procedure",
    "prefs_throughput-110m": "attempts per second, over the published procedure, 110 M random weights",
    "reward_sweep": "wall time of generate_prefs' first run, over that after a change of weights, published settings",
    "reward_sweep-none": "the same, settings of params.yaml, whose first run is short",
    "sft_throughput": "trained tokens per second, over `trl sft`",
    "guidance": "guided candidates per second, over unguided ones",
    "few_shot": "wall time of few-shot replies, the examples read for each prompt over read once",
    "scaling": "pairs sampled per second for the most prompts, over those for a tenth of them",
    "scaling-processes": "pairs sampled per second by two processes of one thread on two cores, over one",
    "estimate": "estimated over measured peak memory, the farthest above of all cases",
    "stage_start": "seconds from process start to first work, over the stages, before the rooms over after",
}
# After the head of a table whose stage dvc.lock does not vouch for.
STALE = "(STALE: it may be of another run)"
NEXT = """Where to look next
  emotune report --html report.html
                                   all of this and more as one page: charts, replies, costs, provenance
  data/replies/dpo.control.jsonl   the same contexts, answered in every emotion
  dvc metrics diff                 what changed since the last commit
  dvc plots show                   confusion, losses, margins
  mlflow ui --backend-store-uri sqlite:///mlflow.db"""


def text(metrics: Path, costs: Path, stages: Sequence[str], doubts: Mapping[str, str]) -> str:
    """The report of `emotune report`: models side by side, what each step changed, the pairs, the stages' costs.

    `costs` has a line of JSON for each time that a stage ran here; `doubts` says of which stages the metrics may be of
    another run than the rest. Fits in 120 columns.
    """
    evaluated = records.read_metrics(metrics / "evaluate.json")
    tables = [
        ("evaluate", "", _models(evaluated)),
        ("evaluate", "Difference [95 % interval], paired over the same questions", differences(evaluated)),
        ("generate_prefs", "Preference pairs", preferences(metrics)),
    ]
    paragraphs = []
    if doubts:
        reasons = (textwrap.indent(textwrap.fill(f"{stage}: {why}", 116), "  ") for stage, why in doubts.items())
        paragraphs.append("\n".join(["dvc.lock does not vouch for what is here of", *reasons]))
    for stage, head, table in tables:
        head = f"{head} {STALE}".strip() if stage in doubts else head
        paragraphs.append("\n".join(filter(None, [head, aligned(table)])))
    if said := prompting(evaluated):
        paragraphs.insert(-1, textwrap.fill(said[1], 116))
    if spent := spending(costs, stages):
        paragraphs.append(f"Last run of each stage, and its peak memory\n{aligned(spent)}")
    return "\n\n".join([*paragraphs, NEXT])


def _models(evaluated: Mapping[str, Any]) -> Table:
    """A column a model: of metrics there are too many for 120 columns. Of many models intervals stand below values."""
    interval = "\n{}–{}" if "best_prompt" in evaluated else INTERVAL
    return [list(row) for row in zip(*comparison(evaluated, interval), strict=True)]


def instructions(metrics: Path, costs: Path, stages: Sequence[str], doubts: Mapping[str, str]) -> str:
    """The report of the instruction pipeline: prompting beside training, by task, and what ever more rows taught."""
    told = [
        ("Held-out outputs [95 % interval]; published: another model, other data", instruction_tables.models(metrics)),
        ("Difference [95 % interval], paired over the same rows", instruction_tables.steps(metrics)),
        ("By task", instruction_tables.tasks(metrics)),
        ("Learning curve, against train rows", instruction_tables.curve(metrics)),
        ("Learning curve, against steps", instruction_tables.history(metrics)),
    ]
    stale = f" {STALE}" if doubts else ""
    paragraphs = [f"{head}{stale}\n{aligned(table)}" for head, table in told]
    if spent := spending(costs, [f"instruct/{stage}" for stage in stages]):
        paragraphs.append(f"Last run of each stage, and its peak memory\n{aligned(spent)}")
    return "\n\n".join([*(f"{stage}: {why}" for stage, why in doubts.items()), *paragraphs])


def spending(costs: Path, stages: Sequence[str]) -> Table:
    """A row a stage that ran here, and one with the seconds of all; no row where none did."""
    last = last_costs(costs, stages)
    rows = [[name, f"{one['seconds']:.1f} s", f"{one['peak_memory_bytes'] / 1e9:.2f} GB"] for name, one in last.items()]
    return [*rows, ["all", f"{sum(one['seconds'] for one in last.values()):.1f} s", ""]] if rows else []


def ratios(results: Path) -> Table:
    """A row a benchmark: its ratio, and of what to what."""
    table = [["benchmark", "ratio", "of"]]
    for name, claim in CLAIMS.items():
        if (results / f"{name}.json").is_file():
            result = records.read_json(results / f"{name}.json")
            table.append([f"`{result['benchmark']}.py`", f"{result['ratio']:.1f}", claim])
    return table


def sweep(results: Path) -> Table:
    """A row a weighting, in the order of the sweep: the share of attempts nobody had made, and the stage's time."""
    result = records.read_json(results / "reward_sweep.json")
    return [
        ["weights", "new attempts", "seconds"],
        ["first run", "100%", f"{result['first_seconds']:.0f}"],
        ["the same again", "0%", f"{result['again_seconds']:.1f}"],
        *([str(run["weights"]), f"{run['new_attempts']:.1%}", f"{run['seconds']:.1f}"] for run in result["weightings"]),
    ]


def shapes(results: Path) -> Table:
    """A row a shape of the length term: how long the replies are that it chooses, in characters."""
    columns = {
        "pairs": ("pairs", "d"),
        "chosen, median": ("chosen_median", ".0f"),
        "chosen of 30 to 39": ("chosen_30_to_39", ".0%"),
        "chosen of 40 or more": ("chosen_40_or_more", ".0%"),
        "rejected, median": ("rejected_median", ".0f"),
    }
    measured = records.read_json(results / "length_shapes.json")["shapes"].items()
    rows = ([shape, *(f"{lengths[key]:{form}}" for key, form in columns.values())] for shape, lengths in measured)
    return [["length term", *columns], *rows]


def estimates(results: Path) -> Table:
    """A row a case, a column a stage: estimated over measured peak memory, and that peak."""
    cases = records.read_json(results / "estimate.json")["cases"]
    told = {name: {row["stage"]: row for row in rows} for name, rows in cases.items()}
    stages = list(dict.fromkeys(stage for rows in told.values() for stage in rows))

    def cell(row: Mapping[str, Any] | None) -> str:
        return f"{row['ratio']:.2f} of {row['measured'] / 1e9:.2f} GB" if row else "–"

    return [["model", *stages], *([name, *(cell(rows.get(stage)) for stage in stages)] for name, rows in told.items())]


def seven_b(results: Path) -> Table:
    """A row a shape and a part: what a layer takes, what all do by that, by the estimate and as measured."""
    table = [["shape", "part", "a layer", "all, by layers", "`emotune estimate`", "all, measured", "seconds"]]
    for name, shape in records.read_json(results / "seven_b_shapes.json")["shapes"].items():
        for part in filter(shape["bytes_per_layer"].__contains__, ("load", "sft", "dpo", "replies")):
            layer = shape["bytes_per_layer"][part]
            said, measured = shape["emotune_estimate_bytes"].get(part), shape.get("all", {}).get(part)
            sizes = (shape["estimated_peak_bytes"][part], said, measured and measured["peak_bytes"])
            cells = [f"{size / 1e9:.2f} GB" if size else "–" for size in sizes]
            table.append(
                [name, part, f"{layer / 1e9:.3f} GB", *cells, f"{measured['seconds']:.0f}" if measured else "–"]
            )
    return table


# Each kind of block -> its table: of the folder of benchmarks, and of a run's folder by what follows the run's name.
OF_BENCHMARKS: dict[str, Callable[[Path], Table]] = {
    "benchmarks": ratios,
    "benchmarks-sweep": sweep,
    "benchmarks-shapes": shapes,
    "benchmarks-estimate": estimates,
    "benchmarks-7b": seven_b,
}
OF_RUN: dict[str, Callable[[Path], Table]] = {
    "-pairs": lambda run: differences(records.read_metrics(run / "evaluate.json")),
    "-prefs": preferences,
    "-judges": judges,
    "-reward": reward_model,
    "": lambda run: comparison(records.read_metrics(run / "evaluate.json"), " [{}, {}]"),
}
# Those whose cells are text.
OF_REPLIES: dict[str, Callable[[Mapping[str, Any]], Table]] = {"-replies": replies, "-answers": all_replies}
BEGIN = r"<!-- begin:(.*?) -->"


def filled(pages: Mapping[str, str], metrics: Path, results: Path) -> dict[str, str]:
    """Each page, by its file's name, with a table between each `<!-- begin:BLOCK -->` and its `<!-- end:BLOCK -->`.

    BLOCK is RUN (the models side by side), RUN-pairs (what each step changed), RUN-prefs, RUN-judges, RUN-reward,
    RUN-replies or RUN-answers (some of what dpo said); the run `embedded` lies in metrics/ itself, any other in
    metrics/real/RUN. Or it is benchmarks, or benchmarks- and sweep, shapes, estimate or 7b, from the JSON files in
    `results`; or instruct (the models of the instruction pipeline), instruct-steps, -tasks, -curve or -history; or
    study-NAME, from experiments/NAME.yaml and metrics/studies/NAME.csv, or study-instruct/NAME, from those below
    instruct/. A page may have no block, but not every page. InputError names a block that is not closed or that no
    metrics belong to.
    """
    if not any(re.search(BEGIN, page) for page in pages.values()):
        raise InputError(f"{', '.join(pages)}: no block to fill; one begins with <!-- begin:embedded -->")
    return {name: _filled(name, page, metrics, results) for name, page in pages.items()}


def _filled(name: str, page: str, metrics: Path, results: Path) -> str:
    unclosed = re.findall(BEGIN, page)

    def fill(block: re.Match[str]) -> str:
        unclosed.remove(block[1])
        return f"<!-- begin:{block[1]} -->\n{_content(block[1], metrics, results, name)}\n<!-- end:{block[1]} -->"

    result = re.sub(rf"{BEGIN}\n.*?<!-- end:\1 -->", fill, page, flags=re.DOTALL)
    if unclosed:
        raise InputError(f"{name}: <!-- begin:{unclosed[0]} --> has no <!-- end:{unclosed[0]} -->")
    return result


def _content(block: str, metrics: Path, results: Path, name: str) -> str:
    if block.startswith("study-"):
        from emotune.studies import findings  # with numpy: a second

        below, _, study = block.removeprefix("study-").rpartition("/")
        return findings.block(study, metrics.parent / below / "metrics", Path(below, "experiments"))
    if block in instruction_tables.BLOCKS:
        folder = metrics.parent / "instruct/metrics"
        # They belong to a run that not everybody makes.
        has_run = (folder / "compare.json").is_file()
        return markdown(instruction_tables.BLOCKS[block](folder)) if has_run else "Not run yet: `make instruct`."
    if block in OF_BENCHMARKS:
        return markdown(OF_BENCHMARKS[block](results))
    for suffix, table in OF_REPLIES.items():
        if block.endswith(suffix):
            folder = _run(block, block.removesuffix(suffix), metrics, name)
            return markdown(table(records.read_metrics(folder / "evaluate.json")), "---")
    suffix = next(suffix for suffix in OF_RUN if block.endswith(suffix))
    return markdown(OF_RUN[suffix](_run(block, block.removesuffix(suffix), metrics, name)))


def _run(block: str, run: str, metrics: Path, name: str) -> Path:
    folder = metrics if run == "embedded" else metrics / "real" / run
    if not (folder / "evaluate.json").is_file():
        runs = ["embedded", *sorted(path.parent.name for path in metrics.glob("real/*/evaluate.json"))]
        raise InputError(f"{name}: <!-- begin:{block} --> belongs to no run; there are {', '.join(runs)}")
    return folder
