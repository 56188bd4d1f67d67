"""The two emotion judges that are trained here, the one that rewards and the one that evaluates.

They share neither features nor learner, and by default no dialogue: the judges stage deals those out.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import LinearSVC

from emotune.core.errors import InputError

FOLDS = 3


class Recipe(NamedTuple):
    """What a judge reads of a text, and what learns it (of a seed); `_thinned` takes `most`, `_weights` `evenness`."""

    grams: dict[str, Any]
    learner: Callable[[int], Any]
    most: float
    evenness: float


RECIPES = {
    "words": Recipe(
        {"ngram_range": (1, 2), "token_pattern": r"\w+|[^\w\s]"},
        lambda seed: SGDClassifier("log_loss", alpha=1e-5, random_state=seed),
        most=3.5,
        evenness=0.28,
    ),
    "characters": Recipe(
        {"ngram_range": (3, 5), "analyzer": "char"},
        lambda seed: LinearSVC(C=0.1, tol=0.01, random_state=seed),
        most=4.0,
        evenness=0.3,
    ),
}


def train_emotion(texts: Sequence[str], labels: Sequence[str], recipe: str, seed: int) -> Pipeline:
    """Fit one of two emotion classifiers: `words` (1-2 words, logistic regression) or `characters` (3-5, linear SVM).

    Features are hashed, because a vocabulary makes a file of 100 MB that loads in seconds. Each label's score is
    calibrated by cross-validation, so a confidence is a probability under the label shares that it was trained on:
    those of `texts`, with the commonest label thinned and rare ones given more weight.
    InputError for an unknown recipe, or fewer than two labels.
    """
    if recipe not in RECIPES:
        raise InputError(f"unknown recipe {recipe!r} of an emotion judge; accepted: {', '.join(RECIPES)}")
    if len(set(labels)) < 2:
        raise InputError(f"an emotion judge needs texts of at least two labels, found {sorted(set(labels))}")
    grams, learner, _, _ = RECIPES[recipe]
    rows, gold, weights = _sample(labels, recipe, seed)
    judge = make_pipeline(
        HashingVectorizer(n_features=2**18, alternate_sign=False, norm=None, dtype=np.float32, **grams),
        TfidfTransformer(sublinear_tf=True),
        CalibratedClassifierCV(learner(seed), cv=FOLDS, ensemble=False),
    )
    return judge.fit([texts[row] for row in rows], gold, calibratedclassifiercv__sample_weight=weights)


def shares(labels: Sequence[str], recipe: str, seed: int) -> dict[str, float]:
    """The share of each label in what `train_emotion` learns from these, by weight: its probabilities are under it."""
    _, gold, weights = _sample(labels, recipe, seed)
    sums: dict[str, float] = {}
    for label, weight in zip(gold, weights.tolist(), strict=True):
        sums[label] = sums.get(label, 0.0) + weight
    return {label: total / len(gold) for label, total in sums.items()}


def _sample(labels: Sequence[str], recipe: str, seed: int) -> tuple[list[int], list[str], np.ndarray]:
    """The rows that a judge learns from, with the label and the weight of each."""
    _, _, most, evenness = RECIPES[recipe]
    rows = _thinned(labels, most, random.Random(f"{recipe} {seed}"))
    gold = [labels[row] for row in rows]
    return rows, gold, _weights(gold, evenness)


def _thinned(labels: Sequence[str], most: float, rng: random.Random) -> list[int]:
    """Rows to train on, in order: the commonest label at most `most` times as often as all others together.

    A label with fewer rows than folds is repeated, so that every fold knows it.
    """
    counts = Counter(labels)
    common, count = counts.most_common(1)[0]
    sample = set(rng.sample(range(count), min(count, round(most * (len(labels) - count)))))
    rows, seen = [], 0
    for row, label in enumerate(labels):
        if label != common or seen in sample:
            rows += [row] * -(-FOLDS // counts[label])
        seen += label == common
    return rows


def _weights(labels: Sequence[str], evenness: float) -> np.ndarray:
    """A weight per row, 1 on average, as (1 / its label's count) ** evenness: 0 as the data is, 1 all labels equal.

    83 % of DailyDialog is neutral and 0.2 % fear: as the data is, a judge hardly ever answers a rare emotion.
    """
    counts = Counter(labels)
    weights = np.array([counts[label] ** -evenness for label in labels])
    return weights / weights.mean()
