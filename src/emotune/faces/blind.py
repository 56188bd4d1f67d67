"""emotune compare --blind: two replies to one context, without names; which is better is a line in the voter's file."""

import itertools
import random
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

from pydantic import StringConstraints
from starlette.applications import Starlette

from emotune.core import records, seeds
from emotune.core.dialogue import ASSISTANT, Dialogue, Turn, bare, history
from emotune.core.errors import InputError
from emotune.core.sections import NotNegative, Section
from emotune.faces import chat
from emotune.faces.compare import Lend, open_voices, parsed, serve, site
from emotune.generation import local
from emotune.judges.verdicts import Classifier
from emotune.preferences.votes import Choice, Note, Said, Side, Vote, Voter, append, counted, read
from emotune.runs import lock
from emotune.runs.params import Params

# Questions that a model is asked at once: the next voter does not wait for them.
BLOCK = 8
# Where models say the same so many times in a row, they are asked no further.
SAME = 64
# Ballots that may still be voted on; the oldest go first.
OPEN = 10_000


class Wish(Section):
    """What the page asks for: a ballot for a voter, on the next context or on a message of his own."""

    voter: Voter
    message: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=20_000)] | None
    emotion: str | None


class Cast(Section):
    """What the page says of a ballot; a later word on the same one counts instead, and may withdraw it."""

    ballot: str
    choice: Choice
    note: Note
    seconds: NotNegative


@dataclass(frozen=True, slots=True)
class Question:
    """A context to answer in an emotion, and by which two of the sitting's models."""

    draw: int
    dialogue: str | None
    context: tuple[Turn, ...]
    emotion: str
    models: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Ballot:
    """A question with its two replies as they stand before one voter."""

    voter: str
    question: Question
    left: Side
    right: Side


