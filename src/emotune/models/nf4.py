"""4-bit weights: how they are made, and on a CPU what bitsandbytes 0.50.2 does wrong with AVX-512, set right."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def quantization(dtype: torch.dtype) -> Any:
    """transformers' configuration of nf4 (Dettmers et al. 2023): blocks of 64 weights, their scales quantised too."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def compute_exactly(model: Any) -> None:
    """Let a model on a CPU compute with what its 4-bit weights stand for, whatever their shapes and the processor.

    With AVX512-BF16 a layer that is asked without gradients repacks its weights for good, their scales rounded to 16
    bits: it fails where rows do not divide by 32 or columns by 64, and training after it has other weights.
    """
    from bitsandbytes.nn import Linear4bit

    _dequantize_block_by_block()
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False


def leave_file(model: Any) -> None:
    """Give a model on a CPU its own copies of what was not quantised.

    Each is a view of the checkpoint's file else, and one norm of a layer keeps all of the file mapped: with 7 billion
    parameters the process is said to hold 13 GB more than it needs.
    """
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.clone()


@functools.cache
def _dequantize_block_by_block() -> torch.library.Library:
    """Give the CPU's dequantisation each block as a row of its own, for as long as what this returns is held.

    With AVX-512 it counts whole blocks a row: where rows of 16, 32, 48 ... columns end within a block of 64, it takes
    the scales of other blocks for all that follow, and says nothing.
    """
    import torch

    native = torch.library.get_kernel("bitsandbytes::dequantize_4bit", "CPU")

    def dequantize(
        keys: Any, weights: torch.Tensor, scales: torch.Tensor, block: int, kind: str, shape: Sequence[int], dtype: Any
    ) -> torch.Tensor:
        numbers = math.prod(shape)
        rows = [1, numbers] if numbers % block else [numbers // block, block]
        return native.call_boxed(keys, weights, scales, block, kind, rows, dtype).reshape(shape)

    library = torch.library.Library("bitsandbytes", "IMPL")
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that a kernel takes another's place
        library.impl("dequantize_4bit", dequantize, "CPU", with_keyset=True, allow_override=True)
    return library
