"""Prompts -> pairs: the sft model's own candidates, judged and rewarded; a prompt that makes no pair is tried again."""

import random
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emotune.core import processes, records, seeds
from emotune.core.dialogue import ASSISTANT, Dialogue
from emotune.core.errors import InputError
from emotune.preferences.candidates import JudgeReplies, Prompt, Sample
from emotune.preferences.journal import Journal, Key
from emotune.preferences.learned import Learned
from emotune.preferences.outcomes import NOTHING, Outcome, after, is_enough
from emotune.preferences.params import Prefs, Reward
from emotune.preferences.reward import Judged, candidate
from emotune.prompts.prompter import Prompter

# So many attempts are looked for at once, before any of them is sampled.
AT_ONCE = 512
# With the libraries, what decides an attempt's replies and verdicts, beside what the journal's key names one by one.
PACKAGE = Path(__file__).parents[1]
CODE = ("core/dialogue.py", "core/seeds.py", "generation", "judges", "models", "preferences/candidates.py")
LIBRARIES = ("torch", "transformers", "peft", "scikit-learn")


def choose_prompts(
    dialogues: Sequence[Dialogue], prompter: Prompter, labels: Sequence[str], p: Prefs, first: int = 0
) -> list[Prompt]:
    """Prompts for `places_of` places for a reply, drawn without repetition, fewer where there are fewer.

    `first` were taken before.

    The emotion asked for is the data's (`dataset`) or each label in turn (`balanced`); with `every`, a place is asked
    for every label, and so many fewer places are drawn. A place whose last turn alone leaves no room for a reply is
    passed over: dpo could not train on it.
    """
    places = [(d, i) for d in dialogues for i, turn in enumerate(d.turns) if turn.role == ASSISTANT]
    if first >= len(places):
        raise InputError(f"prefs.prompts: rounds before took {first} places for a reply, and train has {len(places)}")
    random.Random(seeds.key(p.seed, "prompts")).shuffle(places)
    drawn = places[first : first + places_of(p, labels)]
    if p.emotions == "every":
        wanted = [(*place, label) for place in drawn for label in labels]
    elif p.emotions == "balanced":
        wanted = [(*place, labels[n % len(labels)]) for n, place in enumerate(drawn)]
    else:
        wanted = [(d, i, d.turns[i].emotion) for d, i in drawn]
    return prompts_for(wanted, prompter, p)


def places_of(p: Prefs, labels: Sequence[str]) -> int:
    """At how many places `p.prompts` prompts are: as many, or where every emotion is asked for at each, fewer."""
    return max(1, round(p.prompts / len(labels))) if p.emotions == "every" else p.prompts


def prompts_for(places: Iterable[tuple[Dialogue, int, str]], prompter: Prompter, p: Prefs) -> list[Prompt]:
    """What asks for an emotion at each place (a dialogue and a turn of it) that leaves room for a reply."""
    chosen = []
    for d, i, emotion in places:
        history = prompter.fitting_history(prompter.history(d.turns, i), emotion, p.sampling.max_new_tokens)
        text = prompter.text(history, emotion)
        ids, twin = prompter.encoded(text), prompter.twin(history, emotion)
        if max(len(ids), len(twin or ())) + p.sampling.max_new_tokens <= prompter.context:
            chosen.append(Prompt(f"{d.id}/{i}/{emotion}", d.id, history, emotion, text, tuple(ids), twin))
    return chosen


