"""Attention to what several lines begin with, whose keys and values are held once for all of them.

The queries of all lines that begin alike are one matrix product with their beginning, which is so read once a step
(Hydragen, Juravsky et al. 2024); keys and values of what stands behind it are each line's own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface

# A product is over a grid of beginnings and their lines: at most so many of its places may there be for each line.
PLACES = 2


class Beginnings:
    """Keys and values [beginnings, heads, positions, size] of each layer of a cache, and which is each line's."""

    def __init__(self, cache: Any, beginning: torch.Tensor) -> None:
        self.layers: list[Any] = [
            (getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers
        ]
        self.beginning = beginning
        self.keep(torch.arange(len(beginning), device=beginning.device))

    def keep(self, lines: torch.Tensor) -> None:
        """These lines are left; each has a place in the grid [beginnings, widest], those that begin alike in a row."""
        self.beginning = self.beginning[lines]
        self.number = (self.beginning[:, None] == self.beginning).tril(-1).sum(1)
        self.widest = int(self.number.max()) + 1

    def serve(self, model: Any) -> bool:
        """Whether a model's attention can be `attention`, and few places of the grid are empty."""
        inner = getattr(model, "get_base_model", lambda: model)()
        # sdpa takes a mask and a scale and no more; a layer without keys looks at those of another.
        plain = inner._supports_attention_backend and inner.config.get_text_config()._attn_implementation == "sdpa"
        if not plain or any(keys is None for keys, _ in self.layers):
            return False
        places = len(self.layers[0][0]) * self.widest
        return places <= PLACES * len(self.beginning)

    def cut(self, cache: Any) -> None:
        """A cache of whole lines holds what stands behind their beginnings alone."""
        for layer, (keys, _) in zip(cache.layers, self.layers, strict=True):
            layer.keys, layer.values = (states[:, :, keys.shape[2] :] for states in (layer.keys, layer.values))

    def times(self, rows: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """The rows of each line [lines, heads, rows, a] times what its beginning has [beginnings, heads, a, b]."""
        grid = rows.new_zeros((*own.shape[:2], self.widest, *rows.shape[2:]))
        grid[self.beginning, :, self.number] = rows
        return (grid.flatten(2, 3) @ own).unflatten(2, grid.shape[2:4])[self.beginning, :, self.number]


@contextmanager
def attending(model: Any, beginnings: Beginnings | None) -> Iterator[dict[str, Any]]:
    """With what else a model is called, so that its layers attend to `beginnings` and, behind them, to its cache."""
    if beginnings is None:
        yield {}
        return
    config = model.config.get_text_config()
    implementation = config._attn_implementation
    config._attn_implementation = "beginnings"
    try:
        yield {"beginnings": beginnings}
    finally:
        config._attn_implementation = implementation


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    beginnings: Beginnings,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Softmax(query x keys + mask) x values, where beginning and cache lie one behind the other [lines, rows, ...]."""
    lines, heads, rows, size = query.shape
    keys, values = beginnings.layers[module.layer_idx]
    # Heads that share keys and values are more rows of theirs.
    queries = query.reshape(lines, key.shape[1], -1, size) * (size**-0.5 if scaling is None else scaling)
    scores = torch.cat([beginnings.times(queries, keys.mT), queries @ key.mT], dim=3)
    scores = scores.view(lines, heads, rows, -1) + attention_mask
    weights = scores.softmax(dim=3, dtype=torch.float32).to(query.dtype).view(*queries.shape[:3], -1)
    first, rest = weights.split([keys.shape[2], key.shape[2]], dim=3)
    attended = beginnings.times(first, values) + rest @ value
    return attended.view(lines, heads, rows, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register("beginnings", attention)
