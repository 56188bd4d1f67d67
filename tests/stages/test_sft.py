"""Laws of sft: what is trained on, and that an adapter is trained and nothing else."""

import importlib.util
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from emotune.core.contract import Log
from emotune.core.dialogue import Dialogue, Turn, alternate
from emotune.core.errors import InputError
from emotune.models import loading
from emotune.models.params import Model
from emotune.prompts.prompter import Prompter
from emotune.stages.sft import Params, passes, sft_rows, tune
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


def emotional(name: str, *emotions: str) -> Dialogue:
    """Turns that say who speaks and how: a user who is afraid, and replies in the emotions."""
    turns = [(Turn("user", "Boo!", "fear"), Turn("assistant", f"{name} {emotion}.", emotion)) for emotion in emotions]
    return Dialogue(name, tuple(turn for exchange in turns for turn in exchange))


# Replies: 6 neutral, of which 3 are learned, 4 surprised, 1 sad, 1 happy.
MIXED = [
    *(emotional(f"calm {number}", "neutral") for number in range(5)),
    emotional("mixed", "neutral", "sadness", "surprise"),
    *(emotional(f"wow {number}", "surprise") for number in range(3)),
    emotional("glad", "happiness"),
]


@pytest.mark.parametrize(
    ("balance", "times"),
    [
        (0.0, {"neutral": 0.5, "surprise": 1.0, "sadness": 1.0, "happiness": 1.0}),
        (0.5, {"neutral": 3**-0.5, "surprise": 1.0, "sadness": 2.0, "happiness": 2.0}),
        (1.0, {"neutral": 4 / 6, "surprise": 1.0, "sadness": 4.0, "happiness": 4.0}),
    ],
)
def test_a_rare_emotion_is_learned_again(balance: float, times: dict[str, float]) -> None:
    assert passes(MIXED, "neutral", changed(SFT, neutral_replies=0.5, balance=balance)) == pytest.approx(times)


def test_no_reply_is_learned_more_than_16_times() -> None:
    crowd = [emotional("glad", "happiness"), *(emotional(str(number), "surprise") for number in range(40))]
    assert passes(crowd, "neutral", changed(SFT, balance=1.0)) == {"happiness": 16.0, "surprise": 1.0}


def test_a_row_is_repeated_for_its_rare_replies_alone(tokenizer: Any) -> None:
    p = changed(SFT, balance=1.0)
    # Six neutral replies: four surprised ones are one and a half of that, and one alone six.
    rows, learned, _ = sft_rows(Prompter(tokenizer, None, 256), MIXED, "neutral", p)
    texts = [texts_learned(tokenizer, row) for row in rows]
    whole = " mixed neutral.</s> mixed sadness.</s> mixed surprise.</s>"
    assert [text for text in texts if "mixed" in text][:1] == [whole]
    assert [text for text in texts if "mixed" in text][2:] == [" mixed sadness.</s>"] * 4
    assert texts.count(" glad happiness.</s>") == 6
    assert [texts.count(f" calm {number} neutral.</s>") for number in range(5)] == [1] * 5
    assert learned == Counter(
        word.strip(".") for text in texts for word in text.replace("</s>", "").split() if "." in word
    )
    assert 4 <= learned.pop("surprise") <= 8
    assert learned == {"neutral": 6, "sadness": 6, "happiness": 6}


def test_with_roles_exchanged_the_users_replies_in_rare_emotions_are_learned_too(tokenizer: Any) -> None:
    # The user is afraid four times: in the first turn, which answers nothing, and in three that answer the assistant.
    crowd = [emotional("calm", "neutral", "happiness", "happiness", "neutral"), emotional("glad", *["happiness"] * 3)]
    p = changed(SFT, neutral_replies=1e-9, swapped=True)
    rows, learned, _ = sft_rows(Prompter(tokenizer, None, 256), crowd, "neutral", p)
    assert learned == {"happiness": 5, "fear": 5}
    [_, _, calm, glad] = [texts_learned(tokenizer, row) for row in rows]
    assert (calm, glad) == (" Boo!</s>" * 3, " Boo!</s>" * 2)
    assert "calm neutral." in tokenizer.decode(rows[2]["input_ids"])
    # Fear, of which five are left, is learned as often as happiness; without the user's it is no reply's.
    assert passes(crowd, "neutral", p.model_copy(update={"balance": 1.0}))["fear"] == 1.0
    assert "fear" not in passes(crowd, "neutral", changed(SFT, balance=1.0))


