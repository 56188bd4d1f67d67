"""Laws of evaluation: the same questions for every model, and what is made of their answers."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emotune.core.dialogue import Dialogue, Turn, alternate
from emotune.evaluation import measures, scores
from emotune.evaluation.answers import (
    Answers,
    Question,
    answer,
    control,
    human,
    natural,
    with_the_same_references,
)
from emotune.evaluation.control import control_by, judge_gap
from emotune.evaluation.params import Evaluate
from emotune.generation.params import Sampling
from emotune.judges.params import EmotionChoice, JudgeChoice
from emotune.judges.verdicts import Classifier
from emotune.models import loading
from emotune.models.params import Model
from emotune.prompts.prompter import Prompter
from emotune.runs.tables import comparison

LABELS = ("neutral", "happiness", "sadness")
EVALUATE = Evaluate(
    split="test",
    prompts=None,
    control_contexts=2,
    resamples=200,
    seed=7,
    emotion_judge=EmotionChoice(name="embedded", revision=None, labels=None, tau=None),
    gibberish_judge=JudgeChoice(name="embedded", revision=None, labels=None),
    sampling=Sampling(
        temperature=0.7, top_k=50, top_p=1.0, repetition_penalty=1.0, min_new_tokens=1, max_new_tokens=8, guidance=1.0
    ),
)
TURNS = alternate(
    ("I lost my keys.", "That is a pity.", "I found them!", "Great!", "Shall we go?", "Yes."),
    ("sadness", "sadness", "happiness", "happiness", "neutral", "neutral"),
)
TALK = [Dialogue(f"talk-{number}", TURNS) for number in range(5)]


# --- the questions


def test_every_reply_is_a_question_in_the_emotion_it_has() -> None:
    asked = natural(TALK[:1], 5, None, 7)
    assert asked == [
        Question("talk-0/1", "talk-0", TURNS[:1], "sadness", "That is a pity."),
        Question("talk-0/3", "talk-0", TURNS[:3], "happiness", "Great!"),
        Question("talk-0/5", "talk-0", TURNS[:5], "neutral", "Yes."),
    ]


def test_a_limit_takes_the_first_questions_and_whole_dialogues_in_turn() -> None:
    everything = natural(TALK, 5, None, 7)
    assert len(everything) == 15
    assert natural(TALK, 5, 7, 7) == everything[:7]
    assert len({question.dialogue for question in everything[:6]}) == 2


def test_questions_depend_on_the_seed_and_on_nothing_else() -> None:
    assert natural(TALK, 5, None, 7) == natural(TALK, 5, None, 7)
    assert natural(TALK, 5, None, 7) != natural(TALK, 5, None, 8)
    assert control(TALK, 5, 3, LABELS, 7) == control(TALK, 5, 3, LABELS, 7)
    assert control(TALK, 5, 3, LABELS, 7) != control(TALK, 5, 3, LABELS, 8)


def test_control_asks_the_same_context_in_every_emotion() -> None:
    asked = control(TALK, 5, 3, LABELS, 7)
    assert [question.emotion for question in asked] == [*LABELS] * 3
    for start in (0, 3, 6):
        same = asked[start : start + 3]
        assert len({(question.dialogue, question.history) for question in same}) == 1
        assert len({question.id for question in same}) == 3
    assert len({question.dialogue for question in asked}) == 3
    assert {question.reference for question in asked} == {None}


def test_more_control_contexts_than_dialogues_take_every_dialogue() -> None:
    assert len(control(TALK, 5, 100, LABELS, 7)) == 5 * len(LABELS)


@pytest.mark.parametrize(("history_turns", "longest"), [(1, 1), (2, 1), (3, 3), (5, 5), (50, 5)])
def test_a_history_has_at_most_history_turns_from_a_user_turn_on(history_turns: int, longest: int) -> None:
    asked = [*natural(TALK, history_turns, None, 7), *control(TALK, history_turns, 5, LABELS, 7)]
    assert max(len(question.history) for question in asked) == longest
    assert (
        {question.history[0].role for question in asked}
        == {question.history[-1].role for question in asked}
        == {"user"}
    )


# --- the answers of a model


def of_shares(*shares: Sequence[float]) -> Any:
    """A judge that gives the labels these shares by the length of a text, and holds sadness to be one reply in ten."""
    prior = dict(zip(LABELS, (0.6, 0.3, 0.1), strict=True))
    return Classifier(LABELS, lambda texts: np.array([shares[len(text) % len(shares)] for text in texts]), prior, 1.0)


# Undivided it finds neutral, happiness and neutral; divided sadness in the last.
JUDGE = of_shares((0.8, 0.15, 0.05), (0.1, 0.9, 0.0), (0.6, 0.1, 0.3))


def clean(texts: Sequence[str]) -> list[tuple[str, float]]:
    return [("clean", 1.0)] * len(texts)


def ignore(metrics: Mapping[str, float], step: int) -> None:
    pass


def answers_of(
    base: Path, template: str | None, context: int = 256, dialogues: Sequence[Dialogue] = tuple(TALK)
) -> Answers:
    choice = Model(base="embedded", revision=None, dtype="float32", attention="sdpa", quantization="none", context=256)
    model, tokenizer = loading.load_base(base, choice), loading.load_tokenizer(base, template)
    return answer(model, Prompter(tokenizer, None, context, 5), dialogues, LABELS, EVALUATE, JUDGE, clean, ignore)


@pytest.fixture(scope="module")
def answers(base: Path) -> Answers:
    return answers_of(base, "out_inst_uni")


def test_there_is_a_row_for_each_question_in_order(answers: Answers) -> None:
    assert [row["id"] for row in answers.replies] == [q.id for q in natural(TALK, 5, None, 7)]
    assert [row["id"] for row in answers.control] == [q.id for q in control(TALK, 5, 2, LABELS, 7)]
    for row in (*answers.replies, *answers.control):
        assert row["judged"] == LABELS[len(row["reply"]) % 3]
        assert row["judged_undivided"] == ("neutral", "happiness", "neutral")[len(row["reply"]) % 3]
        assert row["tokens"] <= 8
        assert not row["trimmed"]


def test_another_template_is_asked_the_same_questions(answers: Answers, base: Path) -> None:
    native = answers_of(base, None)
    for rows, others in ((answers.replies, native.replies), (answers.control, native.control)):
        for key in ("id", "dialogue", "context", "emotion"):
            assert [row[key] for row in rows] == [row[key] for row in others]


def test_a_model_that_cannot_be_told_an_emotion_reads_the_same_prompt_for_all(base: Path) -> None:
    tokenizer = loading.load_tokenizer(base, None)
    assert len({tuple(Prompter(tokenizer, None, 256).ids(TURNS[:1], label)) for label in LABELS}) == 1


def test_a_references_likelihood_is_that_of_its_reply_tokens(answers: Answers, base: Path) -> None:
    tokenizer = loading.load_tokenizer(base, "out_inst_uni")
    for row in answers.replies:
        reply = tokenizer(f" {row['reference']}</s>", add_special_tokens=False)["input_ids"]
        assert row["reference_tokens"] == len(reply)
        # The model is random, so each token costs about ln(vocabulary).
        assert row["reference_nats"] / len(reply) == pytest.approx(math.log(len(tokenizer)), rel=0.1)
    assert all("reference" not in row for row in answers.control)


def test_what_leaves_no_room_for_a_reply_is_trimmed_by_whole_turns_and_counted(base: Path, answers: Answers) -> None:
    trimmed = answers_of(base, "out_inst_uni", context=60)
    assert any(row["trimmed"] for row in trimmed.replies)
    for short, whole in zip(trimmed.replies, answers.replies, strict=True):
        assert short["context"] == whole["context"][len(whole["context"]) - len(short["context"]) :]
        assert short["trimmed"] == (short["context"] != whole["context"])
    share = measures.measure(trimmed, LABELS, "neutral", EVALUATE)["text"]["history_trimmed"]["value"]
    assert share == pytest.approx(sum(row["trimmed"] for row in trimmed.replies) / 15)


def test_a_history_leaves_room_for_the_reference_too(base: Path) -> None:
    long = "Great, then let us go home, and cook a dinner for all of your friends and mine!"
    turns = (*TURNS[:3], Turn("assistant", long, "happiness"))
    prompter = Prompter(loading.load_tokenizer(base, "out_inst_uni"), None, 256)
    alone = len(prompter.reply_row(turns[2:3], turns[3])[0])
    # The whole history leaves room for the 8 tokens of a reply, and none for the human's.
    [_, row] = answers_of(base, "out_inst_uni", alone, [Dialogue("long", turns)]).replies
    assert (row["trimmed"], row["reference"]) == (False, long)
    assert row["reference_tokens"] == sum(prompter.reply_row(turns[2:3], turns[3])[1])
    [first, row] = answers_of(base, "out_inst_uni", alone - 1, [Dialogue("long", turns)]).replies
    assert "reference" in first
    assert "reference" not in row


def test_models_are_compared_over_the_references_that_all_of_them_can_hold() -> None:
    held = [row("a", label, "neutral", **with_reference(1.0, 1)) for label in LABELS]
    bare = [row("a", label, "neutral") for label in LABELS]
    first, second = Answers([held[0], bare[1], held[2]], held), Answers([bare[0], held[1], held[2]], bare)
    same = with_the_same_references({"first": first, "second": second})
    assert same == {"first": Answers([*bare[:2], held[2]], held), "second": Answers([*bare[:2], held[2]], bare)}
    assert {
        measures.measure(own, LABELS, "neutral", EVALUATE)["reference"]["left_out_too_long"] for own in same.values()
    } == {2}


def test_control_is_for_each_context_the_share_that_a_judge_finds_in_the_emotion_asked_for(base: Path) -> None:
    choice = Model(base="embedded", revision=None, dtype="float32", attention="sdpa", quantization="none", context=256)
    model = loading.load_base(base, choice)
    prompter = Prompter(loading.load_tokenizer(base, "out_inst_uni"), None, 256)
    asked = control(TALK, 5, 2, LABELS, 7)
    heard: dict[str, list[str]] = {}

    def finds(name: str, verdicts: Sequence[str]) -> Any:
        def judge(texts: Sequence[str]) -> list[tuple[str, float]]:
            heard.setdefault(name, []).extend(texts)
            return [(verdict, 0.5) for verdict in verdicts]

        return judge

    happy, right = ["happiness"] * 6, ["neutral", "happiness", "sadness", "neutral", "neutral", "sadness"]
    judges = {"one": finds("one", happy), "other": finds("other", right)}
    found = control_by(judges, model, prompter, asked, EVALUATE.sampling, 7)
    # Two contexts, each asked for in three emotions.
    assert found == {"one": [1 / 3, 1 / 3], "other": [1.0, 2 / 3]}
    assert heard["one"] == heard["other"]
    # The seed says what is drawn, so that only a change of the model changes the replies.
    assert control_by(judges, model, prompter, asked, EVALUATE.sampling, 7) == found
    assert heard["one"] == heard["other"][:6] * 2
    control_by(judges, model, prompter, asked, EVALUATE.sampling, 8)
    assert heard["one"][12:] != heard["one"][:6]


def test_guided_questions_are_answered_otherwise_and_neutral_ones_as_ever(base: Path) -> None:
    choice = Model(base="embedded", revision=None, dtype="float32", attention="sdpa", quantization="none", context=256)
    model, tokenizer = loading.load_base(base, choice), loading.load_tokenizer(base, "out_inst_uni")
    asked, replies = control(TALK, 5, 2, LABELS, 7), list[list[str]]()

    def judge(texts: Sequence[str]) -> list[tuple[str, float]]:
        replies.append(list(texts))
        return [("neutral", 0.5)] * len(texts)

    # A random model hardly hears what emotion is asked for.
    for guidance in (1.0, 1e3):
        sampling = EVALUATE.sampling.model_copy(update={"guidance": guidance})
        prompter = Prompter(tokenizer, None, 256, neutral=sampling.twin("neutral"))
        control_by({"one": judge}, model, prompter, asked, sampling, 7)
    same = [one == other for one, other in zip(*replies, strict=True)]
    assert same == [question.emotion == "neutral" for question in asked]


def test_tables_say_by_how_much_replies_were_guided() -> None:
    rows = [row("a", label, label, **with_reference(1.0, 1)) for label in LABELS]
    answers = Answers(rows, rows)
    three = dict.fromkeys(("baseline", "sft", "dpo"), answers)
    corners = []
    for guidance in (1.0, 1.5):
        sampling = EVALUATE.sampling.model_copy(update={"guidance": guidance})
        p = EVALUATE.model_copy(update={"sampling": sampling})
        corners.append(comparison(measures.side_by_side(three, answers.replies, LABELS, "neutral", p), "")[0][0])
    assert corners == ["", "guidance 1.5"]


def test_the_judges_gap_is_how_much_more_control_rose_by_the_one_that_rewards() -> None:
    steps = [
        {"rewards": [0.25, 0.25], "other": [0.5, 0.25]},
        {"rewards": [0.75, 0.5], "other": [0.0, 0.0]},
        {"rewards": [1.0, 0.5], "other": [0.75, 0.25]},
    ]
    found = judge_gap(steps, "rewards", "other", 7)
    gap = found.pop("judge_gap")
    assert found == {"rewards_first": 0.25, "rewards_last": 0.75, "other_first": 0.375, "other_last": 0.5}
    # Context by context the rises differ by 0.5 and 0.25: every sample of two has one of these means.
    assert gap == {"value": 0.375, "low": 0.25, "high": 0.5}


def test_judges_that_rise_alike_have_no_gap() -> None:
    steps = [{"rewards": [0.0, 0.5], "other": [0.25, 0.25]}, {"rewards": [0.5, 0.5], "other": [0.75, 0.25]}]
    assert judge_gap(steps, "rewards", "other", 7)["judge_gap"] == {"value": 0.0, "low": 0.0, "high": 0.0}


# --- what is made of the answers


def row(dialogue: str, emotion: str, judged: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"{dialogue}/{emotion}",
        "dialogue": dialogue,
        "context": ["Hello there."],
        "emotion": emotion,
        "reply": "Well, well.",
        "judged": judged,
        "judged_undivided": judged,
        "confidence": 0.9,
        "gibberish": "clean",
        "gibberish_confidence": 0.9,
        "tokens": 3,
        "ended": True,
        "trimmed": False,
        **more,
    }


def with_reference(nats: float, tokens: int, text: str = "Quite so.") -> dict[str, Any]:
    return {"reference": text, "reference_nats": nats, "reference_tokens": tokens}


BEFORE = Answers(
    replies=[
        row("a", "neutral", "neutral", **with_reference(4 * math.log(8), 4, "12345678")),
        row("a", "happiness", "neutral", **with_reference(2 * math.log(8), 2, "1234")),
        row(
            "b", "neutral", "neutral", reply="hello  THERE.", ended=False, **with_reference(2 * math.log(8), 2, "1234")
        ),
        row("b", "sadness", "neutral", reply="", gibberish="noise"),
    ],
    control=[row("a", label, "neutral") for label in LABELS],
)
AFTER = Answers(
    replies=[{**old, "judged": old["emotion"], "judged_undivided": old["emotion"]} for old in BEFORE.replies],
    control=[row("a", label, label) for label in LABELS],
)


def test_the_metrics_of_four_literal_rows() -> None:
    measured = measures.measure(BEFORE, LABELS, "neutral", EVALUATE)
    replies = measured["replies"]
    assert replies["accuracy"]["value"] == 0.5
    # neutral: precision 1/2, recall 1, F1 2/3; the others 0.
    assert replies["macro_f1"]["value"] == pytest.approx(2 / 9)
    assert replies["weighted_f1"]["value"] == pytest.approx(1 / 3)
    assert replies["micro_f1_without_neutral"]["value"] == 0
    assert replies["support"] == {"neutral": 2, "happiness": 1, "sadness": 1}
    assert replies["confusion"] == [[2, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert measured["control"]["macro_accuracy"]["value"] == pytest.approx(1 / 3)
    assert measured["control"]["per_emotion"] == {"neutral": 1.0, "happiness": 0.0, "sadness": 0.0}
    # 8 reply tokens at ln 8 nats: perplexity 8, and 8 x 3 bits over 16 characters.
    assert measured["reference"]["perplexity"] == pytest.approx({"value": 8, "low": 8, "high": 8})
    assert measured["reference"]["bits_per_character"] == pytest.approx({"value": 1.5, "low": 1.5, "high": 1.5})
    assert measured["reference"]["left_out_too_long"] == 1
    text = measured["text"]
    assert text["ends_properly"]["value"] == 0.75
    assert text["hit_token_limit"]["value"] == 0.25
    assert text["gibberish"]["value"] == 0.25
    assert text["copies_context"]["value"] == 0.25
    assert text["empty"]["value"] == 0.25
    assert text["prompt_text_share"]["value"] == 0
    assert text["words_mean"] == 1.5
    # well, well. well, well. hello there.: 4 different words of 6, and 2 different pairs of 3
    assert text["distinct_1"] == pytest.approx(4 / 6)
    assert text["distinct_2"] == pytest.approx(2 / 3)


# By tau the judge finds happiness and sadness as asked, and one neutral reply too many happy.
HEARD = Answers(
    replies=[
        row("a", "neutral", "neutral"),
        row("a", "neutral", "happiness", judged_undivided="neutral"),
        row("b", "happiness", "happiness", judged_undivided="neutral"),
        row("b", "sadness", "sadness", judged_undivided="neutral", **with_reference(1.0, 1)),
    ],
    control=[row("a", label, label, judged_undivided="neutral") for label in LABELS],
)


def test_what_counts_emotions_alike_is_by_the_divided_judge_and_what_counts_replies_by_the_undivided() -> None:
    measured = measures.measure(HEARD, LABELS, "neutral", EVALUATE)
    replies = {name: measured["replies"][name]["value"] for name in scores.METRICS}
    assert replies == pytest.approx(
        {
            "accuracy": 0.5,
            "weighted_f1": 1 / 3,
            "micro_f1_without_neutral": 0,
            # neutral: precision 1, recall 1/2; happiness: 1/2, 1; sadness: 1, 1.
            "macro_f1": (2 / 3 + 2 / 3 + 1) / 3,
            "macro_accuracy": 2.5 / 3,
        }
    )
    assert measured["replies"]["per_emotion"] == {"neutral": 0.5, "happiness": 1, "sadness": 1}
    assert measured["replies"]["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    control = measured["control"]
    assert {control[name]["value"] for name in scores.METRICS} == {1.0}
    assert control["per_emotion"] == dict.fromkeys(LABELS, 1)


def test_two_models_are_compared_by_the_verdict_that_each_metric_is_of() -> None:
    found = measures.compare(BEFORE, HEARD, LABELS, "neutral", EVALUATE)
    assert found["replies"]["accuracy"]["difference"] == 0
    assert found["replies"]["macro_f1"]["difference"] == pytest.approx(7 / 9 - 2 / 9)
    assert found["control"]["accuracy"]["difference"] == pytest.approx(2 / 3)


def test_control_is_also_a_share_of_what_the_judge_finds_in_the_human_replies() -> None:
    three = {"baseline": BEFORE, "sft": AFTER, "dpo": AFTER}
    measured = measures.side_by_side(three, HEARD.replies, LABELS, "neutral", EVALUATE)
    ceiling = measured["human"]["replies"]["macro_accuracy"]["value"]
    assert ceiling == pytest.approx(2.5 / 3)
    shares = {model: measured[model]["control"]["of_human"] for model in three}
    assert shares["baseline"]["value"] == pytest.approx(1 / 3 / ceiling)
    # It may well find less in what people say than in what a model does.
    assert shares["dpo"]["value"] == pytest.approx(1.2)
    # The humans' two dialogues are drawn apart: neutral alone (recall 1/2), the other two, or all.
    assert (shares["dpo"]["low"], shares["dpo"]["high"]) == pytest.approx((1, 2))
    assert "control" not in measured["human"]


def test_replies_that_hold_text_of_a_prompt_are_counted() -> None:
    written = ["Well, well.", "Oh! [/EMOTION] sadness [/INST]", "User: and you?", "A user is a user."]
    replies = [row("a", "neutral", "neutral", reply=reply, **with_reference(1.0, 1)) for reply in written]
    text = measures.measure(Answers(replies, BEFORE.control), LABELS, "neutral", EVALUATE)["text"]
    # 2 of 4, with Wilson's interval.
    assert text["prompt_text_share"] == pytest.approx({"value": 0.5, "low": 0.15, "high": 0.85}, abs=1e-4)


def test_every_share_lies_in_its_interval() -> None:
    measured = measures.measure(BEFORE, LABELS, "neutral", EVALUATE)
    found = [
        value for part in measured.values() for value in part.values() if isinstance(value, dict) and "low" in value
    ]
    assert len(found) == 19
    assert all(share["low"] <= share["value"] <= share["high"] for share in found)


def test_neighbours_are_compared_on_the_same_questions() -> None:
    found = measures.compare(BEFORE, AFTER, LABELS, "neutral", EVALUATE)
    assert found["replies"]["accuracy"]["difference"] == 0.5
    assert found["replies"]["macro_f1"]["difference"] == pytest.approx(7 / 9)
    assert found["control"]["macro_accuracy"]["difference"] == pytest.approx(2 / 3)


def test_the_human_row_is_the_references_of_the_natural_questions_through_the_same_judges() -> None:
    happy = Classifier(LABELS, lambda texts: np.array([[0, 1, 0] if "!" in text else [1, 0, 0] for text in texts]))

    def gibberish(texts: Sequence[str]) -> list[tuple[str, float]]:
        return [("noise" if text == "Yes." else "clean", 0.9) for text in texts]

    p = EVALUATE.model_copy(update={"prompts": 5})
    rows = human(TALK, 5, p, happy, gibberish)
    asked = natural(TALK, 5, 5, 7)
    assert [row["id"] for row in rows] == [q.id for q in asked]
    assert [row["reply"] for row in rows] == [q.reference for q in asked]
    measured = measures.said(rows[:3], LABELS, "neutral", p)
    # "That is a pity." is judged neutral, "Great!" happiness, "Yes." neutral and noise.
    assert measured["replies"]["confusion"] == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert measured["text"]["gibberish"]["value"] == pytest.approx(1 / 3)
    assert measured["text"]["words_mean"] == 2


def test_rows_of_one_dialogue_are_no_more_evidence_for_being_many() -> None:
    def repeated(answers: Answers) -> Answers:
        return Answers(answers.replies * 3, answers.control * 3)

    once = measures.compare(BEFORE, AFTER, LABELS, "neutral", EVALUATE)
    assert measures.compare(repeated(BEFORE), repeated(AFTER), LABELS, "neutral", EVALUATE) == once


def test_a_model_does_not_differ_from_itself() -> None:
    for part in measures.compare(AFTER, AFTER, LABELS, "neutral", EVALUATE).values():
        assert all(test == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0} for test in part.values())


def test_the_table_has_a_row_for_each_model_and_metric() -> None:
    three = {"baseline": BEFORE, "sft": AFTER, "dpo": AFTER}
    table = measures.table(measures.side_by_side(three, AFTER.replies, LABELS, "neutral", EVALUATE))
    assert [(line["model"], line["metric"]) for line in table] == [
        *((model, "accuracy") for model in ("majority", "baseline", "sft", "dpo", "human")),
        *((model, "weighted F1") for model in ("majority", "baseline", "sft", "dpo", "human")),
        *((model, "macro F1") for model in ("majority", "baseline", "sft", "dpo", "human")),
        *((model, "micro F1 without neutral") for model in ("majority", "baseline", "sft", "dpo", "human")),
        *((model, "macro recall") for model in ("majority", "baseline", "sft", "dpo", "human")),
        *((model, "control") for model in ("baseline", "sft", "dpo")),
        *((model, "control of human") for model in ("baseline", "sft", "dpo")),
        *((model, "perplexity") for model in ("baseline", "sft", "dpo")),
        *((model, "bits per character") for model in ("baseline", "sft", "dpo")),
    ]
    assert table[0] == {"model": "majority", "metric": "accuracy", "value": 0.5}
    assert set(table[1]) == {"model", "metric", "value", "low", "high"}


def test_an_unknown_judged_label_is_refused() -> None:
    answers = Answers([row("a", "neutral", "boredom", **with_reference(1.0, 1))], BEFORE.control)
    with pytest.raises(ValueError, match="label 'boredom' is not one of neutral, happiness, sadness"):
        measures.measure(answers, LABELS, "neutral", EVALUATE)


# --- the headline


def test_the_headline_is_a_screen_of_numbers_in_short_names_and_three_digits() -> None:
    figure = {"value": 0.123456, "low": 0.1, "high": 0.2}
    model = {
        "replies": {"macro_f1": figure, "accuracy": figure, "macro_accuracy": figure, "hits_at_1": figure},
        "control": {"macro_accuracy": figure, "of_human": figure, "joint": {"value": 0.0987}},
        "reference": {"perplexity": {"value": 12.34567}},
        "text": {"gibberish": {"value": 0.0366}},
    }
    pairs = {"pairs": 578, "yield_total": 0.825714, "gap": {"mean": 8.8}}
    shown = measures.headline(
        dict.fromkeys(("baseline", "sft", "dpo", "human"), model), pairs, {"judge_gap": {"value": 0.0428}}
    )
    own = {"f1": 0.123, "control": 0.123, "fit": 0.123, "joint": 0.099, "ppl": 12.346}
    numbers = {"gibberish": 0.037, "pairs": 578, "yield": 0.826, "judge_gap": 0.043}
    assert shown == {"baseline": own, "sft": own, "dpo": own, "human": {"recall": 0.123}, **numbers}


def test_a_gap_that_dpo_did_not_look_for_is_not_in_the_headline() -> None:
    model = {
        "replies": {"macro_f1": 0.5, "macro_accuracy": 0.5},
        "control": {"macro_accuracy": 0.5, "of_human": 0.5},
        "reference": {"perplexity": 9.0},
        "text": {"gibberish": 0.0},
    }
    measured = dict.fromkeys(("baseline", "sft", "dpo", "human"), model)
    assert measures.headline(measured, {"pairs": 1, "yield_total": 1.0}, {})["judge_gap"] is None
