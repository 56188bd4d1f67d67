"""The reward model: the base model under an adapter and a score head; what replies are worth to it in their contexts.

It sees what was said and the reply, in the base model's own format, and no emotion: whether a reply has the one that
was asked for is what other judges say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from emotune.core import records
from emotune.core.dialogue import ASSISTANT, Turn, history, trim
from emotune.models import lexical, loading
from emotune.models.lexical import Answer, Lexical
from emotune.models.likelihood import POSITIONS, padded
from emotune.models.params import Model
from emotune.prompts.prompter import Prompter

# Beside the adapter: which reward is half of what there is, and how many turns before a reply are read.
SCALE = "scale.json"


@dataclass(frozen=True, slots=True)
class Scale:
    """`zero`: the mean reward of the held-out replies, the better ones and the worse; `turns`: a prompt's at most."""

    zero: float
    turns: int

    def score(self, reward: float) -> float:
        """10 x sigmoid(reward - zero): 10 times how probable it is, by Bradley-Terry, that it beats a middling reply.

        Between 0 and 10 as the other terms of a reward are.
        """
        return 10 / (1 + math.exp(min(700.0, self.zero - reward)))


@dataclass(frozen=True, slots=True)
class RewardModel:
    """What replies are worth; `prompter.history_turns` is how much of a context is read.

    A reward is what the model says and, where there is one, what the lexical part does.
    """

    model: Any
    prompter: Prompter
    lexical: Lexical | None = None

    @torch.inference_mode()
    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        """A number for each answer, the better the higher, in batches of like length.

        One whose last turn alone leaves the reply no room is cut in front.
        """
        own = [ids[-self.prompter.context :] for turns, reply in answers for ids in rows(self.prompter, turns, [reply])]
        order = sorted(range(len(own)), key=lambda number: len(own[number]), reverse=True)
        of_turns = [(history(turns, len(turns), self.prompter.history_turns), reply) for turns, reply in answers]
        values = self.lexical.scores(self.prompter.tokenizer, of_turns) if self.lexical else [0.0] * len(own)
        start = 0
        while start < len(order):
            batch = order[start : start + max(1, POSITIONS // len(own[order[start]]))]
            ids = padded([own[number] for number in batch], self.model.config.pad_token_id)
            mask = padded([[1] * len(own[number]) for number in batch], 0)
            scores = self.model(input_ids=ids.to(self.model.device), attention_mask=mask.to(self.model.device)).logits
            for number, value in zip(batch, scores[:, 0].float().tolist(), strict=True):
                # Rounded: what stands beside a reply in its batch moves the last digits.
                values[number] = round(values[number] + value, 4)
            start += len(batch)
        return values


def prompter(base: Path, system_prompt: str | None, context: int, turns: int) -> Prompter:
    """The base model's own format, which writes no emotion."""
    return Prompter(loading.load_tokenizer(base, None), system_prompt, context, turns)


def rows(prompter: Prompter, turns: Sequence[Turn], replies: Sequence[str]) -> list[list[int]]:
    """The ids of each reply behind the same turns: the latest, whole, that leave room for all, at least the last."""
    read = history(turns, len(turns), prompter.history_turns)

    @cache
    def ids(of: tuple[Turn, ...]) -> list[list[int]]:
        return [prompter.reply_row(of, Turn(ASSISTANT, reply, of[-1].emotion))[0] for reply in replies]

    return ids(trim(read, lambda of: max(map(len, ids(tuple(of)))) <= prompter.context))


def untrained(base: Path, choice: Model, prompter: Prompter) -> Any:
    """The base model under a score head that finds everything worth 0."""
    model = loading.load_base(base, choice, scored=True)
    # By it the head knows where a padded row ends.
    model.config.pad_token_id = prompter.tokenizer.pad_token_id
    return model


def opened(
    base: Path, choice: Model, adapter: Path, system_prompt: str | None, turns: int | None = None
) -> tuple[RewardModel, Scale]:
    """A trained reward model and its scale, or with `turns` one that has no scale yet."""
    scale = Scale(0.0, turns) if turns else Scale(**records.read_json(adapter / SCALE))
    reads = prompter(base, system_prompt, choice.context, scale.turns)
    model = loading.load_adapter(untrained(base, choice, reads), adapter)
    tokens_alone = lexical.load(adapter / lexical.FILE) if (adapter / lexical.FILE).exists() else None
    return RewardModel(loading.merged(model, choice).eval(), reads, tokens_alone), scale
