"""Cards: the README.md of each repository on the Hub, from dvc.lock, params.yaml and the metrics."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any

from emotune.core import records
from emotune.publish.hub import Repository
from emotune.runs import tables
from emotune.runs.params import Params

ADAPTERS = ("sft", "dpo")
# The stage that makes a part.
STAGES = {"base": "base_model", "sft": "sft", "dpo": "dpo", "merged": "dpo", "prefs": "generate_prefs"}
# Those that a card tells of.
RUN = ("prepare", *dict.fromkeys(STAGES.values()), "evaluate")
# The name under which metrics/evaluate.json has a model's figures.
MEASURED = {"base": "baseline", "sft": "sft", "dpo": "dpo", "merged": "dpo"}
DATA = {"embedded": "the embedded corpus of emotune", "folder": "DailyDialog", "jsonl": "the publisher's own dialogues"}
EXAMPLE = "I lost my keys again."
CURVE_ROWS = 12
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Facts:
    """What the cards of one publication share."""

    # As the stages ran: what dvc.lock has, and for the rest params.yaml.
    p: Params
    metrics: Path
    lock: Mapping[str, Any]
    lock_sha256: str
    commit: str
    dirty: bool
    repositories: Mapping[str, Repository]
    license: str
    data_license: str
    base_license: str
    # What spoke against publishing, and why it was done all the same.
    objections: Sequence[str]
    reason: str | None


def of_model(part: str, facts: Facts, tokenizer: Any) -> str:
    """The card of base, sft, dpo or merged; `tokenizer` is the one that is published with it."""
    p, evaluated = facts.p, records.read_json(facts.metrics / "evaluate.json")
    return _rendered(
        "model",
        part,
        facts,
        metadata=_model_metadata(part, facts, evaluated),
        base_said=_base_said(facts),
        labels=p.data.labels,
        dtype=p.model.dtype,
        template="native" if part == "base" else p.template,
        code=_model_code(part, facts),
        example=prompts(p, tokenizer)[0],
        split=p.evaluate.split,
        data_said=_data_said(p),
        comparison=tables.markdown(tables.comparison(evaluated, " [{}, {}]")),
        differences=tables.markdown(tables.differences(evaluated)),
        per_emotion=tables.markdown(_per_emotion(evaluated)),
        curve=curve(history(part, facts)) if part != "base" else "",
        limits=_limits(part, facts, evaluated),
    )


def of_prefs(facts: Facts, columns: Sequence[str], rows: Mapping[str, int]) -> str:
    """The card of the preference dataset with these columns, and so many rows in each split."""
    p, found = facts.p, records.read_json(facts.metrics / "prefs.json")
    return _rendered(
        "prefs",
        "prefs",
        facts,
        metadata=_prefs_metadata(facts),
        candidates=p.prefs.candidates,
        attempts=p.prefs.attempts,
        gap=p.prefs.target_score_range,
        code=f"from datasets import load_dataset\n\npairs = load_dataset({facts.repositories['prefs'].quoted()})",
        columns=[(column, _column_said(column)) for column in columns],
        preferences=tables.markdown(tables.preferences(facts.metrics)),
        per_emotion=[
            (label, str(count), f"{found['yield'].get(label, 0):.0%}")
            for label, count in found["pairs_per_emotion"].items()
        ],
        rows=rows,
        duplicates={
            "prompt": f"{found['duplicate_prompts']:.1%}",
            "chosen": f"{found['duplicate_chosen']:.1%}",
            "test": f"{found['prompts_in_test']:.1%}",
        },
        weights=list(p.reward.weights),
        bias=p.reward.bias,
    )


def history(part: str, facts: Facts) -> str:
    """The CSV of a training's curves, as the stage wrote it."""
    return (facts.metrics / f"{STAGES[part]}_history.csv").read_text(encoding="utf-8")


