"""The questions that every model is asked, its replies, what judges say of them, and what human replies cost it.

They are asked in the emotion that the data has, and in every emotion.
"""

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from emotune.core import processes, records, seeds
from emotune.core.contract import SAMPLED_TOKENS, SAMPLING_SECONDS, Log
from emotune.core.dialogue import ASSISTANT, Dialogue, Turn, history
from emotune.evaluation.params import Evaluate
from emotune.generation import local
from emotune.generation.engine import Reply, Request
from emotune.generation.params import Sampling
from emotune.judges.verdicts import Classifier, Judge
from emotune.models import likelihood
from emotune.prompts.prompter import Row

Rows = list[dict[str, Any]]


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


class Asking(Protocol):
    """Whoever turns a question into a prompt: a Prompter, or one that tells the emotion in words."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def history_turns(self) -> int: ...

    def fitting_prompt(
        self, history: Sequence[Turn], emotion: str, reply_tokens: int
    ) -> tuple[tuple[Turn, ...], tuple[int, ...], tuple[int, ...] | None]: ...

    def fitting_row(self, history: Sequence[Turn], reply: Turn) -> Row | None: ...


@dataclass(frozen=True, slots=True)
class Answers:
    """A model's rows: `replies` to the natural questions, `control` to those asked in every emotion."""

    replies: Rows
    control: Rows


def answer(
    model: Any,
    prompter: Asking,
    dialogues: Sequence[Dialogue],
    labels: Sequence[str],
    p: Evaluate,
    emotion_judge: Classifier,
    gibberish_judge: Judge,
    log: Log,
) -> Answers:
    """The questions that held-out dialogues ask, answered by a model and judged: the same for every model.

    Several processes share the work, and each returns the rows of all.
    """
    by_humans = natural(dialogues, prompter.history_turns, p.prompts, p.seed)
    in_every_emotion = control(dialogues, prompter.history_turns, p.control_contexts, labels, p.seed)
    questions = [*by_humans, *in_every_emotion]
    histories, requests = requests_of(prompter, questions, p.sampling, p.seed)
    replies = replies_to(model, prompter.tokenizer, requests, p.sampling, log)
    rows = _rows(questions, histories, replies, emotion_judge, gibberish_judge)
    _add_references(rows, questions, histories, model, prompter)
    return Answers(rows[: len(by_humans)], rows[len(by_humans) :])


def human(
    dialogues: Iterable[Dialogue], history_turns: int, p: Evaluate, emotion_judge: Classifier, gibberish_judge: Judge
) -> Rows:
    """The natural questions' reference replies, as rows of a model that says what the human said: no model, no tokens.

    What a judge makes of them is what it can make of replies that have the emotion asked for.
    """
    questions = natural(dialogues, history_turns, p.prompts, p.seed)
    replies = [Reply(q.reference or "", tokens=0, ended=True) for q in questions]
    return _rows(questions, [q.history for q in questions], replies, emotion_judge, gibberish_judge)


def requests_of(
    prompter: Asking, questions: Sequence[Question], sampling: Sampling, seed: int
) -> tuple[list[tuple[Turn, ...]], list[Request]]:
    """What each question keeps of its history, and its prompt and twin with the key of the one reply that is wanted.

    A history that leaves no room for the reply loses its oldest turns, whole.
    """
    prompts = [prompter.fitting_prompt(q.history, q.emotion, sampling.max_new_tokens) for q in questions]
    keys = [(seeds.key(seed, q.id),) for q in questions]
    requests = [Request(ids, own, twin=twin) for (_, ids, twin), own in zip(prompts, keys, strict=True)]
    return [turns for turns, _, _ in prompts], requests


