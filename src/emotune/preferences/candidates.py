"""Prompts -> candidates, sampled here or by a server, and what the judges say of them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emotune.core import seeds
from emotune.core.dialogue import Turn
from emotune.generation import local, server
from emotune.preferences.params import Prefs
from emotune.preferences.reward import Judged

if TYPE_CHECKING:
    from emotune.judges.verdicts import Judge


@dataclass(frozen=True, slots=True)
class Prompt:
    """A history to answer in an emotion, and the text and token ids that ask for it."""

    id: str
    dialogue: str
    history: tuple[Turn, ...]
    emotion: str
    text: str
    ids: tuple[int, ...]

    @property
    def digest(self) -> str:
        """Its name in the journal."""
        return hashlib.sha256(f"{self.id}\0{self.text}".encode()).hexdigest()


# A prompt and the number of its attempt, from 1.
Wanted = tuple[Prompt, int]
# Replies to the first few of those wanted: as many as are best sampled at once.
Sample = Callable[[Sequence[Wanted]], list[list[local.Reply]]]
JudgeReplies = Callable[[Sequence[Sequence[local.Reply]]], list[list[Judged]]]


def sampling_here(open_model: Callable[[], Any], tokenizer: Any, p: Prefs) -> Sample:
    """Sampling by the model that `open_model` loads, when the first reply is wanted and not before."""
    model = functools.cache(open_model)

    def sample(wanted: Sequence[Wanted]) -> list[list[local.Reply]]:
        # Shortest first: what comes last of so many is the longest of them.
        most = wanted[: local.GPU_ROWS // p.candidates or 1]
        rows = local.fitting_rows(model(), len(most[-1][0].ids) + p.sampling.max_new_tokens)
        requests = [
            local.Request(prompt.ids, _keys(prompt, attempt, p))
            for prompt, attempt in most[: rows // p.candidates or 1]
        ]
        return local.replies(model(), tokenizer, requests, p.sampling, rows)

    return sample


def sampling_by_server(name: str, p: Prefs) -> Sample:
    """Sampling by the server that the environment names, asked for the model `name` when the first reply is wanted."""
    endpoint = functools.cache(lambda: server.connect(name))

    def sample(wanted: Sequence[Wanted]) -> list[list[local.Reply]]:
        # Enough that the server is never idle for want of a request, few enough that the journal is never far behind.
        some = wanted[: max(1, 4 * endpoint().concurrency // p.candidates)]
        requests = [(prompt.text, _keys(prompt, attempt, p)) for prompt, attempt in some]
        return server.replies(endpoint(), requests, p.sampling)

    return sample


def _keys(prompt: Prompt, attempt: int, p: Prefs) -> tuple[int, ...]:
    return tuple(seeds.key(p.seed, prompt.id, attempt, n) for n in range(p.candidates))


def judging(open_judges: Callable[[], tuple[Judge, Judge]]) -> JudgeReplies:
    """Judging by the emotion and gibberish judges that `open_judges` loads, when the first reply is there."""
    judges = functools.cache(open_judges)

    def judge(sampled: Sequence[Sequence[local.Reply]]) -> list[list[Judged]]:
        texts = [reply.text for replies in sampled for reply in replies]
        verdicts = zip(*(judge(texts) for judge in judges()), strict=True)
        return [
            [
                Judged(reply.text, reply.tokens, *emotion, *gibberish)
                for reply, (emotion, gibberish) in zip(replies, verdicts, strict=False)
            ]
            for replies in sampled
        ]

    return judge
