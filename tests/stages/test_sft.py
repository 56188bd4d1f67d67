"""Laws of sft: what is trained on, and that an adapter is trained and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch

from emotune.core.dialogue import Dialogue, Turn
from emotune.core.errors import InputError
from emotune.models import loading
from emotune.stages.sft import Params, tune
from tiny import CHOICE, SFT, changed, ignore, rows_of


def texts_learned(tokenizer: Any, row: dict[str, Any]) -> str:
    return tokenizer.decode([label for label in row["labels"] if label != -100])


def test_the_loss_is_that_of_the_replies_and_their_ends(tokenizer: Any, dialogues: list[Dialogue]) -> None:
    [row] = rows_of(tokenizer, dialogues[:1], SFT)
    assert texts_learned(tokenizer, row) == " Where did you see them last?</s> Then let us look there!</s>"
    assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))


def test_the_loss_on_all_is_that_of_every_token(tokenizer: Any, dialogues: list[Dialogue]) -> None:
    [row] = rows_of(tokenizer, dialogues[:1], changed(SFT, loss_on="all"))
    assert row["labels"] == row["input_ids"]


def test_neutral_replies_are_thinned_and_no_other(tokenizer: Any, dialogues: list[Dialogue]) -> None:
    # Each dialogue has a neutral reply and a surprised one: with one neutral for each other, all are learned.
    assert rows_of(tokenizer, dialogues, changed(SFT, neutral_replies=1.0)) == rows_of(tokenizer, dialogues, SFT)
    few = rows_of(tokenizer, dialogues, changed(SFT, neutral_replies=1e-9))
    assert [texts_learned(tokenizer, row) for row in few] == [f" {d.turns[3].content}</s>" for d in dialogues]
    assert [row["input_ids"] for row in few] == [row["input_ids"] for row in rows_of(tokenizer, dialogues, SFT)]


def test_a_row_without_a_reply_to_learn_is_left_out(tokenizer: Any, dialogues: list[Dialogue]) -> None:
    calm = Dialogue("calm", tuple(Turn(turn.role, turn.content, "neutral") for turn in dialogues[0].turns))
    rows = rows_of(tokenizer, [calm, dialogues[1]], changed(SFT, neutral_replies=1e-9))
    assert [texts_learned(tokenizer, row) for row in rows] == [" Of course I will.</s>"]


def test_a_context_that_holds_no_exchange_is_refused(tokenizer: Any, dialogues: list[Dialogue]) -> None:
    with pytest.raises(InputError, match=r"model\.context: no exchange of two turns fits in 8 tokens"):
        rows_of(tokenizer, dialogues, SFT, context=8)


def sft(base: Path, tokenizer: Any, dialogues: list[Dialogue], folder: Path, **changes: Any) -> Any:
    p = Params(model=CHOICE, sft=changed(SFT, **changes), system_prompt=None, template="out_inst_uni")
    return tune(loading.load_base(base, CHOICE), tokenizer, dialogues, dialogues, "neutral", p, folder, ignore)


def test_sft_trains_lora_and_nothing_else(
    base: Path, tokenizer: Any, dialogues: list[Dialogue], tmp_path: Path
) -> None:
    before = {name: weight.clone() for name, weight in loading.load_base(base, CHOICE).named_parameters()}
    model, curve, measured = sft(base, tokenizer, dialogues, tmp_path, epochs=4.0)
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in model.named_parameters()
    }
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert all("lora_" in name for name, weight in model.named_parameters() if weight.requires_grad)
    # 5 rows, 2 a step, 4 times.
    assert (measured["rows"], measured["steps"]) == (5, 10)
    assert [row["step"] for row in curve] == list(range(1, 11))
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_equal_runs_of_sft_are_equal(base: Path, tokenizer: Any, dialogues: list[Dialogue], tmp_path: Path) -> None:
    (first, curve, _), (second, again, _) = (
        sft(base, tokenizer, dialogues, tmp_path / name, lora=SFT.lora.model_dump() | {"dropout": 0.1}) for name in "ab"
    )
    assert [row["loss"] for row in curve] == [row["loss"] for row in again]
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
