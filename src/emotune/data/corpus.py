"""The embedded corpus: a grammar of everyday dialogues, deterministic from a seed, written for this project.

A dialogue is a scene: one topic and one thing, person, place and time that all its turns speak of. The user tells a
piece of news, the assistant reacts, the user adds to it. The news itself is even-tempered, so every emotion is a
believable reaction and only the emotion asked for says which one comes. A reply is put together from a lead, a body
and a close; some of them belong to two emotions ("No way!" is happy or surprised), so no judge can be perfect.

The phrases are in corpus.txt. The last fifth of every table (at least one entry) is kept from the train split:
validation and test speak of things, people and places, and use phrases, that training never saw.
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emotune.core.dialogue import ASSISTANT, USER, Dialogue, Turn
from emotune.core.errors import InputError

# Shares of the emotions before ECHO moves some neutral turns to the others.
WEIGHTS = {
    "neutral": 0.56,
    "anger": 0.07,
    "disgust": 0.065,
    "fear": 0.07,
    "happiness": 0.095,
    "sadness": 0.07,
    "surprise": 0.08,
}
# Moods last and are catching: the weight of the emotions of the last two turns is multiplied by this.
ECHO = 1.8
SHAPES = {"lead body": 7, "body close": 7, "body": 4, "lead close": 2, "lead body close": 2}

PRONOUNS = {
    "she": {"him": "her", "his": "her", "self": "herself"},
    "he": {"him": "him", "his": "his", "self": "himself"},
}

# An emotion, or the name of a slot -> what may be said.
Table = dict[str, tuple[str, ...]]


def read_tables(text: str) -> dict[str, Table]:
    """The sections of corpus.txt, which says how they are written."""
    tables: dict[str, Table] = {}
    table: Table = {}
    keys: list[str] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("["):
            table = tables[line.strip("[]")] = {}
            continue
        if not line.startswith(" "):
            head, line = line.split(":", 1)
            keys = head.split()
        for key in keys:
            table[key] = table.get(key, ()) + tuple(entry.strip() for entry in line.strip(" |").split("|"))
    return tables


TABLES = read_tables(Path(__file__).with_name("corpus.txt").read_text("utf-8"))
ANY, OPENERS, MOODS, ANSWERS = (TABLES[name] for name in ("any", "openers", "moods", "answers"))
LEADS, BODIES, CLOSES = (TABLES[name] for name in ("leads", "bodies", "closes"))
TOPICS = [table for name, table in TABLES.items() if name.startswith("topic ")]


@dataclass
class _Scene:
    """What one dialogue is about, and what was said of it so far."""

    rng: random.Random
    held_out: bool
    topic: Table
    slots: dict[str, dict[str, str]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    place_known: bool = False

    def __post_init__(self) -> None:
        slots = {key: self.pick(ANY[key]) for key in ("when", "soon")}
        slots |= {key: self.pick(self.topic[key]) for key in ("thing", "place")}
        name, slots["he"] = self.pick(self.topic["who"]).split("/")
        slots |= PRONOUNS[slots["he"]]
        for role, mine in ((USER, "my "), (ASSISTANT, "your ")):
            self.slots[role] = slots | {"who": name if name[0].isupper() else mine + name}

    def pick(self, entries: Sequence[str], without: str | None = None) -> str:
        """An entry not used yet, if there is one; the last fifth of the entries is for validation and test only."""
        known = entries if self.held_out else entries[: len(entries) - max(1, len(entries) // 5)]
        fresh = [entry for entry in known if entry not in self.used and not (without and without in entry.lower())]
        entry = self.rng.choice(fresh or known)
        self.used.add(entry)
        return entry

    def say(self, role: str, frames: Sequence[str]) -> str:
        """The frames as one utterance: slots filled, `a` or `an`, capitals at the start of sentences."""
        text = " ".join(frames)
        self.place_known |= "{place}" in text
        text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text.format_map(self.slots[role]))
        return re.sub(r"(^|[.!?] )([a-z])", lambda start: start[1] + start[2].upper(), text)


def _emotion(rng: random.Random, heard: Iterable[str]) -> str:
    """An emotion by WEIGHTS, leaning to those just heard."""
    weights = [weight * (ECHO if label != "neutral" and label in heard else 1) for label, weight in WEIGHTS.items()]
    return rng.choices(list(WEIGHTS), weights)[0]


def _mood(scene: _Scene, emotion: str) -> str:
    """How the user feels: a reaction to the topic, or a general one where only a listener would react so."""
    if emotion in ("neutral", "surprise") or scene.rng.random() < 0.4:
        return scene.pick(MOODS[emotion])
    return scene.pick(scene.topic[emotion], without="you")


def _opening(scene: _Scene, emotion: str) -> list[str]:
    """Frames of the user's first turn: the news, and how it feels before or after it."""
    news = scene.pick(scene.topic["news"])
    if scene.rng.random() < 0.5:
        return [scene.pick(OPENERS[emotion]), news]
    return [news] if emotion == "neutral" else [news, _mood(scene, emotion)]


