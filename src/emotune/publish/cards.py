"""Cards: the README.md of each repository on the Hub, from dvc.lock, params.yaml and the metrics.

What a card says stands in its template; here is what has to be computed for it.
"""

import csv
import json
import re
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from emotune.core import records
from emotune.data.instructions import Row
from emotune.prompts.instructions import OWN
from emotune.publish import example
from emotune.publish.facts import ADAPTERS, MEASURED, Facts, InstructionFacts, Run, is_folder
from emotune.runs import instruction_tables, tables
from emotune.runs.params import Instructions, Params

CURVE_ROWS = 12
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M")
SIZE_LIMITS = (1_000, 10_000, 100_000, 1_000_000)
BARS = "▁▂▃▄▅▆▇█"
DATA = {"embedded": "the embedded corpus of emotune", "folder": "DailyDialog", "jsonl": "the publisher's own dialogues"}


def of_model(part: str, facts: Facts, tokenizer: Any, folder: Path) -> str:
    """The card of base, sft, dpo or merged; `tokenizer` is the one that is published with it, `folder` its stage's."""
    p, evaluated = facts.p, records.read_metrics(facts.metrics / "evaluate.json")
    trained = part != "base"
    return _rendered(
        "model",
        part,
        facts,
        metadata=_head(part, facts, evaluated),
        data_name=_data_name(p),
        adapter=part in ADAPTERS,
        messages=example.messages(p),
        emotion=example.emotion(p),
        prompt=example.prompts(p, tokenizer)[0],
        comparison=tables.markdown(tables.comparison(evaluated, tables.INTERVAL)),
        differences=tables.markdown(tables.differences(evaluated)),
        prompting=tables.prompting(evaluated),
        over_seeds=tables.steps_over_seeds(facts.metrics / "studies", evaluated),
        difference=tables.difference,
        votes=votes_on(folder, facts.metrics / "votes.json"),
        per_emotion=tables.markdown(_per_emotion(evaluated)),
        curve=curve(history(part, facts)) if trained else "",
        weak=_weak(evaluated[MEASURED[part]]) if trained else [],
        worse=_worse(evaluated) if MEASURED[part] == "dpo" else [],
        parameters=records.read_metrics(facts.metrics / "base_model.json").get("parameters"),
    )


def votes_on(folder: Path, counted: Path) -> str:
    """What people said of the model in a folder, as Markdown; nothing where no vote was counted that is of it."""
    voted = records.read_metrics(counted) if counted.is_file() else {"models": []}
    if records.digest(folder) not in (one["adapter"] for one in voted["models"]):
        return ""
    return "\n\n".join(f"{head}:\n\n{tables.markdown(table)}" for head, table in tables.votes(voted).items())


def of_prefs(facts: Facts, columns: Sequence[str], rows: Mapping[str, int]) -> str:
    """The card of the preference dataset with these columns, and so many rows in each split."""
    return _rendered(
        "prefs",
        "prefs",
        facts,
        metadata=_head_of_prefs(facts, rows),
        columns=columns,
        rows=rows,
        measured=records.read_metrics(facts.metrics / "prefs.json"),
        preferences=tables.markdown(tables.preferences(facts.metrics)),
    )


def of_instructed(part: str, facts: InstructionFacts) -> str:
    """The card of the base model that instructions are learned on, or of the adapter that learned them."""
    p, tuned = facts.p, part != "base"
    message = {"role": "user", "content": "Name the emotion of the speaker in one word.", "input": "We won the match!"}
    system = [{"role": "system", "content": p.system_prompt}] if p.system_prompt else []
    if p.format == OWN:
        message = {"role": "user", "content": f"{message['content']}\n\n{message['input']}"}
    return _rendered(
        "instructed",
        part,
        facts,
        metadata=_head_of_instructed(part, facts),
        messages=[*system, message],
        figures=[tables.markdown(table(facts.metrics)) for table in instruction_tables.COMPARED.values()],
        curve=curve(history(part, facts)) if tuned else "",
        splits=records.read_metrics(facts.metrics / "rows.json"),
    )


