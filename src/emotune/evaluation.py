"""The same questions to every model: held-out prompts -> replies -> what a judge and plain counting say of them."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from emotune import launch, models, params, prompts, sampling, scores, seeds
from emotune.dialogue import ASSISTANT, Dialogue, Turn, history
from emotune.judges import Judge
from emotune.reward import CLEAN

Rows = list[dict[str, Any]]
# The likelihoods of so many token positions are computed at once.
POSITIONS = 4096
# Words over which distinct-n is counted, the same for every model, because it falls with length.
DISTINCT_WORDS = 5000
# Bootstrap samples of contexts behind the interval of the judges' gap.
GAP_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Question:
    """Answer this history in this emotion; `reference` is what a human answered, where the emotion is the human's."""

    id: str
    dialogue: str
    history: tuple[Turn, ...]
    emotion: str
    reference: str | None


def natural(dialogues: Iterable[Dialogue], history_turns: int, limit: int | None, seed: int) -> list[Question]:
    """Every reply of every dialogue, asked for in its own emotion; or `limit` of them, dialogues shuffled."""
    shuffled = list(dialogues)
    random.Random(seeds.key(seed, "natural")).shuffle(shuffled)
    questions = [
        Question(f"{d.id}/{i}", d.id, history(d.turns, i, history_turns), turn.emotion, turn.content)
        for d in shuffled
        for i, turn in enumerate(d.turns)
        if turn.role == ASSISTANT
    ]
    return questions[:limit]


def control(
    dialogues: Iterable[Dialogue], history_turns: int, contexts: int, labels: Sequence[str], seed: int
) -> list[Question]:
    """One context from each of `contexts` dialogues, each asked for in every emotion."""
    rng = random.Random(seeds.key(seed, "control"))
    shuffled = list(dialogues)
    rng.shuffle(shuffled)
    questions = []
    for d in shuffled[:contexts]:
        at = rng.choice([i for i, turn in enumerate(d.turns) if turn.role == ASSISTANT])
        context = history(d.turns, at, history_turns)
        questions += [Question(f"{d.id}/{at}/{label}", d.id, context, label, None) for label in labels]
    return questions


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
    p: params.Evaluate,
    history_turns: int,
    system_prompt: str | None,
    context: int,
    emotion_judge: Judge,
    gibberish_judge: Judge,
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
    )
    return Answers(rows[: len(asked)], rows[len(asked) :])


def _ask(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    system_prompt: str | None,
    context: int,
    how: params.Sampling,
    seed: int,
    emotion_judge: Judge,
    gibberish_judge: Judge,
) -> Rows:
    """One row a question, in order: the reply, what both judges say of it, and the reference's likelihood.

    Several processes share the work, and each returns the rows of all. A history that leaves no room for the
    reply loses its oldest turns, whole; `trimmed` says so.
    """
    kept, requests = _requests(tokenizer, questions, system_prompt, context - how.max_new_tokens, seed)
    own = launch.share(requests)
    began = time.monotonic()
    with tqdm(
        total=len(own), desc="replies", unit="reply", mininterval=5, dynamic_ncols=True, disable=not launch.first()
    ) as bar:
        replies = [found[0] for found in sampling.replies(model, tokenizer, own, how, done=bar.update)]
    # A judge rounds differently in another batch, so each process asks about all.
    replies = launch.gather(replies)
    launch.sampled(sum(reply.tokens + reply.ended for reply in replies), time.monotonic() - began)
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
        prompts.reply_row(
            tokenizer, kept[i], Turn(ASSISTANT, questions[i].reference or "", questions[i].emotion), system_prompt
        )
        for i in with_reference
    ]
    fitting = [(i, row) for i, row in zip(with_reference, references, strict=True) if len(row[0]) <= context]
    found = _likelihoods(model, tokenizer.pad_token_id, [row for _, row in fitting])
    for (i, _), (nats, tokens) in zip(fitting, found, strict=True):
        rows[i] |= {"reference": questions[i].reference, "reference_nats": nats, "reference_tokens": tokens}
    return rows


