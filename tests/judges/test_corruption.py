"""Laws of the corruptions: never the text itself, the same for the same seed, and what each kind leaves of a text."""

import random

import pytest

from emotune.judges.corruption import corrupt, with_corruptions
from emotune.judges.verdicts import GIBBERISH_LABELS

VOCABULARY = [
    "I",
    "you",
    "we",
    "have",
    "see",
    "the",
    "a",
    "of",
    "to",
    "long",
    "old",
    "garden",
    "friend",
    "letter",
    "snow.",
]
SENTENCE = "We have seen the old garden of your friend, and it was lovely."


@pytest.mark.parametrize("label", GIBBERISH_LABELS[1:])
@pytest.mark.parametrize("text", [SENTENCE, "Yes.", "I do.", "no no no no", ""])
def test_a_corruption_is_another_text_and_the_same_for_the_same_seed(label: str, text: str) -> None:
    for seed in range(200):
        corrupted = corrupt(text, label, random.Random(seed), VOCABULARY)
        assert corrupted not in (text, "")
        assert corrupted == corrupt(text, label, random.Random(seed), VOCABULARY)


def test_clean_text_stays_as_it_is() -> None:
    assert corrupt("Yes,  sir .", "clean", random.Random(0), VOCABULARY) == "Yes,  sir ."


def test_mild_gibberish_keeps_most_words_and_salad_their_order_no_more() -> None:
    words = SENTENCE.split()
    mild = [corrupt(SENTENCE, "mild gibberish", random.Random(seed), VOCABULARY).split() for seed in range(200)]
    assert all(len(set(words) & set(text)) >= len(words) // 2 - 1 for text in mild)
    salad = [corrupt(SENTENCE, "word salad", random.Random(seed), VOCABULARY) for seed in range(200)]
    assert all(SENTENCE[:20] not in text for text in salad)


def test_every_second_row_is_clean_and_the_three_corruptions_take_turns() -> None:
    rows, labels = with_corruptions(["One two three.", "Four five six.", "Seven eight nine."], random.Random(0))
    assert labels == ["clean", "mild gibberish", "clean", "word salad", "clean", "noise"]
    assert rows[::2] == ["One two three.", "Four five six.", "Seven eight nine."]
