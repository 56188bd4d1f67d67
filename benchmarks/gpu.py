"""What the 7B profiles take and give on a GPU, on random numbers in their models' shapes: one command, one JSON.

No network, no DVC remote and no tracker is asked. Of each shape: peak memory of a step of sft and of dpo at contexts of
256 and 512 tokens with the profile's batches, beside 11.0 GiB; trained tokens per second beside `trl sft`; candidates
per second, 256 prompts x 6 of 20 tokens, in nf4 and in bfloat16, beside the published loop (one prompt and one
candidate at a time), beside transformers' continuous batching and vLLM; the share of the time of a decoding step that
the memory needs to read weights and cache once; flash-attention beside sdpa; how many of 1,000 replies another batch
changes; and of one shape the whole pipeline of one profile with 64 prompts.

What cannot be run, fails, or would begin after `--minutes` is null, with its reason: a slow card wants `--shape` of one
model, or more of them. `--shape tiny` takes two small layers of each shape and little of everything: it shows on a CPU
that the script works, and its figures say nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import seven_b_shapes
import sft_throughput
import shapes
from prefs_throughput import reading

LIMIT = 11.0 * 2**30
TOKENS, CANDIDATES = 20, 6
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 8}


@dataclass(frozen=True)
class Size:
    """How much of everything is measured."""

    changes: Mapping[str, int] = field(default_factory=dict)
    contexts: tuple[int, ...] = (256, 512)
    prompts: int = 256
    slow_prompts: int = 4
    rows: int = 32
    replies: int = 1000
    pipeline: int = 64


FULL, SMALL = Size(), Size(TINY, (192, 256), 8, 1, 2, 8, 7)


@dataclass
class Bench:
    """A shape's checkpoint in a folder, its profile, and what holds for both."""

    name: str
    size: Size
    folder: Path

    def __post_init__(self) -> None:
        self.model = shapes.build(self.name, self.folder / "model", seven_b_shapes.texts(), **self.size.changes)

    def params(self, **changes: Any) -> Any:
        return seven_b_shapes.profile(
            seven_b_shapes.PROFILES[self.name], {key.replace("__", "."): value for key, value in changes.items()}
        )

    def loaded(self, quantization: str) -> tuple[Any, Any]:
        """Tokenizer and model, as `baseline` has them."""
        from emotune.models import loading

        p = self.params(model__quantization=quantization)
        return loading.load_tokenizer(self.model, p.template), loading.load_base(self.model, p.model)

    def requests(self, tokenizer: Any, prompts: int) -> list[Any]:
        """What generate_prefs asks: so many prompts, six candidates each."""
        from emotune.generation.engine import Request
        from emotune.prompts.prompter import Prompter

        prompter, talk = Prompter(tokenizer, None, 512), seven_b_shapes.talk()
        ids = [tuple(prompter.ids(talk[n % len(talk)].turns[:3], "happiness")) for n in range(prompts)]
        keys = iter(range(prompts * CANDIDATES))
        return [Request(own, tuple(next(keys) for _ in range(CANDIDATES))) for own in ids]

    def sampling(self) -> Any:
        # No reply ends before its last token, so that all contenders write as many.
        return self.params(
            prefs__sampling__min_new_tokens=TOKENS, prefs__sampling__max_new_tokens=TOKENS
        ).prefs.sampling


def memory(bench: Bench) -> dict[str, Any]:
    """Peak memory of the steps at each context, and whether it stays below 11.0 GiB."""
    found = {}
    for context in bench.size.contexts:
        parts = seven_b_shapes.steps(bench.model, bench.params(model__context=context), bench.folder / f"c{context}")
        found[str(context)] = parts | {"fits": max(own["peak_bytes"] for own in parts.values()) <= LIMIT}
    return found


