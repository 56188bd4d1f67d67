"""People's votes on two replies to one context: lines appended for good, which of them count, and their pairs."""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from emotune.core import records, seeds
from emotune.core.dialogue import USER, Turn
from emotune.core.errors import InputError
from emotune.core.sections import NotNegative, Section, check
from emotune.generation.engine import Reply
from emotune.models import pins
from emotune.preferences.candidates import JudgeReplies, Prompt
from emotune.preferences.learned import Learned
from emotune.preferences.outcomes import Outcome
from emotune.preferences.params import Prefs, Reward
from emotune.preferences.reward import candidate
from emotune.preferences.selection import Pair
from emotune.prompts.prompter import Prompter

# A name of the voter's own, or the one that his browser drew: it is the name of a file too.
Voter = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,40}$")]
LEFT, RIGHT, BOTH_GOOD, BOTH_BAD, WITHDRAWN = "left", "right", "both good", "both bad", "withdrawn"
Choice = Literal["left", "right", "both good", "both bad", "withdrawn"]
Note = Annotated[str, Field(max_length=2_000)]


class Said(Section):
    """A turn of the context."""

    role: Literal["user", "assistant"]
    content: Annotated[str, Field(max_length=20_000)]
    emotion: str


class Side(Section):
    """A reply, and who gave it: a model by its name and by the content of its adapter."""

    model: str
    adapter: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    reply: str


class Vote(Section):
    """One line of a file of votes. `dialogue` is the place that the context is of, null where the voter typed it."""

    voter: Voter
    at: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")]
    dialogue: str | None
    context: Annotated[tuple[Said, ...], Field(min_length=1)]
    emotion: str
    left: Side
    right: Side
    choice: Choice
    note: Note
    seed: int
    draw: int
    seconds: NotNegative

    @property
    def question(self) -> str:
        """What was asked: the same to every voter, whichever reply stands on the left."""
        sides = sorted((side.adapter, side.reply) for side in (self.left, self.right))
        return str(seeds.key(*(turn.content for turn in self.context), self.emotion, *sum(sides, ())))

    @property
    def winner(self) -> Side | None:
        return {LEFT: self.left, RIGHT: self.right}.get(self.choice)

    @property
    def loser(self) -> Side | None:
        return {LEFT: self.right, RIGHT: self.left}.get(self.choice)


def append(path: Path, vote: Vote) -> None:
    """Add a line to a file of votes: when this returns, the whole line is on the disk.

    Several processes may do so at once. What a killed one left of a line goes first: nobody was told that it counts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(vote.model_dump(mode="json"), ensure_ascii=False, sort_keys=True) + "\n"
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        *_, tail = file.read().split(b"\n")
        if tail and not _is_whole(tail):
            file.truncate(file.tell() - len(tail))
        elif tail:
            line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, labels: Sequence[str]) -> list[Vote]:
    """The votes of a file, or of all *.jsonl of a folder by name; InputError names file and line of what is none.

    The last line of a file, where it is not whole, was being written when its writer was killed, and is no vote.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; `emotune compare --blind` writes votes to data/votes")
    votes = []
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        *lines, tail = file.read_bytes().split(b"\n")
        for number, line in enumerate([*lines, tail] if _is_whole(tail) else lines, start=1):
            if line.strip():
                votes.append(_vote(line, f"{file}:{number}", labels))
    return votes


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _vote(line: bytes, where: str, labels: Sequence[str]) -> Vote:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(row).__name__}")
    try:
        vote = Vote.model_validate_json(line)
    except ValidationError:
        vote = check(Vote, row, where)  # which says what is wrong with it
    if vote.context[-1].role != USER:
        raise InputError(f"{where}: context must end with a turn of the user, and ends with one of the assistant")
    if unknown := {vote.emotion, *(turn.emotion for turn in vote.context)} - set(labels):
        raise InputError(f"{where}: emotion must be one of {', '.join(labels)}, got {sorted(unknown)[0]}")
    return vote


def counted(votes: Sequence[Vote]) -> list[Vote]:
    """Each voter's last vote on each question, but for those withdrawn: a line that stands there twice counts once."""
    last = {(vote.voter, vote.question): vote for vote in sorted(votes, key=lambda vote: vote.at)}
    return [vote for vote in last.values() if vote.choice != WITHDRAWN]


@dataclass(frozen=True, slots=True)
class Preference:
    """The reply to one question that more voters preferred than its other."""

    vote: Vote
    chosen: str
    rejected: str


