"""emotune votes: what people's votes say of the models, of each other, and of the judge that stands in for people."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from emotune.core import records
from emotune.core.dialogue import Turn
from emotune.core.errors import InputError
from emotune.evaluation import scores
from emotune.judges.files import open_judge
from emotune.judges.verdicts import Classifier, divided
from emotune.preferences import strengths
from emotune.preferences.voted import rows
from emotune.preferences.votes import BOTH_BAD, BOTH_GOOD, Vote, counted, preferences, read
from emotune.prompts.prompter import Prompter
from emotune.runs.params import Params

# Replies, each with its context and the emotion that was asked for -> how good each is.
Score = Callable[[Sequence[tuple[Sequence[Turn], str, str]]], list[float]]


def measured(path: Path, models: Path, p: Params) -> dict[str, Any]:
    """What a file or folder of votes says, with 95 % intervals over the questions; rates have Wilson's.

    `here` says of a model whether its adapter is among `models`. InputError where no vote counts.
    """
    votes = counted(read(path, p.data.labels))
    if not votes:
        raise InputError(f"{path}: no vote counts; `emotune compare --blind` asks for some")
    names = {side.adapter: side.model for vote in votes for side in (vote.left, vote.right)}
    present = {records.digest(folder) for folder in models.iterdir() if folder.is_dir()} if models.is_dir() else set()
    adapters = sorted(names, key=lambda adapter: (adapter not in present, names[adapter], adapter))
    return {
        "votes": len(votes),
        "questions": len({vote.question for vote in votes}),
        "voters": len({vote.voter for vote in votes}),
        "models": [{"model": names[one], "adapter": one, "here": one in present} for one in adapters],
        "pairs": [pair for two in combinations(adapters, 2) if (pair := compared(votes, *two))["votes"]],
        "strengths": strengths_of(votes, adapters, p.evaluate.resamples, p.evaluate.seed),
        "agreement": agreement(votes, p.evaluate.resamples, p.evaluate.seed),
        "scores": {name: agreeing(votes, score) for name, score in scorers(models, p).items()},
    }


def compared(votes: Sequence[Vote], one: str, other: str) -> dict[str, Any]:
    """How often the one model's reply was preferred to the other's, of the votes that preferred one."""
    own = [vote for vote in votes if {vote.left.adapter, vote.right.adapter} == {one, other}]
    winners = Counter(vote.winner.adapter for vote in own if vote.winner)
    choices: Counter[str] = Counter(vote.choice for vote in own)
    return {
        "models": [one, other],
        "votes": len(own),
        "wins": [winners[one], winners[other]],
        "both_good": choices[BOTH_GOOD],
        "both_bad": choices[BOTH_BAD],
        "win_rate": rate(winners[one], winners.total()),
    }


def rate(hits: int, trials: int) -> dict[str, float | None]:
    """A share with its Wilson interval; without a value where there was no trial."""
    low, high = scores.wilson(hits, trials)
    return {"value": hits / trials if trials else None, "low": low, "high": high}


def strengths_of(votes: Sequence[Vote], adapters: Sequence[str], resamples: int, seed: int) -> list[dict[str, Any]]:
    """Each model's Bradley–Terry strength, and the number of the group within which strengths compare."""
    wins = strengths.wins(votes, adapters)
    total = wins.sum(0)
    own = zip(adapters, strengths.strengths(total, total), strengths.groups(total), strict=True)
    rows = []
    for n, (adapter, value, group) in enumerate(own):
        low, high = scores.bootstrap(wins, partial(strength_of, n, total), resamples, seed)
        rows.append({"adapter": adapter, "group": group, "value": float(value), "low": low, "high": high})
    return rows


def strength_of(place: int, total: strengths.Array, sums: strengths.Array) -> strengths.Array:
    """One model's strength in each sample, [samples, models, models] -> [samples]."""
    return strengths.strengths(sums, total)[..., place]


def agreement(votes: Sequence[Vote], resamples: int, seed: int) -> dict[str, Any] | None:
    """Krippendorff's alpha over the questions that several answered; None where there is none."""
    coincidences = strengths.coincidences(votes)
    shared = coincidences[coincidences.sum((1, 2)) > 0]
    if not len(shared):
        return None
    low, high = scores.bootstrap(shared, strengths.alpha, resamples, seed)
    return {"questions": len(shared), "value": float(strengths.alpha(shared.sum(0))), "low": low, "high": high}


def scorers(models: Path, p: Params) -> dict[str, Score]:
    """Whatever says without people which reply is better, by its name; the last is what knows nothing of either."""
    judge = open_judge(models / "judges" / "evaluate.skops", p.evaluate.emotion_judge)
    learned: dict[str, Score] = {}
    if (models / "reward").is_dir():
        from emotune.models import bradley_terry  # torch, for which a comparison without it does not wait

        reader, _ = bradley_terry.opened(models / "base", p.model, models / "reward", p.system_prompt)
        learned["reward model"] = lambda asked: reader.rewards([(turns, reply) for turns, _, reply in asked])
    return {
        "evaluating judge": lambda asked: by_judge(judge, asked),
        **learned,
        "the longer reply": lambda asked: [float(len(reply)) for _, _, reply in asked],
    }


def by_judge(judge: Classifier, asked: Sequence[tuple[Sequence[Turn], str, str]]) -> list[float]:
    """How probable the emotion that was asked for is in each reply, 0 where the judge has never heard of it."""
    probabilities = judge.probabilities([reply for _, _, reply in asked])
    own = divided(probabilities, judge.labels, judge.prior, judge.tau)
    places = {label: n for n, label in enumerate(judge.labels)}
    emotions = (emotion for _, emotion, _ in asked)
    return [
        float(row[places[emotion]]) if emotion in places else 0.0 for row, emotion in zip(own, emotions, strict=True)
    ]


def agreeing(votes: Sequence[Vote], score: Score) -> dict[str, Any]:
    """How often a score is higher for the reply that a voter preferred, of where it is higher for either."""
    sides = [[(v.turns, v.emotion, v.left.reply) for v in votes], [(v.turns, v.emotion, v.right.reply) for v in votes]]
    counts = strengths.agreeing(votes, list(zip(*map(score, sides), strict=True)))
    return {"equal": counts["equal"], **rate(counts["with"], counts["with"] + counts["against"])} | {
        "votes": counts["with"] + counts["against"]
    }


def write_pairs(path: Path, votes: Path, tokenizer: Any, p: Params) -> int:
    """Write the pairs that people made to a JSONL, as a model is asked here, and say how many."""
    prompter = Prompter(tokenizer, p.system_prompt, p.model.context, p.history_turns)
    pairs = rows(preferences(read(votes, p.data.labels)), prompter)
    if not pairs:
        raise InputError(f"{votes}: no vote prefers a reply, so there is no pair")
    return records.write_jsonl(path, pairs)


def unknown(measured: Mapping[str, Any]) -> list[str]:
    """The adapters that were voted on and are not here."""
    return [f"{one['model']} {one['adapter'][:12]}" for one in measured["models"] if not one["here"]]
