"""What is asked of whoever samples replies, this machine or a server, and what comes back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from emotune.generation.params import Sampling


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt (token ids), the 63-bit key of each candidate that is wanted for it, and the prompt's text.

    This machine reads the ids and a server the text, which begins with the beginning-of-sequence token. Where replies
    are guided, away from what they would be without the emotion, `twin` is the prompt (token ids) that does not ask for
    it; None where the prompt itself does not.
    """

    prompt: tuple[int, ...]
    keys: tuple[int, ...]
    text: str = ""
    twin: tuple[int, ...] | None = None

    @property
    def rows(self) -> int:
        """How many rows of a batch it takes: one a candidate, and one more for each that a twin guides."""
        return len(self.keys) * (1 if self.twin is None else 2)

    @property
    def longest(self) -> int:
        """The tokens of the prompt or of its twin, whichever has more."""
        return max(len(self.prompt), len(self.twin or ()))


@dataclass(frozen=True, slots=True)
class Reply:
    """A candidate's text, its length in tokens (end token not counted), and whether it ended by itself."""

    text: str
    tokens: int
    ended: bool


class Engine(Protocol):
    """Whoever samples replies; it loads its model, or asks for its server, when the first reply is wanted."""

    def at_once(self, requests: Sequence[Request], sampling: Sampling) -> int:
        """How many of the requests, from the first on, are best handed over together: one at least."""

    def replies(
        self, requests: Sequence[Request], sampling: Sampling, done: Callable[[int], None] = lambda count: None
    ) -> list[list[Reply]]:
        """One reply for each key of each request, in order; `done` hears how many more have come."""

    def ahead(self) -> int:
        """How many batches it had best sample while judges, who run on this machine's cores, hear earlier ones."""

    def close(self) -> None:
        """Let go of the model; who asks for a reply again has it loaded again."""


def leading(requests: Sequence[Request], rows: int) -> int:
    """How many of the first requests take at most `rows` rows together; one, where the first takes more."""
    return max(1, sum(total <= rows for total in accumulate(request.rows for request in requests)))
