"""What several rows of tokens begin with is read once for all of them: which rows those are, and where it ends."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

# At least so large a share of all positions must be spared: heads are a pass of their own, and their cache is copied.
SPARED = 0.25


def shared(rows: Sequence[Sequence[int]], least: int = 1) -> tuple[int, list[int]]:
    """How many positions each row reads itself, its last ones, and of each row which one reads all before for it.

    The number is `least` or more, and that which leaves the fewest positions to read where rows are padded to the
    longest: all of them where less than SPARED of them would be spared.
    """
    # Python compares and cuts strings far faster than tuples of numbers.
    texts = ["".join(map(chr, row)) for row in rows]
    longest = max(map(len, texts))
    tail, readers, fewest = longest, list(range(len(texts))), (1 - SPARED) * len(texts) * longest
    width = least
    while width < longest and len(texts) * width < fewest:
        found = _readers([text[:-width] for text in texts])
        positions = len(set(found)) * (longest - width) + len(texts) * width
        if positions <= fewest:
            tail, readers, fewest = width, found, positions
        width += 1 + width // 8
    return tail, readers


def _readers(heads: Sequence[str]) -> list[int]:
    """Of each head the number of the longest that begins with it, which may be itself; of equal ones it is the same."""
    readers = list(range(len(heads)))
    # What begins with a head stands right before it.
    for longer, head in pairwise(sorted(readers, key=heads.__getitem__, reverse=True)):
        if heads[longer].startswith(heads[head]):
            readers[head] = readers[longer]
    return readers


def attends_to_all(config: Any, positions: int) -> bool:
    """Whether every layer of a model looks at all of so many positions, and tells who may by a mask alone.

    A layer with a state (Mamba, linear attention, convolution) mixes what went through it, and one with a window drops
    what is before.
    """
    from transformers.cache_utils import DummyLayer, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    layers = DynamicCache(config=config).layers
    windows = [layer.sliding_window for layer in layers if type(layer) is DynamicSlidingWindowLayer]
    no_state = {type(layer) for layer in layers} <= {DynamicLayer, DynamicSlidingWindowLayer, DummyLayer}
    return no_state and all(positions < window for window in windows)