def of_rows(facts: InstructionFacts, rows: Mapping[str, int]) -> str:
    """The card of the rows of instructions, so many in each split."""
    measured = records.read_metrics(facts.metrics / "rows.json")
    columns = list(Row._fields)
    head = _head_of_data("rows", facts, rows, ["emotune", "instruction-tuning"], _language_of_rows(facts.p))
    return _rendered("rows", "rows", facts, metadata=head, rows=rows, columns=columns, splits=measured)


def _rendered(form: str, part: str, facts: Run, **values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("emotune.publish"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"json": lambda value: json.dumps(value, ensure_ascii=False), "last_name": _last_name}
    outs = [out for stage in facts.lock["stages"].values() for out in stage["outs"]]
    if isinstance(facts, Facts):
        values["judges"] = tables.markdown(tables.judges(facts.metrics))
        values["prepared"] = records.read_metrics(facts.metrics / "prepare.json")
    text = environment.get_template(f"{form}.md.jinja").render(
        **values,
        part=part,
        facts=facts,
        p=facts.p,
        repositories=facts.repositories,
        base=facts.base.link if facts.base else f"`{_last_name(facts.p.model.base)}`",
        stage=facts.stages[part],
        folders=sorted((out["path"], out["md5"]) for out in outs if out["md5"].endswith(".dir")),
        settings=_settings(facts.lock, facts.stages[part]),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _last_name(name: str) -> str:
    """What a model or judge is called, without the folders of this machine."""
    return Path(name).name if is_folder(name) else name


def _settings(lock: Mapping[str, Any], stage: str) -> str:
    """The params with which a stage ran, without the paths of the machine it ran on."""
    from ruamel.yaml import YAML

    text = StringIO()
    YAML().dump(_without_folders(lock["stages"][stage]["params"]["params.yaml"]), text)
    return text.getvalue().strip()


def _without_folders(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and value.startswith((".", "/", "~")) else value


def history(part: str, facts: Run) -> str:
    """The CSV of a training's curves, as the stage wrote it."""
    return (facts.metrics / f"{facts.stages[part]}_history.csv").read_text(encoding="utf-8")


def curve(text: str) -> str:
    """A training's CSV as lines of bars, one a column, and a table of at most 12 of its rows, the last among them."""
    rows = list(csv.DictReader(StringIO(text)))
    columns = [name for name in rows[0] if name not in ("step", "learning_rate", "grad_norm")]
    width = max(map(len, columns))
    lines = [f"{name.ljust(width)}  {bars([float(row[name]) for row in rows if row[name]])}" for name in columns]
    every = max(1, -(-len(rows) // CURVE_ROWS))
    table = [
        ["step", *columns],
        *([row["step"], *(row[name] for name in columns)] for row in rows[::-1][::every][::-1]),
    ]
    return "\n".join(["```", *lines, "```", "", tables.markdown(table)])


def bars(values: Sequence[float]) -> str:
    """A bar a value, the least the lowest and the greatest the highest; equal values are all low."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)


def _per_emotion(evaluated: Mapping[str, Any]) -> tables.Table:
    """How often each model obeys, a row an emotion."""
    control = {model: evaluated[model]["control"] for model in tables.MODELS if "control" in evaluated.get(model, {})}
    labels = next(iter(control.values()))["labels"]
    shares = ([label, *(f"{of_model['per_emotion'][label]:.3f}" for of_model in control.values())] for label in labels)
    return [["", *control], *shares]


def _weak(measured: Mapping[str, Any]) -> list[str]:
    """The emotions that a model obeys less often than chance would."""
    shares = measured["control"]["per_emotion"]
    return [label for label, share in shares.items() if share < 1 / len(shares)]


def _worse(evaluated: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What dpo did not better, beside what it is for: the metric, sft's figure and its own."""
    for name in ("perplexity", "distinct-2", "words"):
        column = tables.COLUMNS[name]
        before, after = (tables.figure(evaluated[model], column).value or 0.0 for model in ("sft", "dpo"))
        if (after > before) == (name == "perplexity"):
            yield name, f"{before:.{column.digits}f}", f"{after:.{column.digits}f}"


# What the head of a card says to the Hub, as YAML.


def _head(part: str, facts: Facts, evaluated: Mapping[str, Any]) -> str:
    """Of base, sft, dpo or merged."""
    from huggingface_hub import ModelCardData

    p, base, trained = facts.p, facts.base, part != "base"
    datasets = [str(p.data.name)] if p.data.source == "hub" else None
    tags = ["emotune", "emotion"]
    if trained:
        tags += ["trl", "generated_from_trainer", MEASURED[part]]
    if part in ADAPTERS:
        tags += ["lora", "transformers", *([f"base_model:adapter:{base.id}"] if base else [])]
    return ModelCardData(
        model_name=facts.repositories[part].name,
        license=facts.licenses.own,
        language=_language(p),
        library_name="peft" if part in ADAPTERS else "transformers",
        pipeline_tag="text-generation",
        base_model=base.id if base and trained else None,
        base_model_relation=("adapter" if part in ADAPTERS else "finetune") if base and trained else None,
        datasets=[facts.repositories["prefs"].id] if part in ("dpo", "merged") else datasets,
        tags=tags,
        eval_results=_results(p, evaluated[MEASURED[part]]),
    ).to_yaml()


def size(rows: int) -> str:
    """What the Hub calls a dataset of so many rows."""
    return SIZES[bisect(SIZE_LIMITS, rows)]


def _head_of_instructed(part: str, facts: InstructionFacts) -> str:
    from huggingface_hub import ModelCardData

    base, tuned = facts.base, part != "base"
    tags = ["emotune", "instruction-tuning"]
    if tuned:
        tags += ["trl", "generated_from_trainer", "lora", *([f"base_model:adapter:{base.id}"] if base else [])]
    return ModelCardData(
        model_name=facts.repositories[part].name,
        license=facts.licenses.own if tuned else facts.licenses.base,
        language=_language_of_rows(facts.p),
        library_name="peft" if tuned else "transformers",
        pipeline_tag="text-generation",
        base_model=base.id if base and tuned else None,
        base_model_relation="adapter" if base and tuned else None,
        datasets=[facts.repositories["rows"].id] if tuned else None,
        tags=tags,
    ).to_yaml()


def _language_of_rows(p: Instructions) -> str | None:
    return "en" if p.rows.source == "embedded" and not p.questions.path else None


def _head_of_prefs(facts: Facts, rows: Mapping[str, int]) -> str:
    tags = ["emotune", "emotion", "preference", "dpo", "trl"]
    return _head_of_data("prefs", facts, rows, tags, _language(facts.p))


def _head_of_data(part: str, facts: Run, rows: Mapping[str, int], tags: list[str], language: str | None) -> str:
    from huggingface_hub import DatasetCardData

    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in rows]
    return DatasetCardData(
        pretty_name=facts.repositories[part].name,
        license=facts.licenses.own,
        language=language,
        tags=tags,
        task_categories=["text-generation"],
        size_categories=[size(sum(rows.values()))],
        configs=[{"config_name": "default", "data_files": files}],
    ).to_yaml()


def _data_name(p: Params) -> str:
    return DATA.get(p.data.source, str(p.data.name))


def _language(p: Params) -> str | None:
    return "en" if p.data.source in ("embedded", "folder") else None


def _results(p: Params, measured: Mapping[str, Any]) -> list[Any]:
    """The Hub's `model-index`; a metric's interval stands among its `args`, where there is one."""
    from huggingface_hub import EvalResult

    about: dict[str, Any] = {
        "task_type": "text-generation",
        "task_name": "replies in a requested emotion",
        "dataset_type": "daily_dialog" if p.data.source == "folder" else p.data.name or f"emotune-{p.data.source}",
        "dataset_name": _data_name(p),
        "dataset_split": p.evaluate.split,
        "dataset_revision": p.data.revision,
    }
    results = []
    for name, column in tables.COLUMNS.items():
        value, low, high = tables.figure(measured, column)
        if value is not None:
            kind = "f1" if "f1" in column.name else name
            interval = None if low is None else {"low": low, "high": high, "level": 0.95}
            results.append(
                EvalResult(**about, metric_type=kind, metric_name=name, metric_value=value, metric_args=interval)
            )
    return results
