"""Prompts -> pairs: the sft model's own candidates, judged and rewarded; a prompt that makes no pair is tried again."""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from emotune.core import processes, records, seeds
from emotune.core.dialogue import ASSISTANT, Dialogue, Turn, history
from emotune.preferences.candidates import Judged, JudgeReplies, Prompt, Sample, candidate
from emotune.preferences.params import Prefs, Reward
from emotune.preferences.selection import Pair, select
from emotune.prompts import fitting, rendering

if TYPE_CHECKING:
    from emotune.preferences.journal import Journal


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a prompt: a pair or none, after how many attempts, and why each failed attempt failed."""

    pair: Pair | None
    attempts: int
    failures: tuple[str, ...]


# So many attempts are looked for at once, before any of them is sampled.
AT_ONCE = 512
# With the libraries, what decides an attempt's replies and verdicts, beside what the journal's key names one by one.
PACKAGE = Path(__file__).parents[1]
CODE = ("core/seeds.py", "generation", "judges", "models")
LIBRARIES = ("torch", "transformers", "peft", "scikit-learn")


def choose_prompts(
    dialogues: Sequence[Dialogue],
    tokenizer: Any,
    labels: Sequence[str],
    p: Prefs,
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
    room = context - p.sampling.max_new_tokens
    chosen = []
    for number, (d, i) in enumerate(places[: p.prompts]):
        emotion = labels[number % len(labels)] if p.emotions == "balanced" else d.turns[i].emotion
        turns: Sequence[Turn] = history(d.turns, i, history_turns)
        text, ids = rendering.prompt(tokenizer, turns, emotion, system_prompt)
        if len(ids) > room:
            turns = fitting.fitting_history(tokenizer, turns, emotion, system_prompt, room)
            text, ids = rendering.prompt(tokenizer, turns, emotion, system_prompt)
        if len(ids) <= room:
            chosen.append(Prompt(f"{d.id}/{i}/{emotion}", d.id, tuple(turns), emotion, text, tuple(ids)))
    return chosen


def generate(
    asked: Sequence[Prompt],
    p: Prefs,
    r: Reward,
    sample: Sample,
    judge: JudgeReplies,
    memo: Journal,
    ahead: int = 0,
) -> list[Outcome]:
    """One outcome a prompt, in order: its attempts are looked at until one makes a pair, at most `p.attempts`.

    An attempt that `memo` holds is not made again. Whatever else is wanted is sampled shortest prompts first, and a
    prompt that fails joins the next batch at once; where another run that shares `memo` is at the same prompts, this
    one goes on at a place of its own. What a prompt's n-th attempt samples depends on the seed, the prompt
    and n alone, so neither the order nor the company nor an interruption changes anything. While up to `ahead` batches
    are judged, the next is sampled: that pays where sampling leaves this machine's cores idle.
    """
    outcomes: dict[int, Outcome] = {}
    failures: list[list[str]] = [[] for _ in asked]
    queue: list[tuple[int, int, int]] = []
    made = known = 0
    place = (0, 0, 0)

    def conclude(number: int, attempt: int, judged: Sequence[Judged]) -> None:
        prompt = asked[number]
        candidates = [candidate(reply, prompt.emotion, r) for reply in judged]
        found = select(candidates, prompt.emotion, p.target_score_range, p.min_chosen_score, p.min_clean_confidence)
        if isinstance(found, Pair):
            outcomes[number] = Outcome(found, attempt, tuple(failures[number]))
            return
        failures[number] += found
        if attempt == p.attempts:
            outcomes[number] = Outcome(None, attempt, tuple(failures[number]))

    def go_on(number: int, attempt: int) -> None:
        """Through the attempts that the memo holds; the first that it lacks is wanted."""
        nonlocal known
        while number not in outcomes:
            kept = memo.find(asked[number].digest, attempt)
            if kept is None:
                insort(queue, (len(asked[number].ids), number, attempt))
                return
            known += 1
            conclude(number, attempt, [Judged(*values) for values in kept])
            attempt += 1

    def wanted() -> list[tuple[int, int, int]]:
        """What follows this run's place in the queue, taken out of it, less what other runs have made meanwhile."""
        while queue:
            start = bisect_left(queue, place) % len(queue)
            following = queue[start : start + AT_ONCE]
            del queue[start : start + AT_ONCE]
            kept = memo.find_many([(asked[number].digest, attempt) for _, number, attempt in following])
            for _, number, attempt in following:
                if (asked[number].digest, attempt) in kept:
                    go_on(number, attempt)
            if missing := [entry for entry in following if (asked[entry[1]].digest, entry[2]) not in kept]:
                return missing
        return []

    for number in range(len(asked)):
        go_on(number, 1)
    under_way: deque[tuple[list[tuple[int, int, int]], Future[list[list[Judged]]]]] = deque()
    with (
        ThreadPoolExecutor(1) as judges,
        tqdm(
            total=len(asked),
            initial=len(outcomes),
            desc="pairs",
            unit="prompt",
            mininterval=5,
            disable=not processes.first(),
        ) as bar,
    ):
        while queue or under_way:
            if missing := wanted():
                sampled = sample([(asked[number], attempt) for _, number, attempt in missing])
                batch = missing[: len(sampled)]
                for entry in missing[len(sampled) :]:
                    insort(queue, entry)
                under_way.append((batch, judges.submit(judge, sampled)))
            if under_way and (len(under_way) > ahead or not queue):
                batch, verdicts = under_way.popleft()
                judged = verdicts.result()
                new = memo.keep(
                    (asked[number].digest, attempt, [astuple(reply) for reply in replies])
                    for (_, number, attempt), replies in zip(batch, judged, strict=True)
                )
                made += len(batch)
                if new < len(batch) and queue:
                    # Any will do: no reply depends on it.
                    place = random.choice(queue)
                for (_, number, attempt), replies in zip(batch, judged, strict=True):
                    conclude(number, attempt, replies)
                    go_on(number, attempt + 1)
                bar.set_postfix(accepted=sum(o.pair is not None for o in outcomes.values()), refresh=False)
                bar.update(len(outcomes) - bar.n)
    print(f"generate_prefs: {made} attempts sampled, {known} taken from the journal", flush=True)
    return [outcomes[number] for number in range(len(asked))]


def made_of(inputs: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what an attempt's replies are and what the judges say of them: the journal's key."""
    return {
        **{name: inputs[name] for name in ("base", "sft", "judges")},
        "model": {key: values["model"][key] for key in ("dtype", "attention", "quantization")},
        "generation": values["generation"],
        "emotion_judge": values["reward"]["emotion_judge"],
        "gibberish_judge": values["gibberish_judge"],
        **{key: values["prefs"][key] for key in ("sampling", "candidates", "seed")},
        "code": {name: records.digest(PACKAGE / name)[:16] for name in CODE},
        "versions": {name: version(name) for name in LIBRARIES},
    }
