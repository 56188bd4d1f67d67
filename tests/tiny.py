"""What tests of sft, dpo and their harness share: sections for the tiny base model, its adapter, and invented pairs."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from emotune.core.dialogue import Dialogue
from emotune.models import loading
from emotune.models.params import Model
from emotune.prompts.prompter import Prompter
from emotune.stages.dpo import Dpo
from emotune.stages.sft import Lora, Sft, sft_rows
from emotune.training.params import Training

CHOICE = Model(base="embedded", revision=None, dtype="float32", attention="sdpa", quantization="none", context=256)
SFT = Sft(
    epochs=1.0,
    learning_rate=0.01,
    schedule="cosine",
    warmup=0.1,
    batch_size=2,
    accumulation=1,
    optimizer="adamw_torch",
    gradient_checkpointing=False,
    checkpoints=2,
    seed=7,
    loss_on="replies",
    neutral_replies=None,
    balance=0.0,
    repeats=None,
    swapped=False,
    tag_dropout=0.0,
    lora=Lora(rank=2, alpha=4, dropout=0.0, rslora=True, tags=True, target_modules="all-linear"),
)
DPO = Dpo(
    **{name: getattr(SFT, name) for name in Training.model_fields},
    loss="sigmoid",
    beta=0.1,
    sft_weight=0.0,
    control_contexts=0,
)


def changed(p: Any, **changes: Any) -> Any:
    return type(p).model_validate(p.model_dump() | changes)


def ignore(logs: Mapping[str, float], step: int) -> None:
    pass


def rows_of(tokenizer: Any, dialogues: list[Dialogue], p: Sft, context: int = 256) -> list[dict[str, Any]]:
    """What sft trains on."""
    return sft_rows(Prompter(tokenizer, None, context), dialogues, "neutral", p)[0]


def save_adapter(base: Path, tokenizer: Any, folder: Path) -> Path:
    """An adapter that changes what the tiny model says, with dropout, saved in a folder."""
    torch.manual_seed(7)
    loading.save_adapter(
        with_tags(base, tokenizer, r=2, lora_dropout=0.1, init_lora_weights=False), tokenizer, base, folder
    )
    return folder


def tied(base: Path, folder: Path) -> Path:
    """The tiny base model with one matrix for input and output embeddings, saved in a folder."""
    shutil.copytree(base, folder)
    config = LlamaConfig.from_pretrained(base)
    config.tie_word_embeddings = True
    torch.manual_seed(7)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def with_tags(base: Path, tokenizer: Any, **lora: Any) -> Any:
    """The tiny model under a LoRA adapter to which embeddings of the tags of three emotions belong, moved already."""
    tags = Prompter(tokenizer, None, CHOICE.context).tag_ids(("neutral", "sadness", "surprise"))
    config = LoraConfig(target_modules="all-linear", trainable_token_indices=tags, task_type="CAUSAL_LM", **lora)
    model = get_peft_model(loading.load_base(base, CHOICE), config)
    delta = model.get_input_embeddings().token_adapter.trainable_tokens_delta["default"]
    delta.data += 0.1 * torch.randn(delta.shape)
    return model


def pair(number: int) -> dict[str, Any]:
    return {
        "history": [{"role": "user", "content": "I lost my keys again.", "emotion": "sadness"}],
        "emotion": "sadness",
        "prompt": "[INST] I lost my keys again. [/INST]",
        "chosen": f"Where did you see them {number} last?",
        "rejected": f"Great {number}!",
    }
