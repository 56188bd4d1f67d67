"""compare: the sft model answers what the base model answered without and with examples; all three side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from emotune.core import processes, records
from emotune.core.contract import DataSets, Dep, Log, Metrics, Out
from emotune.evaluation.instruction_params import Instructed

PARALLEL = True
# In the order of the table.
MODELS = ("zero_shot", "few_shot", "sft")
STEPS = (("zero_shot", "few_shot"), ("zero_shot", "sft"), ("few_shot", "sft"))
# Perplexities of the published study (few-shot and zero-shot prompts beside QLoRA, another model and other data). It
# has a QLoRA that does no better than a few examples.
PUBLISHED = {"zero_shot": 5.45, "few_shot": 4.74, "sft": 4.81}
TABLE = ["model", "metric", "value", "low", "high"]


class Params(Instructed):
    """The same for every model."""


def data_sets(p: Params) -> DataSets:
    """What it asks."""
    return {"rows": [p.evaluate.split]}


def main(
    p: Params,
    log: Log,
    rows: Dep,
    base: Dep,
    sft: Dep,
    zero_shot_replies: Dep,
    few_shot_replies: Dep,
    replies: Out,
    side_by_side: Out,
    headline: Out,
    comparison: Out,
) -> Metrics:
    """Ask the sft model the held-out rows; write the table of all three, its headline, and their replies."""
    from emotune.evaluation import instructions
    from emotune.models import loading
    from emotune.prompts.prompter import Prompter

    answers = {"zero_shot": list(records.read_jsonl(zero_shot_replies))}
    answers["few_shot"] = list(records.read_jsonl(few_shot_replies))
    prompter = Prompter(loading.load_tokenizer(sft, None), p.system_prompt, p.model.context)
    asked = instructions.held_out(rows, p.evaluate)
    model = loading.load_tuned(base, p.model, sft)
    answers["sft"] = instructions.answer(model, prompter, asked, [[] for _ in asked], p.format, p.evaluate, log)
    measured: dict[str, Any] = {name: instructions.measure(own, p.evaluate) for name, own in answers.items()}
    measured["paired"] = {
        f"{one}_to_{other}": instructions.compare(answers[one], answers[other], p.evaluate) for one, other in STEPS
    }
    measured["published"] = PUBLISHED
    if processes.first():
        records.write_jsonl(replies, answers["sft"])
        records.write_jsonl(side_by_side, beside(answers))
        records.write_json(headline, {name: of_headline(measured[name]["overall"]) for name in MODELS})
        records.write_csv(comparison, TABLE, table(measured))
    return measured


def beside(answers: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The row of each instruction with what every model replied to it."""
    return [
        {name: own[0][name] for name in ("id", "task", "instruction", "input", "output")}
        | {model: row["reply"] for model, row in zip(answers, own, strict=True)}
        for own in zip(*answers.values(), strict=True)
    ]


def of_headline(overall: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The numbers to compare two runs by, in digits that fit a screen."""
    names = {"perplexity": "ppl", "mean_row_perplexity": "row_ppl", "exact_match": "exact", "f1": "f1"}
    return {short: round(overall[name]["value"], 3) for name, short in names.items() if name in overall}


def table(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The comparison as rows of model, metric, value, low, high: what the plot shows."""
    return [
        {"model": model, "metric": metric.replace("_", " "), **value}
        for metric in measured["sft"]["overall"]
        for model in MODELS
        for value in [measured[model]["overall"][metric]]
    ]