def replies_to(model: Any, tokenizer: Any, requests: Sequence[Request], sampling: Sampling, log: Log) -> list[Reply]:
    """A reply to each request, sampled by several processes together.

    Each of them returns all: a judge rounds differently in another batch.
    """
    own = processes.share(requests)
    began = time.monotonic()
    silent = not processes.first()
    with tqdm(total=len(own), desc="replies", unit="reply", mininterval=5, dynamic_ncols=True, disable=silent) as bar:
        replies = [reply for [reply] in local.replies(model, tokenizer, own, sampling, done=bar.update)]
    replies = processes.gather(replies)
    tokens = sum(reply.tokens + reply.ended for reply in replies)
    log({SAMPLED_TOKENS: tokens, SAMPLING_SECONDS: time.monotonic() - began}, 0)
    return replies


def _rows(
    questions: Sequence[Question],
    histories: Sequence[Sequence[Turn]],
    replies: Sequence[Reply],
    emotion_judge: Classifier,
    gibberish_judge: Judge,
) -> Rows:
    """One row a question, in order: the reply, and what both judges say of it, that of emotions undivided too."""
    texts = [reply.text for reply in replies]
    by_tau, undivided = emotion_judge.both(texts)
    return [
        {
            "id": q.id,
            "dialogue": q.dialogue,
            "context": [turn.content for turn in turns],
            "trimmed": len(turns) < len(q.history),
            "emotion": q.emotion,
            "reply": reply.text,
            "judged": judged,
            "judged_undivided": plainly,
            "confidence": confidence,
            "gibberish": gibberish,
            "gibberish_confidence": gibberish_confidence,
            "tokens": reply.tokens,
            "ended": reply.ended,
        }
        for q, turns, reply, (judged, confidence), (plainly, _), (gibberish, gibberish_confidence) in zip(
            questions, histories, replies, by_tau, undivided, gibberish_judge(texts), strict=True
        )
    ]


def _add_references(
    rows: Rows, questions: Sequence[Question], histories: Sequence[Sequence[Turn]], model: Any, prompter: Asking
) -> None:
    """What a human answered, and its likelihood, to the row of each question that has a reference which fits.

    A history that leaves no room for it loses its oldest turns, whole.
    """
    fitting: dict[int, Row] = {}
    for number, (q, turns) in enumerate(zip(questions, histories, strict=True)):
        if q.reference is not None and (row := prompter.fitting_row(turns, Turn(ASSISTANT, q.reference, q.emotion))):
            fitting[number] = row
    costs = likelihoods(model, prompter.tokenizer.pad_token_id, list(fitting.values()))
    for number, (nats, tokens) in zip(fitting, costs, strict=True):
        rows[number] |= {"reference": questions[number].reference, "reference_nats": nats, "reference_tokens": tokens}


def read(replies: Path, control: Path) -> Answers:
    """What `write` wrote of a model."""
    return Answers(*(list(records.read_jsonl(path)) for path in (replies, control)))


def write(answers: Answers, replies: Path, control: Path, confusion: Path) -> None:
    """The rows of each kind of question; `confusion` has of the natural ones which emotion was due and which judged."""
    records.write_jsonl(replies, answers.replies)
    records.write_jsonl(control, answers.control)
    records.write_csv(confusion, ["emotion", "judged"], answers.replies)


def with_the_same_references(answers: Mapping[str, Answers]) -> dict[str, Answers]:
    """Several models' answers to the same questions, less each reference that one of them could not hold.

    Perplexities compare over the same replies alone, and one template writes more around a reply than another.
    """
    same = [
        all("reference" in row for row in rows) for rows in zip(*(a.replies for a in answers.values()), strict=True)
    ]
    return {
        name: Answers([row if fits else _bare(row) for row, fits in zip(own.replies, same, strict=True)], own.control)
        for name, own in answers.items()
    }


def _bare(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("reference")}


def likelihoods(model: Any, pad: int, rows: Sequence[Row]) -> list[likelihood.Cost]:
    """likelihood.negative_log_likelihoods of rows that several processes share by whole batches."""
    batches = likelihood.batches(model, rows)
    own = processes.share([[rows[i] for i in batch] for batch in batches])
    costs = processes.gather(likelihood.negative_log_likelihoods(model, pad, own))
    by_row = dict(pair for numbers in zip(batches, costs, strict=True) for pair in zip(*numbers, strict=True))
    return [by_row[i] for i in range(len(rows))]
