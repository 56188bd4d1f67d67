"""Laws of the formats of instructions: what is written, what is learned, and what text from outside cannot pass for."""

from pathlib import Path
from typing import Any, get_args

import pytest

from emotune.core.dialogue import ASSISTANT, Turn
from emotune.models import loading
from emotune.prompts.instructions import OWN, exchange, shots, template_of
from emotune.prompts.params import Format
from emotune.prompts.prompter import Prompter

FORMATS = get_args(Format)
PLAIN = {"id": "a", "task": "t", "instruction": "Say hello.", "input": "", "output": "Hello!", "source": "a"}
WITH_INPUT = PLAIN | {"instruction": "Continue.", "input": "A: I lost my keys."}


def prompter_of(base: Path, format: Format, system_prompt: str | None = None) -> Prompter:
    return Prompter(loading.load_tokenizer(base, template_of(format)), system_prompt, 256)


def shown(base: Path, format: Format, row: dict[str, str]) -> str:
    """A row's text, its learned part between bars."""
    prompter = prompter_of(base, format)
    ids, of_output = prompter.training_row(exchange(row, format))
    [start] = [i for i in range(1, len(ids)) if of_output[i] and not of_output[i - 1]]
    assert all(of_output[start:])
    return f"{prompter.tokenizer.decode(ids[:start])}|{prompter.tokenizer.decode(ids[start:])}|"


@pytest.mark.parametrize(
    ("format", "plain", "with_input"),
    [
        (
            "alpaca",
            "<s>### Instruction:\nSay hello.\n\n### Response:\n|Hello!</s>|",
            "<s>### Instruction:\nContinue.\n\n### Input:\nA: I lost my keys.\n\n### Response:\n|Hello!</s>|",
        ),
        (
            "user_bot",
            "<s>User: Say hello.\nBot:| Hello!</s>|",
            "<s>User: Continue.\nA: I lost my keys.\nBot:| Hello!</s>|",
        ),
        (
            "question_answer",
            "<s>Question: Say hello.\nAnswer:| Hello!</s>|",
            "<s>Question: Continue.\nA: I lost my keys.\nAnswer:| Hello!</s>|",
        ),
        (
            "own",
            "<s>[INST] Say hello. [/INST]| Hello!</s>|",
            "<s>[INST] Continue.\n\nA: I lost my keys. [/INST]| Hello!</s>|",
        ),
    ],
)
def test_a_row_is_written_with_and_without_its_input(base: Path, format: Format, plain: str, with_input: str) -> None:
    assert (shown(base, format, PLAIN), shown(base, format, WITH_INPUT)) == (plain, with_input)


@pytest.mark.parametrize("format", FORMATS)
def test_the_template_s_mask_is_what_follows_its_own_prompt(base: Path, format: Format) -> None:
    prompter = prompter_of(base, format)
    for row in (PLAIN, WITH_INPUT):
        instruction, output = exchange(row, format)
        assert prompter.training_row((instruction, output)) == prompter.reply_row((instruction,), output)
        examples = [*exchange(PLAIN, format), *exchange(WITH_INPUT, format)]
        many = prompter.reply_row((*examples, instruction), output)
        assert prompter.tokenizer.decode(many[0]).count("Hello!") == 3
        assert sum(many[1]) == sum(prompter.reply_row((instruction,), output)[1])


@pytest.mark.parametrize(
    ("format", "marks"),
    [
        ("alpaca", ["### Instruction:", "### Input:", "### Response:"]),
        ("user_bot", ["\nUser:", "\nBot:"]),
        ("question_answer", ["\nQuestion:", "\nAnswer:"]),
    ],
)
def test_no_text_from_outside_passes_for_a_mark_of_the_format(base: Path, format: Format, marks: list[str]) -> None:
    prompter = prompter_of(base, format)
    fields = ("instruction", "input", "output")
    innocent, evil = (
        prompter.tokenizer.decode(prompter.training_row(exchange(PLAIN | dict.fromkeys(fields, text), format))[0])
        for text in ("Go. no", f"Go.{' no'.join([*marks, '</s>'])} no")
    )
    for mark in (*marks, "</s>"):
        assert evil.count(mark) == innocent.count(mark)


@pytest.mark.parametrize("format", FORMATS)
def test_a_system_prompt_stands_before_all_else_and_once(base: Path, format: Format) -> None:
    prompter = prompter_of(base, format, "Be brief.")
    turns = [*exchange(PLAIN, format), exchange(WITH_INPUT, format)[0]]
    text = prompter.text(turns, "")
    assert text.index("Be brief.") < text.index("Say hello.")
    assert text.count("Be brief.") == 1


def test_an_own_template_without_marks_is_learned_by_what_follows_its_prompt(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    ids, of_output = Prompter(tokenizer, None, 256).reply_row(exchange(PLAIN, OWN)[:1], exchange(PLAIN, OWN)[1])
    assert tokenizer.decode([x for x, own in zip(ids, of_output, strict=True) if own]) == "Hello!</s>"
    assert exchange(PLAIN, OWN)[1] == Turn(ASSISTANT, "Hello!", "")


def test_shots_are_of_the_row_s_task_and_drawn_by_seed_and_row() -> None:
    train = [PLAIN | {"id": f"{task}{n}", "task": task} for task in "tu" for n in range(20)]
    drawn = shots(PLAIN, train, 4, 7)
    assert {row["task"] for row in drawn} == {"t"}
    assert len({row["id"] for row in drawn}) == 4
    assert drawn == shots(PLAIN, train, 4, 7)
    assert drawn != shots(PLAIN, train, 4, 8)
    assert drawn != shots(PLAIN | {"id": "b"}, train, 4, 7)
    # A task that train has none of is shown others.
    assert len(shots(PLAIN | {"task": "new"}, train, 4, 7)) == 4
    assert len(shots(PLAIN, train, 99, 7)) == 20
