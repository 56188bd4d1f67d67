"""One run's metrics and replies -> one HTML page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from emotune.core import git, nested, records
from emotune.core.errors import InputError
from emotune.core.sections import read_yaml
from emotune.faces import charts
from emotune.runs import tables

Content = dict[str, Any]
MODELS = ("baseline", "sft", "dpo")
EXAMPLES = 20
# Pairs shown, the first of data/prefs/train.jsonl.
PAIRS = 5
# What was published of the preference gaps: a difference of rewards whose length term alone grows to 78.
PUBLISHED = {"pairs": 2048, "median": 17.547, "mean": 16.144, "sd": 5.815, "weights": [0.4, 0.25, 0.35]}
SPLITS = ("train", "validation")
JUDGES = ("rewarding judge", "evaluating judge")
# A chart a row: its title, the two columns of the history it draws and their names, and a level to compare with.
CURVES: dict[str, list[tuple[str, tuple[str, str], tuple[str, str], float | None]]] = {
    "sft": [("loss", ("loss", "eval_loss"), SPLITS, None)],
    "dpo": [
        ("loss", ("loss", "eval_loss"), SPLITS, None),
        ("reward margin of chosen over rejected", ("rewards/margins", "eval_rewards/margins"), SPLITS, 0.0),
        ("reward accuracy", ("rewards/accuracies", "eval_rewards/accuracies"), SPLITS, 0.5),
        ("log-probability of chosen", ("logps/chosen", "eval_logps/chosen"), SPLITS, None),
        ("log-probability of rejected", ("logps/rejected", "eval_logps/rejected"), SPLITS, None),
        ("control", ("control_reward_judge", "control_evaluate_judge"), JUDGES, None),
    ],
}
WHY_NOT = {
    "range": "best and worst score too close to each other",
    "score": "even the best scores too low",
    "emotion": "the best is not judged to have the emotion asked for",
    "gibberish": "the best is not clean text",
    "ending": "the best does not end like a sentence",
    "same": "best and worst are the same",
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


def html(files: RunFiles, stages: Sequence[str]) -> str:
    """The page of a run, `stages` in the pipeline's order; equal files, git state and packages make equal bytes."""
    if not any(files.metrics.glob("*.json")):
        raise InputError(f"report: {files.metrics} holds no metrics; `make repro` writes them")
    lock = read_yaml(files.lock).get("stages") or {} if files.lock.is_file() else {}
    used = _used(lock)
    evaluated = _read(files.metrics / "evaluate.json")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment.get_template("page.html.jinja").render(
        run=files,
        used=used,
        models=MODELS,
        published=PUBLISHED,
        headline=_headline(evaluated) if evaluated else None,
        comparison=_comparison(evaluated) if evaluated else None,
        confusion=_matrices(evaluated, "replies") if evaluated else None,
        control=_control(evaluated) if evaluated else None,
        training=_training(files.metrics),
        preferences=_preferences(files),
        judges=_judges(files.metrics),
        data=_data(files.metrics),
        examples=_examples(files.replies),
        costs=_costs(files, stages, lock, used),
        provenance=_provenance(files, lock, used),
    )


def _read(path: Path) -> Any:
    return records.read_json(path) if path.is_file() else None


def _headline(evaluated: Content) -> list[Content]:
    """The three numbers that matter, for each model."""
    shown = {
        "control": "How often a reply has the emotion asked for, where each context is asked in every one",
        "macro F1": "How well replies meet the emotion a human replied in, every emotion counting alike",
        "perplexity": "How much the human replies surprise the model; less is better",
    }
    return [
        {
            "metric": metric,
            "meaning": meaning,
            "digits": tables.COLUMNS[metric].digits,
            "values": [(model, _measured(evaluated, model, metric)) for model in MODELS],
        }
        for metric, meaning in shown.items()
    ]


def _measured(evaluated: Content, model: str, metric: str) -> Any:
    return tables.value_of(evaluated[model], tables.COLUMNS[metric])


