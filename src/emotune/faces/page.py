"""One run's metrics and replies -> one HTML page that needs nothing else: no script, no font, no network."""

import csv
import hashlib
import json
import math
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from emotune.core import git, nested, records
from emotune.core.dialogue import normal_form
from emotune.core.errors import InputError
from emotune.core.sections import read_yaml
from emotune.evaluation.params import PROMPTED
from emotune.faces import charts
from emotune.runs import instruction_tables, tables

Content = dict[str, Any]
History = list[dict[str, float | None]]
Pair = tuple[str, str]
MODELS = ("baseline", "sft", "dpo")
EXAMPLES = 20
# What rows of one curve of what_if differ in.
VARIED = {"min_chosen_score", "pairs"}
# Answers of every model shown, the first of data/replies/side_by_side.jsonl.
ANSWERS = 30
# Of a learning curve, and of a history.
PERPLEXITY = ("validation_perplexity", "eval_perplexity")
# Pairs shown, the first of data/prefs/train.jsonl.
PAIRS = 5
SPLITS = ("train", "validation")
JUDGES = ("rewarding judge", "evaluating judge")
# A chart a row: its title, the two columns of the history it draws and their names, and a level to compare with.
CURVES: dict[str, list[tuple[str, Pair, Pair, float | None]]] = {
    "sft": [("loss", ("loss", "eval_loss"), SPLITS, None)],
    "reward_model": [
        ("loss", ("loss", "eval_loss"), SPLITS, None),
        ("accuracy of the pairs", ("accuracy", "eval_accuracy"), SPLITS, 0.5),
        ("margin of chosen over rejected", ("margin", "eval_margin"), SPLITS, 0.0),
    ],
    "dpo": [
        ("loss", ("loss", "eval_loss"), SPLITS, None),
        ("reward margin of chosen over rejected", ("rewards/margins", "eval_rewards/margins"), SPLITS, 0.0),
        ("reward accuracy", ("rewards/accuracies", "eval_rewards/accuracies"), SPLITS, 0.5),
        ("log-probability of chosen", ("logps/chosen", "eval_logps/chosen"), SPLITS, None),
        ("log-probability of rejected", ("logps/rejected", "eval_logps/rejected"), SPLITS, None),
        ("control", ("control_reward_judge", "control_evaluate_judge"), JUDGES, None),
    ],
}


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Where lies what a page tells of one run; what is None was not kept, and what is absent is a gap that is named."""

    metrics: Path
    lock: Path
    params: Path
    replies: Path | None = None
    prefs: Path | None = None
    costs: Path | None = None


def kept_run(metrics: Path, name: str) -> RunFiles:
    """A run under metrics/real, of which its metrics, dvc.lock and params.yaml were kept; InputError lists those."""
    folder = metrics / "real" / name
    names = sorted(path.parent.name for path in metrics.glob("real/*/evaluate.json"))
    if name not in names:
        raise InputError(f"report: --run {name}: no such run; there are {', '.join(names) or 'none'} in {metrics}/real")
    return RunFiles(folder, folder / "lock.yaml", folder / "params.yaml")


def html(files: RunFiles, stages: Sequence[str], doubts: Mapping[str, str]) -> str:
    """The page of a run, `stages` in the pipeline's order; equal files, git state and packages make equal bytes.

    `doubts` says of which stages the metrics may be of another run than the rest, and why.
    """
    told = _told(files, stages, doubts, "")
    evaluated, prefs, judges, prepared, voted = (
        _read(files.metrics / f"{name}.json") for name in ("evaluate", "prefs", "judges", "prepare", "votes")
    )
    models = [model for model in tables.MODELS if model in MODELS or (model in PROMPTED and model in (evaluated or ()))]
    pairs = _jsonl(files.prefs, ("train.jsonl", "validation.jsonl")) or []
    return _template("page.html.jinja").render(
        told,
        evaluated=evaluated,
        models=models,
        prompting=evaluated and tables.prompting(evaluated),
        comparison=evaluated and tables.comparison(evaluated, "\n{}–{}"),
        differences=evaluated and tables.differences(evaluated),
        bounded=evaluated and list(_bounded(evaluated, models)),
        training=[_training(files.metrics, stage) for stage in CURVES],
        examples=_examples(files.replies, models),
        prefs=prefs,
        preferences=prefs and tables.preferences(files.metrics),
        what_if=prefs and _what_if(prefs),
        best_of_n=prefs and prefs.get("best_of_n") and tables.over_optimised(prefs),
        gaps=[pair["chosen_score"] - pair["rejected_score"] for pair in pairs],
        pairs=pairs[:PAIRS],
        judges=judges,
        accuracies=judges and tables.judges(files.metrics),
        voted=voted,
        votes=voted and tables.votes(voted),
        prepared=prepared,
        work=_work(files.metrics, told["used"], models),
    )


def instructions(files: RunFiles, stages: Sequence[str], doubts: Mapping[str, str]) -> str:
    """The page of a run of the instruction pipeline; the laws of `html` hold here too."""
    told = _told(files, stages, doubts, "instruct/")
    compared, rows = (_read(files.metrics / f"{name}.json") for name in ("compare", "rows"))
    names = instruction_tables.MODELS
    steps, growth = (_points(files.metrics / f"{name}.csv") for name in ("sft_history", "learning_curve"))
    asked = {name: [f"{compared[name]['rows']:,} rows"] for name in names if name != "sft"} if compared else {}
    answers = _jsonl(files.replies, ["side_by_side.jsonl"])
    return _template("instructions.html.jinja").render(
        told,
        names=names,
        compared=compared,
        tables=compared and {name: table(files.metrics) for name, table in instruction_tables.COMPARED.items()},
        measured=compared and {name: compared[model]["overall"]["perplexity"] for model, name in names.items()},
        published=compared and {name: compared["published"][model] for model, name in names.items()},
        curves=[
            ("perplexity against train rows", "rows", _series(growth, PERPLEXITY[:1], SPLITS[1:], "rows")),
            ("perplexity against steps", "step", _series(steps, PERPLEXITY[1:], SPLITS[1:])),
            ("loss against steps", "step", _series(steps, ("loss", "eval_loss"), SPLITS)),
        ],
        answers=answers and answers[:ANSWERS],
        of=len(answers or ()),
        is_right=lambda row, name: normal_form(row[name]) == normal_form(row["output"]),
        rows=rows,
        work=_work(files.metrics, told["used"], ()) | asked,
    )


def _told(files: RunFiles, stages: Sequence[str], doubts: Mapping[str, str], pipeline: str) -> Content:
    """What the page of any pipeline tells; `pipeline` is what stands before the names of its stages in their costs."""
    if not any(files.metrics.glob("*.json")):
        raise InputError(f"report: {files.metrics} holds no metrics; `make {pipeline[:-1] or 'repro'}` writes them")
    lock = read_yaml(files.lock).get("stages") or {} if files.lock.is_file() else {}
    spent = tables.last_costs(files.costs, [f"{pipeline}{stage}" for stage in stages]) if files.costs else {}
    return {
        "run": files,
        "stages": stages,
        "doubts": doubts,
        "used": _used(lock),
        "now": dict(_values(read_yaml(files.params))) if files.params.is_file() else {},
        "sizes": {name: sum(out.get("size", 0) for out in stage.get("outs", [])) for name, stage in lock.items()},
        "spent": {name.removeprefix(pipeline): cost for name, cost in spent.items()},
        "provenance": _provenance(files, lock),
        "versions": _versions(),
    }


def _template(name: str) -> Template:
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    templates.trim_blocks = templates.lstrip_blocks = True
    templates.filters["thousands"] = lambda number: f"{number:,}"
    templates.filters["turned"] = lambda table: list(zip(*table, strict=True))
    drawn = (charts.ticks, charts.scale, charts.bins, charts.powers, charts.log_scale)
    templates.globals.update({function.__name__: function for function in drawn})
    templates.globals.update(columns=tables.COLUMNS)
    return templates.get_template(name)


def _read(path: Path) -> Any:
    return records.read_metrics(path) if path.is_file() else None


def _jsonl(folder: Path | None, names: Iterable[str]) -> list[Content] | None:
    """The rows of all named files of a folder; None where one is absent."""
    if folder is None or not all((folder / name).is_file() for name in names):
        return None
    return [row for name in names for row in records.read_jsonl(folder / name)]


def _bounded(evaluated: Content, models: Sequence[str]) -> Iterator[tuple[str, dict[str, Any], float | None]]:
    """Each metric whose interval is known of all models: its values, and a level to compare them with."""
    for metric, column in tables.COLUMNS.items():
        values = {model: tables.value_of(evaluated[model], column) for model in models}
        if all(isinstance(value, Mapping) for value in values.values()):
            majority = evaluated["majority"]["replies"].get(column.name)
            control = 1 / len(evaluated["dpo"]["control"]["labels"])
            chance = {"control": control, "fit": tables.CHANCE, "joint": control * tables.CHANCE}
            yield metric, values, chance.get(metric, majority and majority["value"])


def _training(metrics: Path, stage: str) -> Content:
    """The history of a stage's training, and the curves that it holds."""
    path = metrics / f"{stage}_history.csv"
    history = _points(path)
    curves = [(title, _series(history, columns, names), level) for title, columns, names, level in CURVES[stage]]
    return {
        "stage": stage,
        "file": path,
        "history": history,
        "charts": [curve for curve in curves if curve[1]],
        "gap": (_read(metrics / f"{stage}.json") or {}).get("judge_gap"),
    }


