"""Laws of prompting: which examples a prompt shows, where the instruction stands, and what gives way to what."""

from pathlib import Path
from typing import Any

import pytest

from emotune.core.dialogue import Dialogue, Turn
from emotune.core.errors import InputError
from emotune.models.loading import load_tokenizer
from emotune.prompts.few_shot import Example, Examples, Prompted, at_random, by_emotion, most_similar
from emotune.prompts.prompter import Prompter

LABELS = ("neutral", "anger", "sadness")
TURNS = (
    Turn("user", "I lost my keys.", "sadness"),
    Turn("assistant", "Where did you see them last?", "neutral"),
    Turn("user", "On the table!", "anger"),
)
KEYS, RAIN, DOG = (Example(said, f"{said} Oh no.") for said in ("My keys are gone.", "It rains.", "The dog is ill."))
POOLS = {"neutral": [], "anger": [Example("You again!", "Go away!")], "sadness": [KEYS, RAIN, DOG]}
INSTRUCTION, EXAMPLE = "Reply in {emotion}.", "{said} -> {reply}"
# Gemma's templates refuse a system message, others leave it out.
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)
DEAF = "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def prompted(base: Path, examples: Examples | None = None, context: int = 256, **how: Any) -> Prompted:
    """One who asks the tiny base model in words, in its own format."""
    plain = Prompter(load_tokenizer(base, None), how.pop("system_prompt", None), context)
    return Prompted(plain, INSTRUCTION, EXAMPLE, examples or at_random(POOLS, 3, 7), **how)


def text(asking: Prompted, history: tuple[Turn, ...] = TURNS, emotion: str = "sadness", room: int = 8) -> str:
    return asking.tokenizer.decode(asking.fitting_prompt(history, emotion, room)[1])


def test_examples_are_replies_in_the_emotion_after_what_they_answer_each_text_once() -> None:
    again = (Turn("user", "Hm.", "anger"), Turn("assistant", "where did you SEE them last", "neutral"))
    pools = by_emotion([Dialogue("a", TURNS[:2]), Dialogue("b", again)], LABELS)
    assert pools == {"neutral": [Example(TURNS[0].content, TURNS[1].content)], "anger": [], "sadness": []}


def test_examples_at_random_are_the_seed_s_and_the_same_for_every_prompt_of_an_emotion() -> None:
    many = {"sadness": [Example(f"{n}", f"{n}!") for n in range(50)], "anger": POOLS["anger"]}
    drawn = at_random(many, 4, 7)
    assert len(set(drawn("a", "sadness"))) == 4
    assert drawn("a", "sadness") == drawn("b", "sadness") == at_random(many, 4, 7)("c", "sadness")
    assert at_random(many, 4, 8)("a", "sadness") != drawn("a", "sadness")
    assert drawn("a", "anger") == POOLS["anger"]


def test_similar_examples_answer_what_is_most_like_what_was_said_the_most_like_first() -> None:
    examples = most_similar(POOLS, 2)
    assert examples("The dog lost my keys", "sadness") == [KEYS, DOG]
    assert examples("Where is the dog?", "sadness")[0] == DOG
    # Nothing is like it: the first of the pool.
    assert examples("!", "sadness") == [KEYS, RAIN]
    assert (examples("You!", "anger"), examples("You!", "neutral")) == (POOLS["anger"], [])


def test_a_prompt_says_the_emotion_then_the_examples_then_the_dialogue(base: Path) -> None:
    drawn = at_random(POOLS, 3, 7)("", "sadness")
    shown = "\n\n".join(f"{one.said} -> {one.reply}" for one in drawn)
    expected = f"<s>[INST] <<SYS>>\nReply in sadness.\n\n{shown}\n<</SYS>>\n\nI lost my keys. [/INST]"
    assert text(prompted(base)).startswith(expected)
    assert "Reply in anger.\n\nYou again! -> Go away!\n<</SYS>>" in text(prompted(base), emotion="anger")
    zero = Prompted(prompted(base).plain, INSTRUCTION)
    assert "<<SYS>>\nReply in anger.\n<</SYS>>" in text(zero, emotion="anger")
    whole = prompted(base, system_prompt="Be kind.")
    assert "<<SYS>>\nBe kind.\n\nReply in sadness.\n\n" in text(whole)


@pytest.mark.parametrize("template", [NO_SYSTEM, DEAF])
def test_a_template_without_system_messages_has_it_before_the_first_turn_of_the_user(base: Path, template: str) -> None:
    asking = prompted(base)
    asking.tokenizer.chat_template = template
    said = text(asking)
    assert said.startswith("user: Reply in sadness.\n\n")
    assert said.endswith("Oh no.\n\nI lost my keys.\nassistant: Where did you see them last?\nuser: On the table!\n")


def test_examples_give_way_to_the_dialogue_the_last_first_and_it_is_noted(base: Path) -> None:
    whole = [len(prompted(base, at_random(POOLS, n, 7)).fitting_prompt(TURNS, "sadness", 8)[1]) for n in (1, 2, 3)]
    # `sample` of one, of two and of three begin alike: fewer shots are the first of more.
    ids = prompted(base).fitting_prompt(TURNS, "sadness", 8)[1]
    for tokens, shots in ((whole[2], 3), (whole[2] - 1, 2), (whole[1] - 1, 1), (whole[0] - 1, 0)):
        asking = prompted(base, context=tokens + 8)
        turns, fitting, _ = asking.fitting_prompt(TURNS, "sadness", 8)
        assert turns == TURNS
        assert asking.shown == {(TURNS, "sadness"): shots}
        assert text(asking).count("Oh no.") == shots
        assert len(fitting) <= tokens
        # What prompts of an emotion begin with is the same, however many examples fit.
        assert fitting[:8] == ids[:8]
    none = len(Prompted(prompted(base).plain, INSTRUCTION).fitting_prompt(TURNS, "sadness", 8)[1])
    assert prompted(base, context=none + 7).fitting_prompt(TURNS, "sadness", 8)[0] == TURNS[2:]


def test_a_last_turn_that_is_too_long_is_cut_in_front_and_the_instruction_never(base: Path) -> None:
    long = (Turn("user", "On the table! " * 40 + "The end.", "anger"),)
    said = text(prompted(base, context=96), long)
    assert "Reply in sadness." in said
    assert said.endswith("The end. [/INST]")
    with pytest.raises(InputError, match=r"^baseline.instruction: with sadness it takes \d+ tokens, and model.context"):
        prompted(base, context=20).fitting_prompt(long, "sadness", 8)


def test_a_human_reply_costs_what_it_does_behind_the_prompt_that_asks_for_it(base: Path) -> None:
    asking = prompted(base)
    reply = Turn("assistant", "Then let us look there!", "sadness")
    ids, marks = asking.fitting_row(TURNS, reply)
    prompt = asking.fitting_prompt(TURNS, "sadness", 8)[1]
    assert tuple(ids[: len(prompt)]) == prompt
    assert asking.tokenizer.decode([id for id, mark in zip(ids, marks, strict=True) if mark]).strip() == (
        "Then let us look there!</s>"
    )
    # One token less: an example goes, and no turn.
    less, _ = prompted(base, context=len(ids) - 1).fitting_row(TURNS, reply)
    told = asking.tokenizer.decode(less)
    assert told.count("Oh no.") == 2
    assert "I lost my keys. [/INST]" in told
    assert prompted(base, context=24).fitting_row(TURNS, reply) is None
