"""What a judge says of texts: a label each, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# Texts -> a label and its probability for each.
Judge = Callable[[Sequence[str]], list[tuple[str, float]]]

CLEAN, MILD, SALAD, NOISE = "clean", "mild gibberish", "word salad", "noise"
GIBBERISH_LABELS = (CLEAN, MILD, SALAD, NOISE)


def most_probable(probabilities: np.ndarray, labels: Sequence[str]) -> list[tuple[str, float]]:
    """[texts, labels] -> the most probable label of each text, with its probability."""
    return [(labels[best], float(row[best])) for row, best in zip(probabilities, probabilities.argmax(1), strict=True)]
