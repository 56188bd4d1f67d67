"""Laws of sizes: published counts of parameters to the last one, and of memory what torch really holds."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from emotune.core import records
from emotune.core.errors import InputError
from emotune.core.sections import read_yaml
from emotune.models import memory, pins
from emotune.runs import estimate, sizes

KNOWN = read_yaml(pins.WEIGHTS.parents[1] / "runs/shapes.yaml")
TINY = {
    "vocab_size": 500,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
}


def tiny(**changes: Any) -> sizes.Shape:
    return sizes.shape({"model_type": "llama"} | TINY | changes, "tiny")


@pytest.mark.parametrize(
    ("name", "parameters"),
    {
        "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
        "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
        "google/gemma-7b-it": 8_537_680_896,
        "google/gemma-3-270m-it": 268_098_176,
        "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
        "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
        "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    }.items(),
)
def test_published_models_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert sizes.shape(KNOWN[name], name).parameters == parameters


def test_the_embedded_model_and_its_adapter_have_their_measured_sizes() -> None:
    own = sizes.shape(records.read_json(pins.WEIGHTS / "config.json"), "embedded")
    assert own.parameters == 974_336
    # trainable_parameters of metrics/sft.json: nine tokens are tags or emotions' names.
    assert sizes.adapter(own, 32, None, 9) == 234_528
    assert sizes.adapter(own, 32, ("q_proj", "v_proj"), 0) == 3 * 32 * 2 * 256


def test_nf4_leaves_embeddings_and_head_in_sixteen_bits() -> None:
    llama, gemma = (sizes.shape(KNOWN[name], name) for name in ("meta-llama/Llama-2-7b-chat-hf", "google/gemma-7b-it"))
    assert sizes.weights(llama, "bfloat16", nf4=False) == 2 * 6_738_415_616
    assert sizes.weights(llama, "bfloat16", nf4=True) / 2**30 == pytest.approx(3.60, abs=0.01)
    # Of 256,000 tied embeddings once: 1.57 GB; not of the head again.
    assert sizes.weights(gemma, "bfloat16", nf4=True) - gemma.linear * sizes.NF4 == pytest.approx(1.573e9, rel=0.001)


def test_a_cache_is_two_of_every_layers_keys() -> None:
    mistral = sizes.shape(KNOWN["mistralai/Mistral-7B-Instruct-v0.2"], "mistral")
    assert sizes.cache(mistral, "bfloat16", 1) == 131_072


def test_scores_are_held_for_one_chunk_at_most() -> None:
    gemma = sizes.shape(KNOWN["google/gemma-7b-it"], "gemma")
    assert sizes.scores(gemma, "bfloat16", 1024) == sizes.scores(gemma, "bfloat16", 131) == 131 * 256_000 * 18
    assert sizes.scores(tiny(), "float32", 7) == 7 * 500 * 16


def test_a_kind_whose_layers_are_others_has_no_size() -> None:
    with pytest.raises(InputError, match=r"model.base: mine is of kind mamba, whose size is not known"):
        sizes.shape({"model_type": "mamba"}, "mine")


@pytest.mark.parametrize(("dtype", "dropout"), [("float32", 0.0), ("float32", 0.1), ("bfloat16", 0.0)])
def test_a_layer_keeps_what_autograd_saves(dtype: str, dropout: float) -> None:
    one, two = (bytes_saved(layers, dtype, dropout) for layers in (1, 2))
    # In 16 bits autocast keeps a copy of the adapter's weights too.
    copies = 2 * sizes.adapter(tiny(num_hidden_layers=1), 8, None, 0) if dtype == "bfloat16" else 0
    estimated = 256 * sizes.saved(tiny(), dtype, 8, dropout > 0, 64)
    assert two - one - copies == pytest.approx(estimated, rel=0.05)


def bytes_saved(layers: int, dtype: str, dropout: float) -> int:
    """What a pass over 4 padded rows of 64 tokens saves for backward, the weights themselves aside."""
    config = LlamaConfig(**TINY | {"num_hidden_layers": layers}, pad_token_id=0)
    lora = LoraConfig(r=8, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM(config).to(getattr(torch, dtype)), lora).train()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    mask = torch.ones(4, 64, dtype=torch.long)
    mask[0, 32:] = 0
    ids = torch.randint(0, 500, mask.shape)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != "float32"),
    ):
        output = model.get_base_model().model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in weights)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_says_of_itself_what_its_shape_says_of_reading(dtype: str) -> None:
    model = LlamaForCausalLM(LlamaConfig(**TINY)).to(getattr(torch, dtype))
    assert memory.reading(model) == sizes.reading(tiny(), dtype, 1, adapted=False)
    lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    assert memory.reading(get_peft_model(model, lora)) == sizes.reading(tiny(), dtype, 1, adapted=True)


def test_the_few_constants_that_stand_here_and_where_torch_is_imported_agree() -> None:
    from emotune.evaluation import fit
    from emotune.faces import estimate as face
    from emotune.generation import local
    from emotune.models import likelihood
    from emotune.training import trainer

    assert (estimate.POSITIONS, estimate.WEIGHED_BYTES) == (likelihood.POSITIONS, likelihood.BYTES)
    assert (estimate.CPU_ROWS, estimate.GPU_ROWS) == (local.CPU_ROWS, local.GPU_ROWS)
    assert (face.VALIDATION_ROWS, face.PROBE_POINTS) == (trainer.VALIDATION_ROWS, trainer.PROBE_POINTS)
    assert face.WEIGHED == fit.WEIGHED


def test_as_many_scores_are_held_as_training_holds() -> None:
    from emotune.training import heads

    assert sizes.SCORES == heads.SCORES
