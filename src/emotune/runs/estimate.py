"""What each stage will take of memory, before it runs: terms in bytes, the knob that saves most, and the door.

Nothing is imported that takes time: a stage asks this of itself before it begins.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from operator import getitem, itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from emotune.core import records
from emotune.core.errors import InputError
from emotune.core.sections import check, read_yaml
from emotune.models import pins
from emotune.runs import sizes
from emotune.runs.params import Params
from emotune.runs.sizes import BYTES, STATE, Shape
from emotune.training.params import Training

GB = 1e9
# What Python holds once the libraries of a stage are imported, as measured with constraints.txt.
LIBRARIES = {"base_model": 0.05e9, "judges": 0.15e9, "baseline": 0.55e9, "sft": 0.52e9, "generate_prefs": 0.53e9}
LIBRARIES |= {"reward_model": 0.55e9, "dpo": 0.55e9, "evaluate": 0.57e9}
# A context of CUDA and its kernels, which torch does not count.
CUDA = 0.6e9
# Rows that are sampled at once (generation/local.py).
CPU_ROWS, GPU_ROWS = 192, 1024
SAMPLING = ("activations", "logits", "cache")
# Positions that are weighed at once, and the bytes of their scores (models/likelihood.py).
POSITIONS, WEIGHED_BYTES = 4096, 2**29
# For each byte of the train split, what Python holds of dialogues, of rows and labels, of pairs, of a judge's features.
HELD, HELD_BY = 12, {"sft": 45, "reward_model": 30, "judges": 45}
# Emotions have tags of about so many tokens of their own.
TAGS = 9
# A token of English is so many characters, and a reply so many tokens, where no tokenizer is at hand.
CHARACTERS, REPLY = 4, 30
TRY = "EMOTUNE_FORCE"

Memory = dict[str, int]


class Text(NamedTuple):
    """How long rows are, in tokens: the longest, the longest prompt, a reply; and the bytes of the train split."""

    longest: int
    prompt: int
    reply: int
    size: int


class Machine(NamedTuple):
    """What this machine has, in bytes, and whether that is a GPU's."""

    memory: int
    on_gpu: bool


def config_of(p: Params) -> dict[str, Any]:
    """The base model's config.json: a folder's, the Hub cache's, that of shapes.yaml, or as `pretrain` makes it.

    InputError where none is at hand.
    """
    base = p.model.base
    if base == pins.SCRATCH:
        own = p.pretrain
        sizes_of = {"hidden_size": own.hidden_size, "intermediate_size": 8 * own.hidden_size // 3}
        counts = {"num_hidden_layers": own.layers, "num_attention_heads": own.heads, "vocab_size": own.vocabulary}
        return {"model_type": "llama", **sizes_of, **counts}
    folder = pins.WEIGHTS if base == pins.EMBEDDED else pins.located(base)
    if (folder / "config.json").is_file():
        return dict(records.read_json(folder / "config.json"))
    known = read_yaml(Path(__file__).with_name("shapes.yaml"))
    if base in known:
        return dict(known[base])
    if cached := cached_file(base, "config.json", p.model.revision):
        return dict(records.read_json(cached))
    raise InputError(f"model.base: no config.json of {base} is here, so its size is not known; `hf download` brings it")


def cached_file(name: str, file: str, revision: str | None) -> Path | None:
    """Where the Hub's cache has a file of a repository at a commit; None too where the Hub could have no such name."""
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):
        cached = try_to_load_from_cache(name, file, revision=revision)
        return Path(cached) if isinstance(cached, str) else None
    return None


def memory(stage: str, p: Params, text: Text, machine: Machine) -> Memory:
    """What one process of a stage holds at its peak, by term; InputError where the model's size is not known."""
    needs = STAGES.get(stage)
    if needs is None:
        return {"libraries": round(0.08 * GB)}
    own = needs(p, sizes.shape(config_of(p), p.model.base), text, machine)
    if machine.on_gpu:
        return {"libraries": round(CUDA), **own}
    return {"libraries": round(LIBRARIES[stage]), "data": HELD_BY.get(stage, HELD) * text.size, **own}


