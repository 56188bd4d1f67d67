"""Checkpoints of random numbers in the shapes of models that people use: they take what the real ones take.

Vocabulary, heads, tied embeddings, bfloat16 and shards are those of the model; `build` takes fewer layers, or smaller
ones. The tokenizer has as many tokens as the real one, of its kind, and a chat template of its family. It knows English
as far as a few embedded dialogues teach it; tokens that no text is encoded to fill it up.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# The tokenizer's kind and the values of config.json, as the model's card has them.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2-7b": (
        "llama",
        {
            "model_type": "llama",
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
    ),
    "mistral-7b": (
        "mistral",
        {
            "model_type": "mistral",
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
    ),
    "gemma-7b": (
        "gemma",
        {
            "model_type": "gemma",
            "vocab_size": 256000,
            "hidden_size": 3072,
            "intermediate_size": 24576,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": 256,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "smollm2-135m": (
        "smollm2",
        {
            "model_type": "llama",
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2.5-0.5b": (
        "qwen2",
        {
            "model_type": "qwen2",
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
        },
    ),
    "gemma-3-270m": (
        "gemma",
        {
            "model_type": "gemma3_text",
            "vocab_size": 262144,
            "hidden_size": 640,
            "intermediate_size": 2048,
            "num_hidden_layers": 18,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "sliding_window": 512,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
        },
    ),
}
# What makes a profile's pipeline short, and pairs of whatever random numbers say.
SHORT = {
    "data.source": "embedded",
    "data.dialogues": 200,
    "evaluate.prompts": 7,
    "evaluate.control_contexts": 1,
    "evaluate.sampling.max_new_tokens": 8,
    "evaluate.resamples": 100,
    "sft.epochs": 0.1,
    "prefs.prompts": 7,
    "prefs.attempts": 1,
    "prefs.target_score_range": 0.01,
    "prefs.min_chosen_score": -100.0,
    "prefs.min_clean_confidence": 0.0,
    # Where no judge finds an emotion in what they say, people's replies are preferred to it.
    "prefs.human_fill": 1,
    "dpo.epochs": 1,
    "dpo.control_contexts": 0,
}
# What a tokenizer is taught beside what it always has: letters, and words of a few dialogues.
TAUGHT = 2000
INSTRUCT = """{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ raise_exception('no system message') }}{%- endif -%}
{%- if message.role == 'user' -%}{{ START ~ '[INST] ' ~ message.content | trim ~ ' [/INST]' }}
{%- else -%}{{ ' ' ~ message.content | trim ~ eos_token }}{%- endif -%}
{%- endfor -%}"""
TURNS = """{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ raise_exception('no system message') }}{%- endif -%}
{{ '<start_of_turn>' ~ ('model' if message.role == 'assistant' else 'user') ~ '\n' }}
{{- message.content | trim ~ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""
CHATML = """{%- if messages[0].role != 'system' -%}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""


class Kind(NamedTuple):
    """How a family's tokenizer is: its special tokens by id, which of them has which part, and its template."""

    special: tuple[str, ...]
    parts: dict[str, str]
    template: str
    byte_level: bool
    ends: tuple[int, ...]


SENTENCEPIECE = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
KINDS = {
    "llama": Kind(("<unk>", "<s>", "</s>"), SENTENCEPIECE, INSTRUCT.replace("START", "bos_token"), False, (2,)),
    "mistral": Kind(
        ("<unk>", "<s>", "</s>"),
        SENTENCEPIECE,
        INSTRUCT.replace("START", "(bos_token if loop.first else '')"),
        False,
        (2,),
    ),
    "gemma": Kind(
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"},
        TURNS,
        False,
        (1, 5),
    ),
    "smollm2": Kind(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
        },
        CHATML,
        True,
        (2,),
    ),
    "qwen2": Kind(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        CHATML,
        True,
        (2, 0),
    ),
}


def build(name: str, folder: Path, texts: Sequence[str], **changes: Any) -> Path:
    """A checkpoint of one of SHAPES in a folder, with some values of its config changed; returns the folder.

    Each layer is a shard of its own. All layers have the same numbers: they are drawn once.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, values = SHAPES[name]
    own = KINDS[kind]
    ids = {part.replace("token", "token_id"): own.special.index(token) for part, token in own.parts.items()}
    ids = {part: ids.get(part) for part in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(**values | ids | changes, dtype="bfloat16")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    config.architectures = [type(model).__name__]
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    model.generation_config.eos_token_id = list(own.ends)
    model.generation_config.save_pretrained(folder)
    tokenizer(own, config.vocab_size, texts).save_pretrained(folder)

    torch.manual_seed(7)
    drawn: dict[str, torch.Tensor] = {}
    shards: dict[str, list[tuple[str, torch.Tensor]]] = {}
    for path, weight in model.named_parameters():
        place = path.split(".layers.")[1].split(".")[0] if ".layers." in path else "rest"
        within = path.replace(f".layers.{place}.", ".")
        if within not in drawn:
            drawn[within] = _numbers(within, weight.shape, "gemma" in config.model_type)
        shards.setdefault(place, []).append((path, drawn[within]))
    total, places = 0, {}
    for number, weights in enumerate(shards.values(), start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(dict(weights), folder / file, {"format": "pt"})
        total += sum(weight.nbytes for _, weight in weights)
        places |= {path: file for path, _ in weights}
    # What base_model leaves of a model that needs no pin: the stages load it from this very folder.
    (folder / "base.json").write_text(json.dumps({"name": "embedded"}))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _numbers(path: str, shape: Sequence[int], is_gemma: bool) -> Any:
    """A matrix as models begin with; a norm that changes nothing, which Gemma writes as 0; no bias."""
    import torch

    numbers = torch.zeros(shape, dtype=torch.bfloat16)
    if len(shape) > 1:
        return numbers.normal_(0, 0.02)
    return numbers if is_gemma or path.endswith("bias") else numbers + 1


def tokenizer(kind: Kind, size: int, texts: Iterable[str]) -> Any:
    """A BPE tokenizer of exactly `size` tokens that has learned to read some texts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    # What a text is cut into while merges are learned; afterwards sentencepiece's kinds do not cut it.
    learning = Tokenizer(models.BPE())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learning.pre_tokenizer = split if kind.byte_level else pre_tokenizers.Metaspace(prepend_scheme="never")
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind.byte_level else [*map(chr, range(33, 127)), "▁"]
    learning.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=TAUGHT, initial_alphabet=alphabet, show_progress=False)
    )
    learned = json.loads(learning.to_str())["model"]
    bytes_ = [] if kind.byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*kind.special, *bytes_, *sorted(learned["vocab"], key=learned["vocab"].__getitem__)]
    space = "Ġ" if kind.byte_level else "▁"
    tokens += [f"{space}w{number}" for number in range(size - len(tokens))]
    bpe = Tokenizer(
        models.BPE(
            {token: number for number, token in enumerate(tokens)},
            [tuple(merge) for merge in learned["merges"]],
            unk_token=kind.parts.get("unk_token") if not kind.byte_level else None,
            fuse_unk=True,
            byte_fallback=not kind.byte_level,
        )
    )
    if kind.byte_level:
        bpe.pre_tokenizer, bpe.decoder = split, decoders.ByteLevel()
    else:
        bpe.normalizer = normalizers.Replace(" ", "▁")
        bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bpe.add_special_tokens([*kind.special])
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, **kind.parts)
    assert len(made) == size
    made.chat_template = kind.template
    return made
