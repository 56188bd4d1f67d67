"""Emotions, turns and dialogues: the one record that every source gives and every stage reads."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import dropwhile
from typing import Any

DAILY_DIALOG_LABELS = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise")
USER, ASSISTANT = "user", "assistant"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Turn:
    """One utterance: who says it (`user` or `assistant`), what is said, and the emotion it is said in."""

    role: str
    content: str
    emotion: str

    def message(self) -> dict[str, str]:
        """What a chat template is given of it."""
        return {"role": self.role, "content": self.content, "emotion": self.emotion}


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns in order, under an id that is unique over all splits."""

    id: str
    turns: tuple[Turn, ...]


def to_record(dialogue: Dialogue) -> dict[str, Any]:
    """The JSON object of a dialogue: `{"id", "turns": [{"role", "content", "emotion"}, ...]}`."""
    return asdict(dialogue)


def from_record(record: dict[str, Any]) -> Dialogue:
    """The dialogue of a JSON object written by `to_record`."""
    return Dialogue(record["id"], tuple(Turn(**turn) for turn in record["turns"]))


def alternate(utterances: Sequence[str], emotions: Sequence[str]) -> tuple[Turn, ...]:
    """Turns that alternate from the user; a last odd utterance, which nobody answers, is dropped."""
    even = len(utterances) // 2 * 2
    pairs = list(zip(utterances, emotions, strict=True))[:even]
    return tuple(Turn((USER, ASSISTANT)[i % 2], text, emotion) for i, (text, emotion) in enumerate(pairs))


def swapped(dialogue: Dialogue) -> Dialogue:
    """The dialogue with its roles exchanged, under an id of its own: what the user said is then what is replied.

    Its first turn, which answers nothing, goes, and its last, which nobody answers.
    """
    roles = {USER: ASSISTANT, ASSISTANT: USER}
    turns = [replace(turn, role=roles[turn.role]) for turn in dialogue.turns]
    return Dialogue(f"{dialogue.id}~", tuple(turns[1:-1]))


def history(turns: Sequence[Turn], index: int, history_turns: int) -> tuple[Turn, ...]:
    """At most `history_turns` turns right before turn `index`, from a user turn on."""
    window = turns[max(0, index - history_turns) : index]
    return tuple(dropwhile(lambda turn: turn.role != USER, window))


def trim(turns: Sequence[Turn], fits: Callable[[Sequence[Turn]], bool]) -> tuple[Turn, ...]:
    """The longest end of `turns` that starts with a user turn and fits; where none fits, from the last user turn on.

    Turns go whole and from the left, so what remains reads on to the same end. ValueError where there is no user turn.
    """
    starts = [index for index, turn in enumerate(turns) if turn.role == USER]
    if not starts:
        raise ValueError("nothing to trim to: no turn of the user")
    return tuple(turns[next((start for start in starts if fits(turns[start:])), starts[-1]) :])


def normal_form(text: str) -> str:
    """Its letters and digits in lower case: what two texts share that differ in case, spaces and punctuation alone."""
    return re.sub(r"[\W_]+", "", text.casefold()) or text


def bare(text: str) -> str:
    """Its characters but for white space, case folded: what two texts share that differ in case and spaces alone."""
    return "".join(text.casefold().split())
