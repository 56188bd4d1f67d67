"""Laws of the human replies that fill an emotion up: which, how many, and what they are preferred to."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from test_attempts import REWARD, prefs
from test_selection import BEST, OTHER, WORST

from emotune.core.dialogue import Dialogue, alternate
from emotune.generation.engine import Reply
from emotune.preferences.candidates import Prompt
from emotune.preferences.human import against_own, fill, places
from emotune.preferences.outcomes import NOTHING, Outcome, after
from emotune.preferences.params import Prefs
from emotune.preferences.reward import Judged
from emotune.preferences.selection import Pair
from emotune.prompts.prompter import Prompter

SAD = alternate(("I lost my keys.", "That is a pity.", "Thanks", "You are wel"), ("neutral", "sadness") * 2)
TALK = [Dialogue(f"talk/{n}", SAD) for n in range(5)]


def drawn(fill_to: int, *taken: str, talk: Sequence[Dialogue] = TALK, **pairs: int) -> list[str]:
    some = places(talk, Counter(pairs), frozenset(taken), prefs(human_fill=fill_to))
    return [f"{d.id}/{i}/{emotion}" for d, i, emotion in some]


def test_an_emotion_is_filled_up_to_so_many_pairs_by_finished_replies_each_drawn_once() -> None:
    assert len(drawn(3, sadness=1)) == 2
    assert drawn(3, sadness=3) == drawn(0) == []
    everything = drawn(9)
    assert sorted(everything) == [f"talk/{n}/1/sadness" for n in range(5)]
    assert drawn(3) == everything[:3]
    # One that made a pair of the model's own replies is no place any more.
    assert drawn(3, everything[0]) == everything[1:4]


def test_where_the_assistant_says_too_little_in_an_emotion_the_user_is_asked_roles_exchanged() -> None:
    both = alternate(("Hello.", "My cat died.", "How sad. I am sorry.", "Yes."), ("neutral", *["sadness"] * 3))
    talk = [Dialogue(f"cat/{n}", both) for n in range(3)]
    everything = drawn(9, talk=talk)
    assert sorted(everything[:6]) == sorted(f"cat/{n}/{i}/sadness" for n in range(3) for i in (1, 3))
    assert sorted(everything[6:]) == [f"cat/{n}~/1/sadness" for n in range(3)]
    assert drawn(6, talk=talk) == everything[:6]


def test_a_human_reply_is_preferred_to_its_contrast_whatever_both_score_or_else_to_the_worst() -> None:
    low = replace(BEST, emotion="neutral", reward=0.5)
    p = prefs(min_clean_confidence=0.8, min_chosen_score=8.0, target_score_range=4.0)
    assert against_own(low, (WORST, OTHER, BEST), "happiness", p) == Pair(low, OTHER)
    assert against_own(low, (WORST, replace(BEST, text="Nice one!")), "happiness", p) == Pair(low, WORST)
    assert against_own(low, (replace(low, text="THAT is great!"),), "happiness", p) is None


def test_what_fills_is_a_prompt_in_the_replys_own_emotion_tried_once_and_scored_by_the_judges(tokenizer: Any) -> None:
    limits: list[int] = []

    def search(asked: Sequence[Prompt], p: Prefs) -> list[Outcome]:
        limits.append(p.attempts)
        return [after(NOTHING, (WORST, OTHER), prompt.emotion, p) for prompt in asked]

    def judge(replies: Sequence[Sequence[Reply]]) -> list[list[Judged]]:
        return [[Judged(reply.text, reply.tokens, "neutral", 0.9, "clean", 0.9) for reply in own] for own in replies]

    p, prompter = prefs(human_fill=2), Prompter(tokenizer, None, 256, 5)
    prompts, outcomes = fill(Counter(), [], TALK, prompter, p, REWARD, search, judge)
    assert limits == [1]
    assert [prompt.emotion for prompt in prompts] == ["sadness", "sadness"]
    assert {prompt.history for prompt in prompts} == {SAD[:1]}
    for outcome in outcomes:
        assert outcome.pair
        assert (outcome.pair.chosen.text, outcome.pair.chosen.emotion_score) == ("That is a pity.", 0.0)
        assert outcome.pair.rejected == WORST
    assert fill(Counter(), [], TALK, prompter, prefs(), REWARD, search, judge) == ([], [])


def test_what_the_user_said_is_of_the_dialogue_that_it_was_said_in(tokenizer: Any) -> None:
    both = alternate(("Hello.", "My cat died.", "How sad. I am sorry.", "Yes."), ("neutral", *["sadness"] * 3))
    prompts, _ = fill(
        Counter(),
        [],
        [Dialogue("cat", both)],
        Prompter(tokenizer, None, 256, 5),
        prefs(human_fill=9),
        REWARD,
        lambda asked, p: [after(NOTHING, (WORST, OTHER), prompt.emotion, p) for prompt in asked],
        lambda replies: [[Judged(reply.text, 3, "neutral", 0.9, "clean", 0.9) for reply in own] for own in replies],
    )
    assert sorted(prompt.id for prompt in prompts) == ["cat/1/sadness", "cat/3/sadness", "cat~/1/sadness"]
    assert {prompt.dialogue for prompt in prompts} == {"cat"}
