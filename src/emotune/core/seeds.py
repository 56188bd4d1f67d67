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

    Each whole epoch visits every row once. A last part of an epoch visits that share of the batches.
    """
    rows: list[int] = []
    for epoch in range(math.ceil(epochs)):
        rng = random.Random(key(seed, "epoch", epoch))
        shuffled = list(range(len(lengths)))
        rng.shuffle(shuffled)
        pool = 50 * batch
        near = [
            row
            for start in range(0, len(shuffled), pool)
            for row in sorted(shuffled[start : start + pool], key=lambda row: lengths[row])
        ]
        batches = [near[start : start + batch] for start in range(0, len(near), batch)]
        # The short batch goes last, so that every other batch of the trainer is one of these.
        short = [batches.pop()] if len(batches[-1]) < batch else []
        rng.shuffle(batches)
        batches += short
        rows += [row for rows_of in batches[: math.ceil(len(batches) * min(1.0, epochs - epoch))] for row in rows_of]
    return rows