def _frozen(p: Params, s: Shape) -> int:
    return sizes.weights(s, p.model.dtype, p.model.quantization == "nf4")


def adapter(p: Params, s: Shape) -> int:
    """The numbers that sft trains and saves."""
    lora = p.sft.lora
    names = None if lora.target_modules == "all-linear" else lora.target_modules
    return sizes.adapter(s, lora.rank, names, TAGS if lora.tags else 0)


def _trained(p: Params, s: Shape, t: Training, rows: int, length: int, scored: int) -> Memory:
    """A step of LoRA over so many rows, `scored` of whose positions have a label; or validation, where that is more."""
    dtype, lora, tokens = p.model.dtype, p.sft.lora, rows * length
    layer = sizes.saved(s, dtype, lora.rank, lora.dropout > 0, length)
    step = {"activations": sizes.activations(s, layer, dtype, tokens, t.gradient_checkpointing)}
    step["logits"] = sizes.scores(s, dtype, scored)
    # Of twice the rows, without gradients: the head begins where the layers have ended.
    read, logits = sizes.reading(s, dtype, 2 * tokens, adapted=True), sizes.scores(s, dtype, 2 * scored)
    if max(read, logits) > sum(step.values()):
        step = {"activations": max(0, read - logits), "logits": logits}
    # A layer in 4 bits is unpacked when it is used.
    unpacked = max(a * b for a, b in s.linears.values()) * BYTES[dtype] if p.model.quantization == "nf4" else 0
    number = adapter(p, s)
    # PEFT puts trained tags into a copy of all embeddings, whose gradient is as wide: four such matrices.
    tags = 4 * s.vocabulary * s.hidden * BYTES[dtype] if lora.tags else 0
    return {
        "weights": _frozen(p, s) + unpacked,
        "adapter": 4 * number,
        "gradients": 4 * number + tags,
        "optimizer": round(STATE[t.optimizer] * number),
        **step,
    }


def _sft(p: Params, s: Shape, text: Text, machine: Machine) -> Memory:
    rows, length = p.sft.batch_size, min(p.model.context, text.longest)
    scored = rows * length if p.sft.loss_on == "all" else rows * length // 2
    return _trained(p, s, p.sft, rows, length, scored)


def _dpo(p: Params, s: Shape, text: Text, machine: Machine) -> Memory:
    """Two rows a pair, against a frozen copy of the adapter; or what its probe samples, where that is more."""
    rows, length = 2 * p.dpo.batch_size, min(p.model.context, text.longest)
    terms = _trained(p, s, p.dpo, rows, length, rows * min(text.reply, length))
    terms["adapter"] *= 2
    questions = p.dpo.control_contexts * len(p.data.labels)
    probe = _sampled(p, s, text.prompt, p.prefs.sampling.max_new_tokens, questions, 1, machine)
    if probe["activations"] + probe["cache"] > terms["activations"]:
        terms |= {name: probe[name] for name in SAMPLING}
    return terms


def _reward_model(p: Params, s: Shape, text: Text, machine: Machine) -> Memory:
    """Two rows a pair, under an adapter of its own, of whose positions one number each is made."""
    lora = p.sft.lora.model_copy(update={"rank": p.reward_model.rank, "dropout": 0.0, "tags": False})
    lora = lora.model_copy(update={"target_modules": "all-linear"})
    own = p.model_copy(update={"sft": p.sft.model_copy(update={"lora": lora})})
    length = min(p.model.context, text.prompt + text.reply)
    return _trained(own, s, p.reward_model, 2 * p.reward_model.batch_size, length, 0)