def generate(
    prompts: Sequence[Prompt],
    p: Prefs,
    r: Reward,
    sample: Sample,
    judge: JudgeReplies,
    memo: Journal,
    ahead: Callable[[], int] = lambda: 0,
    begun: Sequence[Outcome] = (),
    learned: Learned | None = None,
) -> list[Outcome]:
    """One outcome a prompt, in order: its attempts are looked at until one makes a pair, at most `p.attempts`.

    Each process searches its share of the prompts, and has the outcomes of all in the end.
    They follow those of `begun`, an outcome a prompt, where that is given. `learned` is asked for a term of the reward.

    An attempt that `memo` holds is not made again. Whatever else is wanted is sampled shortest prompts first, and a
    prompt that fails joins the next batch at once; where another run that shares `memo` is at the same prompts, this
    one goes on at a place of its own. What a prompt's n-th attempt samples depends on the seed, the prompt
    and n alone, so neither the order nor the company nor an interruption changes anything. While up to `ahead()`
    batches are judged, the next is sampled: that pays where sampling leaves this machine's cores idle.
    """
    mine = processes.share(prompts)
    search = Search(mine, p, r, memo, processes.share(begun), learned)
    under_way: deque[tuple[list[Attempt], Future[list[list[Judged]]]]] = deque()
    total, there = len(mine), len(search.outcomes)
    bar = tqdm(total=total, initial=there, desc="pairs", unit="prompt", mininterval=5, disable=not processes.first())
    with ThreadPoolExecutor(1) as judges, bar:
        while search.queue or under_way:
            if wanted := search.wanted():
                sampled = sample([(mine[attempt.place], attempt.number) for attempt in wanted])
                for attempt in wanted[len(sampled) :]:
                    insort(search.queue, attempt)
                under_way.append((wanted[: len(sampled)], judges.submit(judge, sampled)))
            if under_way and (len(under_way) > ahead() or not search.queue):
                batch, verdicts = under_way.popleft()
                search.keep(batch, verdicts.result())
                accepted = sum(outcome.pair is not None for outcome in search.outcomes.values())
                bar.set_postfix(accepted=accepted, refresh=False)
                bar.update(len(search.outcomes) - bar.n)
    print(f"generate_prefs: {search.sampled} attempts sampled, {search.known} taken from the journal", flush=True)
    return processes.gather([search.outcomes[place] for place in range(total)])


