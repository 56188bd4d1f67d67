"""base_model: the small Llama that comes with the package, one trained here from nothing, or the pin of another."""

import re
from collections.abc import Sequence

from emotune.core import records
from emotune.core.contract import Dep, Log, Metrics, Out
from emotune.core.errors import InputError
from emotune.core.sections import Section
from emotune.data.params import Labels
from emotune.models import pins
from emotune.models.params import Pretrain
from emotune.prompts.prompter import Prompter


class Data(Section):
    """The emotions, whose names the tokenizer has to know."""

    labels: Labels


class Model(Section):
    """Which base model, and how long a row it may hold."""

    base: str
    revision: str | None
    context: int


class Params(Section):
    """`pretrain`, and what the pin of another model needs."""

    data: Data
    model: Model
    pretrain: Pretrain


def main(p: Params, log: Log, dialogues: Dep, out: Out) -> Metrics:
    """Write a model and its tokenizer, `embedded` or from `scratch`, or the name, commit and hashes of `model.base`."""
    if p.model.base != pins.SCRATCH:
        return pins.place(p.model.base, p.model.revision, out)
    metrics = from_nothing(p, log, dialogues, out)
    records.write_json(out / pins.BASE_FILE, {"name": p.model.base})
    return metrics


def from_nothing(p: Params, log: Log, dialogues: Dep, out: Out) -> Metrics:
    """A Llama that has read the train dialogues without their emotions, and `pretrain.extra` before them."""
    from emotune.models.pretraining import contents, dialogue_rows, make_tokenizer, pretrain, text_rows

    train, validation = (records.read_dialogues(dialogues / f"{split}.jsonl") for split in ("train", "validation"))
    extra = paragraphs(p.pretrain.extra, p.pretrain.extra_revision) if p.pretrain.extra else []
    tokenizer = make_tokenizer([*contents(train), *extra], p.data.labels, p.pretrain.vocabulary)
    prompter = Prompter(tokenizer, None, p.model.context)
    rows = dialogue_rows(prompter, train) + text_rows(tokenizer, extra, p.model.context)
    held_out = dialogue_rows(prompter, validation)
    model, metrics = pretrain(tokenizer, rows, held_out, p.pretrain, p.model.context, log)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return metrics


def paragraphs(path: str, revision: str | None) -> Sequence[str]:
    """The paragraphs of a folder's .txt files, in the order of their names; a line that is empty ends one.

    InputError where the folder is missing, holds no text, or is not what `revision` pins.
    """
    folder = pins.located(path)
    files = sorted(folder.rglob("*.txt")) if folder.is_dir() else []
    texts = [part for file in files for part in re.split(r"\n\s*\n", records.read_text(file))]
    texts = [" ".join(text.split()) for text in texts if text.strip()]
    if not texts:
        raise InputError(f"pretrain.extra must be a folder with text in files named *.txt; found none in {folder}")
    content = records.content_hash({file.relative_to(folder).as_posix(): records.sha256(file) for file in files})
    if revision != content:
        raise InputError(
            f"pretrain.extra_revision must pin the content of {path}, which DVC cannot hash: found sha256 {content}, "
            f"params.yaml has {revision}"
        )
    return texts
