"""Whether replies answer what was said, without a judge that any model was trained to please.

A matcher looks for each reply's context among ten; the base model says how much likelier the reply is there than behind
another context; and counting says how often replies repeat each other or the train split.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from emotune.core.dialogue import ASSISTANT, Dialogue, Turn, normal_form
from emotune.evaluation import answers as questions
from emotune.evaluation import scores
from emotune.evaluation.answers import Answers, Question, Rows, likelihoods
from emotune.evaluation.measures import DISTINCT_WORDS, steps
from emotune.evaluation.params import Evaluate
from emotune.judges.matcher import Matcher, found, tens
from emotune.prompts.prompter import Prompter, Row

# Replies of each model whose likelihood the base model is asked for.
WEIGHED = 100
# A reply of so many words is no set phrase any more.
LONG = 4
WORD = re.compile(r"[^\W\d_]{3,}")


class Asked(NamedTuple):
    """Questions, and for each the numbers of those among whose contexts that of its reply is looked for."""

    questions: Sequence[Question]
    tens: list[list[int]]


def asked(questions: Sequence[Question], seed: int) -> Asked:
    """The same for every model: it depends on the questions and the seed alone."""
    return Asked(questions, tens([q.dialogue for q in questions], [q.emotion for q in questions], seed))


class Train(NamedTuple):
    """What sft has seen: the replies in normal form, and all words of three letters and more."""

    replies: frozenset[str]
    words: frozenset[str]


def train_of(dialogues: Sequence[Dialogue]) -> Train:
    """Of the train split's dialogues."""
    turns = [turn for dialogue in dialogues for turn in dialogue.turns]
    return Train(
        frozenset(normal_form(turn.content) for turn in turns if turn.role == ASSISTANT),
        frozenset(word for turn in turns for word in WORD.findall(turn.content.lower())),
    )


class Exam(NamedTuple):
    """What all replies are examined by: both kinds of questions, the matcher, what sft has seen, the emotions."""

    natural: Asked
    control: Asked
    matcher: Matcher
    train: Train
    labels: Sequence[str]


def exam(
    held_out: Sequence[Dialogue],
    train: Sequence[Dialogue],
    matcher: Matcher,
    labels: Sequence[str],
    history_turns: int,
    p: Evaluate,
) -> Exam:
    """The exam of the questions that held-out dialogues ask."""
    own = questions.natural(held_out, history_turns, p.prompts, p.seed)
    in_all = questions.control(held_out, history_turns, p.control_contexts, labels, p.seed)
    return Exam(asked(own, p.seed), asked(in_all, p.seed), matcher, train_of(train), labels)


def side_by_side(
    answers: Mapping[str, Answers],
    by_human: Rows,
    hits: Mapping[str, np.ndarray],
    lifts: Mapping[str, Rows],
    exam: Exam,
    p: Evaluate,
) -> dict[str, Any]:
    """What to lay over measures.side_by_side: of each model, of the human replies, and of what each step changed.

    `hits` are the `credits` of each one's natural replies, and `lifts` is what `lifts` said of them.
    """
    in_all = {name: credits(own.control, exam.control, exam.matcher) for name, own in answers.items()}
    measured: dict[str, Any] = {
        name: {
            "replies": natural(own.replies, hits[name], exam, p),
            "control": control(own.control, in_all[name], exam, p),
        }
        for name, own in answers.items()
    }
    measured["human"] = {"replies": natural(by_human, hits["human"], exam, p)}
    for name, rows in lifts.items():
        measured[name]["replies"]["lift"] = _mean(rows, np.array([row["lift"] for row in rows]), p) if rows else None
    joint = {name: in_all[name][:, 0] * _obeys(own.control) for name, own in answers.items()}
    measured["paired"] = {
        step: {
            "replies": {
                "hits_at_1": _test(_as_one(answers[after].replies), hits[before][:, 0], hits[after][:, 0], [""], p)
            },
            "control": {"joint": _test(answers[after].control, joint[before], joint[after], exam.labels, p)},
        }
        for step, (before, after) in steps(answers, exam.labels).items()
    }
    return measured


