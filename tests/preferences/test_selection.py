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


# --- contrast: a pair whose replies differ in their emotion, as far as can be

OTHER = replace(BEST, text="That is a pity!", emotion="sadness", emotion_confidence=0.6, reward=5.0)


def contrasted(*candidates: Candidate, **thresholds: float) -> Pair | tuple[str, ...]:
    limits = {"target_score_range": 4.0, "min_chosen_score": 8.0, "min_clean_confidence": 0.8} | thresholds
    return select(candidates, "happiness", **limits, rejected="contrast")  # type: ignore[arg-type]


def test_a_contrast_is_rejected_where_the_worst_is_gibberish() -> None:
    assert contrasted(WORST, OTHER, BEST) == Pair(BEST, OTHER)
    assert selected(WORST, OTHER, BEST) == Pair(BEST, WORST)


def test_of_several_contrasts_the_surest_of_its_emotion_is_taken_and_the_first_of_equals() -> None:
    surer = replace(OTHER, text="That is awful!", emotion="fear", emotion_confidence=0.7)
    assert contrasted(OTHER, surer, BEST, replace(surer, text="That is a bore!")) == Pair(BEST, surer)


@pytest.mark.parametrize(
    "other",
    [
        replace(OTHER, emotion="happiness"),
        replace(OTHER, gibberish="mild gibberish"),
        replace(OTHER, gibberish_confidence=0.79),
        replace(OTHER, text="That is a pity"),
        # 14 characters are chosen: 9 are too few, and 22 too many.
        replace(OTHER, text="Oh, fear."),
        replace(OTHER, text="That is truly so sad!!"),
        replace(OTHER, reward=8.1),
        replace(OTHER, text="that IS  great!"),
    ],
)
def test_what_is_no_contrast_makes_no_pair(other: Candidate) -> None:
    assert contrasted(WORST, other, BEST) == ("contrast",)


@pytest.mark.parametrize("text", ["That's bad", "That is a pity for you"])
def test_a_contrast_is_of_like_length_up_to_a_factor_of_one_and_a_half(text: str) -> None:
    other = replace(OTHER, text=f"{text[:-1]}.")
    assert len(other.text) in (10, 22)
    assert contrasted(other, BEST) == (Pair(BEST, other) if len(other.text) == 10 else ("contrast",))


def test_a_best_reply_with_a_fault_is_told_its_faults_and_not_that_it_has_no_contrast() -> None:
    assert contrasted(replace(BEST, reward=7.9, text="That is great"), WORST) == ("score", "ending")
