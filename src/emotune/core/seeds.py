"""Whatever is drawn at random is drawn by a key that says what it is for, whatever was drawn before it."""

import hashlib
import math
import random
from collections.abc import Sequence


def key(*parts: object) -> int:
    """A 63-bit key from anything with a stable text: seed, dialogue id, emotion, attempt, candidate ..."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def order(lengths: Sequence[int], epochs: float, batch: int, seed: int) -> list[int]:
    """Row numbers for `epochs` passes in batches of like length, so that little is padded.

    Each whole epoch visits every row once. A last part of an epoch visits that share of the batches. An epoch's short
    batch is filled up by the next epoch, so that whoever cuts the order into batches cuts where this does.
    """
    rows: list[int] = []
    for epoch in range(math.ceil(epochs)):
        rng = random.Random(key(seed, "epoch", epoch))
        shuffled = list(range(len(lengths)))
        rng.shuffle(shuffled)
        first = _filling(rows[len(rows) // batch * batch :], shuffled, lengths, batch)
        left = [row for row in shuffled if row not in first]
        pool = 50 * batch
        near = [
            row
            for start in range(0, len(left), pool)
            for row in sorted(left[start : start + pool], key=lambda row: lengths[row])
        ]
        batches = [near[start : start + batch] for start in range(0, len(near), batch)]
        # The short batch goes last, so that every other batch of the trainer is one of these.
        short = [batches.pop()] if batches and len(batches[-1]) < batch else []
        rng.shuffle(batches)
        batches += short
        some = batches[: math.ceil(len(batches) * min(1.0, epochs - epoch))]
        rows += [*first, *(row for rows_of in some for row in rows_of)]
    return rows


def _filling(short: Sequence[int], shuffled: Sequence[int], lengths: Sequence[int], batch: int) -> list[int]:
    """Those of the `shuffled` rows that fill a short batch up: of the lengths it has, and none that it has."""
    if not short:
        return []
    longest = lengths[short[-1]]
    others = (row for row in shuffled if row not in short)
    return sorted(others, key=lambda row: abs(lengths[row] - longest))[: batch - len(short)]