def lifts(base: Any, prompter: Prompter, replies: Mapping[str, Rows], asked: Asked) -> dict[str, Rows]:
    """Of up to WEIGHED replies of each model ln p(reply | its context) - ln p(reply | the next context of its ten).

    The probability is the base model's, in nats, the end of the reply included: `{"dialogue", "lift"}` of each reply
    that has words and room behind both. Several processes share the work, and each returns all.
    """
    every = max(1, -(-len(asked.questions) // WEIGHED))
    both: list[tuple[str, str, Row, Row]] = []
    for name, rows in replies.items():
        for at in range(0, len(rows), every):
            q, ten = asked.questions[at], asked.tens[at]
            other = asked.questions[ten[(ten.index(at) + 1) % len(ten)]]
            reply = Turn(ASSISTANT, rows[at]["reply"], q.emotion)
            own, strange = (prompter.fitting_row(turns, reply) for turns in (q.history, other.history))
            if reply.content and own and strange:
                both.append((name, q.dialogue, own, strange))
    costs = likelihoods(
        base, prompter.tokenizer.pad_token_id, [row for *_, own, strange in both for row in (own, strange)]
    )
    result: dict[str, Rows] = {name: [] for name in replies}
    for (name, dialogue, *_), (there, _), (elsewhere, _) in zip(both, costs[::2], costs[1::2], strict=True):
        result[name].append({"dialogue": dialogue, "lift": elsewhere - there})
    return result


def credits(rows: Rows, asked: Asked, matcher: Matcher) -> np.ndarray:
    """Of each row whether the matcher finds its context, and 1 / the rank at which: [rows, 2]."""
    contexts = [[turn.content for turn in q.history] for q in asked.questions]
    return np.array(found(matcher, contexts, [row["reply"] for row in rows], asked.tens)).reshape(-1, 2)


def natural(rows: Rows, credits: np.ndarray, exam: Exam, p: Evaluate) -> dict[str, Any]:
    """What replies to natural questions answer and repeat, whoever gave them: a model or the human."""
    hits = _macro(rows, credits[:, 0], exam.labels, p)
    return {
        "hits_at_1": _mean(rows, credits[:, 0], p),
        "mrr": _mean(rows, credits[:, 1], p),
        "macro_hits_at_1": hits["macro"],
        "hits_per_emotion": hits["per_emotion"],
        **_repeats(rows, exam.labels, exam.train),
    }


def control(rows: Rows, credits: np.ndarray, exam: Exam, p: Evaluate) -> dict[str, Any]:
    """The same of the replies in every emotion; `joint`: both the emotion that was asked for and the context's.

    `joint` is a mean over the emotions, as control is. `new_words` and `known_words` is control where the context has,
    and where it has not, a word that is nowhere in the train split; None where there is no such context.
    """
    obeys = _obeys(rows)
    joint = _macro(rows, credits[:, 0] * obeys, exam.labels, p)
    new = np.array([_has_new_word(q, exam.train.words) for q in exam.control.questions])
    return {
        **natural(rows, credits, exam, p),
        "joint": joint["macro"],
        "joint_per_emotion": joint["per_emotion"],
        "new_words": _control_where(new, rows, obeys, exam.labels, p),
        "known_words": _control_where(~new, rows, obeys, exam.labels, p),
    }


def _obeys(rows: Rows) -> np.ndarray:
    return np.array([row["judged"] == row["emotion"] for row in rows], dtype=float)


def _control_where(
    which: np.ndarray, rows: Rows, obeys: np.ndarray, labels: Sequence[str], p: Evaluate
) -> dict[str, Any] | None:
    own = [rows[at] for at in np.flatnonzero(which)]
    if not own:
        return None
    macro: dict[str, Any] = _macro(own, obeys[which], labels, p)["macro"]
    return macro | {"contexts": len({row["dialogue"] for row in own})}


def _has_new_word(question: Question, words: frozenset[str]) -> bool:
    return any(word not in words for turn in question.history for word in WORD.findall(turn.content.lower()))


def _repeats(rows: Rows, labels: Sequence[str], train: Train) -> dict[str, Any]:
    """How often one reply comes again, how varied the replies are in each emotion, and how many are the train split's.

    Replies are the same where their letters and digits are.
    """
    texts = [normal_form(row["reply"]) for row in rows]
    known = np.array([text in train.replies for text in texts])
    long = np.array([len(row["reply"].split()) >= LONG for row in rows])
    by_emotion = {label: [row["reply"] for row in rows if row["emotion"] == label] for label in labels}
    return {
        "most_frequent": max(Counter(texts).values()) / len(texts),
        "in_train": float(known.mean()),
        "long_in_train": float(known[long].mean()) if long.any() else None,
        "distinct_2_per_emotion": {
            label: scores.distinct(own, 2, DISTINCT_WORDS // len(labels)) for label, own in by_emotion.items()
        },
    }


def _mean(rows: Rows, values: np.ndarray, p: Evaluate) -> dict[str, float]:
    """The mean over rows, with its 95 % interval over dialogues."""
    mean: dict[str, float] = _macro(_as_one(rows), values, [""], p)["macro"]
    return mean


def _as_one(rows: Rows) -> Rows:
    """The same of one emotion, so that each row counts alike."""
    return [row | {"emotion": ""} for row in rows]


def _macro(rows: Rows, values: np.ndarray, labels: Sequence[str], p: Evaluate) -> dict[str, Any]:
    """The mean over the emotions that were asked for of each one's mean, with its interval; and these means."""
    sums = _sums(rows, values, labels)
    low, high = scores.bootstrap(sums, _of_sums, p.resamples, p.seed)
    per_emotion = {
        label: float(total / count) if count else None
        for label, (total, count) in zip(labels, sums.sum(0), strict=True)
    }
    return {"macro": {"value": float(_of_sums(sums.sum(0))), "low": low, "high": high}, "per_emotion": per_emotion}


def _sums(rows: Rows, values: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """What each dialogue adds to the sum of values and to the number of rows, by emotion: [dialogues, labels, 2]."""
    dialogues = {dialogue: at for at, dialogue in enumerate(dict.fromkeys(row["dialogue"] for row in rows))}
    sums = np.zeros((len(dialogues), len(labels), 2))
    for row, value in zip(rows, values, strict=True):
        sums[dialogues[row["dialogue"]], labels.index(row["emotion"])] += (value, 1)
    return sums


def _of_sums(sums: np.ndarray) -> np.ndarray:
    """[..., labels, 2] -> [...]: the mean of the means of those labels that have rows."""
    counts = sums[..., 1]
    means = np.where(counts > 0, sums[..., 0] / np.maximum(counts, 1), 0)
    return means.sum(-1) / np.maximum((counts > 0).sum(-1), 1)


def _test(rows: Rows, before: np.ndarray, after: np.ndarray, labels: Sequence[str], p: Evaluate) -> dict[str, float]:
    """The paired test of `_macro` of two models' values over the same questions: after - before."""
    both = np.stack([_sums(rows, values, labels) for values in (before, after)], axis=1)
    values, drawn = _of_sums(both.sum(0)), _of_sums(scores.resampled(both, p.resamples, p.seed))
    return scores.tested(values[1] - values[0], drawn[:, 1] - drawn[:, 0])
