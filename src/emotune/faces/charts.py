"""The arithmetic of the page's charts, which charts.jinja draws: ticks, scales and bins."""

import math
from collections.abc import Callable, Sequence


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, some `about` of them, that enclose low and high."""
    if high <= low:
        low, high = low - 0.5, low + 0.5
    power = math.floor(math.log10((high - low) / about))
    step, digits = next(
        (factor * 10.0**power, max(0, -power))
        for factor in (1, 2, 5, 10)
        if factor * 10.0**power * about >= (high - low) * 0.999
    )
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, digits) + 0.0 for n in range(first, last + 1)]


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The place between start and end of a value between low and high; the middle where these are equal."""
    span = high - low
    return lambda value: start + (end - start) * ((value - low) / span if span else 0.5)


def powers(high: float) -> list[float]:
    """1 and on to a power of ten that is not below high: of few powers with 2 and 5 between, of many only some."""
    count = max(1, math.ceil(math.log10(high) - 1e-9))
    if count <= 2:
        return [*(n * 10.0**power for power in range(count) for n in (1, 2, 5)), 10.0**count]
    step = 1 + (count - 1) // 5
    return [10.0**power for power in range(0, count + step, step)]


def log_scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """`scale` by the logarithm."""
    place = scale(math.log(low), math.log(high), start, end)
    return lambda value: place(math.log(value))


def bins(values: Sequence[float]) -> list[tuple[float, float, int]]:
    """Some 20 equal bins, from where to where, and how many values are in each; the last holds its upper edge too."""
    edges = ticks(min(values), max(values), 20)
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(int((value - edges[0]) / (edges[1] - edges[0]) + 1e-9), len(counts) - 1)] += 1
    return list(zip(edges, edges[1:], counts, strict=False))
