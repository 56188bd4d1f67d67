"""Nested mappings as dotted names, and one laid over another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(nested: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Each leaf with its dotted name: {"sft": {"lora": {"rank": 16}}} -> ("sft.lora.rank", 16).

    An empty mapping is a leaf.
    """
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees as one, in which `above` has its way."""
    both = dict(below)
    for name, value in above.items():
        under = both.get(name)
        both[name] = overlaid(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return both