def preferences(votes: Sequence[Vote]) -> list[Preference]:
    """What the majority of those preferred who preferred one, question by question; nothing where they are as many."""
    wins: dict[str, Counter[tuple[str, str]]] = {}
    asked: dict[str, Vote] = {}
    for vote in counted(votes):
        asked.setdefault(vote.question, vote)
        if vote.winner and vote.loser:
            wins.setdefault(vote.question, Counter())[vote.winner.reply, vote.loser.reply] += 1
    most = {question: own.most_common(1)[0] for question, own in wins.items()}
    return [
        Preference(asked[question], *replies)
        for question, (replies, count) in most.items()
        if 2 * count > wins[question].total()
    ]


def questions(preferences: Sequence[Preference], prompter: Prompter) -> list[tuple[Preference, Prompt]]:
    """Each preference with the prompt that asks for its replies, where it leaves them room and neither is empty."""
    fitting = []
    for preferred in preferences:
        vote = preferred.vote
        room = 1 + max(len(prompter.encoded(side.reply)) for side in (vote.left, vote.right))
        turns = [Turn(turn.role, turn.content, turn.emotion) for turn in vote.context]
        history = prompter.fitting_history(turns, vote.emotion, room)
        text = prompter.text(history, vote.emotion)
        ids = tuple(prompter.encoded(text))
        dialogue = vote.dialogue.rpartition("/")[0] if vote.dialogue else f"typed/{vote.question}"
        is_empty = not (vote.left.reply.strip() and vote.right.reply.strip())
        if len(ids) + room <= prompter.context and not is_empty:
            id = f"{dialogue}/{vote.question}/{vote.emotion}"
            fitting.append((preferred, Prompt(id, dialogue, history, vote.emotion, text, ids)))
    return fitting


def rows(preferences: Sequence[Preference], prompter: Prompter) -> list[dict[str, Any]]:
    """The pairs that people made, as the first columns of data/prefs have them."""
    return [
        {
            "id": prompt.id,
            "dialogue": prompt.dialogue,
            "prompt": prompt.text,
            "history": [asdict(turn) for turn in prompt.history],
            "emotion": prompt.emotion,
            "chosen": preferred.chosen,
            "rejected": preferred.rejected,
        }
        for preferred, prompt in questions(preferences, prompter)
    ]


@dataclass(frozen=True, slots=True)
class Voted:
    """The pairs that people made, as a search gives its own, and in `counts` of how many votes and questions."""

    prompts: list[Prompt]
    outcomes: list[Outcome]
    counts: dict[str, dict[str, int]]


def voted(
    p: Prefs,
    labels: Sequence[str],
    prompter: Prompter,
    judge: JudgeReplies,
    r: Reward,
    learned: Learned | None = None,
) -> Voted:
    """The pairs of the votes that `prefs` pins, where its `source` wants them; InputError where it wants no others.

    The judges score both replies, and so does `learned` where it is given; they decide nothing.
    """
    if p.source == "generated":
        return Voted([], [], {})
    votes = counted(read(pinned(p), labels))
    preferred = preferences(votes)
    fitting = questions(preferred, prompter)
    if p.source == "votes" and not fitting:
        raise InputError(f"prefs.source: votes: of {len(votes)} votes in {p.votes} none prefers a reply that fits")
    texts = [(one.chosen, one.rejected) for one, _ in fitting]
    judged = judge([[Reply(text, len(prompter.encoded(text)), True) for text in both] for both in texts])
    prompts = [prompt for _, prompt in fitting]
    scores: list[dict[str, float | None]] = [dict.fromkeys(both) for both in texts]
    if learned:
        # In an order that no later vote changes; no attempt made them, and attempts are counted from 1.
        sides = [sorted(both) for both in texts]
        values = learned([(prompt, 0) for prompt in prompts], sides)
        scores = [dict(zip(*own, strict=True)) for own in zip(sides, values, strict=True)]
    outcomes = [
        Outcome(Pair(*(candidate(reply, prompt.emotion, r, own[reply.text]) for reply in both)), 0, ())
        for prompt, both, own in zip(prompts, judged, scores, strict=True)
    ]
    counts = {
        "votes": len(votes),
        "questions": len({vote.question for vote in votes}),
        "preferred": len(preferred),
        "unfit": len(preferred) - len(fitting),
        "pairs": len(fitting),
    }
    return Voted(prompts, outcomes, {"votes": counts})


def pinned(p: Prefs) -> Path:
    """Where the votes lie that `prefs` names; InputError where they are not those that it pins."""
    path = pins.located(p.votes)
    if not path.exists():
        raise InputError(f"prefs.votes: {path}: no such file or folder; `emotune compare --blind` writes data/votes")
    if p.votes_revision != (content := records.digest(path)):
        raise InputError(
            f"prefs.votes_revision must pin the content of {p.votes}, which DVC cannot hash: found sha256 {content}, "
            f"params.yaml has {p.votes_revision}"
        )
    return path
