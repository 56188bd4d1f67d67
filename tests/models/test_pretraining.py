"""Laws of a model from nothing: a tag is one plain token to its tokenizer, and it learns the same every time."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from conftest import LABELS
from emotune.core.dialogue import Dialogue
from emotune.data import sources
from emotune.models import pretraining
from emotune.models.params import Learning
from emotune.prompts.prompter import Prompter

LEARNING = Learning(
    vocabulary=500, hidden_size=32, layers=1, heads=2, epochs=2, learning_rate=0.01, muon=None, batch_size=8, seed=7
)


@pytest.fixture(scope="module")
def talk() -> list[Dialogue]:
    return sources.embedded(100, 7).splits["train"]


@pytest.fixture(scope="module")
def tokenizer(talk: list[Dialogue]) -> Any:
    return pretraining.make_tokenizer(pretraining.contents(talk), LABELS, 500)


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("tag", pretraining.TAGS)
def test_a_tag_is_one_token_of_plain_text(tag: str, tokenizer: Any) -> None:
    for text in (tag, f" {tag}"):
        [token] = ids(tokenizer, text)
        assert token not in tokenizer.all_special_ids
        assert tokenizer.decode([token], skip_special_tokens=True) == text


@pytest.mark.parametrize("label", LABELS)
def test_an_emotion_after_its_tag_is_one_token(label: str, tokenizer: Any) -> None:
    assert len(ids(tokenizer, f"[EMOTION] {label} [/EMOTION]")) == 3


def test_the_special_tokens_are_three_and_all_different(tokenizer: Any) -> None:
    assert tokenizer.all_special_tokens == ["<s>", "</s>", "<pad>"]
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert tokenizer.unk_token is None


def test_the_vocabulary_is_no_larger_than_asked_for(tokenizer: Any) -> None:
    assert len(tokenizer) == 500


@pytest.mark.parametrize("text", ["Hello there!", "naïve café — 100 %", "好的。", "it's\n\nfine  [x]", "🙂"])
def test_any_text_comes_back_as_it_was(text: str, tokenizer: Any) -> None:
    assert tokenizer.decode(ids(tokenizer, text)) == text


def test_no_token_crosses_from_a_tag_into_text(tokenizer: Any) -> None:
    text = "[INST] [EMOTION] fear [/EMOTION] I heard[EMOTION]a noise."
    pieces = [tokenizer.decode([token]) for token in ids(tokenizer, text)]
    assert "".join(pieces) == text
    assert all(piece.strip() in pretraining.TAGS for piece in pieces if "[" in piece or "]" in piece)


def test_it_speaks_the_native_template(tokenizer: Any, talk: list[Dialogue]) -> None:
    question, answer = talk[0].turns[:2]
    row, _ = Prompter(tokenizer, None, 256).training_row((question, answer))
    assert tokenizer.decode(row) == f"<s>[INST] {question.content} [/INST] {answer.content}</s>"


def test_equal_dialogues_make_equal_tokenizers(tokenizer: Any, talk: list[Dialogue]) -> None:
    again = pretraining.make_tokenizer(pretraining.contents(talk), LABELS, 500)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


@pytest.mark.parametrize("muon", [None, 0.02])
def test_a_model_learns_is_deterministic_and_says_so(tokenizer: Any, talk: list[Dialogue], muon: float | None) -> None:
    logged: list[tuple[float, int]] = []

    def log(values: Mapping[str, float], step: int) -> None:
        logged.append((values["loss"], step))

    prompter = Prompter(tokenizer, None, 256)
    train, validation = (pretraining.dialogue_rows(prompter, some) for some in (talk[:60], talk[60:70]))
    learning = LEARNING.model_copy(update={"muon": muon})
    model, measured = pretraining.pretrain(tokenizer, train, validation, learning, 256, log)
    torch.rand(3)  # whatever was drawn before
    again, measured_again = pretraining.pretrain(tokenizer, train, validation, learning, 256, lambda values, step: None)
    assert measured == measured_again
    state, other = model.state_dict(), again.state_dict()
    assert all(torch.equal(weight, other[name]) for name, weight in state.items())
    # 60 rows, 8 a step, twice.
    assert [step for _, step in logged] == list(range(1, 17))
    assert logged[-1][0] < logged[0][0] - 1
    assert measured["vocabulary"] == 500
    assert measured["parameters"] == model.num_parameters()
    assert not model.training
    assert not model.config.tie_word_embeddings


def test_muon_has_the_matrices_of_the_layers_and_nothing_else(tokenizer: Any) -> None:
    model = pretraining._untrained(tokenizer, LEARNING, 256)
    adam, muon = pretraining._optimizers(model, LEARNING.model_copy(update={"muon": 0.02}))
    shapes = [tuple(q.shape) for q in muon.param_groups[0]["params"]]
    # Attention's four and the three of the MLP.
    assert sorted(shapes) == [(32, 32)] * 4 + [(32, 85), (85, 32), (85, 32)]
    assert len(adam.param_groups[0]["params"]) + len(shapes) == len(list(model.parameters()))
    [alone] = pretraining._optimizers(model, LEARNING)
    assert len(alone.param_groups[0]["params"]) == len(list(model.parameters()))


def test_the_model_never_sees_an_emotions_tag(tokenizer: Any, talk: list[Dialogue]) -> None:
    tags = {token for tag in pretraining.TAGS[2:] for text in (tag, f" {tag}") for token in ids(tokenizer, text)}
    rows = pretraining.dialogue_rows(Prompter(tokenizer, None, 256), talk)
    assert not any(tags.intersection(row) for row in rows)


def test_a_text_fills_as_many_rows_as_it_needs_between_start_and_end(tokenizer: Any) -> None:
    text = "the cat sat on the mat and looked at the other cats on the other mats"
    whole = [tokenizer.bos_token_id, *ids(tokenizer, text), tokenizer.eos_token_id]
    assert pretraining.text_rows(tokenizer, [text], 256) == [whole]
    half = len(whole) // 2 + 1
    assert pretraining.text_rows(tokenizer, [text], half) == [whole[:half], whole[half:]]


def test_no_row_is_a_last_token_alone(tokenizer: Any) -> None:
    [row] = pretraining.text_rows(tokenizer, [""], 256)
    assert row == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert pretraining.text_rows(tokenizer, ["a"], 2) == [[tokenizer.bos_token_id, *ids(tokenizer, "a")]]