def _comparison(evaluated: Content) -> Content:
    """The tables of `emotune report`, a metric a row, the charts of their intervals, and who gained which replies."""
    changes = _turned(tables.differences(evaluated))
    return {
        "table": [[cell.split("\n") for cell in row] for row in _turned(tables.comparison(evaluated, "\n{}–{}"))],
        # Below each metric stands its p.
        "differences": [
            changes[0],
            *([*zip(*rows, strict=True)] for rows in zip(changes[1::2], changes[2::2], strict=True)),
        ],
        "mcnemar": [
            (kind, [(step, evaluated["paired"][key][part]["mcnemar"]) for step, key in tables.STEPS.items()])
            for kind, part in (("replies", "replies"), ("control", "control"))
        ],
        "charts": [(metric, _intervals(evaluated, metric)) for metric in tables.COLUMNS if _bounded(evaluated, metric)],
    }


def _turned(table: tables.Table) -> list[list[str]]:
    return [list(column) for column in zip(*table, strict=True)]


def _bounded(evaluated: Content, metric: str) -> bool:
    return all(isinstance(_measured(evaluated, model, metric), Mapping) for model in MODELS)


def _intervals(evaluated: Content, metric: str) -> str:
    values = {model: _measured(evaluated, model, metric) for model in MODELS}
    rows = [charts.Interval(model, model, one["value"], one["low"], one["high"]) for model, one in values.items()]
    label = "; ".join(f"{row.name} {row.value:.4g}, from {row.low:.4g} to {row.high:.4g}" for row in rows)
    labels = evaluated["dpo"]["control"]["labels"]
    majority = evaluated["majority"]["replies"].get(tables.COLUMNS[metric].name)
    level = 1 / len(labels) if metric == "control" else majority and majority["value"]
    return charts.intervals(rows, f"{metric}: {label}", level)


def _matrices(evaluated: Content, part: str) -> list[Content]:
    """For each model: of the replies asked for in the row's emotion, the share judged to have the column's."""
    matrices = []
    for model in MODELS:
        labels, counts = evaluated[model][part]["labels"], evaluated[model][part]["confusion"]
        rows = [
            (label, sum(row), [(n, n / sum(row) if any(row) else None) for n in row])
            for label, row in zip(labels, counts, strict=True)
        ]
        matrices.append({"model": model, "labels": labels, "rows": rows})
    return matrices


def _control(evaluated: Content) -> Content:
    """How often each emotion is met where every context is asked for in every one, and what comes instead."""
    labels = evaluated["dpo"]["control"]["labels"]
    return {
        "contexts": evaluated["dpo"]["control"]["support"][labels[0]],
        "chance": 1 / len(labels),
        "rows": [(label, [evaluated[model]["control"]["per_emotion"][label] for model in MODELS]) for label in labels],
        "means": [evaluated[model]["control"]["macro_accuracy"]["value"] for model in MODELS],
        "matrices": _matrices(evaluated, "control"),
    }


def _training(metrics: Path) -> list[Content]:
    """The curves of sft and dpo that their histories hold."""
    stages = []
    for stage, curves in CURVES.items():
        path = metrics / f"{stage}_history.csv"
        history = _history(path) if path.is_file() else []
        drawn = [
            (title, _curve(history, f"{stage} {title}", columns, names, level))
            for title, columns, names, level in curves
        ]
        stages.append(
            {
                "stage": stage,
                "file": path,
                "charts": [(title, chart) for title, chart in drawn if chart],
                "columns": list(history[0]) if history else [],
                "rows": [list(row.values()) for row in history],
                "gap": (_read(metrics / f"{stage}.json") or {}).get("judge_gap"),
            }
        )
    return stages


def _history(path: Path) -> list[dict[str, float | None]]:
    """The rows of a history, a blank as None; InputError names file and line of what is no number."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = []
        for row in reader:
            try:
                rows.append({column: float(row[column]) if row[column] else None for column in row})
            except (TypeError, ValueError):
                raise InputError(f"{path}:{reader.line_num}: expected numbers, found {list(row.values())}") from None
    return rows


def _curve(
    history: Sequence[Mapping[str, float | None]],
    title: str,
    columns: tuple[str, str],
    names: tuple[str, str],
    level: float | None,
) -> Content | None:
    """A chart of two of the history's columns, where either holds a number."""
    series = []
    for name, kind, column in zip(names, ("first", "second"), columns, strict=True):
        points = [(row["step"], row.get(column)) for row in history]
        drawn = [(x, y) for x, y in points if x is not None and y is not None and math.isfinite(y)]
        if drawn:
            series.append(charts.Series(name, kind, drawn))
    if not series:
        return None
    spoken = (
        f"{one.name} {one.points[0][1]:.4g} at step {one.points[0][0]:g}, "
        f"{one.points[-1][1]:.4g} at step {one.points[-1][0]:g}"
        for one in series
    )
    return {"svg": charts.lines(series, f"{title}: {'; '.join(spoken)}", level), "keys": series}


