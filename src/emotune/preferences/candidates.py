"""Prompts -> candidates, sampled here or by a server, and what the judges say of them."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from emotune.core import seeds
from emotune.core.dialogue import ASSISTANT, Dialogue, Turn, normal_form
from emotune.generation.engine import Engine, Reply, Request
from emotune.generation.here import Local
from emotune.generation.params import Generation
from emotune.judges.verdicts import Judge
from emotune.preferences.params import Prefs
from emotune.preferences.reward import Judged


@dataclass(frozen=True, slots=True)
class Prompt:
    """A history to answer in an emotion, and the text and token ids that ask for it; `twin` as in Request."""

    id: str
    dialogue: str
    history: tuple[Turn, ...]
    emotion: str
    text: str
    ids: tuple[int, ...]
    twin: tuple[int, ...] | None = None

    @property
    def place(self) -> str:
        """Where in the dialogues its reply stands, whatever the emotion."""
        return self.id.removesuffix(f"/{self.emotion}")

    @property
    def digest(self) -> str:
        """Its name in the journal."""
        # The sampling in the journal's key says how much a twin guides, but not which emotion is the neutral one.
        parts = [self.id, self.text, *([] if self.twin is None else [str(self.twin)])]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


# A reply of fewer words is a set phrase, which nobody can have copied.
COPY = 4
# A prompt and the number of its attempt, from 1.
Wanted = tuple[Prompt, int]
# Replies to the first few of those wanted: as many as are best sampled at once.
Sample = Callable[[Sequence[Wanted]], list[list[Reply]]]
JudgeReplies = Callable[[Sequence[Sequence[Reply]]], list[list[Judged]]]


def engine_of(generation: Generation, open_model: Callable[[], Any], tokenizer: Any) -> Engine:
    """This machine with the model that `open_model` loads, or the environment's server, as the params say."""
    if generation.engine == "server":
        from emotune.generation.server import Server

        return Server(str(generation.model))
    return Local(open_model, tokenizer)


def sampling(engine: Engine, p: Prefs) -> Sample:
    """Sampling by an engine; what an attempt draws depends on the seed, the prompt and its number alone."""

    def sample(wanted: Sequence[Wanted]) -> list[list[Reply]]:
        requests = []
        for prompt, attempt in wanted:
            keys = tuple(seeds.key(p.seed, prompt.id, attempt, n) for n in range(p.candidates))
            requests.append(Request(prompt.ids, keys, prompt.text, prompt.twin))
        return engine.replies(requests[: engine.at_once(requests, p.sampling)], p.sampling)

    return sample


def known_replies(dialogues: Iterable[Dialogue]) -> frozenset[str]:
    """The replies of COPY words and more in these dialogues, in normal form: whoever says one of them has copied it."""
    replies = (turn.content for d in dialogues for turn in d.turns if turn.role == ASSISTANT)
    return frozenset(normal_form(reply) for reply in replies if len(reply.split()) >= COPY)


def judging(open_judges: Callable[[], tuple[Judge, Judge]], known: frozenset[str] = frozenset()) -> JudgeReplies:
    """Judging by the emotion and gibberish judges that `open_judges` loads, when the first reply is there.

    A reply that is one of those `known` is a copy.
    """
    judges = functools.cache(open_judges)

    def judge(sampled: Sequence[Sequence[Reply]]) -> list[list[Judged]]:
        texts = [reply.text for replies in sampled for reply in replies]
        verdicts = zip(*(judge(texts) for judge in judges()), strict=True)
        return [
            [
                Judged(reply.text, reply.tokens, emotion, sure, kind, as_sure, normal_form(reply.text) in known)
                for reply, ((emotion, sure), (kind, as_sure)) in zip(replies, verdicts, strict=False)
            ]
            for replies in sampled
        ]

    return judge
