"""Laws of the reward: literal values at every boundary of the published scores."""

from dataclasses import replace

import pytest
from test_attempts import REWARD, clean, never

from emotune.core.dialogue import Dialogue, alternate
from emotune.generation.engine import Reply
from emotune.preferences.candidates import judging, known_replies
from emotune.preferences.reward import (
    Judged,
    candidate,
    emotion_score,
    gibberish_score,
    length_score,
    plateau_score,
    reconsidered,
    reward,
)


def test_emotion_scores_ten_times_the_confidence_or_nothing() -> None:
    assert emotion_score("anger", 0.75, "anger") == 7.5
    assert emotion_score("anger", 1.0, "anger") == 10.0
    assert emotion_score("neutral", 1.0, "anger") == 0.0
    assert emotion_score("anger", 0.0, "anger") == 0.0


def test_gibberish_scores_by_how_bad_it_is() -> None:
    assert gibberish_score("clean", 0.75) == 7.5
    assert gibberish_score("mild gibberish", 0.75) == 3.75
    assert gibberish_score("word salad", 0.75) == -1.5
    assert gibberish_score("noise", 1.0) == -2.0


# With low 5 and high 20, a = (L - 5) / 5 and b = (L - 20) / 20.
@pytest.mark.parametrize(
    ("length", "score"),
    [
        (0, -0.9),  # a = -1: neither below nor above 1, so b x 0.9 with b = -1
        (1, -0.00008),  # a = -0.8
        (4, -0.00002),  # a = -0.2
        (5, 0.0),  # a = 0
        (9, 0.00008),  # a = 0.8, the last length that is too short
        (10, -0.45),  # a = 1 exactly: b x 0.9 with b = -0.5
        (11, 7.5),  # |1.2 - 0.45| x 10, the first length that pays
        (19, 27.5),  # |2.8 - 0.05| x 10
        (20, 30.0),  # |3.0 + 0.00| x 10
        (21, 32.5),  # |3.2 + 0.05| x 10
        (39, 77.5),  # |6.8 + 0.95| x 10, the most that a length can score
        (40, 0.9),  # b = 1 exactly: the cliff
        (41, 0.945),  # b = 1.05
        (100, 3.6),  # b = 4
    ],
)
def test_length_score_at_each_boundary(length: int, score: float) -> None:
    assert length_score(length, low=5, high=20) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize(
    ("length", "score"), [(0, 0.0), (1, 2.0), (5, 10.0), (20, 10.0), (30, 5.0), (39, 0.5), (40, 0.0), (100, 0.0)]
)
def test_the_plateau_has_no_cliff(length: int, score: float) -> None:
    assert plateau_score(length, low=5, high=20) == pytest.approx(score)


def test_reward_is_the_weighted_sum_and_the_bias() -> None:
    assert reward((7.5, 30.0, 10.0), (0.4, 0.25, 0.35), bias=0.001) == pytest.approx(14.001)
    assert reward((10.0, 77.5, -2.0), (1.0, 0.0, 0.0), bias=0.0) == 10.0


def test_reward_takes_as_many_weights_as_scores() -> None:
    with pytest.raises(ValueError, match="longer than"):
        reward((1.0, 2.0, 3.0), (0.4, 0.25), bias=0.0)


def test_a_reply_of_the_train_split_of_four_words_or_more_is_a_copy_but_for_case_and_punctuation() -> None:
    turns = ("Did you see it all?", "Yes, I saw it.", "And then?", "It was gone.")
    known = known_replies([Dialogue("d", alternate(turns, ["neutral"] * 4))])
    said = {
        "Yes, I saw it.": True,
        "yes - I SAW it!": True,
        "Yes, I saw it all.": False,
        # Three words, and what a user says.
        "It was gone.": False,
        "Did you see it all?": False,
    }
    [judged] = judging(lambda: (never, clean), known)([[Reply(text, 5, True) for text in said]])
    assert {reply.text: reply.copy for reply in judged} == said
    [plain] = judging(lambda: (never, clean))([[Reply(text, 5, True) for text in said]])
    assert not any(reply.copy for reply in plain)


@pytest.mark.parametrize(("penalty", "loss"), [(4.0, 4.0), (0.0, 0.0)])
def test_a_copy_loses_the_penalty_and_nothing_else(penalty: float, loss: float) -> None:
    r = REWARD.model_copy(update={"copy_penalty": penalty, "weights": (0.65, 0.0, 0.35)})
    own, copy = (
        candidate(Judged("Yes, I saw it.", 5, "anger", 0.9, "clean", 1.0, is_copy), "anger", r)
        for is_copy in (False, True)
    )
    assert own.reward == pytest.approx(9.351)
    assert own.reward - copy.reward == pytest.approx(loss, abs=1e-12)
    assert replace(copy, reward=own.reward, copy=False) == own
    assert reconsidered(copy, "fear", r).reward == pytest.approx(3.501 - loss)
