"""The same questions to every model: held-out prompts -> replies -> what a judge and plain counting say of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from emotune.evaluation import scores
from emotune.evaluation.answers import Answers, Rows
from emotune.evaluation.params import PROMPTED, Evaluate
from emotune.judges.verdicts import CLEAN

# Words over which distinct-n is counted, the same for every model, because it falls with length.
DISTINCT_WORDS = 5000
# Contexts whose replies are shown.
EXAMPLES = 20
STEPS = (("baseline", "sft"), ("sft", "dpo"))
MODELS = ("baseline", *PROMPTED, "sft", "dpo")


def measure(answers: Answers, labels: Sequence[str], neutral: str, p: Evaluate) -> dict[str, Any]:
    """All that the metrics say of one model, from its rows alone."""
    control = scores.score(*_columns(answers.control), labels, neutral, p.resamples, p.seed)
    recalls = scores.per_label(*_columns(answers.control)[1:], labels)
    return {
        **said(answers.replies, labels, neutral, p),
        "control": control | {"per_emotion": {label: recalls[label]["recall"] for label in labels}},
        "reference": _reference(answers.replies, p.resamples, p.seed),
    }


def said(rows: Rows, labels: Sequence[str], neutral: str, p: Evaluate) -> dict[str, Any]:
    """What replies to natural questions are worth, whoever gave them: a model or the human."""
    replies = _by_verdict(
        "replies", lambda verdict: scores.score(*_columns(rows, verdict), labels, neutral, p.resamples, p.seed)
    )
    recalls = scores.per_label(*_columns(rows)[1:], labels)
    return {
        "replies": replies | {"per_emotion": {label: recalls[label]["recall"] for label in labels}},
        "text": _text(rows),
    }


def _by_verdict(part: str, of: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Each metric by the verdict that it is of, where `of` has all metrics by one: `judged` or `judged_undivided`."""
    verdicts = {name: scores.verdict_of(part, name) for name in scores.METRICS}
    measured = {verdict: of(verdict) for verdict in {"judged", *verdicts.values()}}
    return measured["judged"] | {name: measured[verdict][name] for name, verdict in verdicts.items()}


def compare(before: Answers, after: Answers, labels: Sequence[str], neutral: str, p: Evaluate) -> dict[str, Any]:
    """Paired tests of two models over the same questions: differences after - before, dialogues resampled."""
    result: dict[str, Any] = {}
    for kind in ("replies", "control"):
        tested = partial(_paired, getattr(before, kind), getattr(after, kind), labels, neutral, p)
        result[kind] = _by_verdict(kind, tested)
    return result


def _paired(
    before: Rows, after: Rows, labels: Sequence[str], neutral: str, p: Evaluate, verdict: str
) -> dict[str, Any]:
    columns, (_, _, second) = _columns(before, verdict), _columns(after, verdict)
    return scores.paired(*columns, second, labels, neutral, p.resamples, p.seed)


def best_prompt(answers: Mapping[str, Answers], labels: Sequence[str]) -> str | None:
    """The prompted way of highest control, the first of equals; None where the base model was told no emotion.

    It is chosen by the very answers that it is compared by, which favours it.
    """
    matrices = {
        way: scores.confusion(*_columns(answers[way].control)[1:], labels) for way in PROMPTED if way in answers
    }
    return max(matrices, key=lambda way: scores.metrics_of(matrices[way], None)["macro_accuracy"], default=None)


