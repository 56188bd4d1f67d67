"""Laws of the selection: what makes a pair, and each reason why an attempt makes none."""

from dataclasses import replace

import pytest

from emotune.preferences.selection import Candidate, Pair, select

BEST = Candidate(
    text="That is great!",
    emotion="happiness",
    emotion_confidence=0.9,
    gibberish="clean",
    gibberish_confidence=0.9,
    emotion_score=9.0,
    length_score=15.5,
    gibberish_score=9.0,
    reward=12.0,
)
MIDDLE = replace(BEST, text="Nice one.", reward=6.0)
WORST = replace(BEST, text="the the", emotion="neutral", gibberish="noise", reward=1.0)


def selected(
    *candidates: Candidate,
    target_score_range: float = 4,
    min_chosen_score: float = 8,
    min_clean_confidence: float = 0.8,
) -> Pair | tuple[str, ...]:
    return select(candidates, "happiness", target_score_range, min_chosen_score, min_clean_confidence)


def test_best_and_worst_make_the_pair() -> None:
    assert selected(MIDDLE, WORST, BEST) == Pair(chosen=BEST, rejected=WORST)


@pytest.mark.parametrize(
    ("best", "worst", "reason"),
    [
        (BEST, replace(WORST, reward=8.5), "range"),
        (replace(BEST, reward=7.9), WORST, "score"),
        (replace(BEST, emotion="neutral"), WORST, "emotion"),
        (replace(BEST, gibberish="mild gibberish"), WORST, "gibberish"),
        (replace(BEST, gibberish_confidence=0.79), WORST, "gibberish"),
        (replace(BEST, text="That is great"), WORST, "ending"),
        (replace(BEST, text="That is great! "), WORST, "ending"),
        (BEST, replace(WORST, text="that IS  great!"), "same"),
    ],
)
def test_each_reason_alone_makes_no_pair(best: Candidate, worst: Candidate, reason: str) -> None:
    assert selected(worst, best) == (reason,)


def test_every_reason_is_told() -> None:
    bad = replace(WORST, reward=2.0)
    assert selected(bad, bad, bad) == ("range", "score", "emotion", "gibberish", "ending", "same")


@pytest.mark.parametrize("ending", [".", "!", "?"])
def test_a_reply_may_end_in_each_of_three_marks(ending: str) -> None:
    best = replace(BEST, text=f"That is great{ending}")
    assert selected(best, WORST) == Pair(best, WORST)


def test_a_tie_makes_no_pair_even_where_no_range_is_asked_for() -> None:
    other = replace(BEST, text="So good.")
    assert selected(BEST, other, target_score_range=0) == ("same",)


def test_exactly_at_the_thresholds_is_enough() -> None:
    best = replace(BEST, reward=8.0, gibberish_confidence=0.8)
    worst = replace(WORST, reward=4.0)
    assert selected(best, worst) == Pair(best, worst)


def test_the_first_of_equals_is_taken() -> None:
    second_best = replace(BEST, text="How great!")
    second_worst = replace(WORST, text="of of")
    assert selected(WORST, BEST, second_worst, second_best) == Pair(BEST, WORST)
    assert selected(second_best, second_worst, BEST, WORST) == Pair(second_best, second_worst)
