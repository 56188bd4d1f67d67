"""Prompts -> pairs: the sft model's own candidates, judged and rewarded; a prompt that makes no pair is tried again."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from emotune import params, prompts, reward, sampling, seeds
from emotune.dialogue import ASSISTANT, Dialogue, Turn, history
from emotune.judges import Judge
from emotune.selection import Candidate, Pair, select


@dataclass(frozen=True, slots=True)
class Prompt:
    """A history to answer in an emotion, and the token ids that ask for it."""

    id: str
    dialogue: str
    history: tuple[Turn, ...]
    emotion: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a prompt: a pair or none, after how many attempts, and why each failed attempt failed."""

    pair: Pair | None
    attempts: int
    failures: tuple[str, ...]


def choose_prompts(
    dialogues: Sequence[Dialogue],
    tokenizer: Any,
    labels: Sequence[str],
    p: params.Prefs,
    history_turns: int,
    system_prompt: str | None,
    context: int,
) -> list[Prompt]:
    """`p.prompts` places for a reply, drawn without repetition, fewer where there are fewer.

    The emotion asked for is the data's (`dataset`) or each label in turn (`balanced`). A place whose last turn alone
    leaves no room for a reply is passed over: dpo could not train on it.
    """
    places = [(d, i) for d in dialogues for i, turn in enumerate(d.turns) if turn.role == ASSISTANT]
    random.Random(seeds.key(p.seed, "prompts")).shuffle(places)
    chosen = []
    for number, (d, i) in enumerate(places[: p.prompts]):
        emotion = labels[number % len(labels)] if p.emotions == "balanced" else d.turns[i].emotion
        room = context - p.sampling.max_new_tokens
        turns = prompts.fitting_history(tokenizer, history(d.turns, i, history_turns), emotion, system_prompt, room)
        ids = prompts.prompt_ids(tokenizer, turns, emotion, system_prompt)
        if len(ids) <= room:
            chosen.append(Prompt(f"{d.id}/{i}/{emotion}", d.id, turns, emotion, tuple(ids)))
    return chosen


def generate(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Prompt],
    p: params.Prefs,
    r: params.Reward,
    emotion_judge: Judge,
    gibberish_judge: Judge,
) -> list[Outcome]:
    """One outcome a prompt, in order: sampled until an attempt makes a pair, at most `p.attempts` times.

    What a prompt's n-th attempt samples depends on the seed, the prompt and n alone, so the order and the company in
    which prompts are sampled change nothing.
    """
    outcomes: dict[int, Outcome] = {}
    failures: dict[int, list[str]] = {i: [] for i in range(len(asked))}
    waiting = list(range(len(asked)))
    with tqdm(total=len(asked), desc="pairs", unit="prompt", mininterval=5, dynamic_ncols=True) as bar:
        for attempt in range(1, p.attempts + 1):
            requests = [
                sampling.Request(
                    asked[i].ids, tuple(seeds.key(p.seed, asked[i].id, attempt, n) for n in range(p.candidates))
                )
                for i in waiting
            ]
            sampled = sampling.replies(model, tokenizer, requests, p.sampling)
            scored = score(sampled, [asked[i].emotion for i in waiting], r, emotion_judge, gibberish_judge)
            for i, candidates in zip(waiting, scored, strict=True):
                found = select(
                    candidates, asked[i].emotion, p.target_score_range, p.min_chosen_score, p.min_clean_confidence
                )
                if isinstance(found, Pair):
                    outcomes[i] = Outcome(found, attempt, tuple(failures[i]))
                else:
                    failures[i] += found
            still = [i for i in waiting if i not in outcomes]
            bar.update(len(waiting) - len(still))
            bar.set_postfix(attempt=attempt, accepted=len(outcomes), refresh=False)
            waiting = still
            if not waiting:
                break
    given_up = {i: Outcome(None, p.attempts, tuple(failures[i])) for i in waiting}
    return [(outcomes | given_up)[i] for i in range(len(asked))]


