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
