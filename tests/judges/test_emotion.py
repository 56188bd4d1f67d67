"""Laws of the emotion judges: a probability with each label, and two judges that are really different."""

import random
from pathlib import Path

import numpy as np
import pytest

from emotune.core.dialogue import DAILY_DIALOG_LABELS
from emotune.core.errors import InputError
from emotune.data import sources
from emotune.data.splits import deduplicate
from emotune.judges import emotion, files
from emotune.judges.emotion import RECIPES
from emotune.stages.judges import columns, measure

TEXTS = [
    f"{start} {thing}."
    for start in ("I am so happy about", "It makes me sad to lose", "Here is")
    for thing in ("the garden", "my old friend", "a long letter", "the first snow", "our house", "his new job", "this")
]
LABELS = ["happiness"] * 7 + ["sadness"] * 7 + ["neutral"] * 7
NEW = ["I am so happy about the letter.", "It makes me sad to lose our garden.", "", "Here is his house."]


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_emotion_judge_gives_a_label_and_its_probability_for_each_text(recipe: str) -> None:
    judge = files.verdicts_of(emotion.train_emotion(TEXTS, LABELS, recipe, 0))
    verdicts = judge(NEW)
    assert [verdicts[row][0] for row in (0, 1, 3)] == ["happiness", "sadness", "neutral"]
    assert all(0 < confidence <= 1 for _, confidence in verdicts)
    assert judge([]) == []


def test_the_two_emotion_judges_differ_in_features_and_learner() -> None:
    words, characters = (emotion.train_emotion(TEXTS, LABELS, recipe, 0) for recipe in RECIPES)
    assert words[0].analyzer == "word"
    assert characters[0].analyzer == "char"
    assert type(words[-1].estimator) is not type(characters[-1].estimator)


def test_the_commonest_label_is_thinned_and_a_rare_one_reaches_every_fold() -> None:
    rows = emotion._thinned(["neutral"] * 900 + ["fear"] * 99 + ["anger"], 2, random.Random(0))
    assert sum(row < 900 for row in rows) == 200
    assert rows[-3:] == [999, 999, 999]
    assert rows == sorted(rows)


def test_weights_are_one_on_average_and_equal_labels_out_at_evenness_one() -> None:
    assert emotion._weights(["a", "a", "a", "b"], 0).tolist() == [1, 1, 1, 1]
    assert emotion._weights(["a", "a", "a", "b"], 1) == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])


def test_the_shares_are_of_the_rows_that_are_learned_from_by_their_weight() -> None:
    # 3.5 x 10 of the 90 neutral ones, 9 afraid, the angry one three times; each weighs its label's count ** -0.28.
    shares = emotion.shares(["neutral"] * 90 + ["fear"] * 9 + ["anger"], "words", 0)
    weights = {"neutral": 35**0.72, "fear": 9**0.72, "anger": 3**0.72}
    assert shares == pytest.approx({label: weight / sum(weights.values()) for label, weight in weights.items()})


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_shares_are_those_that_a_judge_expects_on_average(recipe: str) -> None:
    rng = random.Random(0)
    labels = rng.choices(["neutral", "happiness", "sadness"], [8, 3, 1], k=600)
    # A third of the texts says nothing of its label, so that no probability is near 1.
    texts = [f"It is {rng.choice([label, label, 'so'])} {rng.random():.2f}." for label in labels]
    judge = files.verdicts_of(emotion.train_emotion(texts, labels, recipe, 0))
    rows, _, weights = emotion._sample(labels, recipe, 0)
    means = np.average(judge.probabilities([texts[row] for row in rows]), axis=0, weights=weights)
    assert dict(zip(judge.labels, means, strict=True)) == pytest.approx(emotion.shares(labels, recipe, 0), abs=0.03)


def test_an_unknown_recipe_and_a_single_label_are_refused() -> None:
    with pytest.raises(InputError, match=r"unknown recipe 'letters'.*words, characters"):
        emotion.train_emotion(TEXTS, LABELS, "letters", 0)
    with pytest.raises(InputError, match=r"at least two labels, found \['neutral'\]"):
        emotion.train_emotion(["a", "b"], ["neutral", "neutral"], "words", 0)


@pytest.mark.pipeline
def test_on_daily_dialog_both_judges_are_good_and_not_the_same(shared: Path) -> None:
    real = shared / "daily_dialog"
    splits, _ = deduplicate(sources.daily_dialog(real, sources.fingerprint(real)).splits)
    train, (texts, gold) = columns(splits["train"]), columns(splits["test"])
    judged = {}
    for recipe in RECIPES:
        judge = files.verdicts_of(emotion.train_emotion(*train, recipe, 7))
        measured = measure(judge, texts, gold, DAILY_DIALOG_LABELS)
        assert measured["accuracy"] >= 0.82
        assert measured["weighted_f1"] >= 0.83
        assert measured["macro_f1"] >= 0.42
        judged[recipe] = np.array([label for label, _ in judge(texts)])
    wrong = [judged[recipe] != np.array(gold) for recipe in RECIPES]
    assert (wrong[0] & wrong[1]).sum() / (wrong[0] | wrong[1]).sum() < 0.8
