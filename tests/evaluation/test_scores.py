"""Laws of the scores, on eight rows whose metrics are worked out by hand."""

import math
import random
import time

import numpy as np
import pytest

from emotune.core.errors import InputError
from emotune.evaluation import scores

LABELS = ("neutral", "anger", "joy")
GOLD = ["neutral", "neutral", "neutral", "neutral", "anger", "anger", "joy", "joy"]
JUDGED = ["neutral", "neutral", "neutral", "anger", "anger", "neutral", "joy", "neutral"]
DIALOGUES = ["a", "a", "b", "b", "c", "c", "d", "d"]


def test_confusion_has_gold_in_rows_and_judged_in_columns():
    assert scores.confusion(GOLD, JUDGED, LABELS).tolist() == [[3, 1, 0], [1, 1, 0], [1, 0, 1]]


def test_confusions_of_dialogues_add_up():
    parts = scores.confusions(DIALOGUES, GOLD, JUDGED, LABELS)
    assert parts.shape == (4, 3, 3)
    assert parts[1].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert parts.sum(axis=0).tolist() == scores.confusion(GOLD, JUDGED, LABELS).tolist()


def metrics(gold, judged, labels=LABELS):
    """The metrics of these rows, neutral being the first label where there is one."""
    return scores.metrics_of(scores.confusion(gold, judged, labels), 0 if "neutral" in labels else None)


def test_metrics_by_hand():
    # F1: neutral 6/9, anger 2/4, joy 2/3.
    assert metrics(GOLD, JUDGED) == pytest.approx(
        {
            "accuracy": 5 / 8,
            "weighted_f1": 5 / 8,
            "macro_f1": 11 / 18,
            "micro_f1_without_neutral": 4 / 7,
            "macro_accuracy": (3 / 4 + 1 / 2 + 1 / 2) / 3,
        }
    )
    assert scores.per_label(GOLD, JUDGED, LABELS)["neutral"] == pytest.approx(
        {"precision": 3 / 5, "recall": 3 / 4, "f1": 2 / 3, "support": 4}
    )


def test_macro_f1_leaves_out_labels_nobody_used_and_counts_labels_only_the_judge_used():
    assert metrics(["neutral"], ["neutral"])["macro_f1"] == 1.0
    assert metrics(["neutral", "neutral"], ["neutral", "joy"])["macro_f1"] == pytest.approx(1 / 3)


def test_dividing_by_zero_gives_zero():
    assert metrics([], [])["accuracy"] == 0.0
    assert metrics(["neutral"], ["neutral"])["micro_f1_without_neutral"] == 0.0
    assert scores.per_label(["joy"], ["joy"], LABELS)["anger"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}


def test_a_label_set_without_neutral_leaves_nothing_out():
    labels = ("anger", "joy")
    assert metrics(["anger", "joy"], ["anger", "anger"], labels)["micro_f1_without_neutral"] == 0.5
    row = scores.score([1, 2], ["anger", "joy"], ["anger", "anger"], labels, "neutral", 10, seed=0)
    assert row["micro_f1_without_neutral"]["value"] == 0.5


def test_metrics_of_a_stack_are_the_metrics_of_each():
    matrices = scores.confusions(DIALOGUES, GOLD, JUDGED, LABELS)
    stacked = scores.metrics_of(matrices, 0)
    for i, matrix in enumerate(matrices):
        assert {name: values[i] for name, values in stacked.items()} == scores.metrics_of(matrix, 0)


def test_an_unknown_label_is_named():
    with pytest.raises(InputError, match="label 'awe' is not one of neutral, anger, joy"):
        scores.confusion(["awe"], ["joy"], LABELS)


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(InputError, match="2 dialogue ids, 1 gold and 2 judged"):
        scores.confusions([1, 2], ["joy"], ["joy", "joy"], LABELS)


def test_the_majority_answer_scores_high_on_accuracy_and_low_on_macro_f1():
    row = scores.majority(GOLD, LABELS, "neutral")
    assert row["accuracy"] == {"value": 0.5}
    assert row["weighted_f1"] == pytest.approx({"value": 1 / 3})
    assert row["macro_f1"] == pytest.approx({"value": 2 / 9})
    assert row["micro_f1_without_neutral"] == {"value": 0.0}
    assert row["macro_accuracy"] == pytest.approx({"value": 1 / 3})


def test_score_gives_every_metric_an_interval_around_its_value():
    row = scores.score(DIALOGUES, GOLD, JUDGED, LABELS, "neutral", 1000, seed=0)
    assert row["accuracy"]["value"] == 5 / 8
    assert row["support"] == {"neutral": 4, "anger": 2, "joy": 2}
    assert row["confusion"] == [[3, 1, 0], [1, 1, 0], [1, 0, 1]]
    for name in scores.METRICS:
        assert 0 <= row[name]["low"] <= row[name]["value"] <= row[name]["high"] <= 1
    # One dialogue has 2 of 2 right and three have 1 of 2: no resample leaves [0.5, 1].
    assert (row["accuracy"]["low"], row["accuracy"]["high"]) == (0.5, 0.875)
    assert row == scores.score(DIALOGUES, GOLD, JUDGED, LABELS, "neutral", 1000, seed=0)
    assert scores.majority(GOLD, LABELS, "neutral").keys() == row.keys()