def spend(
    prompts: Sequence[Prompt],
    outcomes: Sequence[Outcome],
    p: Prefs,
    search: Callable[[Sequence[Prompt], Prefs, Sequence[Outcome]], list[Outcome]],
) -> list[Outcome]:
    """The outcomes after the attempts that prompts left over of `p.attempts` each; `search` takes it up where it ended.

    Round by round the prompts without a pair of the emotion of lowest yield share them, at most `p.attempts` each a
    round, in order where there are too few. All outcomes together decide a round, so nobody's share of them does.
    """
    outcomes = list(outcomes)
    while places := neediest(prompts, outcomes, p):
        left = len(prompts) * p.attempts - sum(outcome.attempts for outcome in outcomes)
        # Prompts of one emotion that have no pair were tried equally often.
        number = outcomes[places[0]].attempts + min(p.attempts, left // len(places))
        more = p.model_copy(update={"attempts": number})
        again = search([prompts[n] for n in places], more, [outcomes[n] for n in places])
        for n, outcome in zip(places, again, strict=True):
            outcomes[n] = outcome
    return outcomes


def neediest(prompts: Sequence[Prompt], outcomes: Sequence[Outcome], p: Prefs) -> list[int]:
    """Where stand the prompts that are tried next, of which each can have an attempt more."""
    left = len(prompts) * p.attempts - sum(outcome.attempts for outcome in outcomes)
    enough: dict[str, list[bool]] = {}
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        enough.setdefault(prompt.emotion, []).append(is_enough(outcome, p))
    yields = {emotion: sum(done) / len(done) for emotion, done in enough.items()}
    # The first of equals; nothing is asked where people's votes alone make pairs.
    least = min(yields, key=lambda emotion: yields[emotion], default=None)
    return [
        n
        for n, (prompt, outcome) in enumerate(zip(prompts, outcomes, strict=True))
        if prompt.emotion == least and not is_enough(outcome, p)
    ][: max(0, left)]


@dataclass(frozen=True, slots=True, order=True)
class Attempt:
    """An attempt at a prompt: of how many tokens, the prompt's place among all, and which attempt, from 1.

    The order of these fields is the order of sampling.
    """

    length: int
    place: int
    number: int


class Search:
    """The search for a pair of each prompt: the outcomes by the prompts' places, and the attempts that are wanted."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        p: Prefs,
        r: Reward,
        memo: Journal,
        begun: Sequence[Outcome],
        learned: Learned | None = None,
    ) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.queue: list[Attempt] = []
        self.sampled = self.known = 0
        self._prompts, self._p, self._r, self._memo = prompts, p, r, memo
        self._begun, self._learned = list(begun) or [NOTHING for _ in prompts], learned
        if learned:
            # Those that the memo holds at once: asked for one by one they would not share a batch.
            first = memo.find_many([(prompt.digest, 1) for prompt in prompts])
            held = [prompt for prompt in prompts if (prompt.digest, 1) in first]
            learned([(prompt, 1) for prompt in held], [[text for text, *_ in first[own.digest, 1]] for own in held])
        self._next = Attempt(0, 0, 0)
        for place, prompt in enumerate(prompts):
            self._end(place)
            self._go_on(Attempt(len(prompt.ids), place, self._begun[place].attempts + 1))

    def wanted(self) -> list[Attempt]:
        """What follows this run's place in the queue, taken out of it, less what other runs have made meanwhile."""
        while self.queue:
            start = bisect_left(self.queue, self._next) % len(self.queue)
            following = self.queue[start : start + AT_ONCE]
            del self.queue[start : start + AT_ONCE]
            there = self._memo.find_many([self._key(attempt) for attempt in following])
            for attempt in following:
                if self._key(attempt) in there:
                    self._go_on(attempt)
            if missing := [attempt for attempt in following if self._key(attempt) not in there]:
                return missing
        return []

    def keep(self, batch: Sequence[Attempt], judged: Sequence[Sequence[Judged]]) -> None:
        """Write a batch to the memo and conclude; a prompt that it brought no outcome goes on to its next attempt."""
        done = list(zip(batch, judged, strict=True))
        new = self._memo.keep((*self._key(attempt), [astuple(reply) for reply in replies]) for attempt, replies in done)
        self.sampled += len(batch)
        if new < len(batch) and self.queue:
            # Another run is at the same prompts. Any other place will do: no reply depends on it.
            self._next = random.choice(self.queue)
        for attempt, replies, scores in zip(batch, judged, self._scores(done), strict=True):
            self._conclude(attempt, replies, scores)
            self._go_on(replace(attempt, number=attempt.number + 1))

    def _go_on(self, attempt: Attempt) -> None:
        """Through the attempts that the memo holds, from this one on; the first that it lacks is wanted."""
        while attempt.place not in self.outcomes:
            replies = self._memo.find(*self._key(attempt))
            if replies is None:
                insort(self.queue, attempt)
                return
            self.known += 1
            known = [Judged(*values) for values in replies]
            self._conclude(attempt, known, *self._scores([(attempt, known)]))
            attempt = replace(attempt, number=attempt.number + 1)

    def _scores(self, attempts: Sequence[tuple[Attempt, Sequence[Judged]]]) -> Sequence[Sequence[float | None]]:
        """Of each attempt's replies what the reward model says; None where it is not asked."""
        if self._learned is None:
            return [[None] * len(replies) for _, replies in attempts]
        asked = [(self._prompts[attempt.place], attempt.number) for attempt, _ in attempts]
        return self._learned(asked, [[reply.text for reply in replies] for _, replies in attempts])

    def _conclude(self, attempt: Attempt, replies: Sequence[Judged], scores: Sequence[float | None]) -> None:
        """A pair is a prompt's outcome, and so is its last failure."""
        emotion, place = self._prompts[attempt.place].emotion, attempt.place
        both = zip(replies, scores, strict=True)
        candidates = tuple(candidate(reply, emotion, self._r, score) for reply, score in both)
        self._begun[place] = after(self._begun[place], candidates, emotion, self._p)
        self._end(place)

    def _end(self, place: int) -> None:
        outcome = self._begun[place]
        if is_enough(outcome, self._p) or outcome.attempts >= self._p.attempts:
            self.outcomes[place] = outcome

    def _key(self, attempt: Attempt) -> Key:
        return self._prompts[attempt.place].digest, attempt.number


def made_of(inputs: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what an attempt's replies are and what the judges say of them: the journal's key."""
    return {
        **{name: inputs[name] for name in ("dialogues", "base", "sft", "judges")},
        "model": {key: values["model"][key] for key in ("dtype", "attention", "quantization")},
        "generation": values["generation"],
        "emotion_judge": values["reward"]["emotion_judge"],
        "gibberish_judge": values["reward"]["gibberish_judge"],
        **{key: values["prefs"][key] for key in ("sampling", "candidates", "seed")},
        "code": {name: records.digest(PACKAGE / name)[:16] for name in CODE},
        "versions": {name: version(name) for name in LIBRARIES},
    }