def _requests(
    tokenizer: Any, questions: Sequence[Question], system_prompt: str | None, room: int, seed: int
) -> tuple[list[tuple[Turn, ...]], list[sampling.Request]]:
    """What each question keeps of its history in a prompt of at most `room` tokens, and that prompt with its key."""
    fitting = [prompts.fitting_prompt(tokenizer, q.history, q.emotion, system_prompt, room) for q in questions]
    keys = [(seeds.key(seed, q.id),) for q in questions]
    requests = [sampling.Request(tuple(ids), own) for (_, ids), own in zip(fitting, keys, strict=True)]
    return [turns for turns, _ in fitting], requests


def control_by(
    judges: Mapping[str, Judge],
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    system_prompt: str | None,
    context: int,
    how: params.Sampling,
    seed: int,
) -> dict[str, list[float]]:
    """For each judge, and each context of `control`, the share of the replies that it finds in the emotion asked for.

    Every process answers every question, in the same batches: a model that is spread over them answers only where all
    of them ask.
    """
    _, requests = _requests(tokenizer, questions, system_prompt, context - how.max_new_tokens, seed)
    found = sampling.replies(model, tokenizer, requests, how, rows=sampling.CPU_ROWS)
    texts = [reply.text for [reply] in found]
    shares: dict[str, list[float]] = {}
    for name, judge in judges.items():
        hits: dict[str, list[bool]] = {}
        for (verdict, _), q in zip(judge(texts), questions, strict=True):
            hits.setdefault(q.dialogue, []).append(verdict == q.emotion)
        shares[name] = [sum(own) / len(own) for own in hits.values()]
    return shares


def judge_gap(control: Sequence[Mapping[str, Sequence[float]]], rewards: str, other: str, seed: int) -> dict[str, Any]:
    """Control by the judge that rewards and by the other, first and last, and how much more it rose by the former.

    `control` is what `control_by` said of the model, step by step. The gap's 95 % interval is over the contexts.
    """
    first, last = ({name: np.array(found[name]) for name in (rewards, other)} for found in (control[0], control[-1]))
    gaps = (last[rewards] - first[rewards]) - (last[other] - first[other])
    low, high = scores.bootstrap(gaps, lambda sums: sums / len(gaps), GAP_RESAMPLES, seed)
    return {
        **{f"{name}_first": float(shares.mean()) for name, shares in first.items()},
        **{f"{name}_last": float(shares.mean()) for name, shares in last.items()},
        "judge_gap": {"value": float(gaps.mean()), "low": low, "high": high},
    }


def _likelihoods(model: Any, pad: int, rows: Sequence[prompts.Row]) -> list[tuple[float, int]]:
    """models.negative_log_likelihoods of rows that several processes share by whole batches.

    A sum rounds differently in another batch, so the batches must not depend on how many processes there are.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    batches = []
    while order:
        count = max(1, POSITIONS // len(rows[order[-1]][0]))
        batches.append(order[-count:])
        del order[-count:]
    own = launch.share(batches)
    sums = launch.gather([models.negative_log_likelihoods(model, pad, [rows[i] for i in b], POSITIONS) for b in own])
    found = dict(pair for numbers in zip(batches, sums, strict=True) for pair in zip(*numbers, strict=True))
    return [found[i] for i in range(len(rows))]


def measure(answers: Answers, labels: Sequence[str], neutral: str, p: params.Evaluate) -> dict[str, Any]:
    """All that the metrics say of one model, from its rows alone."""
    replies = scores.score(*_columns(answers.replies), labels, neutral, p.resamples, p.seed)
    control = scores.score(*_columns(answers.control), labels, neutral, p.resamples, p.seed)
    recalls = scores.per_label(*_columns(answers.control)[1:], labels)
    return {
        "replies": replies,
        "control": control | {"per_emotion": {label: recalls[label]["recall"] for label in labels}},
        "reference": _reference(answers.replies, p.resamples, p.seed),
        "text": _text(answers.replies),
    }


def compare(before: Answers, after: Answers, labels: Sequence[str], neutral: str, p: params.Evaluate) -> dict[str, Any]:
    """Paired tests of two models over the same questions: differences after - before, and McNemar's test."""
    result: dict[str, Any] = {}
    for kind in ("replies", "control"):
        ids, asked, first = _columns(getattr(before, kind))
        second = _columns(getattr(after, kind))[2]
        result[kind] = scores.paired(ids, asked, first, second, labels, neutral, p.resamples, p.seed)
        hits = [[judged == emotion for judged, emotion in zip(found, asked, strict=True)] for found in (first, second)]
        result[kind]["mcnemar"] = scores.mcnemar(*hits)
    return result