def test_without_its_tags_a_row_shows_the_emotion_of_the_replies_learned_alone(tokenizer: Any) -> None:
    def texts(**changes: Any) -> list[str]:
        rows = rows_of(tokenizer, MIXED[5:6], changed(SFT, neutral_replies=1e-9, **changes))
        return [tokenizer.decode(row["input_ids"]) for row in rows]

    [tagged], [bare] = texts(), texts(tag_dropout=1.0)
    assert tagged.count("[EMOTION] fear [/EMOTION] Boo!") == bare.count("[EMOTION] neutral [/EMOTION] Boo!") == 3
    assert bare.replace("neutral [/EMOTION] Boo!", "fear [/EMOTION] Boo!") == tagged
    assert all(f"[EMOTION] {emotion} [/EMOTION] mixed" in bare for emotion in ("sadness", "surprise"))


def test_so_many_rows_are_without_tags(tokenizer: Any) -> None:
    crowd = [emotional(str(number), "surprise") for number in range(400)]
    p = changed(SFT, tag_dropout=0.25)
    shown = [tokenizer.decode(row["input_ids"]) for row in rows_of(tokenizer, crowd, p)]
    assert 80 <= sum("[EMOTION] fear" not in text for text in shown) <= 120


def test_a_row_that_would_not_fit_without_its_tags_keeps_them(tokenizer: Any) -> None:
    long = Dialogue("long", (Turn("user", "Boo!", "fear"), Turn("assistant", "Oh.", "surprise")))
    room = len(Prompter(tokenizer, None, 256).training_row(long.turns)[0])
    p = changed(SFT, tag_dropout=1.0)
    for neutral, tags in (("neutral", 0), ("neither this nor that", 1)):
        [row] = sft_rows(Prompter(tokenizer, None, room), [long], neutral, p)[0]
        assert tokenizer.decode(row["input_ids"]).count("fear") == tags


# Replies of two texts, one of them in two spellings.
COMMON = [
    Dialogue(name, alternate([text for reply in replies for text in ("Boo!", reply)], emotions))
    for name, replies, emotions in (
        ("first", ("I see that.", "i see - THAT!"), ("fear", "sadness", "fear", "neutral")),
        ("second", ("Not at all.", "I see that."), ("fear", "neutral", "fear", "sadness")),
        ("third", ("I see that.",), ("fear", "surprise")),
    )
]


@pytest.mark.parametrize(
    ("repeats", "rows"),
    [
        (1, [" I see that.</s>", " Not at all.</s>"]),
        (2, [" I see that.</s> i see - THAT!</s>", " Not at all.</s>"]),
        (3, [" I see that.</s> i see - THAT!</s>", " Not at all.</s> I see that.</s>"]),
        (4, [" I see that.</s> i see - THAT!</s>", " Not at all.</s> I see that.</s>", " I see that.</s>"]),
        (None, [" I see that.</s> i see - THAT!</s>", " Not at all.</s> I see that.</s>", " I see that.</s>"]),
    ],
)
def test_replies_of_one_text_are_learned_at_the_first_places(
    tokenizer: Any, repeats: int | None, rows: list[str]
) -> None:
    assert [texts_learned(tokenizer, row) for row in rows_of(tokenizer, COMMON, changed(SFT, repeats=repeats))] == rows


def test_a_place_that_is_not_learned_does_not_count_as_one(tokenizer: Any) -> None:
    p = changed(SFT, repeats=1, neutral_replies=1e-9)
    swapped = [COMMON[1], replace(COMMON[0], turns=COMMON[0].turns[2:]), COMMON[2]]
    # The neutral spelling stands before the surprised one.
    rows = [texts_learned(tokenizer, row) for row in rows_of(tokenizer, swapped[1:], p)]
    assert rows == [" I see that.</s>"]


def test_a_reply_is_learned_again_at_the_places_that_are_left(tokenizer: Any) -> None:
    crowd = [*(emotional(f"wow {number}", "surprise") for number in range(4)), COMMON[0], COMMON[1]]
    rows, learned, _ = sft_rows(Prompter(tokenizer, None, 256), crowd, "neutral", changed(SFT, repeats=1, balance=1.0))
    texts = [texts_learned(tokenizer, row) for row in rows]
    assert [text for text in texts if "see" in text] == [" I see that.</s>"] * 2
    assert learned == {"surprise": 4, "sadness": 2, "neutral": 2}