def training(bench: Bench) -> dict[str, Any]:
    """Trained tokens per second of sft and of `trl sft`, the same rows and settings."""
    from emotune.models import loading
    from emotune.stages.sft import Params

    p = bench.params(sft__epochs=1.0, sft__checkpoints=0, model__context=bench.size.contexts[-1])
    tokenizer = loading.load_tokenizer(bench.model, p.template)
    tuned = Params(model=p.model, sft=p.sft, system_prompt=None, template=p.template)
    rows = seven_b_shapes.full_rows(tokenizer, p.model.context, bench.size.rows)
    task = sft_throughput.Task(bench.model, tokenizer, rows, rows[:1], "neutral", tuned)
    flags = ["--dtype", p.model.dtype, "--bf16", "true", "--load_in_4bit", "true", "--bnb_4bit_quant_type", "nf4"]
    flags += ["--use_bnb_nested_quant", "true", "--use_cpu", "false" if _on_gpu() else "true"]
    _, whole = sft_throughput.rows_of(task)
    tokens = sft_throughput.trained_tokens(whole)
    speeds = {
        "emotune": tokens / sft_throughput.ours(task, bench.folder / "ours")().seconds,
        "trl": tokens / sft_throughput.trl_sft(task, whole, bench.folder / "trl", *flags)().seconds,
    }
    return speeds | {"ratio": speeds["emotune"] / speeds["trl"]}


def candidates(bench: Bench, quantization: str) -> dict[str, Any]:
    """Candidates per second of our engine and of the published loop, and how near decoding is to the memory's bound."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    from emotune.generation.local import replies

    tokenizer, bare = bench.loaded(quantization)
    # In 4 and 16 bits the adapter stays on top of the weights.
    lora = LoraConfig(r=bench.params().sft.lora.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(bare, lora).eval()
    sampling = bench.sampling()
    asked = bench.requests(tokenizer, bench.size.prompts)
    replies(model, tokenizer, asked[:1], sampling)
    with reading(model) as read:
        began = time.perf_counter()
        replies(model, tokenizer, asked, sampling)
        ours = time.perf_counter() - began
    set_seed(7)
    began = time.perf_counter()
    for request in asked[: bench.size.slow_prompts]:
        ids = torch.tensor([request.prompt], device=model.device)
        for _ in request.keys:
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                pad_token_id=tokenizer.pad_token_id,
                **sampling.model_dump(exclude={"guidance"}),
            )
    published = (time.perf_counter() - began) / bench.size.slow_prompts
    per_second = {"emotune": len(asked) * CANDIDATES / ours, "published": CANDIDATES / published}
    return per_second | {
        "ratio": per_second["emotune"] / per_second["published"],
        "bandwidth_share": sum(read) / bandwidth(model.device) / ours,
    }


def bandwidth(device: Any) -> float:
    """Bytes per second at which torch sums a quarter of a GiB on a device, the best of five."""
    import torch

    numbers, times = torch.ones(2**26, device=device), []
    for _ in range(5):
        began = time.perf_counter()
        numbers.sum().item()
        times.append(time.perf_counter() - began)
    return numbers.nbytes / min(times)


def continuous(bench: Bench) -> float:
    """Candidates per second of transformers' continuous batching, in bfloat16."""
    from transformers import GenerationConfig

    tokenizer, model = bench.loaded("none")
    sampling = bench.sampling().model_dump(exclude={"guidance", "min_new_tokens", "repetition_penalty"})
    config = GenerationConfig(**sampling, do_sample=True, eos_token_id=-1, pad_token_id=tokenizer.pad_token_id)
    prompts = [[*own.prompt] for own in bench.requests(tokenizer, bench.size.prompts) for _ in own.keys]
    began = time.perf_counter()
    written = model.generate_batch(inputs=prompts, generation_config=config)
    seconds = time.perf_counter() - began
    if len(written) < len(prompts):
        raise RuntimeError(f"{len(written)} of {len(prompts)} replies came")
    return len(prompts) / seconds


def vllm(bench: Bench) -> float:
    """Candidates per second of vLLM, where it is installed beside the rest, in bfloat16."""
    from vllm import LLM, SamplingParams

    from emotune.models import loading

    tokenizer = loading.load_tokenizer(bench.model, "out_inst_uni")
    own = bench.sampling().model_dump(exclude={"guidance", "min_new_tokens", "max_new_tokens"})
    sampling = SamplingParams(n=CANDIDATES, max_tokens=TOKENS, ignore_eos=True, **own)
    engine = LLM(str(bench.model), dtype="bfloat16", max_model_len=1024, gpu_memory_utilization=0.8)
    prompts = [{"prompt_token_ids": [*r.prompt]} for r in bench.requests(tokenizer, bench.size.prompts)]
    engine.generate(prompts[:1], sampling)
    began = time.perf_counter()
    engine.generate(prompts, sampling)
    return len(prompts) * CANDIDATES / (time.perf_counter() - began)


