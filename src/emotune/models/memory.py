"""How it is known that memory ran out, and what a model works with."""

from typing import Any

import torch


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that memory ran out: on a CPU in words alone."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def reading(model: Any) -> int:
    """The bytes that a token takes while it is read without gradients, about: of a layer its gated product, attention
    and norms in float32; under an adapter what its linears take and give in float32 too.

    runs/sizes.py says the same of a model that is not there yet.
    """
    config = model.config.get_text_config()
    wide = getattr(config, "intermediate_size", None)
    # Some models have no such width, and some one a layer.
    wide = wide if isinstance(wide, int) else 4 * config.hidden_size
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries = config.num_attention_heads * size
    adapted = sum(part.in_features + part.out_features for part in model.modules() if hasattr(part, "lora_A"))
    own = (4 * wide + 3 * queries) * model.dtype.itemsize + 2 * 4 * config.hidden_size
    return int(own + 4 * adapted // config.num_hidden_layers)
