"""Turns and an emotion -> token ids, by the chat template that the tokenizer carries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from emotune.dialogue import ASSISTANT, Turn, trim

# A row for a language model: token ids, and for each whether it belongs to a reply (its end token included).
Row = tuple[list[int], list[bool]]


def template(name: str) -> str:
    """The text of one of templates/*.jinja, ready to be a tokenizer's `chat_template`."""
    folder = files("emotune") / "templates"
    return (folder / "_prelude.jinja").read_text("utf-8") + (folder / f"{name}.jinja").read_text("utf-8")


def messages(turns: Iterable[Turn], system_prompt: str | None) -> list[dict[str, str]]:
    """Turns as chat messages `{role, content, emotion}`, after the system prompt where there is one."""
    first = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return first + [{"role": turn.role, "content": turn.content, "emotion": turn.emotion} for turn in turns]


def prompt_text(tokenizer: Any, history: Sequence[Turn], emotion: str, system_prompt: str | None) -> str:
    """What the model is given when it is asked to answer `history` in `emotion`."""
    return tokenizer.apply_chat_template(
        messages(history, system_prompt), tokenize=False, add_generation_prompt=True, emotion=emotion
    )


def prompt_ids(tokenizer: Any, history: Sequence[Turn], emotion: str, system_prompt: str | None) -> list[int]:
    """The token ids of `prompt_text`: a prefix of every training row that goes on from there."""
    return tokenizer(prompt_text(tokenizer, history, emotion, system_prompt), add_special_tokens=False)["input_ids"]


def training_row(tokenizer: Any, turns: Sequence[Turn], system_prompt: str | None) -> Row:
    """A whole dialogue as ids, with True for each reply's tokens and its end token and False for all else."""
    encoded = tokenizer.apply_chat_template(
        messages(turns, system_prompt), return_dict=True, return_assistant_tokens_mask=True
    )
    return list(encoded["input_ids"]), [bool(inside) for inside in encoded["assistant_masks"]]


def reply_row(tokenizer: Any, history: Sequence[Turn], reply: Turn, system_prompt: str | None) -> Row:
    """Prompt and reply as ids, with True for the reply's tokens and its end: works for any chat template."""
    prompt = prompt_ids(tokenizer, history, reply.emotion, system_prompt)
    text = tokenizer.apply_chat_template(messages([*history, reply], system_prompt), tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if ids[: len(prompt)] != prompt:
        raise ValueError(f"the chat template does not continue its own generation prompt: {text!r}")
    return ids, [False] * len(prompt) + [True] * (len(ids) - len(prompt))


def fitting_history(
    tokenizer: Any, history: Sequence[Turn], emotion: str, system_prompt: str | None, room: int
) -> tuple[Turn, ...]:
    """The latest turns of `history`, whole, whose prompt takes at most `room` tokens (never less than the last)."""
    return trim(history, lambda turns: len(prompt_ids(tokenizer, turns, emotion, system_prompt)) <= room)


def fitting_rows(
    tokenizer: Any, turns: Sequence[Turn], system_prompt: str | None, context: int
) -> list[tuple[Turn, ...]]:
    """A dialogue cut between turns into as few pieces of at most `context` tokens as will do, in order.

    Each piece starts with a user turn and ends with a reply. An exchange that alone is longer is left out.
    """
    if len(training_row(tokenizer, turns, system_prompt)[0]) <= context:
        return [tuple(turns)]
    pieces: list[tuple[Turn, ...]] = []
    open_piece: tuple[Turn, ...] = ()
    exchanges = [tuple(turns[i : i + 2]) for i in range(0, len(turns) - 1, 2)]
    for exchange in exchanges:
        assert exchange[1].role == ASSISTANT
        longer = (*open_piece, *exchange)
        if len(training_row(tokenizer, longer, system_prompt)[0]) <= context:
            open_piece = longer
            continue
        if open_piece:
            pieces.append(open_piece)
        open_piece = exchange if len(training_row(tokenizer, exchange, system_prompt)[0]) <= context else ()
    return [*pieces, open_piece] if open_piece else pieces
