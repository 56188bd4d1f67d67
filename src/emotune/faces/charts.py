"""Numbers -> small SVG drawings, without a library: sized for a phone, coloured by the classes of the page's style."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 360
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 38
PLOT = 150  # height between TOP and BOTTOM of a chart with two axes
ROW = 26  # height of one interval


@dataclass(frozen=True, slots=True)
class Series:
    """A curve: its name, the class that colours it, and its points by rising x."""

    name: str
    kind: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the bounds around it."""

    name: str
    kind: str
    value: float
    low: float
    high: float


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


def lines(series: Sequence[Series], label: str, reference: float | None = None) -> Markup:
    """Curves over one x axis, whose steps are named below it; `reference` draws a level to compare them with."""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points] + ([] if reference is None else [reference])
    up = ticks(min(ys), max(ys))
    # A run's steps begin and end where they do; only heights are rounded to ticks.
    x = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y = _scale(up[0], up[-1], TOP + PLOT, TOP)
    parts = [*_heights(up, y), *_across(min(xs), max(xs), x, "step")]
    if reference is not None:
        parts.append(_line("reference", LEFT, y(reference), WIDTH - RIGHT, y(reference)))
    for one in series:
        at = [(x(a), y(b), a, b) for a, b in one.points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b, _, _ in at)
        parts.append(Markup('<polyline class="curve {}" points="{}"/>').format(one.kind, path))
        parts += [
            Markup('<circle class="dot {}" cx="{}" cy="{}" r="2.4"><title>{}, step {}: {}</title></circle>').format(
                one.kind, f"{a:.1f}", f"{b:.1f}", one.name, f"{step:g}", f"{value:.4g}"
            )
            for a, b, step, value in at
        ]
    return _drawing(parts, TOP + PLOT + BOTTOM, label)


def intervals(rows: Sequence[Interval], label: str, reference: float | None = None) -> Markup:
    """A row a value with its interval, over one axis; `reference` draws a level to compare them with."""
    ends = [end for row in rows for end in (row.low, row.high)] + ([] if reference is None else [reference])
    across = ticks(min(ends), max(ends), 4)
    left, bottom = 66, TOP + ROW * len(rows)
    x = _scale(across[0], across[-1], left, WIDTH - RIGHT)
    parts = [
        _line("grid", x(tick), TOP, x(tick), bottom) + _text("middle", x(tick), bottom + 16, _tick(tick))
        for tick in across
    ]
    if reference is not None:
        parts.append(_line("reference", x(reference), TOP, x(reference), bottom))
    for n, row in enumerate(rows):
        y = TOP + ROW * (n + 0.5)
        parts += [
            _text("end", left - 10, y + 4, row.name),
            _line(f"whisker {row.kind}", x(row.low), y, x(row.high), y),
            Markup('<circle class="dot {}" cx="{}" cy="{}" r="4.5"><title>{}</title></circle>').format(
                row.kind,
                f"{x(row.value):.1f}",
                f"{y:.1f}",
                f"{row.name}: {row.value:.4g} [{row.low:.4g}, {row.high:.4g}]",
            ),
        ]
    return _drawing(parts, bottom + 22, label)


def histogram(values: Sequence[float], label: str, name: str) -> Markup:
    """How many values fall into each of some 20 equal bins; the last one holds its upper edge too."""
    edges = ticks(min(values), max(values), 20)
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(int((value - edges[0]) / (edges[1] - edges[0]) + 1e-9), len(counts) - 1)] += 1
    up = ticks(0, max(counts), 4)
    x = _scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    y = _scale(0, up[-1], TOP + PLOT, TOP)
    bars = [
        Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>{} to {}: {}</title></rect>').format(
            f"{x(low) + 0.5:.1f}",
            f"{y(n):.1f}",
            f"{x(high) - x(low) - 1:.1f}",
            f"{y(0) - y(n):.1f}",
            f"{low:g}",
            f"{high:g}",
            n,
        )
        for low, high, n in zip(edges, edges[1:], counts, strict=False)
        if n
    ]
    return _drawing([*_heights(up, y), *bars, *_across(edges[0], edges[-1], x, name)], TOP + PLOT + BOTTOM, label)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The place between start and end of a value between low and high; the middle where these are equal."""
    span = high - low
    return lambda value: start + (end - start) * ((value - low) / span if span else 0.5)


def _heights(up: Sequence[float], y: Callable[[float], float]) -> Iterable[Markup]:
    for tick in up:
        yield _line("grid", LEFT, y(tick), WIDTH - RIGHT, y(tick)) + _text("end", LEFT - 8, y(tick) + 4, _tick(tick))


def _across(low: float, high: float, x: Callable[[float], float], name: str) -> Iterable[Markup]:
    """The x axis at the bottom of a chart: the round numbers within low and high, and what they count."""
    yield _line("axis", LEFT, TOP + PLOT, WIDTH - RIGHT, TOP + PLOT)
    for tick in ticks(low, high, 4):
        if low <= tick <= high:
            yield _line("axis", x(tick), TOP + PLOT, x(tick), TOP + PLOT + 4)
            yield _text("middle", x(tick), TOP + PLOT + 17, _tick(tick))
    yield _text("middle", (LEFT + WIDTH - RIGHT) / 2, TOP + PLOT + 33, name)


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    ends = (f"{end:.1f}" for end in (x1, y1, x2, y2))
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, *ends)


def _text(anchor: str, x: float, y: float, text: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(anchor, f"{x:.1f}", f"{y:.1f}", text)


def _drawing(parts: Iterable[Markup], height: float, label: str) -> Markup:
    """`label` says to who cannot see the drawing what it shows."""
    opening = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {} {}">').format(label, WIDTH, f"{height:g}")
    return opening + Markup("").join(parts) + Markup("</svg>")
