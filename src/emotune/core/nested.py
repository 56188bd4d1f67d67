"""Nested mappings as dotted names, and one laid over another."""

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(nested: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Each value under its dotted name, in order: `{"sft": {"lora": {"rank": 16}}}` -> `("sft.lora.rank", 16)`.

    An empty mapping below the first is a value.
    """
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees as one, in which `above` has its way; keys of `below` stand first, in its order."""
    whole = dict(below)
    for key, value in above.items():
        under = below.get(key)
        whole[key] = overlaid(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return whole


def settings(overlay: Mapping[str, Any], whole: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values that an overlay sets in a tree, under dotted names: a mapping is one where the tree has none there."""
    for key, value in overlay.items():
        under = whole.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            yield from settings(value, under, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
