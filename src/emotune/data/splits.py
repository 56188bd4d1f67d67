"""Cleaned, usable dialogues, each once over all splits."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from emotune.core.dialogue import SPLITS, Dialogue, alternate, normal_form

T = TypeVar("T")


def deduplicate(splits: Mapping[str, Sequence[Dialogue]]) -> tuple[dict[str, list[Dialogue]], dict[str, Counter[str]]]:
    """Each dialogue once, over all splits, as `once` has it.

    Dialogues are equal if their text is, but for case, punctuation, spaces and a last odd turn.
    """

    def text(dialogue: Dialogue) -> str:
        even = dialogue.turns[: max(1, len(dialogue.turns) // 2 * 2)]
        return "".join(normal_form(turn.content) for turn in even)

    return once(splits, text)


def once(
    splits: Mapping[str, Sequence[T]], text: Callable[[T], str]
) -> tuple[dict[str, list[T]], dict[str, Counter[str]]]:
    """What has one text once, over all splits: test wins over validation over train, and within a split the first.

    The counts say how many each split lost to each: `dropped["train"]["test"]` are those of train that are in test too.
    """
    owner: dict[str, str] = {}
    kept: dict[str, list[T]] = {split: [] for split in splits}
    dropped: dict[str, Counter[str]] = {split: Counter() for split in splits}
    for split in sorted(splits, key=SPLITS.index, reverse=True):
        for each in splits[split]:
            key = text(each)
            if key in owner:
                dropped[split][owner[key]] += 1
            else:
                owner[key] = split
                kept[split].append(each)
    return kept, dropped


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
        lambda match: "'" + (match[1] if match[1].isupper() else match[1].lower()),
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
        # An address begins where a word does: looked for at every letter, a word would cost the square of its length.
        re.compile(rf"(?<!\S)({_ADDRESS})|(?<=[a-z']{{2}})\.(?=[A-Z]|[a-z]{{2}})|(?<=[^\W_])\.(?=[A-Z][a-z])"),
        lambda match: match[1] or ". ",
    ),
)


def clean(text: str) -> str:
    """The text without DailyDialog's blemishes of spacing and quotation marks; clean text stays as it is."""
    text = " ".join(text.translate(_CHARACTERS).split())
    for blemish, instead in _BLEMISHES:
        text = blemish.sub(instead, text)
    return text