class Polls:
    """One sitting: which questions are asked, in the same order to each voter, and what becomes of the answers.

    `models` are named by name and may name one twice, for two candidates of it; `adapters` is the content of each.
    """

    def __init__(
        self,
        lend: Lend,
        models: Sequence[str],
        adapters: Mapping[str, str],
        judge: Classifier,
        p: Params,
        dialogues: Sequence[Dialogue],
        folder: Path,
    ) -> None:
        self.lend, self.models, self.adapters = lend, models, adapters
        self.judge, self.p, self.folder = judge, p, folder
        self.places = [(d, i) for d in dialogues for i, turn in enumerate(d.turns) if turn.role == ASSISTANT]
        if not self.places:
            raise InputError("compare --blind: the validation split has no reply, so no context to vote on")
        random.Random(seeds.key(p.evaluate.seed, "votes")).shuffle(self.places)
        self.open: dict[str, Ballot] = {}
        self.speaking = Lock()
        self.block = lru_cache(OPEN // BLOCK)(self._block)

    def ballot(self, body: bytes) -> dict[str, Any]:
        """Two replies for a voter, on a question that he has not answered, and how many of his votes count so far."""
        wish = parsed(Wish, body)
        if wish.emotion not in (None, *self.p.data.labels):
            raise InputError(f"emotion must be one of {', '.join(self.p.data.labels)}; got {wish.emotion}")
        votes = self.votes(wish.voter)
        with self.speaking:
            question, sides = self.next(votes) if wish.message is None else self.typed(wish, len(votes))
        swap = seeds.key(self.p.evaluate.seed, "sides", wish.voter, question.draw) % 2
        ballot = Ballot(wish.voter, question, sides[swap], sides[1 - swap])
        id = secrets.token_hex(8)
        self.open[id] = ballot
        for old in list(self.open)[:-OPEN]:
            self.open.pop(old, None)
        return {
            "ballot": id,
            "context": [{"role": turn.role, "content": turn.content} for turn in question.context],
            "emotion": question.emotion,
            "left": ballot.left.reply,
            "right": ballot.right.reply,
            "counted": len(votes),
        }

    def cast(self, body: bytes) -> dict[str, Any]:
        """Keep what a voter says of a ballot; when this returns, it is on the disk."""
        cast = parsed(Cast, body)
        ballot = self.open.get(cast.ballot)
        if ballot is None:
            raise InputError("this ballot is not open: emotune compare was started anew since. The next one is.")
        question = ballot.question
        vote = Vote(
            voter=ballot.voter,
            at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            dialogue=question.dialogue,
            context=tuple(Said.model_validate(asdict(turn)) for turn in question.context),
            emotion=question.emotion,
            left=ballot.left,
            right=ballot.right,
            choice=cast.choice,
            note=cast.note,
            seed=self.p.evaluate.seed,
            draw=question.draw,
            seconds=round(cast.seconds, 3),
        )
        append(self.file(ballot.voter), vote)
        return {"kept": vote.choice}

    def file(self, voter: str) -> Path:
        return self.folder / f"{voter}.jsonl"

    def votes(self, voter: str) -> list[Vote]:
        """Those of a voter that count."""
        return counted(read(self.file(voter), self.p.data.labels)) if self.file(voter).exists() else []

    def next(self, votes: Sequence[Vote]) -> tuple[Question, tuple[Side, Side]]:
        """The first question of the sitting that a voter has not answered, where the two replies to it differ."""
        ours = set(self.adapters.values())
        done = {v.draw for v in votes if v.dialogue and v.seed == self.p.evaluate.seed and v.left.adapter in ours}
        for draw in itertools.islice((n for n in itertools.count() if n not in done), SAME):
            question, sides = self.block(draw // BLOCK)[draw % BLOCK]
            if bare(sides[0].reply) != bare(sides[1].reply):
                return question, sides
        raise InputError(f"the models said the same {SAME} times in a row: there is nothing to compare")

    def typed(self, wish: Wish, draw: int) -> tuple[Question, tuple[Side, Side]]:
        """The replies to what a voter typed, in the emotion that he chose or in any."""
        any_emotion, models = self.drawn("typed", wish.voter, draw)
        turn = chat.heard(self.judge, wish.message or "")
        question = Question(draw, None, (turn,), wish.emotion or any_emotion, models)
        [sides] = self.replies([question])
        return question, sides

    def _block(self, number: int) -> list[tuple[Question, tuple[Side, Side]]]:
        questions = list(map(self.question, range(number * BLOCK, (number + 1) * BLOCK)))
        return list(zip(questions, self.replies(questions), strict=True))

    def question(self, draw: int) -> Question:
        """The one of that number: each place of the split in turn, in an emotion and by two models drawn for it."""
        emotion, models = self.drawn("question", draw)
        d, i = self.places[draw % len(self.places)]
        return Question(draw, f"{d.id}/{i}", history(d.turns, i, self.p.history_turns), emotion, models)

    def drawn(self, *key: object) -> tuple[str, tuple[int, int]]:
        rng = random.Random(seeds.key(self.p.evaluate.seed, *key))
        one, other = rng.sample(range(len(self.models)), 2)
        return rng.choice(self.p.data.labels), (one, other)

    def replies(self, questions: Sequence[Question]) -> Iterator[tuple[Side, Side]]:
        """Both replies to each question; what a model says depends on the seed, the question and its own number."""
        said: dict[tuple[int, Question], Side] = {}
        for number, name in enumerate(self.models):
            own = [question for question in questions if number in question.models]
            with self.lend(name) as voice:
                requests = [
                    chat.request(voice.tokenizer, q.context, q.emotion, self.p, self.key(q, number)) for q in own
                ]
                replies = local.replies(voice.model, voice.tokenizer, requests, self.p.evaluate.sampling)
            for question, [reply] in zip(own, replies, strict=True):
                said[number, question] = Side(model=name, adapter=self.adapters[name], reply=reply.text)
        return ((said[q.models[0], q], said[q.models[1], q]) for q in questions)

    def key(self, question: Question, number: int) -> int:
        return seeds.key(self.p.evaluate.seed, "reply", question.dialogue, question.draw, question.emotion, number)


def app(polls: Polls, hosts: Sequence[str]) -> Starlette:
    """The page, which is told no model's name, and what it asks for."""
    about = {"emotions": polls.p.data.labels, "neutral": polls.p.data.neutral, "folder": str(polls.folder)}
    return site("blind.html", about, {"/ballots": polls.ballot, "/votes": polls.cast}, hosts)


def run(
    folder: Path,
    p: Params,
    host: str,
    port: int,
    models: Sequence[str],
    dialogues: Path,
    votes: Path,
    doubts: Mapping[str, str],
) -> None:
    """Serve the page until Ctrl-C: contexts of the validation split below `dialogues`, a file a voter below `votes`."""
    for name in dict.fromkeys(models):
        if why := doubts.get(lock.MAKERS[name]):
            print(f"{name} is STALE, it may be of another run: {why}", file=sys.stderr)

    def opened(hosts: Sequence[str]) -> Starlette:
        lend, judge = open_voices(folder, p.model), chat.open_listener(folder, p)
        adapters = {name: records.digest(chat.located(folder, name)) for name in models}
        held_out = records.read_dialogues(dialogues / "validation.jsonl")
        return app(Polls(lend, models, adapters, judge, p, held_out, votes), hosts)

    serve(host, port, f"Two replies without names, votes go to {votes}", opened, "vote")
