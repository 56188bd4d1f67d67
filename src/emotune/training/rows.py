"""Dialogues and pairs -> rows for the trainers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from emotune.core.dialogue import ASSISTANT, Dialogue, Turn
from emotune.core.errors import InputError
from emotune.core.seeds import key
from emotune.prompts import fitting, rendering
from emotune.training.params import Sft


def sft_rows(
    tokenizer: Any,
    dialogues: Sequence[Dialogue],
    neutral: str,
    neutral_replies: float | None,
    p: Sft,
    system_prompt: str | None,
    context: int,
) -> tuple[list[dict[str, list[int]]], int]:
    """Rows of ids and labels, and the number of turns that fit in no row.

    83 % of DailyDialog is neutral, so a batch's loss says little about any other emotion: of the neutral replies only
    `neutral_replies` times as many are trained on as there are others.
    """
    counts = Counter(turn.emotion == neutral for d in dialogues for turn in d.turns if turn.role == ASSISTANT)
    share = 1.0 if neutral_replies is None or not counts[True] else neutral_replies * counts[False] / counts[True]
    rows, left_out = [], 0
    for dialogue in dialogues:
        rng = random.Random(key(p.seed, "neutral replies", dialogue.id))
        pieces = fitting.fitting_rows(tokenizer, dialogue.turns, system_prompt, context)
        left_out += len(dialogue.turns) - sum(map(len, pieces))
        for piece in pieces:
            ids, of_reply = rendering.training_row(tokenizer, piece, system_prompt)
            learned = [turn.emotion != neutral or rng.random() < share for turn in piece if turn.role == ASSISTANT]
            labels, number, inside = [], -1, False
            for token, on in zip(ids, of_reply, strict=True):
                number += on and not inside
                inside = on
                labels.append(token if (learned[number] if on else p.loss_on == "all") else -100)
            if any(learned):
                # No token behind the last trained one can change the loss: each sees only what stands before it.
                end = max(at for at, label in enumerate(labels) if label != -100) + 1
                rows.append({"input_ids": ids[:end], "labels": labels[:end]})
    if not rows:
        raise InputError(f"model.context: no exchange of two turns fits in {context} tokens")
    return rows, left_out


def dpo_row(pair: Mapping[str, Any], system_prompt: str | None) -> dict[str, Any]:
    history = [Turn(turn["role"], turn["content"], turn["emotion"]) for turn in pair["history"]]
    replies = {
        side: rendering.messages([Turn(ASSISTANT, pair[side], pair["emotion"])], None)
        for side in ("chosen", "rejected")
    }
    return {
        "prompt": rendering.messages(history, system_prompt),
        **replies,
        "chat_template_kwargs": {"emotion": pair["emotion"]},
    }
