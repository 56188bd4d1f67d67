"""Instructions: the one row that every source of them gives, and those made of the embedded dialogues.

Of a dialogue are made as many rows as are wanted, each of another task. A task is a function that gives what stands in
the braces of its wordings (instructions.txt) and the right output, or None where the dialogue holds no such row.
Tasks with one right answer are EXACT. The two of free text but `rewrite` take their outputs from the dialogue as it is;
`rewrite` makes its own by rule: the opening of a neutral reply gives way to one of the emotion asked for, one of its
closings is added, and what is between stays word for word.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from emotune.core import seeds
from emotune.core.dialogue import ASSISTANT, SPLITS, USER, Dialogue, Turn, bare
from emotune.data import corpus
from emotune.data.corpus import CLOSES, LEADS, TOPICS


class Row(NamedTuple):
    """An instruction, the text that it is about ("" where it has none), the output to learn, and where it is from.

    `exact`: no other output is right. `source` is `file:line` or a dialogue's id; rows of one source share a split.
    """

    id: str
    task: str
    instruction: str
    input: str
    output: str
    source: str
    exact: bool = False

    @property
    def prompt(self) -> str:
        """What two rows share that ask for the same: no two splits have a row of equal prompt."""
        return "\0".join(bare(text).rstrip(".?!") for text in (self.instruction, self.input))


# What stands in a wording's braces, and the output; `text` is what an `input` wording leaves to the input.
Filled = tuple[dict[str, str], str]
WORDINGS = corpus.read_tables(Path(__file__).with_name("instructions.txt").read_text("utf-8"))
THINGS = sorted({thing for topic in TOPICS for thing in topic["thing"]}, key=lambda thing: (-len(thing), thing))
THING = re.compile(rf"\b(?:{'|'.join(map(re.escape, THINGS))})\b")
SENTIMENT = {"happiness": "positive", "neutral": "neutral"} | dict.fromkeys(
    ("anger", "disgust", "fear", "sadness"), "negative"
)
# Fewer words are a set phrase, which may show another emotion elsewhere.
PLAIN = 4


def embedded(count: int, each: int, seed: int) -> Iterator[tuple[str, Row]]:
    """`each` rows of every one of `count` embedded dialogues, with the split of the dialogue; equal by seed."""
    for split, dialogues in corpus.dialogues(count, seed).items():
        assert split in SPLITS
        others = [turn.content for d in dialogues for turn in d.turns if turn.role == ASSISTANT and things(turn)]
        for number, dialogue in enumerate(dialogues):
            rng = random.Random(seeds.key(seed, "instructions", dialogue.id))
            for row in _rows(dialogue, each, number * each, _Scene(rng, split != "train", others)):
                yield split, row


class _Scene(NamedTuple):
    """What the tasks of a dialogue draw from: phrases kept from train or not, and replies of the split's dialogues."""

    rng: random.Random
    held_out: bool
    others: Sequence[str]

    def phrase(self, entries: Sequence[str]) -> str:
        """An entry that speaks of nobody; the last fifth of them is for validation and test, as in the corpus."""
        known = entries if self.held_out else entries[: len(entries) - max(1, len(entries) // 5)]
        return self.rng.choice([entry for entry in known if "{" not in entry])

    def foreign(self, dialogue: Dialogue) -> str | None:
        """A reply that speaks of a thing of which the dialogue says nothing."""
        here = {thing for turn in dialogue.turns for thing in things(turn)}
        for _ in range(100):
            reply = self.rng.choice(self.others)
            if not here.intersection(THING.findall(reply)):
                return reply
        return None


Task = Callable[[Dialogue, _Scene], Filled | None]


def _rows(dialogue: Dialogue, each: int, first: int, scene: _Scene) -> Iterator[Row]:
    """So many rows of the tasks in turn from the `first` on, less those that the dialogue does not give."""
    made, tasks = 0, list(TASKS)
    for place in range(first, first + len(tasks)):
        task = tasks[place % len(tasks)]
        if made < each and (filled := TASKS[task](dialogue, scene)):
            made += 1
            yield _worded(task, *filled, dialogue.id, scene.rng)


def _worded(task: str, braces: Mapping[str, str], output: str, source: str, rng: random.Random) -> Row:
    """The row in one of the task's wordings, all as likely; one of those with input has the text there."""
    inside = rng.choice([(kind, wording) for kind, wordings in WORDINGS[task].items() for wording in wordings])
    text = braces["text"] if inside[0] == "input" else ""
    return Row(f"{source}/{task}", task, inside[1].format_map(braces), text, output, source, task in EXACT)


def things(turn: Turn) -> set[str]:
    """The things of the corpus that a turn names."""
    return set(THING.findall(turn.content))


def spoken(turns: Sequence[Turn]) -> str:
    """`A: ...` and `B: ...` in lines: the user is A."""
    return "\n".join(f"{'A' if turn.role == USER else 'B'}: {turn.content}" for turn in turns)


def _answer(dialogue: Dialogue, scene: _Scene) -> Filled:
    """A reply of the dialogue to at most three turns before it, and its emotion."""
    index = scene.rng.randrange(1, len(dialogue.turns), 2)
    before, reply = dialogue.turns[max(0, index - 3) : index], dialogue.turns[index]
    return {"text": spoken(before), "said": before[-1].content, "emotion": reply.emotion}, reply.content


def _rewrite(dialogue: Dialogue, scene: _Scene) -> Filled | None:
    """A neutral reply, and the same with an opening and a closing of another emotion."""
    replies = [turn.content for turn in dialogue.turns[1::2] if turn.emotion == "neutral"]
    bodies = {reply: body for reply in replies if (body := _without_lead(reply))}
    if not bodies:
        return None
    text = scene.rng.choice(list(bodies))
    emotion = scene.rng.choice([label for label in LEADS if label != "neutral"])
    rewritten = f"{scene.phrase(LEADS[emotion])} {bodies[text]} {scene.phrase(CLOSES[emotion])}"
    return {"text": text, "emotion": emotion}, rewritten


def _without_lead(reply: str) -> str:
    """What follows the neutral opening of a reply; all of it where it has none."""
    return next((reply.removeprefix(lead).strip() for lead in LEADS["neutral"] if reply.startswith(lead)), reply)


def _emotion(dialogue: Dialogue, scene: _Scene) -> Filled | None:
    turns = [turn for turn in dialogue.turns if len(turn.content.split()) >= PLAIN]
    emotion = scene.rng.choice(sorted({turn.emotion for turn in turns}) or [""])
    said = [turn.content for turn in turns if turn.emotion == emotion]
    return ({"text": scene.rng.choice(said)}, emotion) if said else None


def _sentiment(dialogue: Dialogue, scene: _Scene) -> Filled | None:
    filled = _emotion(dialogue, scene)
    return (filled[0], SENTIMENT[filled[1]]) if filled and filled[1] in SENTIMENT else None


def _exchange(dialogue: Dialogue, scene: _Scene) -> tuple[str, str, str] | None:
    """What the user says, the reply that speaks of the same thing, and a reply that speaks of another."""
    pairs = zip(dialogue.turns[::2], dialogue.turns[1::2], strict=True)
    near = [(said.content, reply.content) for said, reply in pairs if things(said) & things(reply)]
    foreign = scene.foreign(dialogue)
    return (*scene.rng.choice(near), foreign) if near and foreign else None


def _answers(dialogue: Dialogue, scene: _Scene) -> Filled | None:
    if not (exchange := _exchange(dialogue, scene)):
        return None
    said, *replies = exchange
    verdict = scene.rng.randrange(2)
    braces = {"text": f"A: {said}\nB: {replies[verdict]}", "said": said, "reply": replies[verdict]}
    return braces, ("yes", "no")[verdict]


def _fits(dialogue: Dialogue, scene: _Scene) -> Filled | None:
    if not (exchange := _exchange(dialogue, scene)):
        return None
    said, right, wrong = exchange
    place = scene.rng.randrange(2)
    first, second = (right, wrong) if place == 0 else (wrong, right)
    return {
        "text": f"A: {said}\n1: {first}\n2: {second}",
        "said": said,
        "first": first,
        "second": second,
    }, str(place + 1)


def _order(dialogue: Dialogue, scene: _Scene) -> Filled:
    """Three turns from the first on; the output says which number was said first, which then, which last."""
    places = scene.rng.sample(range(3), 3)
    lines = [f"{number}. {dialogue.turns[place].content}" for number, place in enumerate(places, start=1)]
    return {"text": "\n".join(lines)}, ", ".join(str(places.index(place) + 1) for place in range(3))


def _beginning(dialogue: Dialogue, scene: _Scene) -> Sequence[Turn]:
    return dialogue.turns[: scene.rng.randint(2, 5)]


def _last(dialogue: Dialogue, scene: _Scene) -> Filled:
    turns = _beginning(dialogue, scene)
    return {"text": spoken(turns)}, "A" if turns[-1].role == USER else "B"


def _turns(dialogue: Dialogue, scene: _Scene) -> Filled:
    turns = _beginning(dialogue, scene)
    return {"text": spoken(turns)}, str(len(turns))


def _topic(dialogue: Dialogue, scene: _Scene) -> Filled | None:
    opening = dialogue.turns[0]
    named = things(opening)
    return ({"text": spoken(dialogue.turns[:2]), "said": opening.content}, named.pop()) if len(named) == 1 else None


TASKS: dict[str, Task] = {
    "reply": _answer,
    "continue": _answer,
    "rewrite": _rewrite,
    "emotion": _emotion,
    "sentiment": _sentiment,
    "answers": _answers,
    "fits": _fits,
    "order": _order,
    "last": _last,
    "turns": _turns,
    "topic": _topic,
}
EXACT = frozenset({"emotion", "sentiment", "answers", "fits", "order", "last", "turns", "topic"})