def _points(path: Path) -> History:
    """The rows of a history, a blank as None; InputError names file and line of what is no number. No file, no rows."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = []
        for row in reader:
            try:
                rows.append({column: float(row[column]) if row[column] else None for column in row})
            except (TypeError, ValueError):
                raise InputError(f"{path}:{reader.line_num}: expected numbers, found {list(row.values())}") from None
    return rows


def _series(history: History, columns: Sequence[str], names: Sequence[str], over: str = "step") -> list[Content]:
    """The points of each of at most two columns that holds a number, `over` another column."""
    series = []
    for name, kind, column in zip(names, ("first", "second"), columns, strict=False):
        points = [(row[over], row.get(column)) for row in history]
        if drawn := [(x, y) for x, y in points if x is not None and y is not None and math.isfinite(y)]:
            series.append({"name": name, "kind": kind, "points": drawn})
    return series


def _examples(replies: Path | None, models: Sequence[str]) -> Content | None:
    """The first contexts that were asked for in every emotion, with what each model replied."""
    folders = {model: "prompted/" if model in PROMPTED else "" for model in models}
    answers = {model: _jsonl(replies, [f"{folder}{model}.control.jsonl"]) for model, folder in folders.items()}
    rows = {model: {row["id"]: row for row in own} for model, own in answers.items() if own}
    if len(rows) < len(models):
        return None
    contexts = [list(ids) for _, ids in groupby(rows["dpo"], lambda id: id.rpartition("/")[0])]
    shown = [[{model: rows[model][id] for model in models} for id in ids] for ids in contexts[:EXAMPLES]]
    return {"of": len(contexts), "contexts": [_example(questions, models) for questions in shown]}


def _example(questions: Sequence[Mapping[str, Content]], models: Sequence[str]) -> Content:
    """A context, the longest that any model saw of it, its replies a row an emotion, and how many are as asked."""
    return {
        "context": max((row[model]["context"] for model in models for row in questions), key=len),
        "rows": questions,
        "hits": {model: sum(row[model]["judged"] == row[model]["emotion"] for row in questions) for model in models},
    }


def _work(metrics: Path, used: Mapping[str, str], models: Sequence[str]) -> dict[str, list[str]]:
    """What each stage did, in the units that its cost grows with."""
    counted = {
        "base_model": {"train_tokens": "tokens", "parameters": "parameters"},
        "sft": {"trained_tokens": "tokens", "steps": "steps", "trainable_parameters": "trainable parameters"},
        "prefs": {"prompts": "prompts", "attempts_total": "attempts"},
        "dpo": {"pairs": "pairs", "steps": "steps"},
    }
    work = {}
    for name, units in counted.items():
        measured = _read(metrics / f"{name}.json") or {}
        work[name] = [f"{measured[key]:,} {unit}" for key, unit in units.items() if key in measured]
    if splits := _read(metrics / "prepare.json"):
        sizes = [split["dialogues"] for split in splits.values() if "dialogues" in split]
        work["prepare"] = [f"{sum(sizes):,} dialogues"]
    if evaluated := _read(metrics / "evaluate.json"):
        supports = {model: [evaluated[model][part]["support"] for part in ("replies", "control")] for model in models}
        replies = {model: sum(sum(support.values()) for support in own) for model, own in supports.items()}
        work["baseline"] = [f"{sum(replies.values()) - replies['sft'] - replies['dpo']:,} replies"]
        work["evaluate"] = [f"{replies['sft'] + replies['dpo']:,} replies"]
    if (candidates := used.get("prefs.candidates")) and work["prefs"]:
        work["prefs"].append(f"{candidates} candidates an attempt")
    return work | {"generate_prefs": work["prefs"]}


def _what_if(prefs: Content) -> Content | None:
    """How many prompts would make a pair by other thresholds, and the curves over min_chosen_score; None of older runs.

    The curves are of all prompts, and of the emotion of lowest yield.
    """
    if not prefs.get("what_if"):
        return None
    as_set = prefs["what_if"][0]
    others = [row for row in prefs["what_if"] if all(row[key] == as_set[key] for key in as_set.keys() - VARIED)]
    rows = sorted(others, key=lambda row: row["min_chosen_score"])
    least = min(prefs["yield"], key=prefs["yield"].get)
    wanted = {"all": prefs["prompts"], least: prefs["prompts_per_emotion"][least]}
    counts = [(row["min_chosen_score"], {"all": sum(row["pairs"].values())} | row["pairs"]) for row in rows]
    series = [
        {"name": name, "kind": kind, "points": [(score, pairs[name] / n) for score, pairs in counts]}
        for (name, n), kind in zip(wanted.items(), ("first", "second"), strict=True)
    ]
    return {"table": tables.what_if(prefs), "series": series if len(rows) > 1 else [], "least": least}


def _provenance(files: RunFiles, lock: Mapping[str, Any]) -> Content:
    was_kept = files.replies is None
    changes = git.ask("status", "--porcelain", "--untracked-files=no", "--", str(files.metrics) if was_kept else ".")
    return {
        "commit": git.ask("rev-parse", "HEAD"),
        "dirty": None if changes is None else [line[3:] for line in changes.splitlines()],
        # The workspace's metrics belong to HEAD; kept ones to the commit that put them there.
        "kept": git.ask("log", "-1", "--format=%H", "--", str(files.metrics)) if was_kept else None,
        "outs": [(stage, out) for stage, told in lock.items() for out in told.get("outs", [])],
        "checked": _checked(files, lock),
    }


def _used(lock: Mapping[str, Any]) -> dict[str, str]:
    """Each param as JSON, as the stages had it when they ran; several where they did not run with the same."""
    used: dict[str, dict[str, None]] = {}
    for stage in lock.values():
        for key, value in _values(stage.get("params", {}).get("params.yaml", {})):
            used.setdefault(key, {})[value] = None
    return {key: " | ".join(values) for key, values in sorted(used.items())}


def _values(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each param under its dotted name, as JSON but for text."""
    for key, value in nested.leaves(params):
        yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _checked(files: RunFiles, lock: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Whether the files that this page shows are those of dvc.lock, by their md5; folders are not compared."""
    hashes = {out["path"]: out.get("md5", "") for stage in lock.values() for out in stage.get("outs", [])}
    shown: dict[str, list[Path]] = {"same": [], "other": [], "absent": []}
    for above, folder in (("metrics/", files.metrics), ("data/replies/", files.replies)):
        for path, md5 in hashes.items():
            if folder is None or not path.startswith(above) or md5.endswith(".dir"):
                continue
            file = folder / path.removeprefix(above)
            if not file.is_file():
                shown["absent"].append(file)
            else:
                same = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() == md5
                shown["same" if same else "other"].append(file)
    return shown


def _versions() -> dict[str, str]:
    """Python, emotune and what it depends on, as installed where the page is written."""
    needs: list[str] = []
    with suppress(metadata.PackageNotFoundError):
        needs += metadata.requires("emotune") or []
    names = [re.split(r"[^\w.-]", need)[0] for need in needs if "extra ==" not in need]
    versions = {"python": platform.python_version()}
    for name in ["emotune", *sorted(names, key=str.lower)]:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
