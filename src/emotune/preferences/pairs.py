"""The preference dataset: a row a pair, with all that led to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from emotune.preferences.attempts import Outcome
from emotune.preferences.candidates import Prompt


def rows(prompts: Iterable[Prompt], outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """The preference dataset: the five published columns, then all that led to them."""
    table = []
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        if outcome.pair is None:
            continue
        row: dict[str, Any] = {
            "id": prompt.id,
            "dialogue": prompt.dialogue,
            "prompt": prompt.text,
            "history": [{"role": t.role, "content": t.content, "emotion": t.emotion} for t in prompt.history],
            "emotion": prompt.emotion,
            "attempts": outcome.attempts,
        }
        for side, reply in (("chosen", outcome.pair.chosen), ("rejected", outcome.pair.rejected)):
            row |= {
                side: reply.text,
                f"{side}_score": reply.reward,
                f"{side}_judged": reply.emotion,
                f"{side}_judged_confidence": reply.emotion_confidence,
                f"{side}_gibberish": reply.gibberish,
                f"{side}_gibberish_confidence": reply.gibberish_confidence,
                f"{side}_emotion_score": reply.emotion_score,
                f"{side}_length_score": reply.length_score,
                f"{side}_gibberish_score": reply.gibberish_score,
            }
        table.append(row)
    return table