def _sampled(p: Params, s: Shape, longest: int, new: int, rows: int, candidates: int, machine: Machine) -> Memory:
    """Rows sampled at once, so many candidates of a prompt on one line of the cache."""
    dtype, most = p.model.dtype, GPU_ROWS if machine.on_gpu else CPU_ROWS
    exact = dtype == "float32" and p.model.quantization == "none"
    read = sizes.reading(s, dtype, longest, adapted=not exact)
    # As generation/local.py: what half of the free memory holds.
    free = max(0, machine.memory - _frozen(p, s)) // 2
    row = sizes.cache(s, dtype, longest + new) + 16 * s.vocabulary + read // candidates
    rows = min(rows, most, max(1, free // row))
    lines = -(-rows // candidates)
    held = sizes.cache(s, dtype, lines * longest + rows * new)
    return {
        "weights": _frozen(p, s),
        "adapter": 0 if exact else 4 * adapter(p, s),
        "activations": lines * read,
        # The scores, in float32, as they are drawn from, and how often a token stood there already.
        "logits": rows * s.vocabulary * (BYTES[dtype] + 4 + 4 + 8),
        "cache": held * (s.layers + 1) // s.layers,
    }


def _read(terms: Memory, p: Params, s: Shape, scored: int) -> Memory:
    """Instead of sampling, to read as many positions as are weighed at once, with so many bytes of scores."""
    read = sizes.reading(s, p.model.dtype, POSITIONS, adapted=terms["adapter"] > 0)
    return terms | {"activations": read, "logits": scored, "cache": 0}


def _prefs(p: Params, s: Shape, text: Text, machine: Machine) -> Memory:
    if p.generation.engine == "server":
        return {}
    own, twins = p.prefs, 1 if p.prefs.sampling.guidance == 1 else 2
    new = own.sampling.max_new_tokens
    rows = own.prompts * own.candidates * twins
    terms = _sampled(p, s, min(p.model.context - new, text.prompt), new, rows, own.candidates, machine)
    if p.reward.model:
        return terms | {"weights": 2 * terms["weights"]}
    # The model that rewards is asked in the end, in the place of the one that answered.
    return max(terms, _read(terms, p, s, 0), key=lambda own: sum(own.values()))


def _examined(p: Params, s: Shape, text: Text, machine: Machine) -> Memory:
    """Replies sampled, or what human ones cost the model, whichever is more."""
    own = p.evaluate
    questions = (own.prompts or CPU_ROWS) + own.control_contexts * len(p.data.labels)
    new = own.sampling.max_new_tokens
    terms = _sampled(p, s, min(p.model.context - new, text.prompt), new, questions, 1, machine)
    scored = min(WEIGHED_BYTES, POSITIONS * s.vocabulary * (BYTES[p.model.dtype] + 8))
    return max(terms, _read(terms, p, s, scored), key=lambda own: sum(own.values()))


def _baseline(p: Params, s: Shape, text: Text, machine: Machine) -> Memory:
    return _examined(p, s, text, machine) | {"adapter": 0}


def _judges(p: Params, s: Shape, text: Text, machine: Machine) -> Memory:
    return {}


def _base_model(p: Params, s: Shape, text: Text, machine: Machine) -> Memory:
    """Nothing, not even dialogues, but for a model trained from nothing: float32, every position scored."""
    if p.model.base != pins.SCRATCH:
        return {"data": 0}
    tokens = p.pretrain.batch_size * min(p.model.context, text.longest)
    layer = sizes.saved(s, "float32", 0, False, p.model.context) + 2 * s.hidden * 4
    return {
        "libraries": round(0.41 * GB),
        "weights": 4 * s.parameters,
        "gradients": 4 * s.parameters,
        "optimizer": 8 * s.parameters,
        "activations": sizes.activations(s, layer, "float32", tokens, False),
        "logits": tokens * s.vocabulary * 4 * 4,
    }


Needs = Callable[[Params, Shape, Text, Machine], Memory]
STAGES: dict[str, Needs] = {
    "base_model": _base_model,
    "judges": _judges,
    "baseline": _baseline,
    "sft": _sft,
    "reward_model": _reward_model,
    "generate_prefs": _prefs,
    "dpo": _dpo,
    "evaluate": _examined,
}


def here() -> Machine:
    """This machine as a stage would use it: its first GPU where torch is one that can, else what a process may hold.

    Asked of nvidia-smi, because torch would take seconds, and CUDA once asked no longer hears which GPU it may use.
    """
    try:
        can = "+cpu" not in version("torch")
    except PackageNotFoundError:
        can = False
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if can and seen not in ("", "-1") and shutil.which("nvidia-smi"):
        ask = ["nvidia-smi", f"--id={seen}", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        said = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
        if said.isdecimal():
            return Machine(int(said) * 2**20, True)
    return Machine(ram(), False)


def ram() -> int:
    """The machine's memory, or what a container leaves of it."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    held = limit.read_text("ascii").strip() if limit.is_file() else ""
    return min(total, int(held)) if held.isdecimal() else total


def knobs(stage: str, p: Params) -> dict[str, Any]:
    """What can be turned down for a stage, by dotted name: each alone, to where it saves most."""
    turned: dict[str, Any] = {"model.dtype": "bfloat16", "model.quantization": "nf4"}
    turned |= {"reward_model.rank" if stage == "reward_model" else "sft.lora.rank": 8}
    turned["model.context"] = p.model.context // 2
    if stage in ("sft", "reward_model", "dpo"):
        own = {"batch_size": 1, "gradient_checkpointing": True, "optimizer": "adamw_8bit"}
        turned |= {f"{stage}.{name}": value for name, value in own.items()}
    if stage == "dpo":
        turned["dpo.control_contexts"] = 1
    if stage == "base_model":
        turned = {"pretrain.batch_size": 1, "pretrain.hidden_size": p.pretrain.hidden_size // 2}
    return turned


def best_knob(stage: str, p: Params, text: Text, machine: Machine) -> tuple[str, Any, int]:
    """The knob that saves most memory in a stage, where to turn it, and what the stage then takes."""
    peaks = {}
    for name, value in knobs(stage, p).items():
        content = p.model_dump(mode="json")
        *above, last = name.split(".")
        reduce(getitem, above, content)[last] = value
        with suppress(InputError):
            peaks[name, value] = sum(memory(stage, check(Params, content, name), text, machine).values())
    (name, value), peak = min(peaks.items(), key=itemgetter(1))
    return name, value, peak


def excess(stage: str, p: Params, dialogues: Path | None, machine: Machine) -> str:
    """What of the machine's memory a stage would take beyond what there is, and the knob; empty where it fits.

    Rows are taken to be as long as the longest dialogue can be. InputError where the model's size is not known.
    """
    train = dialogues / "train.jsonl" if dialogues else None
    longest, size = p.model.context, 0
    if train and train.is_file():
        size = train.stat().st_size
        with train.open("rb") as file:
            longest = min(longest, max(map(len, file), default=0) // CHARACTERS)
    text = Text(longest, longest, REPLY, size)
    peak = sum(memory(stage, p, text, machine).values())
    if peak <= machine.memory:
        return ""
    name, value, then = best_knob(stage, p, text, machine)
    return (
        f"{stage} would take about {peak / GB:.1f} GB of memory, and this machine has "
        f"{machine.memory / GB:.1f} GB{' on its GPU' if machine.on_gpu else ''}; {name}: {json.dumps(value)} saves "
        f"most, {then / GB:.1f} GB are left"
    )


def assert_fits(stage: str, p: Params, dialogues: Path | None) -> None:
    """InputError where the machine has not the memory that a stage takes; EMOTUNE_FORCE, set at all, lets it try."""
    if stage not in STAGES or os.environ.get(TRY):
        return
    try:
        lack = excess(stage, p, dialogues, here())
    except InputError:
        return  # The stage says itself what is wrong with its model.
    if lack:
        raise InputError(f"{lack}; `emotune estimate` says more, and {TRY}=1 tries all the same")
