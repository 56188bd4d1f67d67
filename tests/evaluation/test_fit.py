"""Laws of fit: an emotion alone or a context alone is not both, and what repeats is counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_measures import EVALUATE

from emotune.core.dialogue import ASSISTANT, Dialogue, Turn, alternate
from emotune.evaluation import fit
from emotune.evaluation.answers import Answers, Question, Rows
from emotune.judges.matcher import Matcher, replies_of
from emotune.models import likelihood, loading
from emotune.prompts.prompter import Prompter
from tiny import CHOICE

LABELS = ("neutral", "anger")
THINGS = ["lamp", "kettle", "spider", "violin", "bakery", "dentist", "suitcase", "parrot", "garden", "motorbike"]
TRAIN = [
    Dialogue(f"train-{n}", alternate((f"Is this a {it}?", f"A {it}, yes."), LABELS)) for n, it in enumerate(THINGS)
]
TEST = [
    Dialogue(f"test-{n}", alternate((f"Look, a {it}!", f"That {it} is mine."), LABELS)) for n, it in enumerate(THINGS)
]
CHANCE = pytest.approx(0.1)


@pytest.fixture(scope="module")
def exam() -> fit.Exam:
    matcher = Matcher().fit(replies_of(TRAIN, (ASSISTANT,)), 7)
    return fit.exam(TEST, TRAIN, matcher, LABELS, 5, EVALUATE.model_copy(update={"control_contexts": 10}))


def said(questions: list[Question], reply: str, judged: str | None = None) -> Rows:
    """A row a question; `{}` in the reply becomes the thing that the question is about."""
    return [
        {
            "dialogue": q.dialogue,
            "emotion": q.emotion,
            "judged": judged or q.emotion,
            "reply": reply.format(q.history[-1].content.split()[-1].rstrip("!")),
        }
        for q in questions
    ]


def answers(exam: fit.Exam, reply: str, judged: str | None = None) -> Answers:
    return Answers(said(exam.natural.questions, reply, judged), said(exam.control.questions, reply, judged))


def measured(exam: fit.Exam, dpo: Answers, sft: Answers | None = None) -> dict[str, Any]:
    human = said(exam.natural.questions, "That {} is mine.")
    models = {"baseline": dpo, "sft": sft or dpo, "dpo": dpo}
    replies = {name: own.replies for name, own in models.items()} | {"human": human}
    hits = {name: fit.credits(own, exam.natural, exam.matcher) for name, own in replies.items()}
    return fit.side_by_side(models, human, hits, {}, exam, EVALUATE)


def test_the_questions_are_those_that_every_model_is_asked(exam: fit.Exam) -> None:
    assert len(exam.natural.questions) == 10
    assert len(exam.control.questions) == 20
    assert {len(ten) for ten in (*exam.natural.tens, *exam.control.tens)} == {10}


def test_a_reply_that_takes_up_what_was_said_has_all_and_so_has_the_human(exam: fit.Exam) -> None:
    found = measured(exam, answers(exam, "My {}!"))
    assert found["dpo"]["replies"]["hits_at_1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["dpo"]["replies"]["mrr"]["value"] == found["dpo"]["replies"]["macro_hits_at_1"]["value"] == 1.0
    assert found["dpo"]["control"]["joint"]["value"] == 1.0
    assert found["human"]["replies"]["hits_at_1"]["value"] == 1.0
    assert "control" not in found["human"]


def test_a_canned_reply_in_the_right_emotion_has_chance_of_both(exam: fit.Exam) -> None:
    found = measured(exam, answers(exam, "Really? That is great."))["dpo"]
    assert found["replies"]["hits_at_1"]["value"] == CHANCE
    assert found["control"]["joint"]["value"] == CHANCE
    assert found["control"]["joint_per_emotion"] == {"neutral": CHANCE, "anger": CHANCE}
    assert found["replies"]["most_frequent"] == 1.0


def test_a_reply_that_fits_in_another_emotion_is_half_of_what_was_asked(exam: fit.Exam) -> None:
    found = measured(exam, answers(exam, "My {}!", judged="anger"))["dpo"]["control"]
    assert found["hits_at_1"]["value"] == 1.0
    assert found["joint"]["value"] == 0.5
    assert found["joint_per_emotion"] == {"neutral": 0.0, "anger": 1.0}


def test_a_step_is_tested_over_the_same_questions(exam: fit.Exam) -> None:
    found = measured(exam, answers(exam, "Great."), answers(exam, "My {}!"))["paired"]
    lost = found["sft_to_dpo"]["replies"]["hits_at_1"]
    assert lost["difference"] == pytest.approx(-0.9)
    assert lost["high"] < 0
    assert found["sft_to_dpo"]["control"]["joint"]["difference"] == pytest.approx(-0.9)
    same = measured(exam, answers(exam, "My {}!"))["paired"]["sft_to_dpo"]["replies"]["hits_at_1"]
    assert same == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


def test_replies_of_the_train_split_are_known_again_but_for_case_and_punctuation(exam: fit.Exam) -> None:
    rows = said(exam.natural.questions, "My own {}, I say.")
    for row, reply in zip(rows, ("a LAMP - yes", "A kettle, yes.", "A kettle, no."), strict=False):
        row["reply"] = reply
    found = fit.natural(rows, fit.credits(rows, exam.natural, exam.matcher), exam, EVALUATE)
    assert found["in_train"] == 0.2
    # By white space the first has four words.
    assert found["long_in_train"] == pytest.approx(1 / 8)
    assert found["most_frequent"] == 0.1


def test_control_is_told_apart_by_whether_sft_has_seen_the_words(exam: fit.Exam) -> None:
    seen = exam.train.words | {"look"}
    known = exam._replace(train=exam.train._replace(words=seen - {"violin", "parrot"}))
    rows = said(exam.control.questions, "Mine.")
    for row, q in zip(rows, exam.control.questions, strict=True):
        if "violin" in q.history[-1].content:
            row["judged"] = "neutral"
    found = fit.control(rows, fit.credits(rows, exam.control, exam.matcher), known, EVALUATE)
    assert (found["new_words"]["contexts"], found["known_words"]["contexts"]) == (2, 8)
    assert (found["new_words"]["value"], found["known_words"]["value"]) == (0.75, 1.0)
    whole = exam._replace(train=exam.train._replace(words=seen))
    assert fit.control(rows, np.ones((20, 2)), whole, EVALUATE)["new_words"] is None


def test_lift_is_what_the_base_model_gains_by_the_reply_s_own_context(exam: fit.Exam, base: Path) -> None:
    model = loading.load_base(base, CHOICE)
    prompter = Prompter(loading.load_tokenizer(base, None), None, 256, 5)
    rows = said(exam.natural.questions, "My {}!")
    rows[3]["reply"] = ""
    lifts = fit.lifts(model, prompter, {"sft": rows}, exam.natural)["sft"]
    assert [row["dialogue"] for row in lifts] == [row["dialogue"] for at, row in enumerate(rows) if at != 3]
    ten = exam.natural.tens[0]
    other = exam.natural.questions[ten[(ten.index(0) + 1) % 10]]
    assert other.dialogue != exam.natural.questions[0].dialogue
    costs = [
        likelihood.negative_log_likelihoods(
            model,
            prompter.tokenizer.pad_token_id,
            [[prompter.reply_row(q.history, Turn(ASSISTANT, rows[0]["reply"], q.emotion))]],
        )[0][0][0]
        for q in (exam.natural.questions[0], other)
    ]
    assert lifts[0]["lift"] == pytest.approx(costs[1] - costs[0], abs=1e-3)
    assert abs(lifts[0]["lift"]) > 1e-2