def curve(text: str) -> str:
    """A training's CSV as lines of bars, one a column, and a table of at most 12 of its rows, the last among them."""
    rows = list(csv.DictReader(StringIO(text)))
    columns = [name for name in rows[0] if name not in ("step", "learning_rate", "grad_norm")]
    lines = [[name, bars([float(row[name]) for row in rows if row[name]])] for name in columns]
    every = max(1, -(-len(rows) // CURVE_ROWS))
    shown = rows[::-1][::every][::-1]
    table = [["step", *columns], *([row["step"], *(row[name] for name in columns)] for row in shown)]
    return f"```\n{_padded(lines)}\n```\n\n{tables.markdown(table)}"


def bars(values: Sequence[float]) -> str:
    """A bar a value, the least the lowest and the greatest the highest; equal values are all low."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)


def _padded(lines: Sequence[Sequence[str]]) -> str:
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {drawn}" for name, drawn in lines)


def _rendered(form: str, part: str, facts: Facts, **values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(str(files("emotune.publish") / "templates"))
    environment = Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    names = {name: where.id for name, where in facts.repositories.items()}
    text = environment.get_template(f"{form}.md.jinja").render(
        **values,
        part=part,
        repository=facts.repositories[part],
        names=names | {f"{name}_url": where.url for name, where in facts.repositories.items()},
        objections=facts.objections,
        reason=facts.reason,
        judges=tables.markdown(tables.judges(facts.metrics)),
        judges_said=_judges_said(facts.p),
        license=facts.license,
        data_license=facts.data_license,
        data_text=_data_text(facts.p),
        prepared=_prepared(facts),
        base_text=_base_text(facts),
        stage=STAGES[part],
        commit=facts.commit,
        dirty=facts.dirty,
        command=_command(facts),
        lock_sha256=facts.lock_sha256,
        hashes=_hashes(facts.lock),
        settings=_settings(facts.lock, STAGES[part]),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


# What a card's head says to the Hub.


def _model_metadata(part: str, facts: Facts, evaluated: Mapping[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    p, own = facts.p, facts.repositories
    base = base_id(facts)
    tags = ["emotune", "emotion", *(["trl", "generated_from_trainer"] if part != "base" else [])]
    tags += {"base": [], "sft": ["sft"], "dpo": ["dpo"], "merged": ["dpo"]}[part]
    if part in ADAPTERS:
        tags += ["lora", "transformers", *([f"base_model:adapter:{base}"] if base else [])]
    return ModelCardData(
        model_name=own[part].name,
        license=facts.license,
        language="en" if p.data.source in ("embedded", "folder") else None,
        library_name="peft" if part in ADAPTERS else "transformers",
        pipeline_tag="text-generation",
        base_model=base if part != "base" else None,
        datasets=[own["prefs"].id]
        if part in ("dpo", "merged")
        else [str(p.data.name)]
        if p.data.source == "hub"
        else None,
        tags=tags,
        eval_results=_results(p, evaluated[MEASURED[part]]),
    ).to_yaml()


def _results(p: Params, measured: Mapping[str, Any]) -> list[Any]:
    """The Hub's `model-index`; a metric's interval stands among its `args`, where there is one."""
    from huggingface_hub import EvalResult

    results = []
    for name, (section, key, _) in tables.COLUMNS.items():
        found = measured.get(section, {}).get(key)
        if found is None:
            continue
        with_interval = isinstance(found, Mapping)
        results.append(
            EvalResult(
                task_type="text-generation",
                task_name="replies in a requested emotion",
                dataset_type="daily_dialog" if p.data.source == "folder" else p.data.name or f"emotune-{p.data.source}",
                dataset_name=_data_said(p),
                dataset_split=p.evaluate.split,
                dataset_revision=p.data.revision,
                metric_type="f1" if "f1" in key else name,
                metric_name=name,
                metric_value=found["value"] if with_interval else found,
                metric_args={"low": found["low"], "high": found["high"], "level": 0.95}
                if with_interval and "low" in found
                else None,
            )
        )
    return results


def _prefs_metadata(facts: Facts) -> str:
    from huggingface_hub import DatasetCardData

    p = facts.p
    return DatasetCardData(
        pretty_name=facts.repositories["prefs"].name,
        license=facts.license,
        language="en" if p.data.source in ("embedded", "folder") else None,
        tags=["emotune", "emotion", "preference", "dpo", "trl"],
        task_categories=["text-generation"],
        configs=[
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"data/{split}-*.parquet"} for split in ("train", "validation")
                ],
            }
        ],
    ).to_yaml()


# What its text says.


def base_id(facts: Facts) -> str | None:
    """The base model's name on the Hub: ours where it was trained here, None where it lies in a folder alone."""
    base = facts.p.model.base
    if base == "embedded":
        return facts.repositories["base"].id
    return None if _is_folder(base) else base


def _is_folder(base: str) -> bool:
    return base.startswith((".", "/", "~")) or base.count("/") != 1 or Path(base).is_dir()


def _base_said(facts: Facts) -> str:
    found = base_id(facts)
    url = facts.repositories["base"].url if facts.p.model.base == "embedded" else f"https://huggingface.co/{found}"
    return f"[{found}]({url})" if found else f"`{Path(facts.p.model.base).name}`"


def _base_text(facts: Facts) -> str:
    model = facts.p.model
    if model.base == "embedded":
        return f"The base model, {_base_said(facts)}, was trained on the same data, and has the same licence."
    pin = f"commit `{model.revision}`" if base_id(facts) else f"a local model, its files' sha256 `{model.revision}`"
    return f"The base model is {_base_said(facts)} ({pin}), licensed under `{facts.base_license}`."


def _data_said(p: Params) -> str:
    return DATA.get(p.data.source, str(p.data.name))


def _data_text(p: Params) -> str:
    pin = f", pinned by its content's sha256 `{p.data.revision}`"
    return {
        "embedded": f"Dialogues from a grammar written for emotune: {p.data.dialogues}, from seed {p.data.seed}.",
        "folder": "The official DailyDialog (Li et al., 2017, https://aclanthology.org/I17-1099), which is for "
        f"non-commercial use and share-alike{pin}.",
        "hub": f"[{p.data.name}](https://huggingface.co/datasets/{p.data.name}) at commit `{p.data.revision}`.",
        "jsonl": f"Dialogues of the publisher's own{pin}.",
    }[p.data.source] + " Cleaned, trimmed, and in splits that share no dialogue:"


def _prepared(facts: Facts) -> list[tuple[str, Any]]:
    found = records.read_json(facts.metrics / "prepare.json")
    return [(split, found[split]) for split in ("train", "validation", "test")]


def _judges_said(p: Params) -> str:
    judges = {"reward": p.reward.emotion_judge, "evaluate": p.evaluate.emotion_judge, "gibberish": p.gibberish_judge}
    return "\n".join(
        f"- `{name}`: "
        + (
            "trained on the train split, with scikit-learn"
            if judge.name == "embedded"
            else f"{Path(judge.name).name if _is_folder(judge.name) else judge.name}, at `{judge.revision}`"
        )
        for name, judge in judges.items()
    )


def _messages(p: Params) -> list[dict[str, str]]:
    system = [{"role": "system", "content": p.system_prompt}] if p.system_prompt else []
    return [*system, {"role": "user", "content": EXAMPLE, "emotion": p.data.neutral}]


def prompts(p: Params, tokenizer: Any) -> list[str]:
    """The worked example, and the same message with every other emotion asked for."""
    return [
        tokenizer.apply_chat_template(_messages(p), tokenize=False, add_generation_prompt=True, emotion=emotion)
        for emotion in sorted(p.data.labels, key=lambda label: label != _asked(p))
    ]


def _asked(p: Params) -> str:
    return next(label for label in p.data.labels if label != p.data.neutral)


def _model_code(part: str, facts: Facts) -> str:
    p, own = facts.p, facts.repositories[part].quoted()
    found, revision = base_id(facts), p.model.revision
    base = facts.repositories["base"].quoted() if p.model.base == "embedded" else json.dumps(found)
    base += f", revision={json.dumps(revision)}" if found and revision else ""
    if found is None:
        base = json.dumps(f"path/of/{Path(p.model.base).name}")
    dtype = json.dumps("bfloat16" if part == "merged" else p.model.dtype)
    adapter = part in ADAPTERS
    sampling = p.evaluate.sampling
    how = (
        f"do_sample=True, temperature={sampling.temperature}, top_k={sampling.top_k}, top_p={sampling.top_p}"
        if sampling.temperature
        else "do_sample=False"
    )
    return "\n".join(
        [
            *(["from peft import PeftModel"] if adapter else []),
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({own})",
            f"model = AutoModelForCausalLM.from_pretrained({base if adapter else own}, dtype={dtype})",
            *([f"model = PeftModel.from_pretrained(model, {own})"] if adapter else []),
            "",
            f"messages = {json.dumps(_messages(p), ensure_ascii=False)}",
            "prompt = tokenizer.apply_chat_template(",
            f"    messages, emotion={json.dumps(_asked(p))}, add_generation_prompt=True, "
            'return_tensors="pt", return_dict=True',
            ")",
            f"reply = model.generate(**prompt, max_new_tokens={sampling.max_new_tokens}, {how})",
            'print(tokenizer.decode(reply[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    )


def _per_emotion(evaluated: Mapping[str, Any]) -> tables.Table:
    models = [model for model in tables.MODELS if "control" in evaluated[model]]
    found = {model: evaluated[model]["control"]["per_emotion"] for model in models}
    labels = list(evaluated[models[0]]["control"]["labels"])
    return [["", *models], *([label, *(f"{found[model][label]:.3f}" for model in models)] for label in labels)]


def _limits(part: str, facts: Facts, evaluated: Mapping[str, Any]) -> list[str]:
    measured = evaluated[MEASURED[part]]
    limits = []
    if part != "base":
        share = measured["control"]["per_emotion"]
        weak = [label for label, found in share.items() if found < 1 / len(share)]
        if weak:
            limits.append(f"Asked for {', '.join(weak)}, it is judged to obey less often than chance would.")
        for name, (section, key, digits) in tables.COLUMNS.items():
            if name in ("perplexity", "distinct-2", "words"):
                before, after = (_plain(evaluated[model][section][key]) for model in ("sft", MEASURED[part]))
                if part != "sft" and (after > before) == (name == "perplexity"):
                    limits.append(f"DPO moved {name} from {before:.{digits}f} (sft) to {after:.{digits}f}.")
    if facts.p.model.base == "embedded":
        parameters = records.read_json(facts.metrics / "base_model.json")["parameters"]
        limits.append(f"The base model has {parameters:,} parameters and was trained on the data above alone.")
    return limits


def _plain(found: Any) -> float:
    return float(found["value"] if isinstance(found, Mapping) else found)


def _column_said(column: str) -> str:
    said = {
        "prompt": "what the model was given, in its prompt format",
        "chosen": "the reply with the higher score",
        "rejected": "the reply with the lower score",
        "chosen_score": "the chosen reply's score",
        "rejected_score": "the rejected reply's score",
        "id": "dialogue, turn and emotion asked for",
        "dialogue": "the dialogue of the train split that the history comes from",
        "emotion": "the emotion that was asked for",
        "attempts": "how often the prompt was tried until it made a pair",
        "history": "the turns before the reply: role, content, emotion",
    }
    side, _, rest = column.partition("_")
    parts = {
        "judged": "the emotion that the rewarding judge finds in the {} reply",
        "judged_confidence": "how sure it is",
        "gibberish": "what the gibberish judge calls the {} reply",
        "gibberish_confidence": "how sure it is",
        "emotion_score": "the emotion term of the {} reply's score",
        "length_score": "the length term",
        "gibberish_score": "the gibberish term",
    }
    return said.get(column) or parts.get(rest, "").format(side)


# Where it comes from.


def _command(facts: Facts) -> str:
    p = facts.p
    data = " DATA=path/of/the/data" if p.data.source in ("folder", "jsonl") else ""
    model = f" MODEL=path/of/{Path(p.model.base).name}" if p.model.base != "embedded" and base_id(facts) is None else ""
    return f"git checkout {facts.commit}\nmake repro{data}{model}"


def _hashes(lock: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The folders that stages wrote: data and models."""
    outs = [out for stage in lock["stages"].values() for out in stage["outs"]]
    return sorted((out["path"], out["md5"]) for out in outs if out["md5"].endswith(".dir"))


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
