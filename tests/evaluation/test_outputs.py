"""Laws of what held-out instructions are measured by."""

import math
from pathlib import Path
from typing import Any

import pytest

from emotune.core import records
from emotune.core.errors import InputError
from emotune.evaluation import instructions
from emotune.evaluation.instruction_params import Outputs
from emotune.generation.params import Sampling
from emotune.models import loading
from emotune.prompts.instructions import template_of
from emotune.prompts.prompter import Prompter

SAMPLING = Sampling(
    temperature=0, top_k=0, top_p=1, repetition_penalty=1, min_new_tokens=1, max_new_tokens=8, guidance=1
)
P = Outputs(split="test", limit=None, resamples=100, seed=7, sampling=SAMPLING)


def row(number: int, nats: float | None, tokens: int = 1, **more: Any) -> dict[str, Any]:
    cost = {} if nats is None else {"nats": nats, "tokens": tokens}
    texts = {"task": "t", "instruction": "i", "input": "", "output": "yes", "reply": "no", "shots": 0, "cut": False}
    return {"id": str(number), "source": str(number), **texts, **cost, **more}


def test_perplexity_is_told_over_tokens_and_as_the_mean_of_the_rows() -> None:
    rows = [row(0, math.log(2), 1), row(1, 9 * math.log(4), 9)]
    overall = instructions.measure(rows, P)["overall"]
    assert overall["perplexity"]["value"] == pytest.approx(2**0.1 * 4**0.9)
    assert overall["mean_row_perplexity"]["value"] == pytest.approx(3)
    assert overall["perplexity"]["low"] <= overall["perplexity"]["value"] <= overall["perplexity"]["high"]
    assert "exact_match" not in overall


def test_only_rows_with_one_right_answer_are_right_or_wrong() -> None:
    rows = [
        row(0, 1.0, exact=True, reply=" Yes."),
        row(1, 1.0, exact=True, reply="well, yes"),
        row(2, 1.0, exact=False),
    ]
    overall = instructions.measure(rows, P)["overall"]
    assert overall["exact_match"]["value"] == pytest.approx(1 / 2)
    assert overall["f1"]["value"] == pytest.approx((1 + 2 / 3) / 2)


def test_every_task_is_measured_by_itself_and_what_did_not_fit_is_counted() -> None:
    measured = instructions.measure([row(0, 0.0), row(1, math.log(3), task="u"), row(2, None)], P)
    assert {task: own["perplexity"]["value"] for task, own in measured["tasks"].items()} == {
        "t": pytest.approx(1),
        "u": pytest.approx(3),
    }
    assert (measured["rows"], measured["left_out_too_long"], measured["tasks"]["t"]["rows"]) == (3, 1, 2)


def test_rows_of_one_source_are_one_draw() -> None:
    def width(sources: str) -> float:
        rows = [row(n, math.log(2 + 6 * (n % 2)), source=source) for n, source in enumerate(sources)]
        overall = instructions.measure(rows, P)["overall"]["perplexity"]
        return float(overall["high"] - overall["low"])

    assert width("abcdabcd") > width("abcdefgh")
    assert width("aabbccdd") == pytest.approx(0)


def test_a_step_is_tested_over_the_rows_that_both_hold() -> None:
    before = [row(n, math.log(4), exact=True) for n in range(9)] + [row(9, None)]
    after = [row(n, math.log(2), exact=True, reply="Yes") for n in range(10)]
    tests = instructions.compare(before, after, P)
    assert tests["perplexity"]["difference"] == pytest.approx(-2)
    assert tests["exact_match"]["difference"] == pytest.approx(1)
    assert tests["perplexity"]["p"] == pytest.approx(2 / 101)
    assert instructions.compare(before, before, P)["perplexity"]["p"] == 1


def test_f1_is_of_the_words_that_two_texts_share() -> None:
    assert instructions.token_f1("the the cat", "the cat sat") == pytest.approx(4 / 6)
    assert instructions.token_f1("", "a") == 0
    assert instructions.token_f1("A.", "a") == 1


def test_examples_go_where_they_leave_no_room_and_an_output_that_fits_nowhere_costs_nothing(
    base: Path, model_choice: Any
) -> None:
    prompter = Prompter(loading.load_tokenizer(base, template_of("alpaca")), None, 120)
    example = {"id": "e", "task": "t", "instruction": "Go on.", "input": "", "output": "I am glad.", "source": "e"}
    rows = [
        example | {"id": "a"},
        example | {"id": "b", "output": "glad " * 120},
        example | {"id": "c", "instruction": "Go on. " * 60},
    ]
    model = loading.load_base(base, model_choice)

    def answers(count: int, context: int = 120) -> list[dict[str, Any]]:
        asked = Prompter(prompter.tokenizer, None, context)
        return instructions.answer(model, asked, rows, [[example] * count] * 3, "alpaca", P, lambda *_: None)

    none, one, many = answers(0), answers(1), answers(40)
    assert [own["shots"] for own in none] == [0, 0, 0]
    assert [own["cut"] for own in none] == [False, False, True]
    assert one[0]["shots"] == 1
    assert 1 <= many[0]["shots"] < 10
    assert [("nats" in own) for own in many] == [True, False, False]
    # The output is the same, and what it costs depends on what is shown.
    assert none[0]["tokens"] == many[0]["tokens"]
    assert none[0]["nats"] != many[0]["nats"]
    assert many == answers(40)


def test_no_rows_to_ask_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    records.write_jsonl(tmp_path / "test.jsonl", [])
    with pytest.raises(InputError, match=r"test\.jsonl: no rows to ask"):
        instructions.held_out(tmp_path, P)


def test_the_rows_asked_are_drawn_by_seed(tmp_path: Path) -> None:
    records.write_jsonl(tmp_path / "test.jsonl", [row(n, None) for n in range(30)])
    some = instructions.held_out(tmp_path, P.model_copy(update={"limit": 10}))
    assert len({own["id"] for own in some}) == 10
    assert some == instructions.held_out(tmp_path, P)[:10]
    assert some != instructions.held_out(tmp_path, P.model_copy(update={"limit": 10, "seed": 8}))