def majority(answers: Answers, labels: Sequence[str], neutral: str) -> dict[str, Any]:
    """The row of a model that answers every natural question in the most frequent emotion."""
    return {"replies": scores.majority([row["emotion"] for row in answers.replies], labels, neutral)}


def _columns(rows: Rows) -> tuple[list[str], list[str], list[str]]:
    return [row["dialogue"] for row in rows], [row["emotion"] for row in rows], [row["judged"] for row in rows]


def _reference(rows: Rows, resamples: int, seed: int) -> dict[str, Any]:
    """What the human replies cost the model: perplexity and bits per character, 95 % intervals over dialogues.

    Perplexity is a token's, so it compares under one tokenizer alone. Bits per character spread the same negative
    log-likelihood, that of the reply's tokens and its end, over the characters of the replies' text, which no tokenizer
    changes: models of different families compare.
    """
    sums: dict[str, list[float]] = {}
    for row in rows:
        if "reference" in row:
            own = sums.setdefault(row["dialogue"], [0.0, 0.0, 0.0])
            for i, value in enumerate((row["reference_nats"], row["reference_tokens"], len(row["reference"]))):
                own[i] += value
    table = np.array(list(sums.values()))
    nats, tokens, characters = table.sum(axis=0)
    ppl = scores.bootstrap(table, lambda s: np.exp(s[:, 0] / s[:, 1]), resamples, seed)
    bits = scores.bootstrap(table, lambda s: s[:, 0] / s[:, 2] / np.log(2), resamples, seed)
    return {
        "perplexity": {"value": scores.perplexity(nats, int(tokens)), "low": ppl[0], "high": ppl[1]},
        "bits_per_character": {
            "value": scores.bits_per_character(nats, int(characters)),
            "low": bits[0],
            "high": bits[1],
        },
        "left_out_too_long": sum("reference" not in row for row in rows),
    }


def _text(rows: Rows) -> dict[str, Any]:
    replies = [row["reply"] for row in rows]
    words = sorted(len(reply.split()) for reply in replies)
    return {
        "distinct_1": scores.distinct(replies, 1, DISTINCT_WORDS),
        "distinct_2": scores.distinct(replies, 2, DISTINCT_WORDS),
        "words_mean": sum(words) / len(words),
        "words_median": words[len(words) // 2],
        "characters_mean": sum(map(len, replies)) / len(replies),
        "ends_properly": _share(scores.ends_properly(reply) for reply in replies),
        "hit_token_limit": _share(not row["ended"] for row in rows),
        "gibberish": _share(row["gibberish"] != CLEAN for row in rows),
        "copies_context": _share(scores.copies_context(row["reply"], row["context"]) for row in rows),
        "prompt_text_share": _share(map(scores.has_prompt_text, replies)),
        "empty": _share(not reply for reply in replies),
        "history_trimmed": _share(row["trimmed"] for row in rows),
    }


def _share(hits: Iterable[bool]) -> dict[str, float]:
    found = list(hits)
    low, high = scores.wilson(sum(found), len(found))
    return {"value": sum(found) / len(found), "low": low, "high": high}


def table(measured: Mapping[str, Any]) -> Rows:
    """The comparison as rows of model, metric, value, low, high: what the plot and the README's table show."""
    shown = {
        "accuracy": ("replies", "accuracy"),
        "weighted F1": ("replies", "weighted_f1"),
        "macro F1": ("replies", "macro_f1"),
        "micro F1 without neutral": ("replies", "micro_f1_without_neutral"),
        "control": ("control", "macro_accuracy"),
        "perplexity": ("reference", "perplexity"),
        "bits per character": ("reference", "bits_per_character"),
    }
    return [
        {"model": model, "metric": metric, **measured[model][part][name]}
        for metric, (part, name) in shown.items()
        for model in ("majority", "baseline", "sft", "dpo")
        if part in measured[model]
    ]
