"""The lexical part of a reward, learned of human dialogues: each reply against all the others of its batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from emotune.core.dialogue import Dialogue
from emotune.judges.matcher import batches
from emotune.models.lexical import BUCKETS, Lexical, Tokens, mean, read

# Passes, and Adam's rate, which is five times higher for what a token that both sides have counts.
EPOCHS, RATE = 3, 0.02


def fit(dialogues: Sequence[Dialogue], tokenizer: Any, turns: int, seed: int) -> Lexical:
    """Learned of what people replied behind at most `turns` turns, users too, by Bradley and Terry's loss.

    It is the mean of two, each of half of the dialogues: one of all is twice as sure as it may be of new ones.
    """
    width = min(BUCKETS, len(tokenizer))
    halves = [_places(half, tokenizer, turns, width) for half in (dialogues[::2], dialogues[1::2]) if half]
    replies = [reply for half in halves for reply in half.replies]
    counts = np.bincount([token for reply in replies for token in reply], minlength=width)
    rarity = torch.from_numpy(np.log((1 + len(replies)) / (1 + counts)) + 1).float()
    return mean([_fit(half, rarity, seed) for half in halves])


class _Places(NamedTuple):
    """The tokens of the turn before each reply, of those before that, and of the reply; and the replies' emotions."""

    last: list[Tokens]
    earlier: list[Tokens]
    replies: list[Tokens]
    emotions: list[str]


def _places(dialogues: Sequence[Dialogue], tokenizer: Any, turns: int, width: int) -> _Places:
    at = [(d.turns[max(0, n - turns) : n], d.turns[n]) for d in dialogues for n in range(1, len(d.turns))]
    answers = [(said, reply.content) for said, reply in at]
    return _Places(*read(tokenizer, answers, width), [reply.emotion for _, reply in at])


def _fit(places: _Places, rarity: torch.Tensor, seed: int) -> Lexical:
    """In a batch of one emotion the human reply is to be worth more in its context than each other one is there."""
    lexical, rng = Lexical(rarity), np.random.default_rng(seed)
    order = [batch for _ in range(EPOCHS) for batch in batches(places.emotions, rng)]
    weights = [{"params": [lexical.said, lexical.reply]}, {"params": [lexical.shared], "lr": 5 * RATE}]
    adam = torch.optim.Adam(weights, lr=RATE, betas=(0.9, 0.99))
    down = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / len(order))
    for batch in order:
        adam.zero_grad()
        loss(lexical(*([of[at] for at in batch] for of in places[:3]))).backward()
        adam.step()
        down.step()
    return lexical


def loss(worth: torch.Tensor) -> torch.Tensor:
    """The mean of -ln sigmoid(worth[i, i] - worth[i, j]) over all j but i."""
    margins = worth.diagonal()[:, None] - worth
    others = ~torch.eye(len(worth), dtype=torch.bool)
    return functional.softplus(-margins[others]).mean() if len(worth) > 1 else 0 * worth.sum()
