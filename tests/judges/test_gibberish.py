"""Laws of the gibberish judge: clean text passes, and what a bad model would have said does not."""

import random
from pathlib import Path

import numpy as np
import pytest

from emotune.core.errors import InputError
from emotune.data import sources
from emotune.data.corpus import dialogues
from emotune.data.splits import deduplicate
from emotune.judges.corruption import with_corruptions
from emotune.judges.files import verdicts_of
from emotune.judges.gibberish import Fluency, train_gibberish
from emotune.judges.verdicts import GIBBERISH_LABELS
from emotune.stages.judges import columns, measure

SOUND = "We have seen the old garden."


@pytest.fixture(scope="module")
def fluency() -> Fluency:
    return Fluency().fit([SOUND, "It was lovely, was it not?"])


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(InputError, match="at least 10 distinct clean texts, found 1"):
        train_gibberish(["a"] * 20, 0)


def test_a_text_has_the_same_23_signs_alone_and_in_a_batch_and_all_are_numbers(fluency: Fluency) -> None:
    texts = [SOUND, "it it it it the the", "?!?!", "[/INST] x", "", "zzqx"]
    signs = fluency.transform(texts)
    assert signs.shape == (6, 23)
    assert signs.dtype == np.float64
    assert np.isfinite(signs).all()
    assert all((fluency.transform([text]) == row).all() for text, row in zip(texts, signs, strict=True))


def test_the_signs_say_what_is_wrong(fluency: Fluency) -> None:
    names = ("new_words", "new_pairs", "doubled_words", "tags", "longest_punctuation", "share_of_single_letters")
    assert [fluency._signs(SOUND)[name] for name in names] == [0, 0, 0, 0, 1, 0]
    broken = fluency._signs("garden garden ?!? [INST] x")
    # ?!?, the three pieces of the tag and x were never seen; "garden" begins no text and follows itself in none.
    assert [broken[name] for name in names] == [5, 8, 1, 1, 3, 1 / 4]
    assert broken["share_of_repeated_words"] == 1 / 4


def test_gibberish_is_told_from_clean_text() -> None:
    texts = list(dict.fromkeys(turn.content for d in dialogues(800, 3)["train"] for turn in d.turns))
    train, test = texts[:2500], texts[2500:]
    judge = verdicts_of(train_gibberish(train, 0))
    measured = measure(judge, *with_corruptions(test, random.Random(1)), GIBBERISH_LABELS)
    assert measured["macro_f1"] > 0.8
    assert measured["per_class"]["clean"]["recall"] > 0.9
    broken = ["[/INST] that [/INST]", "xq3 zz#k @@9w qqpz", "the of of it the a of of", "?!?!? ,,,, .;.; ''\"\""]
    assert "clean" not in [label for label, _ in judge(broken)]


@pytest.mark.pipeline
def test_on_daily_dialog_gibberish_is_found(shared: Path) -> None:
    real = shared / "daily_dialog"
    splits, _ = deduplicate(sources.daily_dialog(real, sources.fingerprint(real)).splits)
    (train, _), (texts, _) = columns(splits["train"]), columns(splits["test"])
    # A quarter of the texts is enough.
    judge = verdicts_of(train_gibberish(train[:20_000], 7))
    measured = measure(judge, *with_corruptions(texts, random.Random(1)), GIBBERISH_LABELS)
    assert measured["macro_f1"] >= 0.8
    assert measured["per_class"]["clean"]["recall"] >= 0.9
    assert np.mean([label == "clean" and confidence >= 0.8 for label, confidence in judge(texts)]) >= 0.85
