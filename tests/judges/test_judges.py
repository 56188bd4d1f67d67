"""Laws of the judges: probabilities, equal bytes, two really different emotion judges, and what gibberish is."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LinearRegression

from emotune.core.dialogue import DAILY_DIALOG_LABELS, Dialogue
from emotune.core.errors import InputError
from emotune.data import sources
from emotune.data.corpus import dialogues
from emotune.data.splits import deduplicate
from emotune.judges import corruption, emotion, files, gibberish, hub
from emotune.judges.corruption import corrupt
from emotune.judges.emotion import RECIPES
from emotune.judges.params import JudgeChoice
from emotune.judges.verdicts import GIBBERISH_LABELS, Judge
from emotune.models import pins
from emotune.stages import judges_measure

REAL = Path(__file__).resolve().parents[3] / "shared" / "daily_dialog"

TEXTS = [
    f"{start} {thing}."
    for start in ("I am so happy about", "It makes me sad to lose", "Here is")
    for thing in ("the garden", "my old friend", "a long letter", "the first snow", "our house", "his new job", "this")
]
LABELS = ["happiness"] * 7 + ["sadness"] * 7 + ["neutral"] * 7
NEW = ["I am so happy about the letter.", "It makes me sad to lose our garden.", "", "Here is his house."]
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


# Corruptions.


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
    rows, labels = corruption.with_corruptions(
        ["One two three.", "Four five six.", "Seven eight nine."], random.Random(0)
    )
    assert labels == ["clean", "mild gibberish", "clean", "word salad", "clean", "noise"]
    assert rows[::2] == ["One two three.", "Four five six.", "Seven eight nine."]


# Training.


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_emotion_judge_gives_a_label_and_its_probability_for_each_text(recipe: str) -> None:
    judge = files.verdicts_of(emotion.train_emotion(TEXTS, LABELS, recipe, 0))
    verdicts = judge(NEW)
    assert [verdicts[row][0] for row in (0, 1, 3)] == ["happiness", "sadness", "neutral"]
    assert all(0 < confidence <= 1 for _, confidence in verdicts)
    assert judge([]) == []


def test_the_two_emotion_judges_differ_in_features_learner_and_rows() -> None:
    words, characters = (emotion.train_emotion(TEXTS, LABELS, recipe, 0) for recipe in RECIPES)
    assert words[0].analyzer == "word"
    assert characters[0].analyzer == "char"
    assert type(words[-1].estimator) is not type(characters[-1].estimator)
    skewed = ["neutral"] * 900 + ["fear"] * 100
    assert emotion._thinned(skewed, 3, random.Random("words 0")) != emotion._thinned(
        skewed, 3, random.Random("chars 0")
    )


def test_the_commonest_label_is_thinned_and_a_rare_one_reaches_every_fold() -> None:
    rows = emotion._thinned(["neutral"] * 900 + ["fear"] * 99 + ["anger"], 2, random.Random(0))
    assert sum(row < 900 for row in rows) == 200
    assert rows[-3:] == [999, 999, 999]
    assert rows == sorted(rows)


def test_weights_are_one_on_average_and_equal_labels_out_at_evenness_one() -> None:
    assert emotion._weights(["a", "a", "a", "b"], 0).tolist() == [1, 1, 1, 1]
    assert emotion._weights(["a", "a", "a", "b"], 1) == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])


def test_bad_training_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown recipe 'letters'.*words, characters"):
        emotion.train_emotion(TEXTS, LABELS, "letters", 0)
    with pytest.raises(InputError, match=r"at least two labels, found \['neutral'\]"):
        emotion.train_emotion(["a", "b"], ["neutral", "neutral"], "words", 0)
    with pytest.raises(InputError, match="at least 10 distinct clean texts, found 1"):
        gibberish.train_gibberish(["a"] * 20, 0)


def test_gibberish_is_told_from_clean_text() -> None:
    texts = list(dict.fromkeys(turn.content for d in dialogues(800, 3)["train"] for turn in d.turns))
    train, test = texts[:2500], texts[2500:]
    judge = files.verdicts_of(gibberish.train_gibberish(train, 0))
    measured = judges_measure.measure(judge, *corruption.with_corruptions(test, random.Random(1)), GIBBERISH_LABELS)
    assert measured["macro_f1"] > 0.8
    assert measured["per_class"]["clean"]["recall"] > 0.9
    broken = ["[/INST] that [/INST]", "xq3 zz#k @@9w qqpz", "the of of it the a of of", "?!?!? ,,,, .;.; ''\"\""]
    assert "clean" not in [label for label, _ in judge(broken)]


# Files.


def trained(kind: str) -> Any:
    return gibberish.train_gibberish(TEXTS, 0) if kind == "gibberish" else emotion.train_emotion(TEXTS, LABELS, kind, 0)


@pytest.mark.parametrize("kind", [*RECIPES, "gibberish"])
def test_a_saved_judge_says_the_same_and_training_again_writes_the_same_bytes(kind: str, tmp_path: Path) -> None:
    estimator = trained(kind)
    files.save(estimator, tmp_path / "first.skops")
    files.save(trained(kind), tmp_path / "second.skops")
    assert (tmp_path / "first.skops").read_bytes() == (tmp_path / "second.skops").read_bytes()
    assert files.load(tmp_path / "first.skops")(NEW) == files.verdicts_of(estimator)(NEW)


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    files.save(trained("gibberish"), tmp_path / "here.skops")
    code = (
        "from pathlib import Path; import emotune.judges as j, test_judges as t; "
        f"j.save(t.trained('gibberish'), Path({str(tmp_path / 'there.skops')!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
    assert (tmp_path / "here.skops").read_bytes() == (tmp_path / "there.skops").read_bytes()


def test_a_file_of_anything_else_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.skops: no such file"):
        files.load(tmp_path / "absent.skops")
    skops.io.dump({"model": LinearRegression(), "open": Path.unlink}, tmp_path / "bad.skops")
    with pytest.raises(InputError, match=r"bad\.skops: holds .*unlink.*accepted beside scikit-learn"):
        files.load(tmp_path / "bad.skops")


def test_measure_counts_what_a_judge_gets_right() -> None:
    said = {"one": "joy", "two": "joy", "three": "calm", "four": "calm"}
    measured = judges_measure.measure(
        lambda texts: [(said[text], 1.0) for text in texts],
        list(said),
        ["joy", "calm", "calm", "calm"],
        ["calm", "joy"],
    )
    assert measured["accuracy"] == 0.75
    assert measured["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert measured["weighted_f1"] == pytest.approx((3 * 0.8 + 2 / 3) / 4)
    assert measured["per_class"]["joy"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}


# Sequence classifiers of transformers.


@pytest.fixture(scope="module", params=["bert", "llama"])
def classifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier of GLAD, SAD and UPSET, with a tokenizer of whole words; the Llama has no pad token."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    words = ["[UNK]", "[END]", "[PAD]", *sorted({word for text in TEXTS for word in text.strip(".").split()}), "."]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    shape = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 12,
        "initializer_range": 1.0,
        "id2label": {0: "GLAD", 1: "SAD", 2: "UPSET"},
        "label2id": {"GLAD": 0, "SAD": 1, "UPSET": 2},
    }
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "bert":
        BertForSequenceClassification(BertConfig(**shape)).save_pretrained(folder)
        special = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    else:
        LlamaForSequenceClassification(LlamaConfig(**shape)).save_pretrained(folder)
        special = {"unk_token": "[UNK]", "eos_token": "[END]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def hub(folder: Path, label_map: dict[str, str] | None, batch_size: int = 4) -> Judge:
    return hub.load_hub(str(folder), pins.folder_revision(folder), label_map, batch_size)


def test_a_sequence_classifier_judges_each_text_alone_and_in_input_order(classifier: Path) -> None:
    texts = [*TEXTS, " ".join(TEXTS)]
    alone = [hub(classifier, None)([text])[0] for text in texts]
    together = hub(classifier, None, batch_size=5)(texts)
    assert [label for label, _ in together] == [label for label, _ in alone]
    assert len({label for label, _ in together}) > 1
    assert [confidence for _, confidence in together] == pytest.approx(
        [confidence for _, confidence in alone], abs=1e-5
    )
    assert all(0 < confidence <= 1 for _, confidence in together)
    assert hub(classifier, None)([]) == []


def test_labels_that_become_one_are_added_up(classifier: Path) -> None:
    verdicts = hub(classifier, {"GLAD": "any", "SAD": "any", "UPSET": "any"})(TEXTS[:3])
    assert [label for label, _ in verdicts] == ["any"] * 3
    assert [confidence for _, confidence in verdicts] == pytest.approx([1.0] * 3)


def test_a_label_map_must_name_all_labels_of_the_model_and_no_other(classifier: Path) -> None:
    with pytest.raises(InputError, match="label 'UPSET' of the model is not mapped; mapped are GLAD, SAD"):
        hub(classifier, {"GLAD": "happiness", "SAD": "sadness"})
    with pytest.raises(InputError, match="labels maps 'MAD'; the model's labels are GLAD, SAD, UPSET"):
        hub(classifier, {"GLAD": "happiness", "SAD": "sadness", "UPSET": "anger", "MAD": "anger"})


def test_a_classifier_that_is_not_pinned_is_refused(classifier: Path) -> None:
    with pytest.raises(InputError, match=r"revision must be the hash of its content, [0-9a-f]{64}; got None"):
        hub.load_hub(str(classifier), None, None, 4)
    with pytest.raises(InputError, match=r"owner/model: no such folder.*40-digit commit, not a branch.*got main"):
        hub.load_hub("owner/model", "main", None, 4)


def test_open_judge_takes_the_trained_file_or_the_named_model(classifier: Path, tmp_path: Path) -> None:
    files.save(trained("words"), tmp_path / "words.skops")
    embedded = files.open_judge(tmp_path / "words.skops", JudgeChoice(name="embedded", revision=None, labels=None))
    assert embedded(NEW[:1])[0][0] == "happiness"
    choice = JudgeChoice(name=str(classifier), revision=pins.folder_revision(classifier), labels=None)
    assert files.open_judge(tmp_path / "absent.skops", choice)(NEW[:1])[0][0] in ("GLAD", "SAD", "UPSET")


# DailyDialog.


def texts_and_emotions(split: list[Dialogue]) -> tuple[list[str], list[str]]:
    turns = [turn for dialogue in split for turn in dialogue.turns]
    return [turn.content for turn in turns], [turn.emotion for turn in turns]


@pytest.mark.pipeline
@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs DailyDialog at {REAL}")
def test_on_daily_dialog_both_emotion_judges_are_good_and_not_the_same_and_gibberish_is_found() -> None:
    splits, _ = deduplicate(sources.daily_dialog(REAL, sources.fingerprint(REAL)).splits)
    train, (texts, gold) = texts_and_emotions(splits["train"]), texts_and_emotions(splits["test"])
    judged = {}
    for recipe in RECIPES:
        judge = files.verdicts_of(emotion.train_emotion(*train, recipe, 7))
        measured = judges_measure.measure(judge, texts, gold, DAILY_DIALOG_LABELS)
        assert measured["accuracy"] >= 0.82
        assert measured["weighted_f1"] >= 0.83
        assert measured["macro_f1"] >= 0.42
        judged[recipe] = np.array([label for label, _ in judge(texts)])
    wrong = [judged[recipe] != np.array(gold) for recipe in RECIPES]
    assert (wrong[0] & wrong[1]).sum() / (wrong[0] | wrong[1]).sum() < 0.8

    judge = files.verdicts_of(gibberish.train_gibberish(train[0], 7))
    measured = judges_measure.measure(judge, *corruption.with_corruptions(texts, random.Random(1)), GIBBERISH_LABELS)
    assert measured["macro_f1"] >= 0.8
    assert measured["per_class"]["clean"]["recall"] >= 0.9
    assert np.mean([label == "clean" and confidence >= 0.8 for label, confidence in judge(texts)]) >= 0.85
