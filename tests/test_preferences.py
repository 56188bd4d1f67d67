"""Laws of preferences.py: which prompts are asked, how often, and what is kept of the answers."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import Pipeline
from emotune import models, params, preferences, prompts, records
from emotune.dialogue import Dialogue, Turn, alternate
from emotune.judges import Judge
from emotune.preferences import Outcome, Prompt
from emotune.sampling import Reply
from emotune.selection import Candidate, Pair

LABELS = ("neutral", "happiness", "sadness")
SAMPLING = params.Sampling(
    temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, min_new_tokens=1, max_new_tokens=8
)
PREFS = params.Prefs(
    prompts=100,
    emotions="dataset",
    candidates=4,
    attempts=3,
    target_score_range=0.0,
    min_chosen_score=0.0,
    min_clean_confidence=0.0,
    validation=0.1,
    seed=7,
    sampling=SAMPLING,
)
REWARD = params.Reward(
    emotion_judge=params.JudgeChoice(name="embedded", revision=None, labels=None),
    bias=0.001,
    length=params.Length(unit="characters", low=5, high=20),
    weights=(0.4, 0.25, 0.35),
)


def prefs(**changes: Any) -> params.Prefs:
    return params.Prefs.model_validate(PREFS.model_dump() | changes)


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
    choice = params.Model(
        base="embedded", revision=None, dtype="float32", attention="sdpa", quantization="none", context=256
    )
    return models.load_base(base, choice)


def choose(
    talk: Sequence[Dialogue], tokenizer: Any, p: params.Prefs, history_turns: int = 5, context: int = 256
) -> list[Prompt]:
    return preferences.choose_prompts(talk, tokenizer, LABELS, p, history_turns, None, context)


# --- the prompts


def test_every_place_for_a_reply_is_asked_once_in_the_datas_emotion(talk: list[Dialogue], tokenizer: Any) -> None:
    asked = choose(talk, tokenizer, prefs())
    assert len(asked) == len({prompt.id for prompt in asked}) == 12
    assert Counter(prompt.emotion for prompt in asked) == {"sadness": 6, "neutral": 6}
    assert {len(prompt.history) for prompt in asked if prompt.emotion == "sadness"} == {1}
    assert {len(prompt.history) for prompt in asked if prompt.emotion == "neutral"} == {3}


def test_balanced_prompts_ask_for_every_emotion_equally_often(talk: list[Dialogue], tokenizer: Any) -> None:
    asked = choose(talk, tokenizer, prefs(emotions="balanced"))
    assert Counter(prompt.emotion for prompt in asked) == {"neutral": 4, "happiness": 4, "sadness": 4}


def test_the_emotions_change_and_the_places_do_not(talk: list[Dialogue], tokenizer: Any) -> None:
    places = [
        [(prompt.dialogue, prompt.history) for prompt in choose(talk, tokenizer, prefs(emotions=emotions))]
        for emotions in ("dataset", "balanced")
    ]
    assert places[0] == places[1]


def test_fewer_prompts_are_the_first_of_more(talk: list[Dialogue], tokenizer: Any) -> None:
    assert choose(talk, tokenizer, prefs(prompts=5)) == choose(talk, tokenizer, prefs())[:5]


def test_the_seed_draws_the_prompts(talk: list[Dialogue], tokenizer: Any) -> None:
    assert choose(talk, tokenizer, prefs()) == choose(talk, tokenizer, prefs())
    assert choose(talk, tokenizer, prefs()) != choose(talk, tokenizer, prefs(seed=8))


def test_a_prompt_is_the_token_ids_that_ask_for_its_emotion(talk: list[Dialogue], tokenizer: Any) -> None:
    for prompt in choose(talk, tokenizer, prefs()):
        assert list(prompt.ids) == prompts.prompt_ids(tokenizer, prompt.history, prompt.emotion, None)


def test_a_history_has_at_most_so_many_turns_from_a_user_turn_on(talk: list[Dialogue], tokenizer: Any) -> None:
    for prompt in choose(talk, tokenizer, prefs(), history_turns=2):
        assert [turn.role for turn in prompt.history] == ["user"]


def test_a_prompt_leaves_room_for_its_reply(talk: list[Dialogue], tokenizer: Any) -> None:
    longest = max(len(prompt.ids) for prompt in choose(talk, tokenizer, prefs()))
    asked = choose(talk, tokenizer, prefs(), context=longest)
    assert max(len(prompt.ids) for prompt in asked) <= longest - SAMPLING.max_new_tokens
    assert {prompt.history[0].role for prompt in asked} == {"user"}


# --- the attempts


def test_a_prompt_that_never_makes_a_pair_is_given_up_with_every_failure_counted(
    model: Any, tokenizer: Any, talk: list[Dialogue]
) -> None:
    asked = choose(talk, tokenizer, prefs(prompts=3))
    for outcome in preferences.generate(model, tokenizer, asked, prefs(), REWARD, never, clean):
        assert (outcome.pair, outcome.attempts) == (None, 3)
        assert Counter(outcome.failures)["emotion"] == 3


@pytest.mark.pipeline
class TestWithAModelThatSpeaks:
    """The sft model of the tiny pipeline, some of whose replies are sentences."""

    @pytest.fixture(scope="class")
    def generate(self, pipeline: Pipeline) -> Callable[..., list[Outcome]]:
        tokenizer = models.load_tokenizer(pipeline.folder / "models/sft", None)
        whole = params.parse(pipeline.folder / "params.yaml")
        base = models.load_base(pipeline.folder / "models/base", whole.model)
        model = models.load_adapter(base, pipeline.folder / "models/sft")
        dialogues = records.read_dialogues(pipeline.folder / "data/dialogues/train.jsonl")
        asked = choose(dialogues, tokenizer, prefs(prompts=8))

        def generate(order: slice, judge: Judge, attempts: int = 3) -> list[Outcome]:
            p = prefs(sampling=whole.prefs.sampling.model_dump(), attempts=attempts)
            return preferences.generate(model, tokenizer, asked[order], p, REWARD, judge, clean)

        return generate

    def test_an_outcome_does_not_depend_on_its_company(self, generate: Callable[..., list[Outcome]]) -> None:
        together = generate(slice(None), by_length)
        assert {outcome.pair is None for outcome in together} == {True, False}
        assert generate(slice(None, None, -1), by_length) == together[::-1]
        assert [generate(slice(i, i + 1), by_length)[0] for i in range(3)] == together[:3]

    def test_only_what_failed_is_sampled_again(self, generate: Callable[..., list[Outcome]]) -> None:
        heard: list[int] = []

        def judge(texts: Sequence[str]) -> list[tuple[str, float]]:
            heard.append(len(texts))
            return by_length(texts)

        outcomes = generate(slice(None), judge)
        still_waiting = [sum(outcome.attempts >= n for outcome in outcomes) for n in (1, 2, 3)]
        assert heard == [4 * count for count in still_waiting]
        assert still_waiting[2] < still_waiting[0] == 8
        for outcome in outcomes:
            assert bool(outcome.failures) == (outcome.attempts > 1 or outcome.pair is None)

    def test_more_attempts_change_no_pair_that_fewer_made(self, generate: Callable[..., list[Outcome]]) -> None:
        few, many = (generate(slice(None), by_length, attempts) for attempts in (1, 4))
        assert [outcome for outcome in few if outcome.pair] == [o for o in many if o.pair and o.attempts == 1]
        assert sum(o.pair is not None for o in many) > sum(o.pair is not None for o in few)


def test_a_candidate_is_scored_by_the_judges_and_its_length() -> None:
    replies = [[Reply("It is a pity.", 5, True), Reply("No.", 2, True)]]

    def judge(texts: Sequence[str]) -> list[tuple[str, float]]:
        assert texts == ["It is a pity.", "No."]
        return [("sadness", 0.5), ("neutral", 0.9)]

    def gibberish(texts: Sequence[str]) -> list[tuple[str, float]]:
        return [("clean", 0.8), ("noise", 0.5)]

    [[good, bad]] = preferences.score(replies, ["sadness"], REWARD, judge, gibberish)
    # 13 characters: a = 8/5, b = -7/20, |a + b| x 10 = 12.5; 3 characters: a = -2/5, a x 0.0001.
    assert (good.emotion_score, good.length_score, good.gibberish_score) == pytest.approx((5.0, 12.5, 8.0))
    assert (bad.emotion_score, bad.length_score, bad.gibberish_score) == pytest.approx((0.0, -0.00004, -1.0))
    assert good.reward == pytest.approx(0.4 * 5 + 0.25 * 12.5 + 0.35 * 8 + 0.001)
    assert bad.reward == pytest.approx(-0.25 * 0.00004 - 0.35 + 0.001)


@pytest.mark.parametrize(("unit", "length"), [("characters", 13), ("words", 4), ("tokens", 7)])
def test_length_is_counted_in_the_unit_of_params(unit: str, length: int) -> None:
    r = REWARD.model_copy(update={"length": params.Length(unit=unit, low=5, high=20)})  # type: ignore[arg-type]
    [[candidate]] = preferences.score([[Reply("It is a pity.", 7, True)]], ["sadness"], r, by_length, clean)
    expected = {13: 12.5, 4: -0.00002, 7: 0.00004}[length]
    assert candidate.length_score == pytest.approx(expected)


# --- what is kept


BEST = Candidate("That is a pity.", "sadness", 0.9, "clean", 0.95, 9.0, 2.5, 9.5, 7.551)
WORST = Candidate("Great!", "happiness", 0.8, "mild gibberish", 0.6, 0.0, 0.00002, 3.0, 1.051)
ASKED = [
    Prompt("a/1/sadness", "a", (Turn("user", "I lost my keys.", "sadness"),), "sadness", (1, 2)),
    Prompt("b/1/sadness", "b", (Turn("user", "It rains.", "neutral"),), "sadness", (1, 3)),
    Prompt("c/1/neutral", "c", (Turn("user", "Hello.", "neutral"),), "neutral", (1, 4)),
]
OUTCOMES = [
    Outcome(Pair(BEST, WORST), 2, ("range", "emotion")),
    Outcome(None, 3, ("range", "range", "ending")),
    Outcome(Pair(replace(BEST, text="Yes.", reward=5.0), replace(WORST, text="Good day to you.", reward=4.0)), 1, ()),
]


def test_a_row_holds_the_five_published_columns_and_what_led_to_them(tokenizer: Any) -> None:
    first, second = preferences.rows(tokenizer, ASKED, OUTCOMES, None)
    assert first == {
        "prompt": "<s>[INST] [EMOTION] sadness [/EMOTION] I lost my keys. [/INST] [EMOTION] sadness [/EMOTION]",
        "chosen": "That is a pity.",
        "rejected": "Great!",
        "chosen_score": 7.551,
        "rejected_score": 1.051,
        "id": "a/1/sadness",
        "dialogue": "a",
        "history": [{"role": "user", "content": "I lost my keys.", "emotion": "sadness"}],
        "emotion": "sadness",
        "attempts": 2,
        "chosen_judged": "sadness",
        "chosen_judged_confidence": 0.9,
        "chosen_gibberish": "clean",
        "chosen_gibberish_confidence": 0.95,
        "chosen_emotion_score": 9.0,
        "chosen_length_score": 2.5,
        "chosen_gibberish_score": 9.5,
        "rejected_judged": "happiness",
        "rejected_judged_confidence": 0.8,
        "rejected_gibberish": "mild gibberish",
        "rejected_gibberish_confidence": 0.6,
        "rejected_emotion_score": 0.0,
        "rejected_length_score": 0.00002,
        "rejected_gibberish_score": 3.0,
    }
    assert second["id"] == "c/1/neutral"


def test_the_metrics_of_three_prompts_and_two_pairs(tokenizer: Any) -> None:
    pairs = preferences.rows(tokenizer, ASKED, OUTCOMES, None)
    assert preferences.measure(ASKED, OUTCOMES, pairs, ("neutral", "sadness", "fear")) == {
        "prompts": 3,
        "pairs": 2,
        "given_up": 1,
        "attempts": {"1": 1, "2": 1},
        "attempts_total": 6,
        "failures": {"emotion": 1, "ending": 1, "range": 3},
        "yield": {"neutral": 1.0, "sadness": 0.5},
        "gap": {"median": pytest.approx(3.75), "mean": pytest.approx(3.75), "sd": pytest.approx(2.75)},
        "chosen_characters": 9.5,
        "rejected_characters": 11.0,
        "chosen_is_longer": 0.5,
    }
