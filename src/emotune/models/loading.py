"""Tokenizer, base model (quantised or not), adapters, attention, dtype, device: as params.yaml says, or not at all."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging as transformers_logging

from emotune.core import records
from emotune.core.errors import InputError
from emotune.models import nf4
from emotune.models.params import Model
from emotune.models.pins import BASE_FILE, where
from emotune.prompts.prompter import template_text

if TYPE_CHECKING:
    import torch

transformers_logging.disable_progress_bar()


def device() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def opened(kind: Any, setting: str, where: Mapping[str, Any], **how: Any) -> Any:
    """`kind.from_pretrained`; InputError, which names the setting, where neither Hub nor folder gives the model.

    Code that lies beside a model is never run: one that needs it is an InputError too.
    """
    try:
        # Said outright: where it is not, transformers asks whoever sits at the terminal.
        return kind.from_pretrained(**where, **how, trust_remote_code=False)
    except (OSError, ValueError) as error:
        needs_code = isinstance(error, ValueError) and "trust_remote_code" in str(error)
        # The system's own have a number: a full disk is no fault of the model.
        if not needs_code and getattr(error, "errno", 0) is not None:
            raise
        reason = "it needs code of its own, which is never run; accepted: models of a kind that transformers knows"
        named = " at ".join(filter(None, (where["pretrained_model_name_or_path"], where.get("revision"))))
        raise InputError(f"{setting}: {named}: {reason if needs_code else ' '.join(str(error).split())}") from None


def load_tokenizer(folder: Path, template: str | None) -> Any:
    """A base model's or an adapter's tokenizer, speaking one of our templates, or (`None`) the one it came with.

    It pads on the right, with a token that no reply trains: its own, else the unknown token, else the end token (then
    masks, never token ids, say what is padding).
    """
    tokenizer = opened(_kind(folder), "model.base", where(folder))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if template is not None:
        tokenizer.chat_template = template_text(template, special)
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = template_text("native", special)
    return tokenizer


def _kind(folder: Path) -> Any:
    """What loads its tokenizer: AutoTokenizer, which imports every kind of model to find out.

    Beside an adapter it would go by the class's name alone, so the commonest is loaded as what it is.
    """
    alone = not (folder / "config.json").exists() and (folder / "tokenizer_config.json").is_file()
    if alone and records.read_json(folder / "tokenizer_config.json").get("tokenizer_class") == "TokenizersBackend":
        from transformers import TokenizersBackend

        return TokenizersBackend
    from transformers import AutoTokenizer

    return AutoTokenizer


def load_base(base: Path, choice: Model, scored: bool = False) -> Any:
    """The base model in the dtype, attention and quantisation asked for, on this process's device, in eval mode.

    `scored`: under a head of one number in the place of the words', all of it 0 until it is trained. InputError where
    the machine lacks what was asked for; nothing falls back in silence.
    """
    _assert_possible(choice)
    # These, torch and peft take seconds to import, and whoever only re-ranks replies needs no more than a tokenizer.
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    dtype, is_nf4 = getattr(torch, choice.dtype), choice.quantization == "nf4"
    with _silent() if scored else nullcontext():
        model = opened(
            AutoModelForSequenceClassification if scored else AutoModelForCausalLM,
            "model.base",
            where(base),
            **({"num_labels": 1} if scored else {}),
            dtype=dtype,
            attn_implementation=choice.attention,
            quantization_config=nf4.quantization(dtype) if is_nf4 else None,
            device_map={"": device()},
        )
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and choice.context > longest:
        raise InputError(f"model.context must be at most {longest}, what the base model can hold; got {choice.context}")
    if is_nf4 and model.device.type == "cpu":
        nf4.compute_exactly(model)
        nf4.leave_file(model)
    if scored:
        torch.nn.init.zeros_(model.score.weight)
    return model.eval()


@contextmanager
def _silent() -> Iterator[None]:
    """That one head goes and another is new is no news."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def _assert_possible(choice: Model) -> None:
    """InputError where this machine lacks a GPU or a package for what was asked for."""
    import torch

    if choice.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise InputError(
            "model.attention: flash_attention_2 needs the package flash-attn (pip install -e '.[gpu]' with nvcc); "
            "accepted here: sdpa, eager"
        )
    if choice.attention == "flash_attention_2" and not torch.cuda.is_available():
        raise InputError("model.attention: flash_attention_2 needs a CUDA GPU; accepted here: sdpa, eager")
    if choice.quantization == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("model.quantization: nf4 needs the package bitsandbytes; accepted here: none")


def load_adapter(model: Any, adapter: Path, trainable: bool = False) -> Any:
    """The base model under a saved LoRA adapter; InputError where the adapter is of another shape of model."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter, is_trainable=trainable)
    except (RuntimeError, IndexError) as error:
        # The first tensor that differs says enough; torch lists them all.
        reason = " ".join(" ".join(str(error).splitlines()[:2]).split())
        raise InputError(f"{adapter} does not fit the base model: {reason}") from None


def assert_served(engine: str, adapter: Path) -> None:
    """InputError where a server would have to load an adapter that it cannot: those there are take LoRA alone."""
    if engine == "server" and records.read_json(adapter / "adapter_config.json").get("trainable_token_indices"):
        raise InputError(
            f"generation.engine: a server loads LoRA alone, and {adapter} has embeddings of tags besides; "
            "accepted: local, or sft.lora.tags: false"
        )


def load_reference(model: Any, adapter: Path) -> None:
    """A saved adapter in the place of the frozen reference `ref`, to the last number; InputError where it is another's.

    A saved adapter of other names or shapes does not fit the policy beside it.
    """
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    saved = load_peft_weights(str(adapter), device="cpu")
    try:
        set_peft_model_state_dict(model, saved, adapter_name="ref")
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{adapter} does not fit the policy: {' '.join(str(error).split())}") from None
    own = get_peft_model_state_dict(model, adapter_name="ref")
    if other := [name for name in own.keys() | saved.keys() if not _same(own.get(name), saved.get(name))]:
        raise InputError(f"{adapter} does not fit the policy: {sorted(other)[0]} is not in both, or not the same")


def _same(own: Any, saved: Any) -> bool:
    return own is not None and saved is not None and own.cpu().equal(saved.to(own.dtype))


def load_tuned(base: Path, choice: Model, adapter: Path) -> Any:
    """The base model under a saved adapter, to answer with: in float32 their weights are added up, which is faster.

    In 16 bits the sum would be rounded, and 4-bit weights cannot take it: there the adapter stays on top.
    """
    return merged(load_adapter(load_base(base, choice), adapter), choice)


def merged(model: Any, choice: Model) -> Any:
    """A model and the adapter on top of it as one, where the sum of their weights is exact."""
    exact = choice.dtype == "float32" and choice.quantization == "none"
    return model.merge_and_unload() if exact else model


def save_adapter(model: Any, tokenizer: Any, base: Path, out: Path) -> None:
    """Adapter and tokenizer, and nothing else: no optimizer, no reference copy, no card, no path of this machine."""
    with records.replacing_folder(out) as part:
        model.save_pretrained(part, selected_adapters=["default"])
        tokenizer.save_pretrained(part)
        (part / "README.md").unlink(missing_ok=True)
        # PEFT writes this set in the order of Python's hashes, which differs from run to run.
        config = records.read_json(part / "adapter_config.json")
        pinned = records.read_json(base / BASE_FILE)
        config["base_model_name_or_path"] = Path(pinned["name"]).name if pinned.get("files") else pinned["name"]
        if isinstance(config["target_modules"], list):
            config["target_modules"].sort()
        records.write_json(part / "adapter_config.json", config)
