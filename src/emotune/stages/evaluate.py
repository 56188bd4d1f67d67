"""evaluate: sft and dpo answer what the baseline answered; all and the human, with intervals and paired tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from emotune.core import processes, records
from emotune.core.contract import DataSets, Dep, Log, Metrics, Out
from emotune.core.nested import overlaid
from emotune.evaluation.params import PROMPTED, Examination
from emotune.prompts.prompter import Prompter

if TYPE_CHECKING:
    from emotune.evaluation.answers import Answers, Rows
    from emotune.evaluation.fit import Exam

PARALLEL = True


class Params(Examination):
    """The same for every model."""


def data_sets(p: Params) -> DataSets:
    """What it asks."""
    return {"dialogues": [p.evaluate.split]}


def main(
    p: Params,
    log: Log,
    dialogues: Dep,
    base: Dep,
    judges: Dep,
    sft: Dep,
    dpo: Dep,
    reward: Dep,
    baseline_replies: Dep,
    baseline_control: Dep,
    prompted: Dep,
    prefs_metrics: Dep,
    dpo_metrics: Dep,
    sft_replies: Out,
    sft_control: Out,
    dpo_replies: Out,
    dpo_control: Out,
    sft_confusion: Out,
    dpo_confusion: Out,
    headline: Out,
    comparison: Out,
) -> Metrics:
    """Ask sft and dpo the test questions; write their replies, and the table of all models and the human replies."""
    from emotune.judges import files  # isort: skip  (skops searches every module that is loaded: before torch)

    from emotune.evaluation import fit, learned, measures
    from emotune.evaluation.answers import answer, human, with_the_same_references, write
    from emotune.models import bradley_terry, loading

    labels, neutral = (records.read_json(dialogues / "labels.json")[name] for name in ("labels", "neutral"))
    held_out = records.read_dialogues(dialogues / f"{p.evaluate.split}.jsonl")
    evaluating = files.open_judge(judges / "evaluate.skops", p.evaluate.emotion_judge)
    gibberish = files.open_judge(judges / "evaluate_gibberish.skops", p.evaluate.gibberish_judge)
    answers = untuned(baseline_replies, baseline_control, prompted)
    shown = p.system_prompt, p.model.context, p.history_turns, p.evaluate.sampling.twin(neutral)
    for name, adapter in (("sft", sft), ("dpo", dpo)):
        prompter = Prompter(loading.load_tokenizer(adapter, None), *shown)
        how = prompter, held_out, labels, p.evaluate, evaluating, gibberish, log
        answers[name] = answer(loading.load_tuned(base, p.model, adapter), *how)
    answers = with_the_same_references(answers)
    by_human = human(held_out, p.history_turns, p.evaluate, evaluating, gibberish)
    replies = {name: own.replies for name, own in answers.items()} | {"human": by_human}
    train = records.read_dialogues(dialogues / "train.jsonl")
    exam = fit.exam(held_out, train, files.load_matcher(judges / "fit.skops"), labels, p.history_turns, p.evaluate)
    lifts = likelier(p, base, exam, replies)
    reward_model, scale = bradley_terry.opened(base, p.model, reward, p.system_prompt)
    rewards = learned.rewards_of(replies, exam.natural, reward_model)
    if not processes.first():
        return {}
    measured = measures.side_by_side(answers, by_human, labels, neutral, p.evaluate)
    hits = {name: fit.credits(own, exam.natural, exam.matcher) for name, own in replies.items()}
    measured = overlaid(measured, fit.side_by_side(answers, by_human, hits, lifts, exam, p.evaluate))
    measured = overlaid(measured, learned.side_by_side(rewards, exam.natural, scale, p.evaluate))
    records.write_json(headline, measures.headline(measured, *map(records.read_metrics, (prefs_metrics, dpo_metrics))))
    written = {"sft": (sft_replies, sft_control, sft_confusion), "dpo": (dpo_replies, dpo_control, dpo_confusion)}
    for name, paths in written.items():
        write(scored(answers[name], hits[name][:, 0], map(scale.score, rewards[name])), *paths)
    records.write_csv(comparison, ["model", "metric", "value", "low", "high"], measures.table(measured))
    return measured


def untuned(replies: Path, control: Path, prompted: Path) -> dict[str, Answers]:
    """What the base model answered, in each way in which `baseline` asked it."""
    from emotune.evaluation.answers import read

    ways = [way for way in PROMPTED if (prompted / f"{way}.jsonl").is_file()]
    told = {way: read(prompted / f"{way}.jsonl", prompted / f"{way}.control.jsonl") for way in ways}
    return {"baseline": read(replies, control)} | told


def scored(own: Answers, hits: Iterable[float], scores: Iterable[float]) -> Answers:
    """A model's answers; each natural one says whether the matcher finds it, and its learned score, for studies."""
    natural = zip(own.replies, hits, scores, strict=True)
    return replace(own, replies=[row | {"found": hit, "learned_score": score} for row, hit, score in natural])


def likelier(p: Params, base: Path, exam: Exam, replies: Mapping[str, Rows]) -> dict[str, Rows]:
    """How much likelier the base model finds each model's replies in their contexts than in others."""
    from emotune.evaluation import fit
    from emotune.models import loading

    prompter = Prompter(loading.load_tokenizer(base, None), p.system_prompt, p.model.context, p.history_turns)
    model = loading.load_base(base, p.model)
    # Apart from the others: these have the same figures, to the last digit, whether or not there are prompts.
    told = {name: replies[name] for name in PROMPTED if name in replies}
    others = {name: rows for name, rows in replies.items() if name not in told}
    return fit.lifts(model, prompter, others, exam.natural) | fit.lifts(model, prompter, told, exam.natural)
