"""The judge of gibberish: it tells clean text from what a bad small language model would have made of it."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from emotune.core.errors import InputError
from emotune.judges.corruption import with_corruptions

# Share of the rarest n-grams that gibberish training pretends not to know. Measured: without it, a quarter of the
# embedded corpus' held-out texts pass for gibberish; with it, one in eight.
FORGOTTEN = 0.3


def train_gibberish(texts: Sequence[str], seed: int) -> Pipeline:
    """Fit the classifier of `GIBBERISH_LABELS` on clean texts and their corruptions, half of the rows clean.

    Two thirds of the distinct texts teach it what English looks like; the rest, which that part has not seen, are
    corrupted, and looked at by a forgetful copy, since a reply may use phrases that training never saw.
    InputError for fewer than 10 distinct texts.
    """
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < 10:
        raise InputError(f"a gibberish judge needs at least 10 distinct clean texts, found {len(distinct)}")
    rng = random.Random(seed)
    rng.shuffle(distinct)
    known, unseen = distinct[: len(distinct) * 2 // 3], distinct[len(distinct) * 2 // 3 :]
    rows, labels = with_corruptions(unseen[:15_000], rng)
    fluency = Fluency().fit(known)
    scaler = StandardScaler()
    network = MLPClassifier((48,), tol=0.001, n_iter_no_change=4, random_state=seed)
    network.fit(scaler.fit_transform(fluency.forgetful(FORGOTTEN, seed).transform(rows)), labels)
    # Half of the file, and only training goes on from it.
    del network._optimizer
    return make_pipeline(fluency, scaler, network)


class Fluency(TransformerMixin, BaseEstimator):
    """Texts -> [texts, 23] signs of bad English: unlikely words, neighbours and spellings, repetition, loose ends.

    Word order tells salad from speech, and a linear judge cannot see it in n-grams that it never met. So this is a
    language model in one array: hashed counts of 1-3 words and of 4 letters, from clean text only.
    """

    START, END, LETTERS = "\2", "\3", "\4"
    TOKEN = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]+")
    TAG = re.compile(r"\[/?\w+\]|</?\w+>|<<|>>")
    # Buckets of the hash; a bigram leans on its last word's frequency as if that had been seen PRIOR times.
    BUCKETS, PRIOR, UNSEEN = 2**18, 5.0, 0.5

    def fit(self, texts: Sequence[str], labels: Any = None) -> Fluency:
        """Count the n-grams of clean texts."""
        keys: list[int] = []
        self.words_ = 0
        for text in texts:
            words = self._words(text)
            self.words_ += len(words)
            for size in (1, 2, 3):
                keys += self._keys(words, size)
            keys += self._spellings(words)
        self.counts_ = np.bincount(keys, minlength=self.BUCKETS).astype(np.float32)
        return self

    def forgetful(self, share: float, seed: int) -> Fluency:
        """A copy that forgot what it saw n times with chance share x sqrt(PRIOR / (PRIOR + n)): rare ones first."""
        copy = Fluency()
        copy.words_ = self.words_
        chance = share * np.sqrt(self.PRIOR / (self.PRIOR + self.counts_))
        forgotten = np.random.default_rng(seed).random(self.BUCKETS) < chance
        copy.counts_ = np.where(forgotten, 0, self.counts_)
        return copy

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        """The signs of each text, [texts, 23], float64: in float32 a verdict's sixth decimal depends on its batch."""
        return np.array([list(self._signs(text).values()) for text in texts], dtype=np.float64)

    def _words(self, text: str) -> list[str]:
        return [self.START, *self.TOKEN.findall(text.lower()), self.END]

    def _keys(self, parts: Sequence[str], size: int) -> list[int]:
        grams = zip(*(parts[start:] for start in range(size)), strict=False)
        # crc32, because Python's own hash of a string differs between processes.
        return [zlib.crc32(" ".join(gram).encode()) % self.BUCKETS for gram in grams]

    def _spellings(self, words: Sequence[str]) -> list[int]:
        padded = [f"<{word}>" for word in words[1:-1]]
        fours = [f"{self.LETTERS}{word[i : i + 4]}" for word in padded for i in range(max(1, len(word) - 3))]
        return self._keys(fours, 1)

    def _signs(self, text: str) -> dict[str, float]:
        """Each sign by its name, in the order in which the network has learned them."""
        words = self._words(text)
        body = words[1:-1]
        spoken = [word for word in body if word[0].isalnum()]
        letters = self._counts(self._spellings(words))
        return {
            "log_words": np.log1p(len(body)),
            **self._oddity(words),
            # How often clean text spells like this, four letters at a time.
            "mean_log_letters": np.log1p(letters).mean(),
            "share_of_new_letters": (letters == 0).mean(),
            **_repetition(body, spoken),
            # What stands about: tags, a run of punctuation, letters by themselves.
            "tags": len(self.TAG.findall(text)),
            "longest_punctuation": max((len(word) for word in body if not word[0].isalnum()), default=0),
            "share_of_single_letters": sum(len(word) == 1 for word in spoken) / max(1, len(spoken)),
        }

    def _oddity(self, words: Sequence[str]) -> dict[str, float]:
        """How unlikely the words are, in nats, and how many of them, of pairs and of triples clean text never had.

        `rarity` is of a word by itself, `surprise` of a word after the one before it, and `clash` how much more it
        surprises there than anywhere else.
        """
        ones, twos, threes = (self._counts(self._keys(words, size)) for size in (1, 2, 3))
        likely = (ones + self.UNSEEN) / (self.words_ + self.UNSEEN * self.BUCKETS)
        rarity = -np.log(likely)
        surprise = -np.log((twos + self.PRIOR * likely[1:]) / (ones[:-1] + self.PRIOR))
        clash = surprise - rarity[1:]
        return {
            "mean_surprise": surprise.mean(),
            "most_surprise": surprise.max(),
            "surprise_at_the_end": surprise[-1],
            "most_surprise_twice": _with_next(surprise).max(),
            "mean_clash": clash.mean(),
            "most_clash_twice": _with_next(clash).max(),
            "surprising_words": (surprise > 8).sum(),
            "share_of_new_pairs": (twos == 0).mean(),
            "new_pairs": (twos == 0).sum(),
            "share_of_new_triples": (threes == 0).mean(),
            "new_triples": (threes == 0).sum(),
            "mean_rarity": rarity.mean(),
            "most_rarity": rarity.max(),
            "new_words": (ones == 0).sum(),
        }

    def _counts(self, keys: Sequence[int]) -> np.ndarray:
        """How often each n-gram was seen; a text too short to have one has one that never was."""
        return self.counts_[keys] if keys else np.zeros(1, np.float32)


def _with_next(values: np.ndarray) -> np.ndarray:
    """Sums of neighbours: one wrong word surprises twice, after its neighbour and before the next."""
    return values[1:] + values[:-1] if len(values) > 1 else values


def _repetition(body: Sequence[str], spoken: Sequence[str]) -> dict[str, float]:
    """What is said again: a word anywhere, a word or a phrase of 2-4 words at once."""
    phrases = [(at, size) for size in (2, 3, 4) for at in range(len(body) - 2 * size + 1)]
    return {
        "share_of_repeated_words": 1 - len(set(spoken)) / max(1, len(spoken)),
        "doubled_words": sum(word == following for word, following in pairwise(body)),
        "doubled_phrases": sum(body[at : at + size] == body[at + size : at + 2 * size] for at, size in phrases),
    }
