"""What a card's head says to the Hub, as YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emotune.publish.facts import ADAPTERS, MEASURED, Facts
from emotune.runs import tables
from emotune.runs.params import Params

DATA = {"embedded": "the embedded corpus of emotune", "folder": "DailyDialog", "jsonl": "the publisher's own dialogues"}


def of_model(part: str, facts: Facts, evaluated: Mapping[str, Any]) -> str:
    """That of base, sft, dpo or merged."""
    from huggingface_hub import ModelCardData

    p, base = facts.p, facts.base
    datasets = [str(p.data.name)] if p.data.source == "hub" else None
    return ModelCardData(
        model_name=facts.repositories[part].name,
        license=facts.licenses.own,
        language=_language(p),
        library_name="peft" if part in ADAPTERS else "transformers",
        pipeline_tag="text-generation",
        base_model=base.id if base and part != "base" else None,
        datasets=[facts.repositories["prefs"].id] if part in ("dpo", "merged") else datasets,
        tags=_tags(part, facts),
        eval_results=_results(p, evaluated[MEASURED[part]]),
    ).to_yaml()


def of_prefs(facts: Facts) -> str:
    """That of the preference dataset."""
    from huggingface_hub import DatasetCardData

    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in ("train", "validation")]
    return DatasetCardData(
        pretty_name=facts.repositories["prefs"].name,
        license=facts.licenses.own,
        language=_language(facts.p),
        tags=["emotune", "emotion", "preference", "dpo", "trl"],
        task_categories=["text-generation"],
        configs=[{"config_name": "default", "data_files": files}],
    ).to_yaml()


def data_name(p: Params) -> str:
    """What the data are called."""
    return DATA.get(p.data.source, str(p.data.name))


def _language(p: Params) -> str | None:
    return "en" if p.data.source in ("embedded", "folder") else None


def _tags(part: str, facts: Facts) -> list[str]:
    tags = ["emotune", "emotion"]
    if part != "base":
        tags += ["trl", "generated_from_trainer", MEASURED[part]]
    if part in ADAPTERS:
        tags += ["lora", "transformers", *([f"base_model:adapter:{facts.base.id}"] if facts.base else [])]
    return tags


def _results(p: Params, measured: Mapping[str, Any]) -> list[Any]:
    """The Hub's `model-index`; a metric's interval stands among its `args`, where there is one."""
    from huggingface_hub import EvalResult

    results = []
    for name, (section, key, _) in tables.COLUMNS.items():
        figure = measured.get(section, {}).get(key)
        if figure is None:
            continue
        interval = isinstance(figure, Mapping) and "low" in figure
        results.append(
            EvalResult(
                task_type="text-generation",
                task_name="replies in a requested emotion",
                dataset_type="daily_dialog" if p.data.source == "folder" else p.data.name or f"emotune-{p.data.source}",
                dataset_name=data_name(p),
                dataset_split=p.evaluate.split,
                dataset_revision=p.data.revision,
                metric_type="f1" if "f1" in key else name,
                metric_name=name,
                metric_value=figure["value"] if isinstance(figure, Mapping) else figure,
                metric_args={"low": figure["low"], "high": figure["high"], "level": 0.95} if interval else None,
            )
        )
    return results
