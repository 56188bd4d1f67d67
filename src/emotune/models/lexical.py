"""Which tokens of a reply go with which of what was said: a small model takes long to learn that, a count does not.

It is the part of a reward that reads no order of words; its tokens are the base model's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from emotune.core.dialogue import Turn

# Beside the adapter.
FILE = "lexical.safetensors"
# Ids are counted in so many buckets at most; numbers that a token is; turns before the last that are read.
BUCKETS, SIZE, EARLIER = 2**14, 16, 2
# What a token that both have counts before anything is learned: SHARED in the last turn, half of it in those before.
SHARED = 5.0
# Answers that are laid out at once.
ROWS = 256
# Tokens, each once.
Tokens = list[int]
# What was said, and a reply to it.
Answer = tuple[Sequence[Turn], str]


class Lexical(torch.nn.Module):
    """What a reply is worth behind what was said, by tokens alone: sum of shared_t x_t y_t + SHARED (x U) (y V)'.

    x are the tokens of what was said, its last turn apart from those before it, y those of the reply: each once, by its
    rarity, and a side of length 1.
    """

    rarity: torch.Tensor

    def __init__(self, rarity: torch.Tensor, size: int = SIZE) -> None:
        super().__init__()
        width, made = len(rarity), torch.Generator().manual_seed(0)
        self.register_buffer("rarity", rarity)
        self.said = torch.nn.Parameter(torch.randn(2 * width, size, generator=made) * 0.3 / size**0.5)
        self.reply = torch.nn.Parameter(torch.randn(width, size, generator=made) * 0.3 / size**0.5)
        self.shared = torch.nn.Parameter(torch.tensor([[SHARED], [SHARED / 2]]).repeat(1, width))

    def forward(self, last: Sequence[Tokens], earlier: Sequence[Tokens], replies: Sequence[Tokens]) -> torch.Tensor:
        """The tokens of n contexts' last turns, of those before, and of m replies -> each by each, [n, m]."""
        said = torch.stack([self._rows(last), self._rows(earlier)], dim=1)
        answers = self._rows(replies)
        form = (said.flatten(1) @ self.said) @ (answers @ self.reply).T
        return SHARED * form + (said * self.shared).sum(1) @ answers.T

    @torch.inference_mode()
    def scores(self, tokenizer: Any, answers: Sequence[Answer]) -> list[float]:
        """A number for each answer."""
        values: list[float] = []
        for start in range(0, len(answers), ROWS):
            values += self(*read(tokenizer, answers[start : start + ROWS], len(self.rarity))).diagonal().tolist()
        return values

    def _rows(self, texts: Sequence[Tokens]) -> torch.Tensor:
        rows = torch.zeros(len(texts), len(self.rarity))
        at = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(own) for own in texts]))
        token = torch.tensor(list(chain(*texts)), dtype=torch.long)
        rows[at, token] = self.rarity[token]
        return torch.nn.functional.normalize(rows)


def read(tokenizer: Any, answers: Sequence[Answer], width: int) -> tuple[list[Tokens], list[Tokens], list[Tokens]]:
    """Of each answer the buckets of the tokens of the last turn, of those before it that are read, and of the reply."""
    said = [[turn.content for turn in turns[-1 - EARLIER :]] for turns, _ in answers]
    texts = list(dict.fromkeys(chain(*said, (reply for _, reply in answers))))
    # Behind a space, as words within a text are.
    ids = tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"]
    buckets = {text: {token % width for token in own} for text, own in zip(texts, ids, strict=True)}

    def tokens(of: Iterable[Sequence[str]]) -> list[Tokens]:
        return [sorted({token for text in own for token in buckets[text]}) for own in of]

    return tokens(own[-1:] for own in said), tokens(own[:-1] for own in said), tokens([reply] for _, reply in answers)


def save(lexical: Lexical, path: Path) -> None:
    save_file(lexical.state_dict(), path)


def load(path: Path) -> Lexical:
    """What `save` wrote."""
    return _holding(load_file(path))


def mean(of: Sequence[Lexical]) -> Lexical:
    """One whose scores are the means of those of `of`, which have one rarity."""
    return _holding(
        {
            "rarity": of[0].rarity,
            "said": torch.cat([own.said.detach() for own in of], dim=1) / len(of),
            "reply": torch.cat([own.reply.detach() for own in of], dim=1),
            "shared": torch.stack([own.shared.detach() for own in of]).mean(0),
        }
    )


def _holding(weights: dict[str, torch.Tensor]) -> Lexical:
    lexical = Lexical(weights["rarity"], weights["reply"].shape[1])
    lexical.load_state_dict(weights)
    return lexical
