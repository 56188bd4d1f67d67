"""Prompts -> pairs: the sft model's own candidates, judged and rewarded; a prompt that makes no pair is tried again."""

from __future__ import annotations

import functools
import hashlib
import random
import statistics
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from emotune import launch, params, prompts, records, reward, sampling, seeds, server
from emotune.dialogue import ASSISTANT, Dialogue, Turn, history, normal_form
from emotune.selection import Candidate, Pair, select

if TYPE_CHECKING:
    from emotune.journal import Journal
    from emotune.judges import Judge


@dataclass(frozen=True, slots=True)
class Prompt:
    """A history to answer in an emotion, and the text and token ids that ask for it."""

    id: str
    dialogue: str
    history: tuple[Turn, ...]
    emotion: str
    text: str
    ids: tuple[int, ...]

    @property
    def digest(self) -> str:
        """Its name in the journal."""
        return hashlib.sha256(f"{self.id}\0{self.text}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Judged:
    """A reply and what the judges say of it: all of an attempt that no weight, threshold or length shape can change."""

    text: str
    tokens: int
    emotion: str
    emotion_confidence: float
    gibberish: str
    gibberish_confidence: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a prompt: a pair or none, after how many attempts, and why each failed attempt failed."""

    pair: Pair | None
    attempts: int
    failures: tuple[str, ...]


# A prompt and the number of its attempt, from 1.
Wanted = tuple[Prompt, int]
# Replies to the first few of those wanted: as many as are best sampled at once.
Sample = Callable[[Sequence[Wanted]], list[list[sampling.Reply]]]
JudgeReplies = Callable[[Sequence[Sequence[sampling.Reply]]], list[list[Judged]]]

# So many attempts are looked for at once, before any of them is sampled.
AT_ONCE = 512
# With the libraries, what decides an attempt's replies and verdicts, beside what the journal's key names one by one.
CODE = ("judges", "models", "sampling", "seeds", "server")
LIBRARIES = ("torch", "transformers", "peft", "scikit-learn")
# What to turn where there are too few pairs.
SOONER = "train sft for longer, raise prefs.attempts, or lower prefs.min_chosen_score or prefs.target_score_range"


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
    room = context - p.sampling.max_new_tokens
    chosen = []
    for number, (d, i) in enumerate(places[: p.prompts]):
        emotion = labels[number % len(labels)] if p.emotions == "balanced" else d.turns[i].emotion
        turns: Sequence[Turn] = history(d.turns, i, history_turns)
        text, ids = prompts.prompt(tokenizer, turns, emotion, system_prompt)
        if len(ids) > room:
            turns = prompts.fitting_history(tokenizer, turns, emotion, system_prompt, room)
            text, ids = prompts.prompt(tokenizer, turns, emotion, system_prompt)
        if len(ids) <= room:
            chosen.append(Prompt(f"{d.id}/{i}/{emotion}", d.id, tuple(turns), emotion, text, tuple(ids)))
    return chosen


def generate(
    asked: Sequence[Prompt],
    p: params.Prefs,
    r: params.Reward,
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
            disable=not launch.first(),
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


def local(open_model: Callable[[], Any], tokenizer: Any, p: params.Prefs) -> Sample:
    """Sampling by the model that `open_model` loads, when the first reply is wanted and not before."""
    model = functools.cache(open_model)

    def sample(wanted: Sequence[Wanted]) -> list[list[sampling.Reply]]:
        # Shortest first: what comes last of so many is the longest of them.
        most = wanted[: sampling.GPU_ROWS // p.candidates or 1]
        rows = sampling.fitting_rows(model(), len(most[-1][0].ids) + p.sampling.max_new_tokens)
        requests = [
            sampling.Request(prompt.ids, _keys(prompt, attempt, p))
            for prompt, attempt in most[: rows // p.candidates or 1]
        ]
        return sampling.replies(model(), tokenizer, requests, p.sampling, rows)

    return sample


def remote(name: str, p: params.Prefs) -> Sample:
    """Sampling by the server that the environment names, asked for the model `name` when the first reply is wanted."""
    endpoint = functools.cache(lambda: server.connect(name))

    def sample(wanted: Sequence[Wanted]) -> list[list[sampling.Reply]]:
        # Enough that the server is never idle for want of a request, few enough that the journal is never far behind.
        some = wanted[: max(1, 4 * endpoint().concurrency // p.candidates)]
        requests = [(prompt.text, _keys(prompt, attempt, p)) for prompt, attempt in some]
        return server.replies(endpoint(), requests, p.sampling)

    return sample


def _keys(prompt: Prompt, attempt: int, p: params.Prefs) -> tuple[int, ...]:
    return tuple(seeds.key(p.seed, prompt.id, attempt, n) for n in range(p.candidates))


def judging(open_judges: Callable[[], tuple[Judge, Judge]]) -> JudgeReplies:
    """Judging by the emotion and gibberish judges that `open_judges` loads, when the first reply is there."""
    judges = functools.cache(open_judges)

    def judge(sampled: Sequence[Sequence[sampling.Reply]]) -> list[list[Judged]]:
        texts = [reply.text for replies in sampled for reply in replies]
        verdicts = zip(*(judge(texts) for judge in judges()), strict=True)
        return [
            [
                Judged(reply.text, reply.tokens, *emotion, *gibberish)
                for reply, (emotion, gibberish) in zip(replies, verdicts, strict=False)
            ]
            for replies in sampled
        ]

    return judge


def made_of(inputs: Mapping[str, str], p: params.Params) -> dict[str, Any]:
    """All that decides what an attempt's replies are and what the judges say of them: the journal's key."""
    values = p.model_dump()
    return {
        **{name: inputs[name] for name in ("base", "sft", "judges")},
        "model": {key: values["model"][key] for key in ("dtype", "attention", "quantization")},
        "generation": values["generation"],
        "emotion_judge": values["reward"]["emotion_judge"],
        "gibberish_judge": values["gibberish_judge"],
        **{key: values["prefs"][key] for key in ("sampling", "candidates", "seed")},
        "code": {name: records.digest(Path(__file__).with_name(f"{name}.py"))[:16] for name in CODE},
        "versions": {name: version(name) for name in LIBRARIES},
    }


def candidate(judged: Judged, asked: str, r: params.Reward) -> Candidate:
    """A judged reply with its component scores and its reward."""
    length = {"characters": len(judged.text), "words": len(judged.text.split()), "tokens": judged.tokens}[r.length.unit]
    shape = {"published": reward.length_score, "plateau": reward.plateau_score}[r.length.shape]
    components = (
        reward.emotion_score(judged.emotion, judged.emotion_confidence, asked),
        shape(length, r.length.low, r.length.high),
        reward.gibberish_score(judged.gibberish, judged.gibberish_confidence),
    )
    return Candidate(
        judged.text,
        judged.emotion,
        judged.emotion_confidence,
        judged.gibberish,
        judged.gibberish_confidence,
        *components,
        reward.reward(components, r.weights, r.bias),
    )


def rows(asked: Iterable[Prompt], outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """The preference dataset: the five published columns, then all that led to them."""
    made = []
    for prompt, outcome in zip(asked, outcomes, strict=True):
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
        made.append(row)
    return made


def measure(
    asked: Sequence[Prompt],
    outcomes: Sequence[Outcome],
    pairs: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    test: Iterable[Dialogue],
    history_turns: int,
) -> dict[str, Any]:
    """metrics/prefs.json: yield, attempts, reasons, how chosen and rejected differ, and what the audit looks at."""
    gaps = [pair["chosen_score"] - pair["rejected_score"] for pair in pairs] or [0.0]
    chosen, rejected = ([len(pair[side]) for pair in pairs] for side in ("chosen", "rejected"))
    histogram = Counter(outcome.attempts for outcome in outcomes if outcome.pair)
    hits = {
        label: [o.pair is not None for prompt, o in zip(asked, outcomes, strict=True) if prompt.emotion == label]
        for label in labels
    }
    test_histories = {
        _said(turn.content for turn in history(d.turns, i, history_turns))
        for d in test
        for i, turn in enumerate(d.turns)
        if turn.role == ASSISTANT
    }
    return {
        "prompts": len(asked),
        "pairs": len(pairs),
        "given_up": len(asked) - len(pairs),
        "attempts": {str(n): histogram[n] for n in sorted(histogram)},
        "attempts_total": sum(outcome.attempts for outcome in outcomes),
        "failures": dict(sorted(Counter(reason for o in outcomes for reason in o.failures).items())),
        "yield": {label: _share(found) for label, found in hits.items() if found},
        "yield_total": len(pairs) / len(asked),
        "pairs_per_emotion": {label: sum(found) for label, found in hits.items()},
        "gap": {"median": statistics.median(gaps), "mean": statistics.fmean(gaps), "sd": statistics.pstdev(gaps)},
        "chosen_characters": statistics.fmean(chosen or [0]),
        "rejected_characters": statistics.fmean(rejected or [0]),
        "chosen_is_longer": _share(a > b for a, b in zip(chosen, rejected, strict=True)),
        "duplicate_prompts": _duplicates(pair["prompt"] for pair in pairs),
        "duplicate_chosen": _duplicates(normal_form(pair["chosen"]) for pair in pairs),
        "prompts_in_test": _share(
            _said(turn["content"] for turn in pair["history"]) in test_histories for pair in pairs
        ),
    }


def audit(measured: Mapping[str, Any], bounds: params.Audit) -> list[str]:
    """Every bound of `prefs.audit` that the pairs break: the number, the bound, and what to turn."""
    if not measured["pairs"]:
        return [f"prefs.audit: of {measured['prompts']} prompts none made a pair, and dpo needs some; {SOONER}"]
    least, fewest = min(measured["pairs_per_emotion"].items(), key=lambda found: found[1])
    too_few = {
        "min_yield": (measured["yield_total"], "pairs per prompt", SOONER),
        "min_pairs_per_emotion": (fewest, f"pairs for {least}", f"raise prefs.prompts, {SOONER}"),
    }
    too_many = {
        "max_chosen_longer": (
            "chosen_is_longer",
            "whose chosen reply is the longer one",
            "lower the second of reward.weights, or set reward.length.shape: plateau",
        ),
        "max_duplicate_prompts": ("duplicate_prompts", "whose prompt another pair has too", "lower prefs.prompts"),
        "max_duplicate_chosen": (
            "duplicate_chosen",
            "whose chosen reply another pair has too",
            "raise prefs.sampling.temperature or prefs.sampling.top_k",
        ),
        "max_prompts_in_test": (
            "prompts_in_test",
            "whose history is one of the test split",
            "raise history_turns, or clean the data",
        ),
    }
    broken = [
        f"prefs.audit.{bound}: {round(found, 3)} {what}, wanted at least {getattr(bounds, bound)}; {turn}"
        for bound, (found, what, turn) in too_few.items()
        if found < getattr(bounds, bound)
    ]
    return broken + [
        f"prefs.audit.{bound}: {measured[name]:.3f} is the share of pairs {what}, wanted at most "
        f"{getattr(bounds, bound)}; {turn}"
        for bound, (name, what, turn) in too_many.items()
        if measured[name] > getattr(bounds, bound)
    ]


def _said(contents: Iterable[str]) -> tuple[str, ...]:
    return tuple(normal_form(content) for content in contents)


def _share(hits: Iterable[bool]) -> float:
    found = list(hits)
    return sum(found) / len(found) if found else 0.0


def _duplicates(texts: Iterable[str]) -> float:
    """The share of texts that another one, before or after it, is equal to."""
    found = list(texts)
    counts = Counter(found)
    return _share(counts[text] > 1 for text in found)
