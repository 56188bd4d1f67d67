"""What a judge says of texts: a label each, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Texts -> a label and its probability for each.
Judge = Callable[[Sequence[str]], list[tuple[str, float]]]

CLEAN, MILD, SALAD, NOISE = "clean", "mild gibberish", "word salad", "noise"
GIBBERISH_LABELS = (CLEAN, MILD, SALAD, NOISE)
