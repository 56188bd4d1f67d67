"""Histories and dialogues cut between turns, so that what is left fits the context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emotune.core.dialogue import ASSISTANT, Turn, trim
from emotune.prompts.rendering import prompt_ids, training_row


def fitting_history(
    tokenizer: Any, history: Sequence[Turn], emotion: str, system_prompt: str | None, room: int
) -> tuple[Turn, ...]:
    """The latest turns of `history`, whole, whose prompt takes at most `room` tokens (never less than the last)."""
    return trim(history, lambda turns: len(prompt_ids(tokenizer, turns, emotion, system_prompt)) <= room)


def fitting_prompt(
    tokenizer: Any, history: Sequence[Turn], emotion: str, system_prompt: str | None, room: int
) -> tuple[tuple[Turn, ...], list[int]]:
    """`fitting_history`, and its prompt's token ids: at most `room`, a last turn that alone is longer cut in front."""
    kept = fitting_history(tokenizer, history, emotion, system_prompt, room)
    return kept, prompt_ids(tokenizer, kept, emotion, system_prompt)[-room:]


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
