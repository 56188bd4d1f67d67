"""Laws of the pairs that the prompts of one context make together."""

from dataclasses import replace
from typing import Any

import pytest
from test_attempts import REWARD, prefs

from emotune.preferences.candidates import Prompt
from emotune.preferences.outcomes import NOTHING, Outcome, after, is_enough, paired
from emotune.preferences.params import Prefs
from emotune.preferences.reward import Judged, candidate, reconsidered
from emotune.preferences.selection import Candidate

EMOTIONS = ("happiness", "sadness", "fear")
R = REWARD.model_copy(update={"weights": (0.65, 0.0, 0.35)})


def p(**changes: Any) -> Prefs:
    thresholds = {"target_score_range": 4.0, "min_chosen_score": 8.0, "min_clean_confidence": 0.8}
    return prefs(**{"emotions": "every", "rejected": "contrast", "attempts": 2} | thresholds | changes)


def said(text: str, judged: str, asked: str, confidence: float = 0.9, gibberish: str = "clean") -> Candidate:
    return candidate(Judged(text, 5, judged, confidence, gibberish, 1.0), asked, R)


def prompts(place: str = "d/1") -> list[Prompt]:
    return [Prompt(f"{place}/{emotion}", "d", (), emotion, f"{emotion}?", (1,)) for emotion in EMOTIONS]


def outcome(asked: str, *attempts: list[tuple[str, str]], settings: Prefs | None = None) -> Outcome:
    """What became of a prompt whose attempts brought these texts, judged to have these emotions."""
    result = NOTHING
    for replies in attempts:
        result = after(result, tuple(said(*reply, asked) for reply in replies), asked, settings or p())
    return result


def pairs(*outcomes: Outcome) -> list[tuple[str, str] | None]:
    whole = paired(prompts(), outcomes, p(), R)
    return [outcome.pair and (outcome.pair.chosen.text, outcome.pair.rejected.text) for outcome in whole]


def test_another_emotion_changes_the_score_of_the_emotion_and_nothing_else() -> None:
    reply = Judged("It is a pity.", 5, "sadness", 0.9, "clean", 0.8)
    sad, glad = (candidate(reply, emotion, R) for emotion in ("sadness", "happiness"))
    for one, other, emotion in ((sad, glad, "happiness"), (glad, sad, "sadness")):
        changed = reconsidered(one, emotion, R)
        assert changed.reward == pytest.approx(other.reward)
        assert replace(changed, reward=0.0) == replace(other, reward=0.0)
    assert reconsidered(sad, "sadness", R) is sad


def test_a_good_reply_without_a_contrast_ends_the_search_where_its_context_can_have_one() -> None:
    good = [("I am so glad!", "happiness"), ("How nice it is!", "happiness")]
    assert outcome("happiness", good).failures == ("contrast",)
    assert is_enough(outcome("happiness", good), p())
    assert not is_enough(outcome("happiness", good), p(emotions="balanced"))
    assert not is_enough(outcome("happiness", [("I am so sad!", "sadness")]), p())
    assert is_enough(outcome("happiness", [*good, ("I am so sad!", "sadness")]), p(emotions="balanced"))


def test_replies_chosen_in_one_context_are_rejected_for_each_other() -> None:
    """Those nearest in length are; the one left over takes the contrast that is surest."""
    glad = outcome("happiness", [("I am so very glad!", "happiness")])
    sad = outcome("sadness", [("I am so sad!", "sadness")])
    scared = outcome("fear", [("I am so upset!", "fear")])
    assert pairs(glad, sad, scared) == [
        ("I am so very glad!", "I am so sad!"),
        ("I am so sad!", "I am so upset!"),
        ("I am so upset!", "I am so sad!"),
    ]


def test_a_reply_counts_in_its_pair_for_what_was_asked_there() -> None:
    glad, sad = (
        outcome("happiness", [("I am so glad!", "happiness")]),
        outcome("sadness", [("I am so sad!", "sadness")]),
    )
    first, second, _ = (result.pair for result in paired(prompts(), [glad, sad, NOTHING], p(), R))
    assert first
    assert second
    # 0.65 x 10 x 0.9 + 0.35 x 10 + 0.001, and the same without its emotion.
    assert (second.chosen.emotion_score, second.chosen.reward) == pytest.approx((9.0, 9.351))
    assert (first.rejected.emotion_score, first.rejected.reward) == pytest.approx((0.0, 3.501))
    assert first.rejected.text == second.chosen.text


def test_whoever_is_left_rejects_its_own_candidate_before_one_of_its_context() -> None:
    glad = outcome("happiness", [("I am so glad!", "happiness")])
    sad = outcome("sadness", [("I am so sad!", "sadness")])
    scared = outcome("fear", [("I am terribly frightened here!", "fear"), ("Oh dear, it is not my fault.", "neutral")])
    assert pairs(glad, sad, scared)[2] == ("I am terribly frightened here!", "Oh dear, it is not my fault.")
    alone = outcome("fear", [("I am terribly frightened here!", "fear")])
    assert pairs(glad, sad, alone)[2] is None
    longer = outcome("sadness", [("I am so sad!", "sadness"), ("It is sad that she left us so.", "sadness")])
    assert pairs(glad, longer, alone)[2] == ("I am terribly frightened here!", "It is sad that she left us so.")


def test_what_was_sampled_for_one_emotion_is_chosen_for_another_that_has_nothing_better() -> None:
    glad = outcome("happiness", [("I am so glad!", "happiness"), ("I fear the dark.", "fear")])
    scared = outcome("fear", [("Fine, thanks!", "neutral")], [("I am so glad!", "happiness")])
    assert pairs(glad, NOTHING, scared)[2] == ("I fear the dark.", "I am so glad!")


def test_contexts_do_not_mix() -> None:
    asked = [*prompts("d/1")[:1], *prompts("d/3")[1:2]]
    glad, sad = (
        outcome("happiness", [("I am so glad!", "happiness")]),
        outcome("sadness", [("I am so sad!", "sadness")]),
    )
    assert [result.pair for result in paired(asked, [glad, sad], p(), R)] == [None, None]


@pytest.mark.parametrize("changes", [{"rejected": "worst"}, {"emotions": "balanced"}])
def test_otherwise_a_prompt_keeps_the_pair_that_it_made_alone(changes: dict[str, str]) -> None:
    replies = [("I am so glad!", "happiness"), ("I am so sad!", "sadness")]
    alone = [outcome(emotion, replies, settings=p(**changes)) for emotion in EMOTIONS]
    assert [bool(result.pair) for result in alone] == [True, True, False]
    assert paired(prompts(), alone, p(**changes), R) == alone
