"""The matcher: whether a reply answers what was said. It looks for the context of a reply among those of ten others.

It reads neither emotions nor how good the English is: its features are pairs of a context's word and a reply's word,
which no other judge sees.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from sklearn.base import BaseEstimator
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.pipeline import Pipeline, make_pipeline

from emotune.core.dialogue import ASSISTANT, USER, Dialogue
from emotune.core.errors import InputError

# Contexts that a reply is held against, its own among them.
CONTEXTS = 10
# Buckets of the words' hash; numbers that a word is in the bilinear form; turns before the last that are read.
BUCKETS, SIZE, EARLIER = 2**14, 16, 4
# Of the training: rows at once, passes, Adam's rate for the word vectors (times 5 for the weights of a word that both
# sides have), and what a shared word counts before any is learned: SHARED in the last turn, half of it in those before.
BATCH, EPOCHS, RATE, SHARED = 200, 3, 0.02, 5.0


class Replies(NamedTuple):
    """Replies, and of each the turns before it, its emotion and its dialogue."""

    contexts: list[list[str]]
    texts: list[str]
    emotions: list[str]
    dialogues: list[str]


def replies_of(dialogues: Sequence[Dialogue], roles: Sequence[str]) -> Replies:
    """Every turn but the first of each dialogue that one of the roles says, as the reply to those before it."""
    turns = [(d, at) for d in dialogues for at in range(1, len(d.turns)) if d.turns[at].role in roles]
    return Replies(
        [[turn.content for turn in d.turns[:at]] for d, at in turns],
        [d.turns[at].content for d, at in turns],
        [d.turns[at].emotion for d, at in turns],
        [d.id for d, _ in turns],
    )


def train_matcher(dialogues: Sequence[Dialogue], seed: int) -> Pipeline:
    """A matcher of what people replied, users too; InputError for fewer than two replies."""
    return make_pipeline(Matcher().fit(replies_of(dialogues, (USER, ASSISTANT)), seed))


class Matcher(BaseEstimator):
    """How well a reply fits a context: words that both have, each by a weight, and a bilinear form of all word pairs.

    score = sum over shared words w of shared_w x_w y_w + SHARED (x U) (y V)', where x is the context's tf-idf, its
    last turn apart from those before it, and y the reply's. The form has rank SIZE. Learned by telling a reply's
    context from those of others in its emotion (InfoNCE, van den Oord et al. 2018), so that emotion is no way to tell.
    """

    WORDS = r"\w+|[?!]"

    def fit(self, human: Replies, seed: int) -> Matcher:
        """Learn from what people replied; InputError for fewer than two replies."""
        if len(human.texts) < 2:
            raise InputError(f"a matcher of replies needs at least 2 of them, found {len(human.texts)}")
        words = self._counts(human.texts)
        self.idf_ = (np.log((1 + words.shape[0]) / (1 + words.getnnz(axis=0))) + 1).astype(np.float32)
        last, earlier = self._contexts(human.contexts)
        replies, rng = self._tfidf(words), np.random.default_rng(seed)
        spread = 0.3 / np.sqrt(SIZE)
        self.of_context_ = rng.normal(0, spread, (2 * BUCKETS, SIZE)).astype(np.float32)
        self.of_reply_ = rng.normal(0, spread, (BUCKETS, SIZE)).astype(np.float32)
        self.shared_ = np.repeat(np.array([SHARED, SHARED / 2], dtype=np.float32), BUCKETS)
        parts = [self.of_context_, self.of_reply_, self.shared_]
        adam = _Adam(parts, [RATE, RATE, 5 * RATE])
        order = [batch for _ in range(EPOCHS) for batch in batches(human.emotions, rng)]
        for number, rows in enumerate(order):
            gradients = self._gradients(sp.hstack([last[rows], earlier[rows]]).tocsr(), replies[rows])
            adam.step(gradients, 1 - number / len(order))
        return self

    def scores(
        self, contexts: Sequence[Sequence[str]], replies: Sequence[str], of: Sequence[tuple[int, int]]
    ) -> np.ndarray:
        """Of each pair of a context's number and a reply's the score, [pairs]: the same whatever else is asked."""
        last, earlier = self._contexts(contexts)
        both, said = sp.hstack([last, earlier]).tocsr(), self._tfidf(self._counts(replies))
        at, to = np.array(of, dtype=np.int64).reshape(-1, 2).T
        form = ((both @ self.of_context_)[at] * (said @ self.of_reply_)[to]).sum(1)
        weighted = self._weighted(both)
        # Rounded: equal contexts are equally good, whatever the order in which a machine adds up.
        return np.round(SHARED * form + np.asarray(weighted[at].multiply(said[to]).sum(1)).ravel(), 4)

    def _gradients(self, contexts: sp.csr_matrix, replies: sp.csr_matrix) -> list[np.ndarray]:
        """Of -ln of the share that the own context has among those of the batch, for each reply, on average."""
        left, right = contexts @ self.of_context_, replies @ self.of_reply_
        scores = SHARED * left @ right.T + (self._weighted(contexts) @ replies.T).toarray()
        shares = np.exp(scores - scores.max(0))
        errors = (shares / shares.sum(0) - np.eye(len(shares), dtype=np.float32)) / len(shares)
        spread = errors @ replies
        shared = [
            np.asarray(side.multiply(spread).sum(0)).ravel() for side in (contexts[:, :BUCKETS], contexts[:, BUCKETS:])
        ]
        return [SHARED * contexts.T @ (errors @ right), SHARED * replies.T @ (errors.T @ left), np.concatenate(shared)]

    def _weighted(self, contexts: sp.csr_matrix) -> sp.csr_matrix:
        """Contexts over the words of a reply, [contexts, BUCKETS]: what each of its words would add."""
        weighted = contexts.multiply(self.shared_).tocsr()
        return weighted[:, :BUCKETS] + weighted[:, BUCKETS:]

    def _contexts(self, contexts: Sequence[Sequence[str]]) -> list[sp.csr_matrix]:
        """The last turn of each context, and those before it."""
        last = [" ".join(turns[-1:]) for turns in contexts]
        earlier = [" ".join(turns[-1 - EARLIER : -1]) for turns in contexts]
        return [self._tfidf(self._counts(texts)) for texts in (last, earlier)]

    def _counts(self, texts: Sequence[str]) -> sp.csr_matrix:
        return HashingVectorizer(
            n_features=BUCKETS,
            alternate_sign=False,
            norm=None,
            binary=True,
            dtype=np.float32,
            token_pattern=self.WORDS,
        ).transform(texts)

    def _tfidf(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        """Rows of length 1; of a text without words nothing but zeros."""
        weighted = counts.multiply(self.idf_).tocsr()
        lengths = np.sqrt(weighted.multiply(weighted).sum(1))
        return weighted.multiply(1 / np.maximum(lengths, 1e-9)).tocsr().astype(np.float32)


class _Adam:
    """Adam (Kingma & Ba 2015), in place."""

    def __init__(self, parts: Sequence[np.ndarray], rates: Sequence[float]) -> None:
        self.parts, self.rates, self.steps = parts, rates, 0
        self.means = [np.zeros_like(part) for part in parts]
        self.squares = [np.zeros_like(part) for part in parts]

    def step(self, gradients: Sequence[np.ndarray], share: float) -> None:
        """Go down by a share of each rate."""
        self.steps += 1
        first, second = 1 - 0.9**self.steps, 1 - 0.99**self.steps
        for part, rate, mean, square, gradient in zip(
            self.parts, self.rates, self.means, self.squares, gradients, strict=True
        ):
            mean += 0.1 * (gradient - mean)
            square += 0.01 * (gradient**2 - square)
            part -= share * rate * (mean / first) / (np.sqrt(square / second) + 1e-8)


def batches(emotions: Sequence[str], rng: np.random.Generator) -> list[np.ndarray]:
    """One pass in random order, each batch of few emotions: sorted by them before it is cut."""
    order = rng.permutation(len(emotions))
    order = order[np.argsort(np.array(emotions)[order], kind="stable")]
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    return [batches[number] for number in rng.permutation(len(batches))]


# What is asked of a matcher.


def tens(dialogues: Sequence[Hashable], emotions: Sequence[str], seed: int) -> list[list[int]]:
    """For each row the numbers of the CONTEXTS rows among which its context is looked for, its own among them.

    All are asked in one emotion, and each is of another dialogue. Rows are dealt out in tens that share their
    contexts, so a reply that is always the same finds one of each ten: it scores chance, however much the matcher likes
    some contexts. Where rows of an emotion do not make a whole ten, rows of other tens, then of
    other emotions, fill it up; fewer dialogues than CONTEXTS make smaller ones.
    """
    result: list[list[int]] = [[] for _ in dialogues]
    for emotion in dict.fromkeys(emotions):
        order = list(range(len(emotions)))
        random.Random(seed).shuffle(order)
        own = [row for row in order if emotions[row] == emotion]
        others = [row for row in order if emotions[row] != emotion]
        dealt: list[list[int]] = []
        for row in own:
            room = (ten for ten in dealt if len(ten) < CONTEXTS and all(dialogues[row] != dialogues[at] for at in ten))
            if (ten := next(room, None)) is None:
                dealt.append(ten := [])
            ten.append(row)
            result[row] = ten
        for ten in dealt:
            known = {dialogues[row] for row in ten}
            for row in (*own, *others):
                if len(ten) < CONTEXTS and dialogues[row] not in known:
                    known.add(dialogues[row])
                    ten.append(row)
    return result


def found(
    matcher: Matcher, contexts: Sequence[Sequence[str]], replies: Sequence[str], dealt: Sequence[Sequence[int]]
) -> list[tuple[float, float]]:
    """Of each reply whether its own context of `dealt` fits it best, and 1 / the rank of that context.

    Contexts that fit equally well share their ranks: each has what it would have on average in a random order.
    """
    asked = [(context, reply) for reply, ten in enumerate(dealt) for context in ten]
    scores = iter(matcher.scores(contexts, replies, asked).tolist())
    result = []
    for reply, ten in enumerate(dealt):
        own = {context: next(scores) for context in ten}
        better = sum(score > own[reply] for score in own.values())
        equal = sum(score == own[reply] for score in own.values())
        result.append((0.0 if better else 1 / equal, sum(1 / (better + at) for at in range(1, equal + 1)) / equal))
    return result