def test_a_context_that_holds_no_exchange_is_refused(tokenizer: Any, dialogues: list[Dialogue]) -> None:
    with pytest.raises(InputError, match=r"model\.context: no exchange of two turns fits in 8 tokens"):
        rows_of(tokenizer, dialogues, SFT, context=8)


def sft(
    base: Path,
    tokenizer: Any,
    dialogues: list[Dialogue],
    folder: Path,
    choice: Model = CHOICE,
    log: Log = ignore,
    **changes: Any,
) -> Any:
    p = Params(model=choice, sft=changed(SFT, **changes), system_prompt=None, template="out_inst_uni")
    return tune(loading.load_base(base, choice), tokenizer, dialogues, dialogues, "neutral", p, folder, log)


def test_replies_are_left_out_of_training_and_not_of_validation(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    def measured(name: str, train: list[Dialogue], repeats: int | None) -> Any:
        p = Params(model=CHOICE, sft=changed(SFT, repeats=repeats), system_prompt=None, template="out_inst_uni")
        model = loading.load_base(base, CHOICE)
        return tune(model, tokenizer, train, COMMON, "neutral", p, tmp_path / name, ignore)[2]

    once, always = measured("once", MIXED, 1), measured("always", MIXED, None)
    assert once == always
    assert measured("common", COMMON, 1)["replies_learned"] == {"sadness": 1, "neutral": 1}


def test_sft_trains_lora_and_the_tags_and_nothing_else(
    base: Path, tokenizer: Any, dialogues: list[Dialogue], tmp_path: Path
) -> None:
    before = {name: weight.clone() for name, weight in loading.load_base(base, CHOICE).named_parameters()}
    model, curve, measured = sft(base, tokenizer, dialogues, tmp_path, epochs=4.0)
    after = {
        name.removeprefix("base_model.model.").replace(".token_adapter", "").replace(".base_layer", ""): weight
        for name, weight in model.named_parameters()
    }
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    [tags] = [name for name in trained if "lora_" not in name]
    embeddings = model.get_input_embeddings().token_adapter
    written = tokenizer.convert_ids_to_tokens(embeddings.token_indices["default"])
    names = {"Ġneutral", "Ġsadness", "Ġhappiness", "Ġsurprise"}
    assert set(written) == {"Ġ[EMOTION]", "Ġ[/EMOTION]"} | names
    moved = (trained[tags] != embeddings.trainable_tokens_original["default"]).any(1)
    assert moved.all()
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


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_on_4_bit_weights_the_adapter_is_float32_and_a_killed_run_goes_on_to_the_same_weights(
    base: Path, tokenizer: Any, dialogues: list[Dialogue], tmp_path: Path
) -> None:
    def run(name: str, log: Log) -> tuple[list[torch.Tensor], list[float]]:
        choice = changed(CHOICE, quantization="nf4")
        model, curve, _ = sft(base, tokenizer, dialogues, tmp_path / name, choice, log, epochs=4.0)
        return [weight for weight in model.parameters() if weight.requires_grad], [row["loss"] for row in curve]

    def die_at_step_5(logs: Mapping[str, float], step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    weights, losses = run("a", ignore)
    assert {weight.dtype for weight in weights} == {torch.float32}
    with pytest.raises(KeyboardInterrupt):
        run("b", die_at_step_5)
    assert (tmp_path / "b" / "checkpoint-3").is_dir()
    again, same_losses = run("b", ignore)
    assert losses == same_losses
    assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(weights, again, strict=True))


def test_in_bfloat16_training_is_in_mixed_precision_on_a_cpu_too(
    base: Path, tokenizer: Any, dialogues: list[Dialogue], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed: set[bool] = set()
    of_torch = torch.nn.functional.scaled_dot_product_attention

    def attention(queries: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor:
        mixed.add(torch.is_autocast_enabled(queries.device.type))
        return of_torch(queries, *others, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    model, _, _ = sft(base, tokenizer, dialogues, tmp_path, changed(CHOICE, dtype="bfloat16"))
    assert mixed == {True}
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
