"""People's votes on two replies to one context: lines appended for good, which of them count, and what they prefer."""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from emotune.core import records, seeds
from emotune.core.dialogue import USER, Turn
from emotune.core.errors import InputError
from emotune.core.sections import NotNegative, Section, check
from emotune.models import pins

# A name of the voter's own, or the one that his browser drew: it is the name of a file too.
Voter = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,40}$")]
LEFT, RIGHT, BOTH_GOOD, BOTH_BAD, WITHDRAWN = "left", "right", "both good", "both bad", "withdrawn"
Choice = Literal["left", "right", "both good", "both bad", "withdrawn"]
Note = Annotated[str, Field(max_length=2_000)]


class VotesAt(Section):
    """Of all that `prefs` says, where people's votes lie."""

    votes: str


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
    def turns(self) -> tuple[Turn, ...]:
        return tuple(Turn(turn.role, turn.content, turn.emotion) for turn in self.context)

    @property
    def origin(self) -> str:
        """The dialogue that the context is of; one of its own where the voter typed it."""
        return self.dialogue.rpartition("/")[0] if self.dialogue else f"typed/{self.question}"

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
    """The reply that more votes preferred than its other, and the first vote on the two."""

    vote: Vote
    chosen: str
    rejected: str


def preferences(votes: Sequence[Vote]) -> list[Preference]:
    """What the majority of those preferred who preferred one of two replies; nothing where they are as many.

    Two replies to one context in one emotion are one pair, also where models of several rounds gave them.
    """
    wins: dict[Hashable, Counter[tuple[str, str]]] = {}
    asked: dict[Hashable, Vote] = {}
    for vote in counted(votes):
        said = tuple(turn.content for turn in vote.context)
        pair = said, vote.emotion, frozenset((vote.left.reply, vote.right.reply))
        asked.setdefault(pair, vote)
        if vote.winner and vote.loser:
            wins.setdefault(pair, Counter())[vote.winner.reply, vote.loser.reply] += 1
    most = {pair: own.most_common(1)[0] for pair, own in wins.items()}
    return [
        Preference(asked[pair], *replies) for pair, (replies, count) in most.items() if 2 * count > wins[pair].total()
    ]


def pinned(votes: str, revision: str | None, key: str) -> Path:
    """Where the votes of `prefs.votes` lie; InputError where they are not those that `key` of params.yaml pins."""
    path = pins.located(votes)
    if not path.exists():
        raise InputError(f"prefs.votes: {path}: no such file or folder; `emotune compare --blind` writes data/votes")
    if revision != (content := records.digest(path)):
        raise InputError(
            f"{key} must pin the content of {votes}, which DVC cannot hash: found sha256 {content}, "
            f"params.yaml has {revision}"
        )
    return path
