"""Rows of instructions as turns, which a Prompter renders by the template that its tokenizer carries."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emotune.core.dialogue import ASSISTANT, USER, Turn
from emotune.core.seeds import key
from emotune.prompts.params import Format

# What the emotion of a turn is where nobody asks for one.
NO_EMOTION = ""
# The template that a base model came with.
OWN: Format = "own"
# A row as the rows stage writes it: id, task, instruction, input, output, source.
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Instruction(Turn):
    """A turn of the user that says what to do, and `input`, what to do it with ("" where that is nothing)."""

    input: str

    def message(self) -> dict[str, str]:
        # Not super(): a class with slots is made twice, and that would be another's.
        return {**Turn.message(self), "input": self.input}


def template_of(format: Format) -> str | None:
    """The name of one of formats/*.jinja; None for the template that a base model came with."""
    return None if format == OWN else format


def exchange(row: Row, format: Format) -> tuple[Instruction, Turn]:
    """Instruction and output as turns. No template but ours knows an input: to another it is the instruction's end."""
    instruction, given = row["instruction"], row["input"]
    if format == OWN and given:
        instruction, given = f"{instruction}\n\n{given}", ""
    return Instruction(USER, instruction, NO_EMOTION, given), Turn(ASSISTANT, row["output"], NO_EMOTION)


def shots(row: Row, train: Sequence[Row], count: int, seed: int) -> list[Row]:
    """At most `count` train rows to show before `row`: of its task where that has any, drawn by seed and row."""
    own = [other for other in train if other["task"] == row["task"]] or train
    return random.Random(key(seed, "shots", row["id"])).sample(list(own), min(count, len(own)))
