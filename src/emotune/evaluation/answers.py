"""Questions -> a model's replies, what the judges say of them, and what the human replies cost the model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from emotune.core import processes, seeds
from emotune.core.contract import SAMPLED_TOKENS, SAMPLING_SECONDS, Log
from emotune.core.dialogue import ASSISTANT, Dialogue, Turn
from emotune.evaluation.params import Evaluate
from emotune.evaluation.questions import Question, control, natural
from emotune.generation import local
from emotune.generation.params import Sampling
from emotune.judges.verdicts import Judge
from emotune.models import likelihood
from emotune.prompts import fitting, rendering

Rows = list[dict[str, Any]]
# The likelihoods of so many token positions are computed at once.
POSITIONS = 4096


@dataclass(frozen=True, slots=True)
class Answers:
    """A model's rows: `replies` to the natural questions, `control` to those asked in every emotion."""

    replies: Rows
    control: Rows


def answer(
    model: Any,
    tokenizer: Any,
    test: Sequence[Dialogue],
    labels: Sequence[str],
    p: Evaluate,
    history_turns: int,
    system_prompt: str | None,
    context: int,
    emotion_judge: Judge,
    gibberish_judge: Judge,
    log: Log,
) -> Answers:
    """The test questions, answered by a model and judged: the same for every model under equal params."""
    asked = natural(test, history_turns, p.prompts, p.seed)
    in_every_emotion = control(test, history_turns, p.control_contexts, labels, p.seed)
    rows = _ask(
        model,
        tokenizer,
        [*asked, *in_every_emotion],
        system_prompt,
        context,
        p.sampling,
        p.seed,
        emotion_judge,
        gibberish_judge,
        log,
    )
    return Answers(rows[: len(asked)], rows[len(asked) :])


def _ask(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    system_prompt: str | None,
    context: int,
    how: Sampling,
    seed: int,
    emotion_judge: Judge,
    gibberish_judge: Judge,
    log: Log,
) -> Rows:
    """One row a question, in order: the reply, what both judges say of it, and the reference's likelihood.

    Several processes share the work, and each returns the rows of all. A history that leaves no room for the
    reply loses its oldest turns, whole; `trimmed` says so.
    """
    kept, requests = requests_of(tokenizer, questions, system_prompt, context - how.max_new_tokens, seed)
    own = processes.share(requests)
    began = time.monotonic()
    with tqdm(
        total=len(own), desc="replies", unit="reply", mininterval=5, dynamic_ncols=True, disable=not processes.first()
    ) as bar:
        replies = [found[0] for found in local.replies(model, tokenizer, own, how, done=bar.update)]
    # A judge rounds differently in another batch, so each process asks about all.
    replies = processes.gather(replies)
    tokens = sum(reply.tokens + reply.ended for reply in replies)
    log({SAMPLED_TOKENS: tokens, SAMPLING_SECONDS: time.monotonic() - began}, 0)
    texts = [reply.text for reply in replies]
    rows: Rows = [
        {
            "id": q.id,
            "dialogue": q.dialogue,
            "context": [turn.content for turn in turns],
            "trimmed": len(turns) < len(q.history),
            "emotion": q.emotion,
            "reply": reply.text,
            "judged": judged,
            "confidence": confidence,
            "gibberish": gibberish,
            "gibberish_confidence": gibberish_confidence,
            "tokens": reply.tokens,
            "ended": reply.ended,
        }
        for q, turns, reply, (judged, confidence), (gibberish, gibberish_confidence) in zip(
            questions, kept, replies, emotion_judge(texts), gibberish_judge(texts), strict=True
        )
    ]
    with_reference = [i for i, q in enumerate(questions) if q.reference is not None]
    references = [
        rendering.reply_row(
            tokenizer, kept[i], Turn(ASSISTANT, questions[i].reference or "", questions[i].emotion), system_prompt
        )
        for i in with_reference
    ]
    fitting = [(i, row) for i, row in zip(with_reference, references, strict=True) if len(row[0]) <= context]
    found = _likelihoods(model, tokenizer.pad_token_id, [row for _, row in fitting])
    for (i, _), (nats, tokens) in zip(fitting, found, strict=True):
        rows[i] |= {"reference": questions[i].reference, "reference_nats": nats, "reference_tokens": tokens}
    return rows


def requests_of(
    tokenizer: Any, questions: Sequence[Question], system_prompt: str | None, room: int, seed: int
) -> tuple[list[tuple[Turn, ...]], list[local.Request]]:
    """What each question keeps of its history in a prompt of at most `room` tokens, and that prompt with its key."""
    fitting = [fitting.fitting_prompt(tokenizer, q.history, q.emotion, system_prompt, room) for q in questions]
    keys = [(seeds.key(seed, q.id),) for q in questions]
    requests = [local.Request(tuple(ids), own) for (_, ids), own in zip(fitting, keys, strict=True)]
    return [turns for turns, _ in fitting], requests


def _likelihoods(model: Any, pad: int, rows: Sequence[rendering.Row]) -> list[tuple[float, int]]:
    """models.negative_log_likelihoods of rows that several processes share by whole batches.

    A sum rounds differently in another batch, so the batches must not depend on how many processes there are.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    batches = []
    while order:
        count = max(1, POSITIONS // len(rows[order[-1]][0]))
        batches.append(order[-count:])
        del order[-count:]
    own = processes.share(batches)
    sums = processes.gather(
        [likelihood.negative_log_likelihoods(model, pad, [rows[i] for i in b], POSITIONS) for b in own]
    )
    found = dict(pair for numbers in zip(batches, sums, strict=True) for pair in zip(*numbers, strict=True))
    return [found[i] for i in range(len(rows))]