def attention(bench: Bench) -> dict[str, float]:
    """Seconds of a step of sft by each kind of attention."""
    found = {}
    for kind in ("sdpa", "flash_attention_2"):
        p = bench.params(model__context=bench.size.contexts[-1], model__attention=kind)
        found[kind] = seven_b_shapes.steps(bench.model, p, bench.folder / kind)["sft"]["seconds"]
    return found


def equality(bench: Bench) -> dict[str, int]:
    """Of so many replies, how many are others when a twelfth as many rows go at once."""
    from emotune.generation.local import replies

    tokenizer, model = bench.loaded("nf4")
    asked = bench.requests(tokenizer, -(-bench.size.replies // CANDIDATES))
    one, other = (
        [own.text for of_prompt in replies(model, tokenizer, asked, bench.sampling(), rows) for own in of_prompt]
        for rows in (768, 64)
    )
    many = bench.size.replies
    return {"replies": many, "changed": sum(a != b for a, b in list(zip(one, other, strict=True))[:many])}


def pipeline(bench: Bench) -> dict[str, Any]:
    """Seconds and peak memory of every stage, to the end, whatever the text."""
    short = shapes.SHORT | {"prefs.prompts": bench.size.pipeline}
    return seven_b_shapes.stages(seven_b_shapes.PROFILES[bench.name], bench.model, bench.folder / "pipeline", short)


MEASUREMENTS: dict[str, Callable[[Bench], Any]] = {
    "memory": memory,
    "candidates_nf4": partial(candidates, quantization="nf4"),
    "candidates_bfloat16": partial(candidates, quantization="none"),
    "sft_tokens_per_second": training,
    "changed_by_the_batch": equality,
    "candidates_continuous_batching": continuous,
    "pipeline": pipeline,
    "candidates_vllm": vllm,
    "attention_seconds": attention,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = [*seven_b_shapes.PROFILES, "all", "tiny"]
    parser.add_argument("--shape", choices=kinds, default="all", help="(default %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="what begins later is left out (default %(default)s)"
    )
    chosen = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "EMOTUNE_TRACKING": "off"}
    names = [*seven_b_shapes.PROFILES] if chosen.shape in ("all", "tiny") else [chosen.shape]
    with redirect_stdout(sys.stderr):
        result = measured(names, SMALL if chosen.shape == "tiny" else FULL, time.monotonic() + 60 * chosen.minutes)
    print(json.dumps(result))


def measured(
    names: list[str], size: Size, end: float, measurements: Mapping[str, Callable[[Bench], Any]] = MEASUREMENTS
) -> dict[str, Any]:
    """Every measurement of each shape as `{value, reason}`, of which one is null; none begins after `end`.

    What matters most is measured of all shapes first; the pipeline is that of the first one alone.
    """
    import torch

    with tempfile.TemporaryDirectory() as folder:
        # Before anything imports it: TRL's command reads its rows through a cache.
        os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache"
        benches = {name: guarded(partial(Bench, name, size, Path(folder, name)), end) for name in names}
        found: dict[str, dict[str, Any]] = {name: {} for name in names}
        for kind, measure in measurements.items():
            for name, bench in benches.items():
                if kind != "pipeline" or name == names[0]:
                    found[name][kind] = guarded(partial(measure, bench["value"]), end) if bench["value"] else bench
    return {
        "benchmark": "gpu",
        "device": torch.cuda.get_device_name() if _on_gpu() else platform.processor() or "cpu",
        "size": "full" if size is FULL else "tiny",
        "shapes": found,
    }


def guarded(measure: Callable[[], Any], end: float) -> dict[str, Any]:
    """What a measurement gives, or why it gives nothing."""
    import torch

    if time.monotonic() > end:
        return {"value": None, "reason": "no time was left"}
    try:
        return {"value": measure(), "reason": None}
    # Whatever stops one of them, a package that is absent or memory that ran out, is what it has to say.
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return {"value": None, "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
