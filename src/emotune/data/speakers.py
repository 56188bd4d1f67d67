"""Who speaks in dialogues of one's own: any two names become user and assistant, who speak in turn.

Until then a turn's role is the name of its speaker.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from emotune.core.dialogue import ASSISTANT, USER, Turn


class Rules(NamedTuple):
    """What one's own dialogues may be: `data.labels` and so on, and what params.yaml says of them."""

    labels: Sequence[str]
    neutral: str
    same_speaker: str
    others: str


def joined(turns: Sequence[Turn], neutral: str) -> list[Turn]:
    """Turns that one speaker takes in a row as one, in the last of their emotions that is not neutral."""
    runs = [list(run) for _, run in groupby(turns, key=lambda turn: turn.role)]
    return [Turn(run[0].role, " ".join(turn.content for turn in run), _last(run, neutral)) for run in runs]


def _last(run: Sequence[Turn], neutral: str) -> str:
    return next((turn.emotion for turn in reversed(run) if turn.emotion != neutral), neutral)


def of_two(turns: Sequence[Turn]) -> list[list[Turn]]:
    """The turns in order, cut before each that would bring a third speaker in."""
    parts: list[list[Turn]] = [[]]
    names: set[str] = set()
    for turn in turns:
        if len(names | {turn.role}) > 2:
            parts.append([])
            names = set()
        names.add(turn.role)
        parts[-1].append(turn)
    return parts


def cast(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns of two speakers, the first of whom is the user."""
    return tuple(Turn(USER if t.role == turns[0].role else ASSISTANT, t.content, t.emotion) for t in turns)
