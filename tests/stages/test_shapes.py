"""Laws of the profiles of real models: their stages run on random numbers in the models' shapes, made smaller."""

import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT, STAGES, run_stage, write_params
from emotune.core import records
from emotune.core.dialogue import Dialogue
from emotune.core.nested import leaves, overlaid
from emotune.core.sections import check, read_yaml
from emotune.generation.engine import Request
from emotune.generation.local import replies
from emotune.generation.params import Sampling
from emotune.models import loading, pins
from emotune.prompts.prompter import Prompter
from emotune.runs.params import Params, parse
from emotune.stages import dpo, sft
from tiny import changed, ignore, pair

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu
import scratch
import shapes

# Narrower than they are, with as many heads, which share keys as theirs do.
SMALLER: dict[str, dict[str, int]] = {
    "llama2-7b": {"hidden_size": 128, "intermediate_size": 192},
    "gemma-7b": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 8},
    "smollm2-135m": {"hidden_size": 36, "intermediate_size": 64},
    "qwen2.5-0.5b": {"hidden_size": 56, "intermediate_size": 64},
    "gemma-3-270m": {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8, "sliding_window": 16},
}
nf4 = pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes")


@pytest.fixture
def built(request: pytest.FixtureRequest, dialogues: list[Dialogue], tmp_path: Path) -> Path:
    """A checkpoint of two layers in the shape that the test names."""
    name, vocabulary = request.param
    smaller = SMALLER[name] | {"num_hidden_layers": 2, "vocab_size": vocabulary}
    return shapes.build(name, tmp_path / name, [t.content for d in dialogues for t in d.turns], **smaller)


def profile(name: str) -> Params:
    """params.yaml under a profile, whose data are embedded and whose judges are those that come with the package."""
    whole = overlaid(read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "profiles" / f"{name}.yaml"))
    return check(Params, overlaid(whole, {"data": {"source": "embedded"}}), name)


@nf4
@pytest.mark.pipeline
@pytest.mark.parametrize("built", [("llama2-7b", 3000)], indirect=True)
def test_every_stage_of_a_7b_profile_runs_on_the_smallest_shape(built: Path, tmp_path: Path) -> None:
    assert len([*built.glob("*.safetensors")]) == 3
    short = shapes.SHORT | scratch.UNAUDITED | {"data.dialogues": 100, "reward_model.contrast_pairs": 32}
    own = dict(leaves(read_yaml(ROOT / "profiles/llama2-7b-12gb.yaml")))
    write_params(tmp_path, own | short | {"model.base": str(built), "model.revision": pins.folder_revision(built)})
    assert parse(tmp_path / "params.yaml").model.quantization == "nf4"
    for stage in STAGES:
        run_stage(stage, tmp_path)
    first, second = (load_file(tmp_path / f"models/{name}/adapter_model.safetensors") for name in ("sft", "dpo"))
    assert len(first) == 2 * 2 * 7
    assert all(weight.dtype == torch.float32 and weight.any() for weight in first.values())
    # At a rate of 0.000005, and yet.
    assert any(not weight.equal(second[name]) for name, weight in first.items())
    assert records.read_metrics(tmp_path / "metrics/dpo.json")["pairs"] > 0


@nf4
@pytest.mark.parametrize("built", [("gemma-7b", 3000)], indirect=True)
def test_what_is_not_quantised_stays_in_16_bits_when_it_is_trained(
    built: Path, dialogues: list[Dialogue], tmp_path: Path
) -> None:
    p = profile("gemma-7b-12gb")
    tuned = tune(p, built, dialogues, tmp_path)
    kinds = {name: weight.dtype for name, weight in tuned.named_parameters() if "lora" not in name}
    assert tuned.get_input_embeddings().weight is tuned.get_output_embeddings().weight
    assert tuned.get_input_embeddings().weight.dtype == torch.bfloat16
    assert {kinds.pop(name) for name in [*kinds] if name.endswith("proj.base_layer.weight")} == {torch.uint8}
    # Embeddings and norms, none of them in float32.
    assert set(kinds.values()) == {torch.bfloat16}


