"""Laws of the attempts: which prompts are asked, how often, and what is kept of the answers."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from conftest import Pipeline
from emotune.core import records
from emotune.core.dialogue import Dialogue, Turn, alternate
from emotune.core.errors import InputError
from emotune.generation import local
from emotune.generation.engine import Reply
from emotune.generation.here import Local
from emotune.generation.params import Sampling
from emotune.judges.params import EmotionChoice, JudgeChoice
from emotune.judges.verdicts import Judge
from emotune.models import loading
from emotune.models.params import Model
from emotune.preferences import attempts, journal
from emotune.preferences.candidates import Prompt, Wanted, judging, sampling
from emotune.preferences.journal import Journal
from emotune.preferences.outcomes import Outcome
from emotune.preferences.pairs import audit, measure, rows, split
from emotune.preferences.params import Audit, Length, Prefs, Reward
from emotune.preferences.reward import Judged, candidate
from emotune.preferences.selection import Candidate, Pair
from emotune.prompts.prompter import Prompter
from emotune.runs.params import parse

LABELS = ("neutral", "happiness", "sadness")
SAMPLING = Sampling(
    temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, min_new_tokens=1, max_new_tokens=8, guidance=1.0
)
PREFS = Prefs(
    source="generated",
    votes="data/votes",
    votes_revision=None,
    prompts=100,
    emotions="dataset",
    candidates=4,
    attempts=3,
    target_score_range=0.0,
    min_chosen_score=0.0,
    min_clean_confidence=0.0,
    rejected="worst",
    spare=False,
    human_fill=0,
    validation=0.1,
    seed=7,
    sampling=SAMPLING,
    audit=Audit(
        min_yield=0.0,
        min_pairs_per_emotion=0,
        min_chosen_longer=0.0,
        max_chosen_longer=1.0,
        max_duplicate_prompts=1.0,
        max_duplicate_chosen=1.0,
        max_prompts_in_test=1.0,
    ),
)
REWARD = Reward(
    emotion_judge=EmotionChoice(name="embedded", revision=None, labels=None, tau=0),
    gibberish_judge=JudgeChoice(name="embedded", revision=None, labels=None),
    model=None,
    bias=0.001,
    copy_penalty=0.0,
    length=Length(shape="published", unit="characters", low=5, high=20),
    weights=(0.4, 0.25, 0.35),
)


def prefs(**changes: Any) -> Prefs:
    return Prefs.model_validate(PREFS.model_dump() | changes)


def clean(texts: Sequence[str]) -> list[tuple[str, float]]:
    return [("clean", 1.0)] * len(texts)


def by_length(texts: Sequence[str]) -> list[tuple[str, float]]:
    """A judge whose verdict depends on the text, and which is no better than it need be."""
    return [(LABELS[len(text) % 3], 0.9) for text in texts]


def never(texts: Sequence[str]) -> list[tuple[str, float]]:
    return [("anger", 1.0)] * len(texts)


@pytest.fixture(scope="module")
def talk() -> list[Dialogue]:
    turns = alternate(
        ("I lost my keys.", "That is a pity.", "I found them!", "Great!"),
        ("sadness", "sadness", "happiness", "neutral"),
    )
    return [Dialogue(f"talk/{number}", turns) for number in range(6)]


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    choice = Model(base="embedded", revision=None, dtype="float32", attention="sdpa", quantization="none", context=256)
    return loading.load_base(base, choice)


def choose(
    talk: Sequence[Dialogue], tokenizer: Any, p: Prefs, history_turns: int = 5, context: int = 256
) -> list[Prompt]:
    return attempts.choose_prompts(talk, Prompter(tokenizer, None, context, history_turns), LABELS, p)


# --- the prompts


def test_a_guided_prompt_has_a_twin_and_another_name_in_the_journal(
    talk: list[Dialogue], model: Any, tokenizer: Any
) -> None:
    # A random model hardly hears what emotion is asked for.
    guided = prefs(emotions="balanced", prompts=6, sampling=SAMPLING.model_dump() | {"guidance": 1e3})
    plain, asked = (
        attempts.choose_prompts(talk, Prompter(tokenizer, None, 256, 5, neutral), LABELS, guided)
        for neutral in (None, "neutral")
    )
    assert [replace(prompt, twin=None) for prompt in asked] == plain
    assert [prompt.emotion for prompt in asked if prompt.twin is None] == ["neutral"] * 2
    ids = Prompter(tokenizer, None, 256).ids
    assert all(prompt.twin in (None, tuple(ids(prompt.history, "neutral"))) for prompt in asked)
    replies = [sampling(Local(lambda: model, tokenizer), guided)([(p, 1) for p in own]) for own in (plain, asked)]
    for one, other, prompt in zip(*replies, asked, strict=True):
        assert (one == other) == (prompt.twin is None)
    assert [one.digest == other.digest for one, other in zip(plain, asked, strict=True)] == [
        prompt.twin is None for prompt in asked
    ]


def test_a_place_that_leaves_the_twin_no_room_is_passed_over(talk: list[Dialogue], tokenizer: Any) -> None:
    neutral = "as if nothing had happened at all"
    room = max(len(Prompter(tokenizer, None, 256).ids(d.turns[:1], neutral)) for d in talk) + SAMPLING.max_new_tokens
    counts = [
        len(attempts.choose_prompts(talk, Prompter(tokenizer, None, context, 1, neutral), ("sadness",), prefs()))
        for context in (room, room - 1)
    ]
    assert counts == [12, 6]


def test_every_place_for_a_reply_is_asked_once_in_the_datas_emotion(talk: list[Dialogue], tokenizer: Any) -> None:
    asked = choose(talk, tokenizer, prefs())
    assert len(asked) == len({prompt.id for prompt in asked}) == 12
    assert Counter(prompt.emotion for prompt in asked) == {"sadness": 6, "neutral": 6}
    assert {len(prompt.history) for prompt in asked if prompt.emotion == "sadness"} == {1}
    assert {len(prompt.history) for prompt in asked if prompt.emotion == "neutral"} == {3}


def test_balanced_prompts_ask_for_every_emotion_equally_often(talk: list[Dialogue], tokenizer: Any) -> None:
    asked = choose(talk, tokenizer, prefs(emotions="balanced"))
    assert Counter(prompt.emotion for prompt in asked) == {"neutral": 4, "happiness": 4, "sadness": 4}


def test_every_emotion_is_asked_for_at_the_first_places(talk: list[Dialogue], tokenizer: Any) -> None:
    """So many places that the prompts are as many as `prompts` says, to the nearest; one at least."""
    asked = choose(talk, tokenizer, prefs(emotions="every", prompts=7))
    assert [prompt.emotion for prompt in asked] == [*LABELS, *LABELS]
    first, second = [prompt.place for prompt in choose(talk, tokenizer, prefs(prompts=2))]
    assert [prompt.place for prompt in asked] == [first] * 3 + [second] * 3
    assert len(choose(talk, tokenizer, prefs(emotions="every", prompts=1))) == 3


def test_the_emotions_change_and_the_places_do_not(talk: list[Dialogue], tokenizer: Any) -> None:
    places = [
        [(prompt.dialogue, prompt.history) for prompt in choose(talk, tokenizer, prefs(emotions=emotions))]
        for emotions in ("dataset", "balanced")
    ]
    assert places[0] == places[1]


def test_fewer_prompts_are_the_first_of_more(talk: list[Dialogue], tokenizer: Any) -> None:
    assert choose(talk, tokenizer, prefs(prompts=5)) == choose(talk, tokenizer, prefs())[:5]


def test_another_round_asks_where_the_one_before_ended_and_says_when_nothing_is_left(
    talk: list[Dialogue], tokenizer: Any
) -> None:
    prompter, p = Prompter(tokenizer, None, 256, 5), prefs(prompts=5)
    rounds = [attempts.choose_prompts(talk, prompter, LABELS, p, first) for first in (0, 5, 10)]
    assert [len(asked) for asked in rounds] == [5, 5, 2]
    assert [prompt for asked in rounds for prompt in asked] == choose(talk, tokenizer, prefs())
    with pytest.raises(InputError, match=r"prefs\.prompts: rounds before took 12 places for a reply, and train has 12"):
        attempts.choose_prompts(talk, prompter, LABELS, p, 12)


def test_the_seed_draws_the_prompts(talk: list[Dialogue], tokenizer: Any) -> None:
    assert choose(talk, tokenizer, prefs()) == choose(talk, tokenizer, prefs())
    assert choose(talk, tokenizer, prefs()) != choose(talk, tokenizer, prefs(seed=8))


def test_a_prompt_is_the_token_ids_that_ask_for_its_emotion(talk: list[Dialogue], tokenizer: Any) -> None:
    for prompt in choose(talk, tokenizer, prefs()):
        assert list(prompt.ids) == Prompter(tokenizer, None, 256).ids(prompt.history, prompt.emotion)


def test_a_history_has_at_most_so_many_turns_from_a_user_turn_on(talk: list[Dialogue], tokenizer: Any) -> None:
    for prompt in choose(talk, tokenizer, prefs(), history_turns=2):
        assert [turn.role for turn in prompt.history] == ["user"]


def test_a_prompt_leaves_room_for_its_reply(talk: list[Dialogue], tokenizer: Any) -> None:
    longest = max(len(prompt.ids) for prompt in choose(talk, tokenizer, prefs()))
    asked = choose(talk, tokenizer, prefs(), context=longest)
    assert max(len(prompt.ids) for prompt in asked) <= longest - SAMPLING.max_new_tokens
    assert {prompt.history[0].role for prompt in asked} == {"user"}


# --- the attempts


@pytest.fixture
def memo(tmp_path: Path) -> Iterator[Journal]:
    with journal.opened(tmp_path / "journal.sqlite", {"made": "here"}) as memo:
        yield memo


def test_a_prompt_that_never_makes_a_pair_is_given_up_with_every_failure_counted(
    model: Any, tokenizer: Any, talk: list[Dialogue], memo: Journal
) -> None:
    asked = choose(talk, tokenizer, prefs(prompts=3))
    sample = sampling(Local(lambda: model, tokenizer), prefs())
    judge = judging(lambda: (never, clean))
    for outcome in attempts.generate(asked, prefs(), REWARD, sample, judge, memo):
        assert (outcome.pair, outcome.attempts) == (None, 3)
        assert Counter(outcome.failures)["emotion"] == 3


@dataclass
class Speaker:
    """The sft model of the tiny pipeline, some of whose replies are sentences, and what was asked of it."""

    open_model: Callable[[], Any]
    tokenizer: Any
    asked: list[Prompt]
    sampling: dict[str, Any]
    heard: list[int]

    def prefs(self, **changes: Any) -> Prefs:
        return prefs(sampling=self.sampling, **changes)

    def generate(
        self,
        order: slice,
        judge: Judge,
        memo: Journal,
        ahead: Callable[[], int] = lambda: 0,
        r: Reward = REWARD,
        begun: Sequence[Outcome] = (),
        **changes: Any,
    ) -> list[Outcome]:
        def hear(texts: Sequence[str]) -> list[tuple[str, float]]:
            self.heard.append(len(texts))
            return judge(texts)

        p = self.prefs(**changes)
        sample = sampling(Local(self.open_model, self.tokenizer), p)
        judged = judging(lambda: (hear, clean))
        return attempts.generate(self.asked[order], p, r, sample, judged, memo, ahead, begun)


@pytest.mark.pipeline
class TestWithAModelThatSpeaks:
    @pytest.fixture
    def speaker(self, pipeline: Pipeline) -> Speaker:
        tokenizer = loading.load_tokenizer(pipeline.folder / "models/sft", None)
        whole = parse(pipeline.folder / "params.yaml")

        def open_model() -> Any:
            base = loading.load_base(pipeline.folder / "models/base", whole.model)
            return loading.load_adapter(base, pipeline.folder / "models/sft")

        dialogues = records.read_dialogues(pipeline.folder / "data/dialogues/train.jsonl")
        asked = choose(dialogues, tokenizer, prefs(prompts=8))
        return Speaker(open_model, tokenizer, asked, whole.prefs.sampling.model_dump(), [])

    @pytest.fixture
    def empty(self, tmp_path: Path) -> Iterator[Callable[[], Journal]]:
        """A journal that holds nothing, a new one at each call."""
        with ExitStack() as stack:
            numbers = count()
            yield lambda: stack.enter_context(journal.opened(tmp_path / f"{next(numbers)}.sqlite", {}))

    def test_an_outcome_does_not_depend_on_its_company(self, speaker: Speaker, empty: Callable[[], Journal]) -> None:
        together = speaker.generate(slice(None), by_length, empty())
        assert {outcome.pair is None for outcome in together} == {True, False}
        assert speaker.generate(slice(None, None, -1), by_length, empty()) == together[::-1]
        assert [speaker.generate(slice(i, i + 1), by_length, empty())[0] for i in range(3)] == together[:3]

    def test_batches_of_any_size_and_judges_beside_them_change_no_outcome(
        self, speaker: Speaker, empty: Callable[[], Journal], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        together = speaker.generate(slice(None), by_length, empty())
        monkeypatch.setattr(local, "CPU_ROWS", 8)
        assert speaker.generate(slice(None), by_length, empty()) == together
        assert speaker.generate(slice(None), by_length, empty(), ahead=lambda: 1) == together

    def test_only_what_failed_is_sampled_again(self, speaker: Speaker, empty: Callable[[], Journal]) -> None:
        outcomes = speaker.generate(slice(None), by_length, empty())
        still_waiting = [sum(outcome.attempts >= n for outcome in outcomes) for n in (1, 2, 3)]
        assert speaker.heard == [4 * count for count in still_waiting]
        assert still_waiting[2] < still_waiting[0] == 8
        for outcome in outcomes:
            assert bool(outcome.failures) == (outcome.attempts > 1 or outcome.pair is None)

    def test_a_failed_prompt_joins_the_next_batch(
        self, speaker: Speaker, empty: Callable[[], Journal], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local, "CPU_ROWS", 8)
        wanted: list[list[int]] = []
        sample = sampling(Local(speaker.open_model, speaker.tokenizer), speaker.prefs())

        def watched(waiting: Sequence[Wanted]) -> list[list[Reply]]:
            wanted.append([attempt for _, attempt in waiting])
            return sample(waiting)

        judge = judging(lambda: (never, clean))
        attempts.generate(speaker.asked, speaker.prefs(), REWARD, watched, judge, empty())
        # Two prompts a batch, and the shortest come first: what failed is asked again before the others are reached.
        assert wanted[:3] == [[1] * 8, [2, 2, *[1] * 6], [3, 3, *[1] * 6]]
        assert len(wanted) == 12

    def test_more_attempts_change_no_pair_that_fewer_made(self, speaker: Speaker, empty: Callable[[], Journal]) -> None:
        few, many = (speaker.generate(slice(None), by_length, empty(), attempts=attempts) for attempts in (1, 4))
        assert [outcome for outcome in few if outcome.pair] == [o for o in many if o.pair and o.attempts == 1]
        assert sum(o.pair is not None for o in many) > sum(o.pair is not None for o in few)

    def test_a_search_goes_on_from_the_outcomes_of_another(
        self, speaker: Speaker, empty: Callable[[], Journal]
    ) -> None:
        """With the bytes of one search, and without a look at what is there already."""
        begun = speaker.generate(slice(None), by_length, empty(), attempts=1)
        first = sum(speaker.heard)
        again = speaker.generate(slice(None), by_length, empty(), begun=begun, attempts=3)
        assert sum(speaker.heard) == 4 * sum(outcome.attempts for outcome in again) > first
        assert again == speaker.generate(slice(None), by_length, empty(), attempts=3)

    def test_other_weights_sample_only_what_nobody_has_made(
        self, speaker: Speaker, empty: Callable[[], Journal]
    ) -> None:
        """And give what they would give from nothing."""
        memo = empty()
        few = speaker.generate(slice(None), by_length, memo, attempts=2)
        first = len(speaker.heard)
        other = REWARD.model_copy(update={"weights": (0.1, 0.1, 0.9)})
        assert speaker.generate(slice(None), by_length, memo, attempts=2) == few
        assert len(speaker.heard) == first
        again = speaker.generate(slice(None), by_length, memo, r=other, attempts=3)
        assert sum(speaker.heard[first:]) == 4 * sum(
            max(0, o.attempts - before.attempts) for o, before in zip(again, few, strict=True)
        )
        assert again == speaker.generate(slice(None), by_length, empty(), r=other, attempts=3)

    def test_where_no_attempt_is_missing_no_model_is_loaded(
        self, speaker: Speaker, empty: Callable[[], Journal]
    ) -> None:
        memo = empty()
        outcomes = speaker.generate(slice(None), by_length, memo)

        def nothing() -> Any:
            raise AssertionError("a model was opened")

        sample = sampling(Local(nothing, speaker.tokenizer), speaker.prefs())
        judge = judging(nothing)
        assert attempts.generate(speaker.asked, speaker.prefs(), REWARD, sample, judge, memo) == outcomes


# --- spare attempts


def tried(*emotions_of_pairs: tuple[str, int, bool]) -> tuple[list[Prompt], list[Outcome]]:
    """Prompts of an emotion that were tried so often, and made a pair or not."""
    asked = [
        Prompt(f"{n}/1/{emotion}", str(n), (), emotion, "?", (1,)) for n, (emotion, *_) in enumerate(emotions_of_pairs)
    ]
    return asked, [Outcome(Pair(BEST, WORST) if pair else None, n, ()) for _, n, pair in emotions_of_pairs]


SPARE = [
    *[("neutral", 1, True)] * 4,
    ("neutral", 3, False),
    *[("sadness", 1, True)] * 2,
    *[("sadness", 3, False)] * 2,
    *[("fear", 3, False)] * 2,
]


def test_spare_attempts_go_to_the_prompts_without_a_pair_of_the_emotion_of_lowest_yield() -> None:
    asked, outcomes = tried(*SPARE)
    assert attempts.neediest(asked, outcomes, prefs()) == [9, 10]
    better = [*outcomes[:9], replace(outcomes[9], pair=Pair(BEST, WORST)), outcomes[10]]
    # Half of both: the first of equals.
    assert attempts.neediest(asked, better, prefs()) == [7, 8]
    done = [replace(outcome, pair=Pair(BEST, WORST)) for outcome in outcomes]
    assert attempts.neediest(asked, done, prefs()) == []


def test_no_more_attempts_are_spent_than_there_are_in_all() -> None:
    """Of 11 prompts x 3 attempts 21 are used. Fear, which never makes a pair, is tried on until all are."""
    asked, outcomes = tried(*SPARE)
    rounds = []

    def search(some: Sequence[Prompt], p: Prefs, begun: Sequence[Outcome]) -> list[Outcome]:
        rounds.append(("".join(prompt.dialogue for prompt in some), p.attempts))
        return [replace(outcome, attempts=p.attempts) for outcome in begun]

    spent = attempts.spend(asked, outcomes, prefs(), search)
    assert sum(outcome.attempts for outcome in spent) == 33
    assert rounds == [("910", 6), ("910", 9)]
    assert attempts.spend(asked, outcomes, prefs(attempts=1), search) == outcomes


def test_where_too_few_attempts_are_left_the_first_prompts_have_them() -> None:
    asked, outcomes = tried(*[("neutral", 1, True)], *[("fear", 3, False)] * 3)
    tried_again = []

    def search(some: Sequence[Prompt], p: Prefs, begun: Sequence[Outcome]) -> list[Outcome]:
        tried_again.append([prompt.dialogue for prompt in some])
        return [replace(outcome, attempts=p.attempts) for outcome in begun]

    assert [outcome.attempts for outcome in attempts.spend(asked, outcomes, prefs(), search)] == [1, 4, 4, 3]
    assert tried_again == [["1", "2"]]


def test_a_candidate_is_scored_by_the_judges_and_its_length() -> None:
    replies = [[Reply("It is a pity.", 5, True), Reply("No.", 2, True)]]

    def judge(texts: Sequence[str]) -> list[tuple[str, float]]:
        assert texts == ["It is a pity.", "No."]
        return [("sadness", 0.5), ("neutral", 0.9)]

    def gibberish(texts: Sequence[str]) -> list[tuple[str, float]]:
        return [("clean", 0.8), ("noise", 0.5)]

    [judged] = judging(lambda: (judge, gibberish))(replies)
    good, bad = (candidate(reply, "sadness", REWARD) for reply in judged)
    # 13 characters: a = 8/5, b = -7/20, |a + b| x 10 = 12.5; 3 characters: a = -2/5, a x 0.0001.
    assert (good.emotion_score, good.length_score, good.gibberish_score) == pytest.approx((5.0, 12.5, 8.0))
    assert (bad.emotion_score, bad.length_score, bad.gibberish_score) == pytest.approx((0.0, -0.00004, -1.0))
    assert good.reward == pytest.approx(0.4 * 5 + 0.25 * 12.5 + 0.35 * 8 + 0.001)
    assert bad.reward == pytest.approx(-0.25 * 0.00004 - 0.35 + 0.001)


JUDGED = Judged("It is a pity.", 7, "sadness", 0.5, "clean", 0.8)


@pytest.mark.parametrize(("unit", "expected"), [("characters", 12.5), ("words", -0.00002), ("tokens", 0.00004)])
def test_length_is_counted_in_the_unit_of_params(unit: Any, expected: float) -> None:
    r = REWARD.model_copy(update={"length": Length(shape="published", unit=unit, low=5, high=20)})
    assert candidate(JUDGED, "sadness", r).length_score == pytest.approx(expected)


def test_the_shape_of_the_length_term_is_that_of_params() -> None:
    r = REWARD.model_copy(update={"length": Length(shape="plateau", unit="characters", low=5, high=20)})
    assert candidate(JUDGED, "sadness", r).length_score == 10.0


# --- what is kept


BEST = Candidate("That is a pity.", "sadness", 0.9, "clean", 0.95, 9.0, 2.5, 9.5, 7.551)
WORST = Candidate("Great!", "happiness", 0.8, "mild gibberish", 0.6, 0.0, 0.00002, 3.0, 1.051, copy=True)
ASKED = [
    Prompt("a/1/sadness", "a", (Turn("user", "I lost my keys.", "sadness"),), "sadness", "a?", (1, 2)),
    Prompt("b/1/sadness", "b", (Turn("user", "It rains.", "neutral"),), "sadness", "b?", (1, 3)),
    Prompt("c/1/neutral", "c", (Turn("user", "Hello.", "neutral"),), "neutral", "c?", (1, 4)),
]
OUTCOMES = [
    Outcome(Pair(BEST, WORST), 2, ("range", "emotion")),
    Outcome(None, 3, ("range", "range", "ending")),
    Outcome(Pair(replace(BEST, text="Yes.", reward=5.0), replace(WORST, text="Good day to you.", reward=4.0)), 1, ()),
]


def test_a_row_holds_the_five_published_columns_and_what_led_to_them() -> None:
    first, second = rows(ASKED, OUTCOMES)
    assert first == {
        "prompt": "a?",
        "chosen": "That is a pity.",
        "rejected": "Great!",
        "chosen_score": 7.551,
        "rejected_score": 1.051,
        "id": "a/1/sadness",
        "dialogue": "a",
        "history": [{"role": "user", "content": "I lost my keys.", "emotion": "sadness"}],
        "emotion": "sadness",
        "attempts": 2,
        "source": "model",
        "chosen_judged": "sadness",
        "chosen_judged_confidence": 0.9,
        "chosen_gibberish": "clean",
        "chosen_gibberish_confidence": 0.95,
        "chosen_emotion_score": 9.0,
        "chosen_length_score": 2.5,
        "chosen_gibberish_score": 9.5,
        "chosen_copy": False,
        "rejected_judged": "happiness",
        "rejected_judged_confidence": 0.8,
        "rejected_gibberish": "mild gibberish",
        "rejected_gibberish_confidence": 0.6,
        "rejected_emotion_score": 0.0,
        "rejected_length_score": 0.00002,
        "rejected_gibberish_score": 3.0,
        "rejected_copy": True,
    }
    assert second["id"] == "c/1/neutral"


IN_TEST = Dialogue("t", alternate(("HELLO", "Hi!", "It rains.", "Yes."), ("neutral",) * 4))


def test_the_metrics_of_three_prompts_and_two_pairs() -> None:
    pairs = rows(ASKED, OUTCOMES)
    assert measure(ASKED, OUTCOMES, pairs, ("neutral", "sadness", "fear"), [IN_TEST], 5) == {
        "prompts": 3,
        "pairs": 2,
        "prompts_per_emotion": {"neutral": 1, "sadness": 2, "fear": 0},
        "given_up": 1,
        "attempts": {"1": 1, "2": 1},
        "attempts_total": 6,
        "failures": {"emotion": 1, "ending": 1, "range": 3},
        "yield": {"neutral": 1.0, "sadness": 0.5},
        "yield_total": pytest.approx(2 / 3),
        "pairs_per_emotion": {"neutral": 1, "sadness": 1, "fear": 0},
        "human_pairs_per_emotion": {"neutral": 0, "sadness": 0, "fear": 0},
        "gap": {"median": pytest.approx(3.75), "mean": pytest.approx(3.75), "sd": pytest.approx(2.75)},
        "chosen_characters": 9.5,
        "rejected_characters": 11.0,
        "chosen_is_longer": 0.5,
        "duplicate_prompts": 0.0,
        "duplicate_chosen": 0.0,
        "prompts_in_test": 0.5,
    }


def test_human_replies_make_pairs_and_no_yield() -> None:
    human = rows(ASKED[1:2], [Outcome(Pair(BEST, WORST), 1, ())], "human")
    measured = measure(ASKED, OUTCOMES, rows(ASKED, OUTCOMES) + human, ("neutral", "sadness"), [], 5)
    assert measured["pairs_per_emotion"] == {"neutral": 1, "sadness": 2}
    assert measured["human_pairs_per_emotion"] == {"neutral": 0, "sadness": 1}
    assert (measured["pairs"], measured["given_up"], measured["yield"]["sadness"]) == (3, 1, 0.5)
    assert measured["yield_total"] == pytest.approx(2 / 3)
    assert measured["attempts"] == {"1": 1, "2": 1}


def test_equal_prompts_and_equal_chosen_replies_are_counted() -> None:
    pairs = rows(ASKED, OUTCOMES)
    twice = [pairs[0], pairs[0] | {"chosen": "that is a PITY"}, pairs[1]]
    measured = measure(ASKED, OUTCOMES, twice, ("sadness",), [], 5)
    assert measured["duplicate_prompts"] == measured["duplicate_chosen"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("dialogues", "share", "held_out"),
    [
        ("abcdefghij", 0.2, "ab"),
        # What a has later is with its first; b is too much, and c fits.
        ("abcadebbfg", 0.3, "aca"),
        ("aabb", 0.25, ""),
        ("aaaa", 0.9, ""),
        ("ab", 0.9, "a"),
        ("abcd", 0.0, ""),
        ("", 0.5, ""),
    ],
)
def test_pairs_to_train_on_and_to_validate_with_share_no_dialogue(dialogues: str, share: float, held_out: str) -> None:
    pairs = [{"id": number, "dialogue": dialogue} for number, dialogue in enumerate(dialogues)]
    training, validation = split(pairs, share)
    assert "".join(pair["dialogue"] for pair in validation) == held_out
    assert not {pair["dialogue"] for pair in training} & set(held_out)
    # Each is there once, in the order of the prompts.
    assert sorted([*training, *validation], key=lambda pair: pair["id"]) == pairs
    assert [pair["id"] for pair in training] == sorted(pair["id"] for pair in training)


# --- the audit

MEASURED = {
    "prompts": 5,
    "pairs": 2,
    "yield_total": 0.4,
    "pairs_per_emotion": {"neutral": 9, "fear": 3},
    "chosen_is_longer": 0.6,
    "duplicate_prompts": 0.1,
    "duplicate_chosen": 0.2,
    "prompts_in_test": 0.05,
}


@pytest.mark.parametrize(
    ("bound", "value", "broken", "says"),
    [
        ("min_yield", 0.4, 0.41, "0.4 pairs per prompt, wanted at least 0.41; train sft for longer"),
        ("min_pairs_per_emotion", 3, 4, "3 pairs for fear, wanted at least 4; raise prefs.prompts, train sft"),
        (
            "min_chosen_longer",
            0.6,
            0.61,
            "0.6 is the share of pairs whose chosen reply is the longer one, wanted",
        ),
        ("max_chosen_longer", 0.6, 0.59, "0.6 is the share of pairs whose chosen reply is the longer one, wanted at"),
        (
            "max_duplicate_prompts",
            0.1,
            0.09,
            "0.1 is the share of pairs whose prompt another pair has too, wanted at",
        ),
        ("max_duplicate_chosen", 0.2, 0.19, "at most 0.19; raise prefs.sampling.temperature or prefs.sampling.top_k"),
        ("max_prompts_in_test", 0.05, 0.04, "0.05 is the share of pairs whose history is one of the test split"),
    ],
)
def test_the_audit_names_the_number_and_the_bound_that_is_broken(
    bound: str, value: float, broken: float, says: str
) -> None:
    assert audit(MEASURED, PREFS.audit.model_copy(update={bound: value})) == []
    [reason] = audit(MEASURED, PREFS.audit.model_copy(update={bound: broken}))
    assert reason.startswith(f"prefs.audit.{bound}: ")
    assert says in reason


def test_no_pair_at_all_is_never_enough() -> None:
    [reason] = audit(MEASURED | {"pairs": 0, "yield_total": 0.0}, PREFS.audit)
    assert reason.startswith("prefs.audit: of 5 prompts none made a pair, and dpo needs some; train sft for longer")
    few = MEASURED | {"pairs_per_emotion": {"fear": 1}, "votes": {"pairs": 1}}
    [reason] = audit(few, PREFS.audit.model_copy(update={"min_pairs_per_emotion": 9}))
    assert reason.endswith(
        "1 pairs for fear, wanted at least 9; gather more votes (`emotune compare --blind`), or set prefs.source: both"
    )
