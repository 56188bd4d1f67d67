"""What came of a study, as tables."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from emotune.runs import tables
from emotune.studies import plan
from emotune.studies.evidence import COSTS, LEVEL, LOWER, Row, column_key, read
from emotune.studies.plan import COLUMNS, JUDGE, Study


def shown(asked: Study, table: Sequence[Row], interval: str, wrap: int = 0) -> tables.Table:
    """The table of a study: its runs, a model at a time, the best of the first test first where the study ranks.

    `interval` formats the bounds of a value's 95 % interval, to stand after it; why a run failed is broken into lines
    of `wrap` characters.
    """
    has_cost = [name for name in COSTS if any(row.get(name) for row in table)]
    head = ["run", *(["model"] if len(asked.models) > 1 else []), *asked.show]
    head += [f"{column} − {asked.against}" for column in asked.tests]
    head += [_HEADS[name] for name in has_cost]
    head += ["published accuracy", "F1"] if asked.published else []
    lines = [head]
    for model in asked.models:
        for row in _ranked(asked, model, table):
            line = [row["run"], *([model] if len(asked.models) > 1 else [])]
            if row["status"] != "done":
                # What was found; what to turn, after the first semicolon, is in the CSV.
                why = ": ".join(filter(None, [row["status"], row.get("reason", "").split("; ")[0]]))
                line += [
                    textwrap.fill(why, wrap) if wrap else why,
                    *[tables.ABSENT] * (len(asked.show) + len(asked.tests) - 1),
                ]
            else:
                line += [_value(row, column, model, interval) for column in asked.show]
                line += [_difference(row, column, model, interval) for column in asked.tests]
            line += [_spent(row, name) for name in has_cost]
            lines.append(line + _bar(asked, row["run"]))
    if asked.published:
        ours = {row["run"] for row in table}
        blank = [tables.ABSENT] * (len(head) - 3)
        lines += [[name, *blank, *_bar(asked, name)] for name in asked.published if name not in ours]
    return lines


_HEADS = {"seconds": "seconds", "peak memory bytes": "peak memory", "tokens per second": "tokens/s"}


def _ranked(asked: Study, model: str, table: Sequence[Row]) -> list[Row]:
    if asked.against != "best":
        return list(table)
    key, sign = column_key(model, asked.tests[0]), 1 if asked.tests[0] in LOWER else -1
    return sorted(table, key=lambda row: sign * float(row[key]) if row.get(key) else float("inf"))


def _value(row: Row, column: str, model: str, interval: str) -> str:
    if column == JUDGE:
        return f"{float(row[JUDGE]):.3f}"
    digits = COLUMNS[column][2]
    found = [row.get(column_key(model, column, bound)) for bound in ("value", "low", "high")]
    if not found[0]:
        return tables.ABSENT
    value, *bounds = (f"{float(number):.{digits}f}" for number in found if number)
    return value + (interval.format(*bounds) if bounds else "")


def _difference(row: Row, column: str, model: str, interval: str) -> str:
    key, digits = column_key(model, column), COLUMNS[column][2]
    verdict = row.get(f"{key} verdict") or tables.ABSENT
    found = [row.get(f"{key} difference{bound}") for bound in ("", " low", " high")]
    if not found[0]:
        return verdict
    value, *bounds = (f"{float(number):+.{digits}f}" for number in found if number)
    return f"{verdict} {value}{interval.format(*bounds) if bounds else ''}"


def _spent(row: Row, name: str) -> str:
    if not row.get(name):
        return tables.ABSENT
    value = float(row[name])
    return f"{value / 1e9:.2f} GB" if name == "peak memory bytes" else f"{value:.0f}"


def _bar(asked: Study, name: str) -> list[str]:
    if not asked.published:
        return []
    bar = asked.published.get(name)
    return [f"{bar.accuracy:.3f}", f"{bar.f1:.3f}"] if bar else [tables.ABSENT] * 2


def note(asked: Study) -> str:
    """What the table's reader has to know: what all runs share, and what a difference and its verdict are."""
    common = ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in asked.common.items())
    corrected = f", p after Holm over the {len(asked.asked()) - 1} comparisons" if len(asked.asked()) > 2 else ""
    return (
        f"{asked.description} Up to `{asked.target}`{f', all with {common}' if common else ''}. Differences [95 %] are "
        f"by a paired bootstrap over the same dialogues; noise is p ≥ {LEVEL}{corrected}."
    )


def effects_shown(asked: Study, table: Sequence[Row], interval: str) -> tables.Table:
    """The table of `effects`: a row a change, a column a model's tested metric."""
    columns = list(itertools.product(asked.models, asked.tests))
    head = ["change", "pairs of runs", *(column_key(model, column) for model, column in columns)]
    return [head] + [
        [f"{row['param']} {row['from']} → {row['to']}", str(row["pairs of runs"])]
        + [_difference(row, column, model, interval) for model, column in columns]
        for row in table
    ]


def block(name: str, metrics: Path, folder: Path) -> str:
    """The Markdown between `<!-- begin:study-NAME -->` and its end: from the study's file and its committed CSV.

    NAME-effects is the table of `effects`.
    """
    rows = read(metrics / "studies" / f"{name}.csv")
    if (of := name.removesuffix("-effects")) != name:
        return tables.markdown(effects_shown(plan.read(folder, of), rows, " [{}, {}]"))
    asked = plan.read(folder, name)
    return f"{tables.markdown(shown(asked, rows, ' [{}, {}]'))}\n\n{note(asked)}"