def _user(scene: _Scene, emotion: str, heard: str, answer: str, last: bool) -> list[str]:
    """Frames of a user's later turn: an answer to the reply, then one more fact or an ending, with the user's mood."""
    frames = [answer] if answer else []
    if not answer and scene.rng.random() < 0.6 and (emotion == "neutral" or heard in ("neutral", "surprise")):
        frames.append(scene.pick(ANSWERS[heard]))
    mood = [] if emotion == "neutral" else [_mood(scene, emotion)]
    if last and scene.rng.random() < 0.5:
        return [*frames, *mood, scene.pick(ANY["ending"])]
    if not mood and scene.rng.random() < 0.4:
        mood = [scene.pick(ANY["opinion"])]
    return [*frames, scene.pick(scene.topic["more"]), *mood]


def _reply(scene: _Scene, emotion: str, last: bool) -> list[str]:
    """Frames of an assistant's turn; a neutral one may be a question `question > answer`, but not at the end."""
    unsaid = None if scene.place_known else "{place}"
    if emotion == "neutral" and not last and scene.rng.random() < 0.3:
        return [scene.pick(scene.topic["ask"], unsaid)]
    bodies = scene.topic if scene.rng.random() < 0.65 else BODIES
    tables = {"lead": LEADS, "body": bodies, "close": CLOSES}
    shape = scene.rng.choices(list(SHAPES), list(SHAPES.values()))[0]
    return [scene.pick(tables[part][emotion], unsaid) for part in shape.split()]


def _turns(rng: random.Random, held_out: bool, taken: set[str]) -> tuple[Turn, ...]:
    """One dialogue of 4, 6 or 8 turns, none of whose replies is in `taken`."""
    scene = _Scene(rng, held_out, rng.choice(TOPICS))
    length = rng.choice((4, 4, 6, 6, 8))
    emotion = _emotion(rng, ())
    turns = [Turn(USER, scene.say(USER, _opening(scene, emotion)), emotion)]
    answer = ""
    while len(turns) < length:
        last = len(turns) >= length - 2
        emotion = _emotion(rng, [turn.emotion for turn in turns[-2:]])
        if turns[-1].role == ASSISTANT:
            frames = _user(scene, emotion, turns[-1].emotion, answer, last)
            turns.append(Turn(USER, scene.say(USER, frames), emotion))
        else:
            *frames, end = _reply(scene, emotion, last)
            end, _, answer = end.partition(" > ")
            reply = scene.say(ASSISTANT, [*frames, end])
            if reply not in taken:
                turns.append(Turn(ASSISTANT, reply, emotion))
    return tuple(turns)


def dialogues(count: int, seed: int) -> dict[str, list[Dialogue]]:
    """`count` dialogues in splits of 80, 10 and 10 %; equal seeds give equal dialogues.

    4 to 8 turns (even), roles alternating from the user, labels of DAILY_DIALOG_LABELS. No two dialogues are equal, and
    no reply of four words or more is in two splits. InputError if `count` < 10: a split would be empty.
    """
    if count < 10:
        raise InputError(f"the embedded corpus needs a count of at least 10 (80, 10 and 10 %), got {count}")
    tenth = count // 10
    rng = random.Random(seed)
    splits: dict[str, list[Dialogue]] = {}
    seen: set[tuple[Turn, ...]] = set()
    taken: set[str] = set()
    for split, size in {"train": count - 2 * tenth, "validation": tenth, "test": tenth}.items():
        chosen: list[Dialogue] = []
        while len(chosen) < size:
            turns = _turns(rng, split != "train", taken)
            if turns not in seen:
                seen.add(turns)
                chosen.append(Dialogue(f"{split}-{len(chosen):05d}", turns))
        taken |= long_replies(chosen)
        splits[split] = chosen
    return splits


def reading(count: int, seed: int, held_out: Iterable[Dialogue]) -> list[Dialogue]:
    """`count` dialogues of all words and phrases, for a base model to read before anything is split.

    None is one of those held out, and none has a reply of four words or more that one of those has.
    """
    taken = long_replies(held_out)
    rng = random.Random(f"reading {seed}")
    chosen: dict[tuple[Turn, ...], Dialogue] = {}
    while len(chosen) < count:
        turns = _turns(rng, True, taken)
        chosen.setdefault(turns, Dialogue(f"reading-{len(chosen):06d}", turns))
    return list(chosen.values())


def long_replies(dialogues: Iterable[Dialogue]) -> set[str]:
    """The replies of four words or more, which no two splits share."""
    replies = (turn.content for dialogue in dialogues for turn in dialogue.turns if turn.role == ASSISTANT)
    return {reply for reply in replies if len(reply.split()) >= 4}