def steps(answers: Mapping[str, Answers], labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The name of each step that is tested, and the models before and after it."""
    named = {f"{before}_to_{after}": (before, after) for before, after in STEPS}
    best = best_prompt(answers, labels)
    return named if best is None else named | {"best_prompt_to_sft": (best, "sft")}


def majority(answers: Answers, labels: Sequence[str], neutral: str) -> dict[str, Any]:
    """The row of a model that answers every natural question in the most frequent emotion."""
    return {"replies": scores.majority([row["emotion"] for row in answers.replies], labels, neutral)}


def _columns(rows: Rows, verdict: str = "judged") -> tuple[list[str], list[str], list[str]]:
    """Of each row its dialogue, the emotion asked for, and the emotion judged."""
    return [row["dialogue"] for row in rows], [row["emotion"] for row in rows], [row[verdict] for row in rows]


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
    rows = list(hits)
    low, high = scores.wilson(sum(rows), len(rows))
    return {"value": sum(rows) / len(rows), "low": low, "high": high}


def side_by_side(
    answers: Mapping[str, Answers], by_human: Rows, labels: Sequence[str], neutral: str, p: Evaluate
) -> dict[str, Any]:
    """What each model's answers and the human replies are worth, the majority's label, and what each step changed."""
    measured: dict[str, Any] = {name: measure(rows, labels, neutral, p) for name, rows in answers.items()}
    for name, own in answers.items():
        # What the judge finds in replies that do have the emotion is the most that it can find in a model's.
        of_model, of_human = (scores.confusions(*_columns(rows), labels) for rows in (own.control, by_human))
        measured[name]["control"]["of_human"] = scores.recall_share(of_model, of_human, p.resamples, p.seed)
    measured["human"] = said(by_human, labels, neutral, p)
    if p.sampling.guidance != 1:
        measured["guidance"] = p.sampling.guidance
    measured["majority"] = majority(answers["sft"], labels, neutral)
    measured["examples"] = examples(answers["dpo"].control)
    if best := best_prompt(answers, labels):
        measured["best_prompt"] = best
    measured["paired"] = {
        step: compare(answers[before], answers[after], labels, neutral, p)
        for step, (before, after) in steps(answers, labels).items()
    }
    return measured


def examples(control: Rows) -> Rows:
    """What was said last in the first EXAMPLES contexts, and the replies to it in every emotion: none is chosen."""
    dialogues = list(dict.fromkeys(row["dialogue"] for row in control))[:EXAMPLES]
    return [
        {"said": row["context"][-1], **{name: row[name] for name in ("dialogue", "emotion", "reply", "judged")}}
        for row in control
        if row["dialogue"] in dialogues
    ]


def headline(measured: Mapping[str, Any], pairs: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers to compare two runs by, in names and digits that fit a screen, from what three stages measured.

    For each model macro F1, control, fit, the share of replies that have both, and perplexity; the macro recall of the
    human replies, which control is to be seen beside; of dpo's replies the share that is gibberish; the pairs, and the
    share of prompts that made one; how much more control rose by the judge that rewards than by the other.
    """
    names = {
        "f1": ("replies", "macro_f1"),
        "control": ("control", "macro_accuracy"),
        "fit": ("replies", "hits_at_1"),
        "joint": ("control", "joint"),
        "ppl": ("reference", "perplexity"),
    }
    shown: dict[str, Any] = {
        model: {name: _digits(measured[model][part].get(metric)) for name, (part, metric) in names.items()}
        for model in MODELS
        if model in measured
    }
    return shown | {
        "human": {"recall": _digits(measured["human"]["replies"]["macro_accuracy"])},
        "gibberish": _digits(measured["dpo"]["text"]["gibberish"]),
        "pairs": pairs["pairs"],
        "yield": _digits(pairs["yield_total"]),
        "judge_gap": _digits(training.get("judge_gap")),
    }


def _digits(figure: float | Mapping[str, float] | None) -> float | None:
    """A number, or that of one with an interval, in three decimals; None where dpo did not look for it."""
    value = figure["value"] if isinstance(figure, Mapping) else figure
    return None if value is None else round(value, 3)


def table(measured: Mapping[str, Any]) -> Rows:
    """The comparison as rows of model, metric, value, low, high: what the plot and the README's table show."""
    shown = {
        "accuracy": ("replies", "accuracy"),
        "weighted F1": ("replies", "weighted_f1"),
        "macro F1": ("replies", "macro_f1"),
        "micro F1 without neutral": ("replies", "micro_f1_without_neutral"),
        "macro recall": ("replies", "macro_accuracy"),
        "control": ("control", "macro_accuracy"),
        "control of human": ("control", "of_human"),
        "fit": ("replies", "hits_at_1"),
        "joint": ("control", "joint"),
        "learned score": ("replies", "learned_score"),
        "perplexity": ("reference", "perplexity"),
        "bits per character": ("reference", "bits_per_character"),
    }
    return [
        {"model": model, "metric": metric, **measured[model][part][name]}
        for metric, (part, name) in shown.items()
        for model in ("majority", *MODELS, "human")
        if name in measured.get(model, {}).get(part, {})
    ]