def score(
    sampled: Sequence[Sequence[sampling.Reply]],
    emotions: Sequence[str],
    r: params.Reward,
    emotion_judge: Judge,
    gibberish_judge: Judge,
) -> list[list[Candidate]]:
    """Every reply with its verdicts, component scores and reward; the judges are called once, on all texts."""
    texts = [reply.text for replies in sampled for reply in replies]
    verdicts = iter(zip(emotion_judge(texts), gibberish_judge(texts), strict=True))
    return [
        [_candidate(reply, emotion, *next(verdicts), r) for reply in replies]
        for replies, emotion in zip(sampled, emotions, strict=True)
    ]


def _candidate(
    reply: sampling.Reply, asked: str, emotion: tuple[str, float], gibberish: tuple[str, float], r: params.Reward
) -> Candidate:
    length = {"characters": len(reply.text), "words": len(reply.text.split()), "tokens": reply.tokens}[r.length.unit]
    components = (
        reward.emotion_score(*emotion, asked),
        reward.length_score(length, r.length.low, r.length.high),
        reward.gibberish_score(*gibberish),
    )
    total = reward.reward(components, r.weights, r.bias)
    return Candidate(reply.text, *emotion, *gibberish, components[0], components[1], components[2], total)


def rows(
    tokenizer: Any, asked: Iterable[Prompt], outcomes: Iterable[Outcome], system_prompt: str | None
) -> list[dict[str, Any]]:
    """The preference dataset: the five published columns, then all that led to them."""
    made = []
    for prompt, outcome in zip(asked, outcomes, strict=True):
        if outcome.pair is None:
            continue
        row: dict[str, Any] = {
            "id": prompt.id,
            "dialogue": prompt.dialogue,
            "prompt": prompts.prompt_text(tokenizer, prompt.history, prompt.emotion, system_prompt),
            "history": [{"role": t.role, "content": t.content, "emotion": t.emotion} for t in prompt.history],
            "emotion": prompt.emotion,
            "attempts": outcome.attempts,
        }
        for side, candidate in (("chosen", outcome.pair.chosen), ("rejected", outcome.pair.rejected)):
            row |= {
                side: candidate.text,
                f"{side}_score": candidate.reward,
                f"{side}_judged": candidate.emotion,
                f"{side}_judged_confidence": candidate.emotion_confidence,
                f"{side}_gibberish": candidate.gibberish,
                f"{side}_gibberish_confidence": candidate.gibberish_confidence,
                f"{side}_emotion_score": candidate.emotion_score,
                f"{side}_length_score": candidate.length_score,
                f"{side}_gibberish_score": candidate.gibberish_score,
            }
        made.append(row)
    return made


def measure(
    asked: Sequence[Prompt], outcomes: Sequence[Outcome], pairs: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> dict[str, Any]:
    """metrics/prefs.json: yield, attempts, reasons, and how chosen and rejected differ."""
    gaps = [pair["chosen_score"] - pair["rejected_score"] for pair in pairs]
    chosen, rejected = ([len(pair[side]) for pair in pairs] for side in ("chosen", "rejected"))
    histogram = Counter(outcome.attempts for outcome in outcomes if outcome.pair)
    per_emotion = {
        label: [outcome for prompt, outcome in zip(asked, outcomes, strict=True) if prompt.emotion == label]
        for label in labels
    }
    return {
        "prompts": len(asked),
        "pairs": len(pairs),
        "given_up": len(asked) - len(pairs),
        "attempts": {str(n): histogram[n] for n in sorted(histogram)},
        "attempts_total": sum(outcome.attempts for outcome in outcomes),
        "failures": dict(sorted(Counter(reason for o in outcomes for reason in o.failures).items())),
        "yield": {
            label: sum(o.pair is not None for o in found) / len(found) for label, found in per_emotion.items() if found
        },
        "gap": {"median": statistics.median(gaps), "mean": statistics.fmean(gaps), "sd": statistics.pstdev(gaps)},
        "chosen_characters": statistics.fmean(chosen),
        "rejected_characters": statistics.fmean(rejected),
        "chosen_is_longer": sum(a > b for a, b in zip(chosen, rejected, strict=True)) / len(pairs),
    }
