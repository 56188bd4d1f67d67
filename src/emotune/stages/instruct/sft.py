"""sft: LoRA on the base model, so that it does what an instruction says."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from emotune.core import processes, records
from emotune.core.contract import DataSets, Dep, Inputs, Log, Metrics, Out
from emotune.core.errors import InputError
from emotune.core.sections import Section
from emotune.core.seeds import key
from emotune.models.params import Model
from emotune.prompts.instructions import OWN, Row, exchange, template_of
from emotune.prompts.params import Format
from emotune.prompts.prompter import Prompter
from emotune.training import lora
from emotune.training.lora import UNLEARNED
from emotune.training.params import Adapter, Tuning

PARALLEL = True
# What a row of the history shows, and one of the learning curve.
HISTORY = ["step", "loss", "eval_loss", "eval_perplexity", "learning_rate", "grad_norm"]
CURVE = ["rows", "steps", "validation_loss", "validation_perplexity"]


class Lora(Adapter):
    words: bool


class Sft(Tuning):
    lora: Lora
    loss_on: Literal["replies", "all"]
    prompt: Literal["in", "out"]
    curve: tuple[Annotated[float, Field(gt=0, lt=1)], ...]


class Params(Section):
    """The base model, how it is asked, and how it is tuned."""

    format: Format
    model: Model
    sft: Sft
    system_prompt: str | None


def data_sets(_: Params) -> DataSets:
    """What it trains on and watches."""
    return {"rows": ("train", "validation")}


def main(
    p: Params, log: Log, inputs: Inputs, rows: Dep, base: Dep, out: Out, history: Out, learning_curve: Out
) -> Metrics:
    """Train a LoRA adapter on all train rows, and others on shares of them; write that of all, and both curves."""
    from emotune.models import loading
    from emotune.training.workspace import workspace

    tokenizer = loading.load_tokenizer(base, template_of(p.format))
    prompter = Prompter(tokenizer, p.system_prompt, p.model.context)
    train, left_out = training_rows(prompter, records.read_jsonl(rows / "train.jsonl"), p)
    # Whatever is learned, what is watched is what every model is asked for.
    watched = p.model_copy(update={"sft": p.sft.model_copy(update={"loss_on": "replies", "prompt": "in"})})
    held_out, _ = training_rows(prompter, records.read_jsonl(rows / "validation.jsonl"), watched)
    random.Random(key(p.sft.seed, "learning curve")).shuffle(train)
    words = sorted({token for row in train for token in row["input_ids"]}) if p.sft.lora.words else None
    points = []
    with workspace("instruct/sft", p.model_dump(mode="json"), inputs) as folder:
        for count in counts(len(train), p.sft.curve):
            hear = log if count == len(train) else _nobody
            model, own = loading.load_base(base, p.model), folder / str(count)
            tuned, curve, measured = lora.tune(
                model, tokenizer, train[:count], held_out, words, p.sft, p.model, own, hear
            )
            points.append(measured | {"validation_perplexity": math.exp(measured["validation_loss"])})
        if processes.first():
            loading.save_adapter(tuned, tokenizer, base, out)
            records.write_csv(history, HISTORY, map(_with_perplexity, curve))
            records.write_csv(learning_curve, CURVE, points)
    return points[-1] | {"rows_left_out_too_long": left_out}


def counts(rows: int, shares: Sequence[float]) -> list[int]:
    """How many rows each model of the learning curve learns from, ever more, the last one from all."""
    return sorted({max(1, round(share * rows)) for share in (*shares, 1)})


def _nobody(metrics: Mapping[str, float], step: int) -> None:
    """Hears what a model of a share of the rows logs: the tracker's history is that of the model of all."""


def _with_perplexity(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "eval_perplexity": math.exp(row["eval_loss"])} if "eval_loss" in row else dict(row)


def training_rows(prompter: Prompter, rows: Iterator[Row], p: Params) -> tuple[list[dict[str, list[int]]], int]:
    """Rows of ids and labels, and how many rows of instructions are longer than the context, and left out.

    InputError where none is left.
    """
    result, left_out = [], 0
    for row in rows:
        ids, of_output = _rendered(prompter, row, p.format)
        if len(ids) <= prompter.context:
            result.append(training_row(ids, of_output, p.sft))
        left_out += len(ids) > prompter.context
    if not result:
        raise InputError(f"model.context: no row of {left_out} fits in {prompter.context} tokens")
    return result, left_out


def _rendered(prompter: Prompter, row: Row, format: Format) -> tuple[list[int], list[bool]]:
    """By the template's own marks; one that a base model came with mostly has none, and goes on from its prompt."""
    instruction, output = exchange(row, format)
    if format == OWN:
        return prompter.reply_row((instruction,), output)
    return prompter.training_row((instruction, output))


def training_row(ids: Sequence[int], of_output: Sequence[bool], p: Sft) -> dict[str, list[int]]:
    """Ids and labels: of the output, or of `all`; where the prompt is `out`, of it the first token alone is there.

    That is the beginning-of-sequence token, where a model has one: what it sees before the output is then nothing.
    """
    # The first token is all that is left of a prompt that is out.
    row = [
        (token, is_output)
        for place, (token, is_output) in enumerate(zip(ids, of_output, strict=True))
        if p.prompt == "in" or place == 0 or is_output
    ]
    learns_all = p.loss_on == "all"
    return {
        "input_ids": [token for token, _ in row],
        "labels": [token if learns_all or is_output else UNLEARNED for token, is_output in row],
    }
