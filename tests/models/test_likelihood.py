"""Laws of likelihood.py: what a row costs is what it costs alone, and the head scores what is marked and no more."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM

from emotune.core.dialogue import Dialogue
from emotune.models import likelihood, loading
from emotune.models.likelihood import Cost, batches, negative_log_likelihoods
from emotune.prompts.prompter import Prompter, Row
from tiny import CHOICE


@pytest.fixture
def rows(tokenizer: Any, dialogues: list[Dialogue]) -> list[Row]:
    prompter = Prompter(tokenizer, None, 256)
    made = [prompter.training_row(d.turns[: 2 + 2 * (i % 2)]) for i, d in enumerate(dialogues)]
    assert len({len(ids) for ids, _ in made}) > 3
    return made


@pytest.fixture
def model(base: Path) -> Any:
    return loading.load_base(base, CHOICE)


def adapted(base: Path, tokenizer: Any) -> Any:
    torch.manual_seed(7)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(loading.load_base(base, CHOICE), lora).eval()


def capped(base: Path, tokenizer: Any) -> Any:
    """A model that does more to what its head says than to multiply: it bends large scores."""
    torch.manual_seed(7)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        final_logit_softcapping=0.1,
        initializer_range=0.5,
    )
    return Gemma2ForCausalLM(config).eval()


def costs(model: Any, tokenizer: Any, rows: list[Row]) -> list[Cost]:
    """What each row costs, in the order of the rows."""
    numbers = batches(model, rows)
    found = negative_log_likelihoods(model, tokenizer.pad_token_id, [[rows[i] for i in batch] for batch in numbers])
    return [cost for _, cost in sorted(zip(chain(*numbers), chain(*found), strict=True))]


def assert_alone(model: Any, rows: list[Row], found: list[Cost]) -> None:
    for (ids, of_reply), (total, count) in zip(rows, found, strict=True):
        with torch.inference_mode():
            shares = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=1)
        alone = [-shares[place - 1, ids[place]].item() for place, inside in enumerate(of_reply) if inside]
        assert count == len(alone)
        assert total == pytest.approx(sum(alone), rel=1e-5)


@pytest.mark.parametrize("positions", [1, 100, 250, 4096])
def test_likelihoods_are_those_of_each_row_alone(
    positions: int, model: Any, tokenizer: Any, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "POSITIONS", positions)
    assert_alone(model, rows, costs(model, tokenizer, rows))


@pytest.mark.parametrize("other", [adapted, capped])
def test_they_are_those_of_models_of_other_kinds_too(other: Any, base: Path, tokenizer: Any, rows: list[Row]) -> None:
    made = other(base, tokenizer)
    assert_alone(made, rows, costs(made, tokenizer, rows))


def test_no_rows_have_no_likelihoods(model: Any, tokenizer: Any) -> None:
    assert costs(model, tokenizer, []) == []


def test_the_head_scores_marked_tokens_alone_and_as_many_as_its_bytes_allow(
    model: Any, tokenizer: Any, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    marked = [sum(marks) for _, marks in rows]
    scored: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, __, out: scored.append(out[..., 0].numel()))
    together = costs(model, tokenizer, rows)
    assert scored == [sum(marked)]
    scored.clear()
    # Twelve bytes a word: a score, in float32 twice, and its logarithm.
    monkeypatch.setattr(likelihood, "BYTES", 12 * len(tokenizer) * (max(marked) + 1))
    found = costs(model, tokenizer, rows)
    hook.remove()
    assert len(scored) > 1
    assert max(scored) <= max(marked) + 1
    assert [total for total, _ in found] == pytest.approx([total for total, _ in together], rel=1e-6)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no"), RuntimeError("DefaultCPUAllocator: not enough memory")]
)
def test_where_memory_runs_out_half_as_many_rows_are_scored(
    error: Exception, model: Any, tokenizer: Any, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    together = costs(model, tokenizer, rows)

    def small(_: Any, __: Any, given: dict[str, Any]) -> None:
        if len(given["input_ids"]) > 1:
            raise error

    hook = model.register_forward_pre_hook(small, with_kwargs=True)
    found = costs(model, tokenizer, rows)
    hook.remove()
    assert [total for total, _ in found] == pytest.approx([total for total, _ in together], rel=1e-6)
    lines = [f"out of memory: {most} likelihoods at once from here on" for most in (2, 1)]
    assert capsys.readouterr().out.splitlines() == lines


def test_another_error_is_not_taken_for_a_lack_of_memory(model: Any, tokenizer: Any, rows: list[Row]) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("shapes differ")

    hook = model.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        costs(model, tokenizer, rows)
    hook.remove()