def _preferences(files: RunFiles) -> Content | None:
    prefs = _read(files.metrics / "prefs.json")
    if prefs is None:
        return None
    pairs = _jsonl(files.prefs, ("train.jsonl", "validation.jsonl"))
    gaps = [pair["chosen_score"] - pair["rejected_score"] for pair in pairs or []]
    label = f"Gaps of {len(gaps)} pairs, median {prefs['gap']['median']:.4g}"
    return {
        "numbers": list(zip(*tables.preferences(files.metrics), strict=True)),
        "gap": prefs["gap"],
        "pairs": prefs["pairs"],
        "emotions": [(label, n, prefs["yield"].get(label)) for label, n in prefs["pairs_per_emotion"].items()],
        "failures": [(WHY_NOT.get(reason, reason), n) for reason, n in _most_first(prefs["failures"])],
        "attempts": prefs["attempts_total"],
        "histogram": charts.histogram(gaps, label, "gap") if gaps else None,
        "examples": pairs and pairs[:PAIRS],
    }


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda counted: -counted[1])


def _jsonl(folder: Path | None, names: Iterable[str]) -> list[Content] | None:
    """The rows of all named files of a folder; None where one is absent."""
    if folder is None or not all((folder / name).is_file() for name in names):
        return None
    return [row for name in names for row in records.read_jsonl(folder / name)]


def _judges(metrics: Path) -> Content | None:
    judges = _read(metrics / "judges.json")
    return judges and {
        "table": tables.judges(metrics),
        "classes": [(name, list(one["per_class"].items())) for name, one in judges.items()],
    }


def _data(metrics: Path) -> Content | None:
    prepared = _read(metrics / "prepare.json")
    if prepared is None:
        return None
    splits = [name for name in ("train", "validation", "test") if name in prepared]
    labels = prepared[splits[0]]["labels"]
    return {
        "splits": splits,
        "rows": [
            *((name, [prepared[split][name] for split in splits]) for name in ("dialogues", "turns")),
            *((label, [prepared[split]["labels"].get(label, 0) for split in splits]) for label in labels),
        ],
        "overlap": list(prepared.get("test_replies_in_train", {}).items()),
    }


def _examples(replies: Path | None) -> Content | None:
    """The first contexts that were asked for in every emotion, with what each model replied."""
    answers = {model: _jsonl(replies, [f"{model}.control.jsonl"]) for model in MODELS}
    rows = {model: {row["id"]: row for row in own} for model, own in answers.items() if own}
    if len(rows) < len(MODELS):
        return None
    contexts = [list(same) for _, same in groupby(rows["dpo"].values(), lambda row: row["id"].rpartition("/")[0])]
    return {"of": len(contexts), "contexts": [_example(questions, rows) for questions in contexts[:EXAMPLES]]}


def _example(questions: Sequence[Content], rows: Mapping[str, Mapping[str, Content]]) -> Content:
    """A context, the longest that any model saw of it, and a row an emotion: each model's reply."""
    ids = [row["id"] for row in questions]
    seen = [rows[model][id]["context"] for model in MODELS for id in ids]
    return {
        "context": max(seen, key=len),
        "rows": [(row["emotion"], [(model, rows[model][row["id"]]) for model in MODELS]) for row in questions],
        "hits": [
            (model, sum(rows[model][id]["judged"] == rows[model][id]["emotion"] for id in ids)) for model in MODELS
        ],
    }


def _costs(files: RunFiles, stages: Sequence[str], lock: Mapping[str, Any], used: Mapping[str, str]) -> Content:
    """A row a stage: what it did, how large what it wrote is, and what its last run on this machine took."""
    spent = tables.last_costs(files.costs, stages) if files.costs else {}
    work = _work(files.metrics, used)
    sizes = {name: sum(out.get("size", 0) for out in stage.get("outs", [])) for name, stage in lock.items()}
    return {
        "rows": [(name, work.get(name, []), sizes.get(name), spent.get(name)) for name in stages],
        "size": sum(sizes.values()),
        "seconds": sum(one["seconds"] for one in spent.values()),
        "memory": max((one["peak_memory_bytes"] for one in spent.values()), default=None),
    }


