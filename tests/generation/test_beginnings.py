"""Laws of attention to beginnings that are held once: it is attention to each line's own copy of its beginning."""

import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, DynamicCache, Gemma2Config, LlamaConfig, MistralConfig, Qwen3Config

from emotune.core.seeds import key
from emotune.generation.beginnings import Beginnings, attending, attention
from emotune.generation.engine import Request
from emotune.generation.local import replies
from emotune.generation.params import Sampling

SAMPLING = Sampling(
    temperature=0.7, top_k=0, top_p=0.9, repetition_penalty=1.0, min_new_tokens=2, max_new_tokens=12, guidance=1.0
)
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.3, "head_dim": 8}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}


def held(positions: int, beginning: list[int], heads: int = 2, size: int = 8) -> Beginnings:
    cache = DynamicCache()
    cache.update(*torch.randn(2, max(beginning) + 1, heads, positions, size), 0)
    return Beginnings(cache, torch.tensor(beginning))


class Layer(torch.nn.Module):
    layer_idx = 0


@pytest.mark.parametrize("scaling", [None, 0.7])
@pytest.mark.parametrize("rows", [1, 3])
def test_attention_is_that_to_beginning_and_rest_in_one(rows: int, scaling: float | None) -> None:
    torch.manual_seed(7)
    beginnings = held(11, [1, 0, 1, 1, 0])
    for left in (torch.arange(5), torch.tensor([0, 3, 4])):
        beginnings.keep(left)
        query, rest = torch.randn(len(left), 4, rows, 8), torch.randn(2, len(left), 2, 5, 8)
        mask = torch.zeros(len(left), 1, rows, 16).masked_fill_(torch.rand(len(left), 1, rows, 16) < 0.3, -1e30)
        whole = [
            torch.cat([own[beginnings.beginning], more], dim=2)
            for own, more in zip(beginnings.layers[0], rest, strict=True)
        ]
        expected = torch.nn.functional.scaled_dot_product_attention(
            query, *(states.repeat_interleave(2, dim=1) for states in whole), attn_mask=mask, scale=scaling
        )
        result, _ = attention(Layer(), query, *rest, mask, beginnings=beginnings, scaling=scaling)
        assert torch.allclose(result, expected.transpose(1, 2), atol=1e-6)
    assert beginnings.beginning.tolist() == [1, 1, 0]


def requests(words: int, kind: str) -> list[Request]:
    """Prompts of three emotions, those of one behind the same 60 tokens; some have two candidates."""
    rng = random.Random(7)
    begin = [tuple(rng.randrange(3, words) for _ in range(60)) for _ in range(3)]
    return [
        Request(
            (1, *begin[n % 3], *(rng.randrange(3, words) for _ in range(1 + n))),
            tuple(key(kind, n, c) for c in range(1 + n % 2)),
        )
        for n in range(9)
    ]


KINDS: dict[str, Any] = {
    "llama": LlamaConfig,
    "qwen": Qwen3Config,
    "window": lambda **shape: MistralConfig(sliding_window=512, **shape),
    "softcap": lambda **shape: Gemma2Config(sliding_window=512, attn_implementation="eager", **shape),
}


@pytest.mark.parametrize("kind", [*KINDS, "adapted"])
def test_beginnings_are_held_once_and_no_reply_changes(
    kind: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(7)
    config = KINDS.get(kind, LlamaConfig)(vocab_size=len(tokenizer), **SHAPE, **HEADS)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=config._attn_implementation or "sdpa").eval()
    model.generation_config.eos_token_id = [2, *range(60, 80)]
    if kind == "adapted":
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    implementation = model.config._attn_implementation
    held: list[int] = []

    def look(_: Any, __: Any, given: dict[str, Any]) -> None:
        if given.get("past_key_values") is not None:
            held.append(given["past_key_values"].layers[0].keys.shape[2])

    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    few = requests(len(tokenizer), kind)
    result = replies(model, tokenizer, few, SAMPLING)
    # The prompts are read behind beginnings of 60 tokens, and what follows behind the rest alone: but for sdpa.
    assert (min(held) < 60 < held[0]) == (kind != "softcap")
    hook.remove()
    assert model.config._attn_implementation == implementation
    monkeypatch.setattr("emotune.models.prefixes.SPARED", 1.0)
    assert replies(model, tokenizer, few, SAMPLING) == result
    assert len({reply for own in result for reply in own}) > len(few) / 2


def test_where_most_places_of_the_grid_are_empty_each_line_has_its_copy() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=99, **SHAPE, **HEADS), attn_implementation="sdpa")
    assert held(4, [0, 0, 1, 1, 2]).serve(model)
    assert not held(4, [0, 0, 0, 0, 0, 1, 2]).serve(model)


def test_a_model_attends_as_before_where_a_pass_fails(tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=99, **SHAPE, **HEADS), attn_implementation="sdpa")
    with pytest.raises(RuntimeError, match="memory"), attending(model, held(4, [0, 0])):
        raise RuntimeError("no memory")
    assert model.config._attn_implementation == "sdpa"