def tune(p: Params, base: Path, dialogues: list[Dialogue], folder: Path) -> Any:
    """The profile's adapter after an epoch of sft, and that it learned something in each of its matrices."""
    own = sft.Params(
        model=p.model, sft=changed(p.sft, epochs=1.0, checkpoints=0), system_prompt=None, template=p.template
    )
    tokenizer = loading.load_tokenizer(base, p.template)
    model = loading.load_base(base, p.model)
    tuned, curve, _ = sft.tune(model, tokenizer, dialogues, dialogues[:2], "neutral", own, folder / "work", ignore)
    # What no gradient reached, as where checkpointing lost it, stays 0.
    assert all(weight.any() for name, weight in tuned.named_parameters() if "lora_B" in name)
    assert curve[0]["loss"] > 0
    loading.save_adapter(tuned, tokenizer, base, folder / "sft")
    return tuned


@pytest.mark.parametrize(
    "built", [("smollm2-135m", 3000), ("qwen2.5-0.5b", 3000), ("gemma-3-270m", 3000)], indirect=True
)
def test_smol_tunes_samples_and_aligns_models_of_its_kinds(
    built: Path, dialogues: list[Dialogue], tmp_path: Path
) -> None:
    p = profile("smol")
    tune(p, built, dialogues, tmp_path)
    turns = dialogues[0].turns
    # In the model's own template, as the baseline is asked, and in ours, as sft is.
    for template in (None, p.template):
        tokenizer = loading.load_tokenizer(built, template)
        ids = Prompter(tokenizer, None, 256).ids(turns[:1], "sadness")
        sampling = Sampling.model_validate(p.evaluate.sampling.model_dump() | {"temperature": 0, "max_new_tokens": 6})
        model = loading.load_base(built, p.model)
        [[reply]] = replies(model, tokenizer, [Request(tuple(ids), (7,))], sampling)
        greedy = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, pad_token_id=0)[0, len(ids) :]
        written = tokenizer.decode([i for i in greedy.tolist() if i not in model.generation_config.eos_token_id])
        assert reply.text == " ".join(written.split())
    policy = loading.load_adapter(loading.load_base(built, p.model), tmp_path / "sft", trainable=True)
    short = changed(p.dpo, control_contexts=0, checkpoints=0)
    own = dpo.Params.model_construct(model=p.model, system_prompt=None, dpo=short)
    pairs = [pair(number) for number in range(8)]
    _, curve, _ = dpo.align(policy, tokenizer, pairs, pairs[:2], own, tmp_path / "dpo", ignore)
    assert curve[0]["rewards/margins"] == 0.0
    assert curve[-1]["rewards/margins"] > 0


@nf4
def test_what_the_script_for_a_gpu_cannot_measure_is_null_with_its_reason(tmp_path: Path) -> None:
    size = gpu.Size(gpu.TINY | {"vocab_size": 3000}, (192,), prompts=4, slow_prompts=1)
    names = ("memory", "candidates_nf4", "candidates_vllm")
    chosen = {name: gpu.MEASUREMENTS[name] for name in names}
    found = gpu.measured(["llama2-7b"], size, time.monotonic() + 600, chosen)["shapes"]["llama2-7b"]
    assert found["memory"]["value"]["192"].keys() == {"load", "sft", "dpo", "replies", "fits"}
    assert found["candidates_nf4"]["value"]["ratio"] > 1
    if not importlib.util.find_spec("vllm"):
        assert found["candidates_vllm"] == {"value": None, "reason": "ModuleNotFoundError: No module named 'vllm'"}
    late = gpu.measured(["llama2-7b"], size, time.monotonic() - 1, chosen)["shapes"]["llama2-7b"]
    assert [late[name] for name in names] == [{"value": None, "reason": "no time was left"}] * len(names)
