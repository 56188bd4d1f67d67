"""What a judge says of texts: a label each, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Verdicts = list[tuple[str, float]]
# Texts -> a label and its probability for each.
Judge = Callable[[Sequence[str]], Verdicts]

CLEAN, MILD, SALAD, NOISE = "clean", "mild gibberish", "word salad", "noise"
GIBBERISH_LABELS = (CLEAN, MILD, SALAD, NOISE)


@dataclass(frozen=True, slots=True)
class Classifier:
    """A judge that says how probable each label is: its verdicts are by p(label | text) / prior(label) ** tau.

    `prior` is the share of each label in what the probabilities are under. A judge that learned from few rows of a
    label hardly ever answers it: divided by what it expects, it says what the text adds to that (Saerens et al. 2002;
    Menon et al. 2021). Tau 0, which needs no prior, leaves the probabilities as they are.
    """

    labels: Sequence[str]
    # Texts -> [texts, labels].
    probabilities: Callable[[Sequence[str]], np.ndarray]
    prior: Mapping[str, float] | None = None
    tau: float = 0.0

    def __call__(self, texts: Sequence[str]) -> Verdicts:
        """A label and its probability for each text, in order."""
        return self.both(texts)[0]

    def undivided(self, texts: Sequence[str]) -> Verdicts:
        """What it says with tau 0."""
        return self.both(texts)[1]

    def both(self, texts: Sequence[str]) -> tuple[Verdicts, Verdicts]:
        """What it says by its tau, and with tau 0; the texts are read once."""
        probabilities = self.probabilities(texts)
        own = divided(probabilities, self.labels, self.prior, self.tau)
        return most_probable(own, self.labels), most_probable(probabilities, self.labels)


def divided(probabilities: Any, labels: Sequence[str], prior: Mapping[str, float] | None, tau: float) -> Any:
    """[texts, labels] over the labels' priors ** tau, each row scaled to add up to 1 again."""
    if prior is None or not tau:
        return probabilities  # to the last bit
    ratios = probabilities / [prior[label] ** tau for label in labels]
    return ratios / ratios.sum(1, keepdims=True)


def most_probable(probabilities: np.ndarray, labels: Sequence[str]) -> Verdicts:
    """[texts, labels] -> the most probable label of each text, with its probability; where labels tie, the first."""
    return [(labels[best], float(row[best])) for row, best in zip(probabilities, probabilities.argmax(1), strict=True)]