def _work(metrics: Path, used: Mapping[str, str]) -> dict[str, list[str]]:
    """What each stage did, in the units that its cost grows with."""
    counted = {
        "base_model": {"train_tokens": "tokens", "parameters": "parameters"},
        "sft": {"trained_tokens": "tokens", "steps": "steps", "trainable_parameters": "trainable parameters"},
        "generate_prefs": {"prompts": "prompts", "attempts_total": "attempts"},
        "dpo": {"pairs": "pairs", "steps": "steps"},
    }
    work = {}
    for stage, units in counted.items():
        file = {"generate_prefs": "prefs"}.get(stage, stage)
        measured = _read(metrics / f"{file}.json") or {}
        work[stage] = [f"{measured[key]:,} {unit}" for key, unit in units.items() if key in measured]
    if splits := _read(metrics / "prepare.json"):
        sizes = [split["dialogues"] for split in splits.values() if "dialogues" in split]
        work["prepare"] = [f"{sum(sizes):,} dialogues"]
    if evaluated := _read(metrics / "evaluate.json"):
        replies = {
            model: sum(sum(evaluated[model][part]["support"].values()) for part in ("replies", "control"))
            for model in MODELS
        }
        work["baseline"] = [f"{replies['baseline']:,} replies"]
        work["evaluate"] = [f"{replies['sft'] + replies['dpo']:,} replies"]
    if (candidates := used.get("prefs.candidates")) and work["generate_prefs"]:
        work["generate_prefs"].append(f"{candidates} candidates an attempt")
    return work


def _provenance(files: RunFiles, lock: Mapping[str, Any], used: Mapping[str, str]) -> Content:
    now = dict(_values(read_yaml(files.params))) if files.params.is_file() else {}
    was_kept = files.replies is None
    changes = git.ask("status", "--porcelain", "--untracked-files=no", "--", str(files.metrics) if was_kept else ".")
    return {
        "commit": git.ask("rev-parse", "HEAD"),
        "dirty": None if changes is None else [line[3:] for line in changes.splitlines()],
        # The workspace's metrics belong to HEAD; kept ones to the commit that put them there.
        "kept": git.ask("log", "-1", "--format=%H", "--", str(files.metrics)) if was_kept else None,
        "outs": [(stage, out) for stage, told in lock.items() for out in told.get("outs", [])],
        "checked": _checked(files, lock),
        "params": [(key, value, now.get(key, value)) for key, value in sorted(used.items())],
        "versions": _versions(),
    }


def _used(lock: Mapping[str, Any]) -> dict[str, str]:
    """Each param as JSON, as the stages had it when they ran; several where they did not run with the same."""
    used: dict[str, dict[str, None]] = {}
    for stage in lock.values():
        for key, value in _values(stage.get("params", {}).get("params.yaml", {})):
            used.setdefault(key, {})[value] = None
    return {key: " | ".join(values) for key, values in used.items()}


def _values(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each param under its dotted name, as JSON but for text."""
    for key, value in nested.leaves(params):
        yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _checked(files: RunFiles, lock: Mapping[str, Any]) -> Content:
    """Whether the files that this page shows are those of dvc.lock, by their md5; folders are not compared."""
    here = {"metrics": files.metrics, "data/replies": files.replies}
    hashes = {out["path"]: out.get("md5", "") for stage in lock.values() for out in stage.get("outs", [])}
    shown: Content = {"same": [], "other": [], "absent": []}
    for above, folder in here.items():
        for path, md5 in hashes.items():
            if folder is None or not path.startswith(f"{above}/") or md5.endswith(".dir"):
                continue
            file = folder / Path(path).relative_to(above)
            if not file.is_file():
                shown["absent"].append(file)
            else:
                same = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() == md5
                shown["same" if same else "other"].append(file)
    return shown


def _versions() -> list[tuple[str, str]]:
    """Python, emotune and what it depends on, as installed where the page is written."""
    try:
        needed = metadata.requires("emotune") or []
    except metadata.PackageNotFoundError:
        needed = []
    names = [re.split(r"[^\w.-]", need)[0] for need in needed if "extra ==" not in need]
    versions = [("python", platform.python_version())]
    for name in ["emotune", *sorted(names, key=str.lower)]:
        try:
            versions.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return versions
