"""The questions that every model is asked: in the emotion that the data has, and in every emotion."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from emotune.core import seeds
from emotune.core.dialogue import ASSISTANT, Dialogue, Turn, history


@dataclass(frozen=True, slots=True)
class Question:
    """Answer this history in this emotion; `reference` is what a human answered, where the emotion is the human's."""

    id: str
    dialogue: str
    history: tuple[Turn, ...]
    emotion: str
    reference: str | None


def natural(dialogues: Iterable[Dialogue], history_turns: int, limit: int | None, seed: int) -> list[Question]:
    """Every reply of every dialogue, asked for in its own emotion; or `limit` of them, dialogues shuffled."""
    shuffled = list(dialogues)
    random.Random(seeds.key(seed, "natural")).shuffle(shuffled)
    questions = [
        Question(f"{d.id}/{i}", d.id, history(d.turns, i, history_turns), turn.emotion, turn.content)
        for d in shuffled
        for i, turn in enumerate(d.turns)
        if turn.role == ASSISTANT
    ]
    return questions[:limit]


def control(
    dialogues: Iterable[Dialogue], history_turns: int, contexts: int, labels: Sequence[str], seed: int
) -> list[Question]:
    """One context from each of `contexts` dialogues, each asked for in every emotion."""
    rng = random.Random(seeds.key(seed, "control"))
    shuffled = list(dialogues)
    rng.shuffle(shuffled)
    questions = []
    for d in shuffled[:contexts]:
        at = rng.choice([i for i, turn in enumerate(d.turns) if turn.role == ASSISTANT])
        context = history(d.turns, at, history_turns)
        questions += [Question(f"{d.id}/{at}/{label}", d.id, context, label, None) for label in labels]
    return questions
