"""The base model that comes with the package, and how it was made: `python -m emotune.models.embedded`, `make base`.

A small Llama that can go on with the embedded dialogues before anybody tunes it. Like a real base model it has read the
words and phrases that are kept from the train split, but no dialogue and no reply of four words or more that the
validation or the test split has. embedded.yaml says what it read and how it learned, embedded.json what came out.
"""

import sys
from pathlib import Path

from emotune.core import records
from emotune.core.contract import Log, Metrics
from emotune.core.dialogue import DAILY_DIALOG_LABELS
from emotune.core.errors import InputError
from emotune.core.sections import Count, Section, check, read_yaml
from emotune.data import corpus
from emotune.models import pins
from emotune.models.params import Learning, Small
from emotune.models.pretraining import contents, dialogue_rows, make_tokenizer, pretrain
from emotune.prompts.prompter import Prompter


class Splits(Section):
    """The embedded dialogues whose validation and test split are not read: `data` of params.yaml."""

    dialogues: Count
    seed: int


class Recipe(Section):
    """How many dialogues it reads, drawn by which seed, in rows of how many tokens, and how it learns."""

    dialogues: Count
    seed: int
    context: Count
    unread: Splits
    pretrain: Learning


def recipe_of(small: Small | None = None) -> Recipe:
    """How the embedded model was made; or another of that size, and from as many dialogues."""
    path = pins.WEIGHTS.with_name("embedded.yaml")
    recipe = check(Recipe, read_yaml(path), str(path))
    if small is None:
        return recipe
    learning = recipe.pretrain.model_copy(update=small.model_dump(exclude={"dialogues"}))
    return recipe.model_copy(update={"dialogues": small.dialogues, "pretrain": learning})


def make(recipe: Recipe, weights: Path, made: Path) -> None:
    """Write a folder with the model and its tokenizer, and its content's sha256 with what it measured beside it.

    On one machine, with as many threads, these are the same bytes every time.
    """
    with records.replacing_folder(weights) as folder:
        metrics = train(recipe, folder, lambda values, step: None)
    records.write_json(made, {"sha256": pins.folder_revision(weights), **metrics})


def train(recipe: Recipe, folder: Path, log: Log) -> Metrics:
    """Write the model and its tokenizer into a folder; returns what it measured."""
    splits = corpus.dialogues(recipe.unread.dialogues, recipe.unread.seed)
    read = corpus.reading(recipe.dialogues, recipe.seed, [*splits["validation"], *splits["test"]])
    tokenizer = make_tokenizer(contents(read), DAILY_DIALOG_LABELS, recipe.pretrain.vocabulary)
    prompter = Prompter(tokenizer, None, recipe.context)
    rows, held_out = dialogue_rows(prompter, read), dialogue_rows(prompter, splits["validation"])
    model, metrics = pretrain(tokenizer, rows, held_out, recipe.pretrain, recipe.context, log)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return metrics


if __name__ == "__main__":
    try:
        make(recipe_of(), pins.WEIGHTS, pins.MADE)
    except InputError as error:
        sys.exit(str(error))
