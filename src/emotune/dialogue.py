"""Emotions, turns and dialogues: the one record that every source gives and every stage reads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns in order, under an id that is unique over all splits."""

    id: str
    turns: tuple[Turn, ...]


def to_record(dialogue: Dialogue) -> dict[str, Any]:
    """The JSON object of a dialogue: `{"id", "turns": [{"role", "content", "emotion"}, ...]}`."""
    return {
        "id": dialogue.id,
        "turns": [{"role": t.role, "content": t.content, "emotion": t.emotion} for t in dialogue.turns],
    }


def from_record(record: dict[str, Any]) -> Dialogue:
    """The dialogue of a JSON object written by `to_record`."""
    return Dialogue(record["id"], tuple(Turn(t["role"], t["content"], t["emotion"]) for t in record["turns"]))


def alternate(utterances: Sequence[str], emotions: Sequence[str]) -> tuple[Turn, ...]:
    """Turns that alternate from the user; a last odd utterance, which nobody answers, is dropped."""
    even = len(utterances) // 2 * 2
    pairs = list(zip(utterances, emotions, strict=True))[:even]
    return tuple(Turn((USER, ASSISTANT)[i % 2], text, emotion) for i, (text, emotion) in enumerate(pairs))


def history(turns: Sequence[Turn], index: int, history_turns: int) -> tuple[Turn, ...]:
    """At most `history_turns` turns right before turn `index`, from a user turn on."""
    window = turns[max(0, index - history_turns) : index]
    return tuple(window[_user_turns(window)[0] :]) if _user_turns(window) else ()


def trim(turns: Sequence[Turn], fits: Callable[[Sequence[Turn]], bool]) -> tuple[Turn, ...]:
    """The longest end of `turns` that starts with a user turn and fits; where none fits, from the last user turn on.

    Turns go whole and from the left, so what remains reads on to the same end. ValueError where there is no user turn.
    """
    starts = _user_turns(turns)
    if not starts:
        raise ValueError("nothing to trim to: no turn of the user")
    return tuple(turns[next((start for start in starts if fits(turns[start:])), starts[-1]) :])


def _user_turns(turns: Sequence[Turn]) -> list[int]:
    return [index for index, turn in enumerate(turns) if turn.role == USER]


def deduplicate(splits: Mapping[str, Sequence[Dialogue]]) -> tuple[dict[str, list[Dialogue]], dict[str, Counter[str]]]:
    """Each dialogue once, over all splits: test wins over validation over train, and within a split the first.

    Dialogues are equal if their text is, but for case, punctuation, spaces and a last odd turn. The counts say how
    many dialogues each split lost to each: `dropped["train"]["test"]` are those of train that are in test too.
    """
    owner: dict[str, str] = {}
    kept: dict[str, list[Dialogue]] = {split: [] for split in splits}
    dropped: dict[str, Counter[str]] = {split: Counter() for split in splits}
    for split in sorted(splits, key=SPLITS.index, reverse=True):
        for dialogue in splits[split]:
            key = _normal_form(dialogue)
            if key in owner:
                dropped[split][owner[key]] += 1
            else:
                owner[key] = split
                kept[split].append(dialogue)
    return kept, dropped


def _normal_form(dialogue: Dialogue) -> str:
    even = dialogue.turns[: max(1, len(dialogue.turns) // 2 * 2)]
    return "".join(normal_form(turn.content) for turn in even)


def normal_form(text: str) -> str:
    """Its letters and digits in lower case: what two texts share that differ in case, spaces and punctuation alone."""
    return re.sub(r"[\W_]+", "", text.casefold()) or text


def usable(dialogues: Sequence[Dialogue]) -> tuple[list[Dialogue], Counter[str]]:
    """The dialogues with clean text and an even number of turns, and how many were dropped, by reason.

    `too_short`: fewer than 2 turns, so no reply to learn. `empty_turn`: nothing is left of an utterance.
    """
    kept: list[Dialogue] = []
    dropped: Counter[str] = Counter()
    for dialogue in dialogues:
        turns = alternate([clean(turn.content) for turn in dialogue.turns], [turn.emotion for turn in dialogue.turns])
        if len(turns) < 2:
            dropped["too_short"] += 1
        elif not all(turn.content for turn in turns):
            dropped["empty_turn"] += 1
        else:
            kept.append(Dialogue(dialogue.id, turns))
    return kept, dropped


_CHARACTERS = str.maketrans({"’": "'", "‘": "'", "′": "'", "“": '"', "”": '"', "。": ". ", "、": ", ", "\x7f": None})
_ADDRESS = r"\S*(?:www\.|@|://)\S*|\S+\.(?:com|org|net|edu|gov|cn|uk|html?|txt|pdf|csv|json|py|js|exe)\b\S*"
# In this order: a later rule relies on what the earlier ones have closed up.
_BLEMISHES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    # at 4 p . m . sharp -> at 4 p.m . sharp
    (re.compile(r"\b([A-Za-z]) \. ?(?=[A-Za-z] \.)"), r"\1."),
    # Yes , 5 % ! -> Yes, 5%!  Not before a word (.NET) nor in a face :)
    (re.compile(r" (?=[.,!?;:]+(?:[\s\"']|$))|(?<=\d) (?=%)"), ""),
    # ( it is $ 5 ) -> (it is $5)
    (re.compile(r"(?<=\() | (?=\))|(?<=[$£¥]) (?=\d)"), ""),
    # I ' Ve, Let ' s, don 't -> I've, Let's, don't
    (
        re.compile(r"(?<=\w) ?' ?(s|t|m|d|ll|re|ve|clock|am)\b", re.IGNORECASE),
        lambda found: "'" + (found[1] if found[1].isupper() else found[1].lower()),
    ),
    # O ' Connell -> O'Connell
    (re.compile(r"(?<=\bO) ?' ?(?=[A-Z])"), "'"),
    # say " thanks " or ' yes ' -> say "thanks" or 'yes'
    (re.compile(r'" ?([^"]+?) ?"'), r'"\1"'),
    (re.compile(r"(?<!\S)' (.+?) ?'(?!\w)"), r"'\1'"),
    # What is left stands alone: ten minutes ' walk in the ' 20s -> ten minutes' walk in the '20s
    (re.compile(r"(?<=s) '(?= |$)"), "'"),
    (re.compile(r"(?<!\S)' (?=\w)"), "'"),
    # right.But in 1932.People and thanks.i -> a space after each full stop; not in 3.5, a.m., U.S. or an address
    (
        re.compile(rf"({_ADDRESS})|(?<=[a-z']{{2}})\.(?=[A-Z]|[a-z]{{2}})|(?<=[^\W_])\.(?=[A-Z][a-z])"),
        lambda found: found[1] or ". ",
    ),
)


def clean(text: str) -> str:
    """The text without DailyDialog's blemishes of spacing and quotation marks; clean text stays as it is."""
    text = " ".join(text.translate(_CHARACTERS).split())
    for blemish, instead in _BLEMISHES:
        text = blemish.sub(instead, text)
    return text