def test_the_bootstrap_resamples_dialogues_not_rows():
    # 1,000 rows in 4 dialogues, right or wrong as a whole: the rows say 0.5 +- 0.03, the dialogues know nothing.
    dialogues = [i // 250 for i in range(1000)]
    judged = ["joy" if dialogue % 2 else "anger" for dialogue in dialogues]
    accuracy = scores.score(dialogues, ["joy"] * 1000, judged, LABELS, "neutral", 1000, seed=1)["accuracy"]
    assert (accuracy["low"], accuracy["high"]) == (0.0, 1.0)


def test_the_bootstrap_of_a_mean_is_the_normal_interval():
    rights = np.array([[i % 2, 1] for i in range(400)])
    low, high = scores.bootstrap(rights, lambda sums: sums[:, 0] / sums[:, 1], resamples=4000, seed=0)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.004)


def test_a_bootstrap_of_no_dialogues_is_refused():
    with pytest.raises(InputError, match="at least 1 dialogue"):
        scores.score([], [], [], LABELS, "neutral", 10, seed=0)


def test_a_share_of_another_s_recall_doubts_both_and_is_0_of_nothing():
    # Ten dialogues of two labels: the first is always found, the second in every other dialogue.
    stack = np.array([[[1, 0], [n % 2, 1 - n % 2]] for n in range(10)])
    found = scores.recall_share(stack, stack, 500, 7)
    # Of itself it is all, and that is as uncertain as both: the same dialogues would make it 1 for sure.
    assert found["value"] == 1
    assert 0.7 < found["low"] < 0.9 < 1.1 < found["high"] < 1.5
    assert scores.recall_share(stack, stack[:, ::-1] * 0, 100, 7) == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_macro_f1_of_4000_rows_takes_under_two_seconds():
    draw = random.Random(0)
    labels = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise")
    gold, judged = (draw.choices(labels, k=4000) for _ in range(2))
    started = time.process_time()
    scores.score([i // 4 for i in range(4000)], gold, judged, labels, "neutral", 1000, seed=0)
    assert time.process_time() - started < 2


def test_equal_models_differ_by_nothing():
    tests = scores.paired(DIALOGUES, GOLD, JUDGED, JUDGED, LABELS, "neutral", 200, seed=0)
    assert set(tests) == set(scores.METRICS)
    assert all(test == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0} for test in tests.values())


def test_the_paired_difference_is_b_minus_a_and_sharper_than_two_intervals():
    # In every dialogue b is right on one row more than a; how hard the dialogue is varies far more than that.
    dialogues = [i // 10 for i in range(1000)]
    gold = ["joy"] * 1000
    a = ["joy" if i % 10 < (i // 10) % 10 else "anger" for i in range(1000)]
    b = ["joy" if i % 10 <= (i // 10) % 10 else "anger" for i in range(1000)]
    test = scores.paired(dialogues, gold, a, b, LABELS, "neutral", 999, seed=0)["accuracy"]
    assert test == pytest.approx({"difference": 0.1, "low": 0.1, "high": 0.1, "p": 2 / 1000})
    swapped = scores.paired(dialogues, gold, b, a, LABELS, "neutral", 999, seed=0)["accuracy"]
    assert swapped["difference"] == pytest.approx(-0.1)
    alone = scores.score(dialogues, gold, a, LABELS, "neutral", 999, seed=0)["accuracy"]
    assert alone["high"] - alone["low"] > 0.1


def test_wilson_intervals():
    assert scores.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert scores.wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert scores.wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert scores.wilson(0, 0) == (0.0, 1.0)


def test_perplexity_of_a_uniform_guess_is_the_number_of_choices():
    assert scores.perplexity(5 * math.log(8), 5) == pytest.approx(8)
    assert scores.bits_per_character(5 * math.log(8), 10) == pytest.approx(1.5)
    with pytest.raises(InputError, match="1 token"):
        scores.perplexity(1.0, 0)
    with pytest.raises(InputError, match="1 character"):
        scores.bits_per_character(1.0, 0)


@pytest.mark.parametrize(
    ("n", "budget", "expected"),
    [
        (1, 100, 2 / 6),
        (2, 100, 2 / 4),  # no bigram from the first text into the second
        (1, 4, 2 / 4),
        (2, 5, 2 / 3),  # the second text is cut to its first word
        (5, 100, 0.0),
        (1, 0, 0.0),
    ],
)
def test_distinct_n_counts_within_the_budget(n, budget, expected):
    assert scores.distinct(["A b  a b", "a B", ""], n, budget) == expected


def test_replies_that_end_properly():
    assert [scores.ends_properly(t) for t in ("Yes.", "Yes! ", "Yes?\n", "Yes", "Yes,", "")] == [True] * 3 + [False] * 3


def test_a_copy_is_a_whole_turn_whatever_its_case_and_spaces():
    context = ["How are you ?", "I am fine."]
    assert scores.copies_context("how are  you?", context)
    assert not scores.copies_context("how are you", context)
    assert not scores.copies_context("I am", context)
    assert not scores.copies_context(" ", ["", *context])


@pytest.mark.parametrize(
    "reply",
    [
        "[INST] How are you?",
        "I am fine. [/INST]",
        "[EMOTION] sadness [/EMOTION] I lost it.",
        "Oh. [u_emotion] fear",
        "Oh. [/C_EMOTION]",
        "<<SYS>>",
        "Be kind. <</SYS>>",
        "user: hello",
        "Hello! Assistant: hello",
        "system:",
    ],
)
def test_a_tag_of_a_template_or_a_role_before_a_colon_is_prompt_text(reply):
    assert scores.has_prompt_text(reply)


@pytest.mark.parametrize(
    "reply", ["", "The user is happy.", "Superuser: me.", "(INST) no tag", "[sadness]", "My assistant and I: friends."]
)
def test_talk_is_no_prompt_text(reply):
    assert not scores.has_prompt_text(reply)
