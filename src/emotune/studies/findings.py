"""What came of a study, as tables."""

import itertools
import json
import textwrap
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from emotune.core.errors import InputError
from emotune.runs import tables
from emotune.runs.tables import Figure, Table
from emotune.studies import evidence, plan, queue
from emotune.studies.differences import LEVEL
from emotune.studies.evidence import COSTS, LOWER, column_key
from emotune.studies.plan import JUDGE, Setup, Study

Row = Mapping[Hashable, Any]
HEADS = {"seconds": "seconds", "peak memory bytes": "peak memory", "tokens per second": "tokens/s"}
# How an interval stands below its value in the terminal.
BELOW = "\n{}–{}"
OVER_SEEDS = (
    "Runs alike but for the seeds of sft, prefs and dpo, over the same questions. The mean's interval [95 %] and p are "
    "over seeds and dialogues (variance over seeds / n + the mean's bootstrap variance); the last column is the first "
    "run's alone."
)
OVER_GRID = (
    "The mean over seeds; its interval [95 %] and p are over seeds and dialogues (variance over seeds / n + the mean's "
    "bootstrap variance), p after Holm over all tests of the study."
)


def outcome(name: str, study: Study, setups: Mapping[str, Setup], metrics: Path, costs: Path) -> str:
    """Write metrics/studies/NAME.csv from the experiments that DVC has of a study, and return its tables.

    Of a grid and of seeds, NAME-effects.csv too. They go beside `costs` where those there have the figures of a run
    that is not at hand. InputError where DVC has no run of the study.
    """
    trials = queue.trials(setups, study.target)
    if all(trial.state == "absent" for trial in trials.values()):
        raise InputError(
            f"report: no experiment here has the params of study {name} and this code; `emotune study {name}` runs them"
        )
    rows, effects = evidence.tables_of(study, setups, trials, costs)
    path = metrics / "studies" / f"{name}.csv"
    lost = _lost(path, rows)
    kept = f"\n{path} stays as it is: no experiment here is {', '.join(lost)}, which it tells of" if lost else ""
    path = (costs.parent if lost else metrics) / "studies" / path.name
    evidence.write(path, rows)
    frame = read(path)
    told = [tables.aligned(shown(study, frame, BELOW, wrap=30)), f"{note(study, frame)}\nAll of it: {path}{kept}"]
    path = path.with_stem(f"{name}-effects")
    if effects:
        evidence.write(path, effects)
        what = "Over the seeds" if study.seeds else "What one change does, all else alike"
        told.append(f"{what}\n{tables.aligned(effects_shown(study, read(path), BELOW))}")
    else:
        path.unlink(missing_ok=True)
    return "\n\n".join(told)


def _lost(path: Path, rows: Sequence[evidence.Row]) -> list[str]:
    """The runs that a study's file has the figures of, and that neither ended well nor failed here."""
    done = {row["run"] for row in read(path).to_dict("records") if row["status"] == "done"} if path.is_file() else ()
    return [row["run"] for row in rows if row["status"] not in ("done", "failed") and row["run"] in done]


def read(path: Path) -> pd.DataFrame:
    """The rows of such a file; InputError where there is none."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; `emotune study {path.stem}` makes it")
    # Text stays text, though it look like a number or like nothing; a number is the one that was written.
    text = dict.fromkeys(("run", "from", "to"), str)
    frame = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""], float_precision="round_trip")
    return frame.astype(object).where(frame.notna(), None)


def shown(study: Study, frame: pd.DataFrame, interval: str, wrap: int = 0) -> Table:
    """The table of a study: its runs, a model at a time, the best of the first test first where the study ranks.

    `interval` formats the bounds of a value's 95 % interval, to stand after it; why a run failed is broken into lines
    of `wrap` characters.
    """
    lines = [
        _line(study, row, model, interval, wrap)
        for model in study.models
        for row in _ranked(study, model, frame).to_dict("records")
    ]
    lines += [{"run": name} | _bar(study, name) for name in study.published if name not in set(frame["run"])]
    head = ["run", *(["model"] if len(study.models) > 1 else []), *study.show]
    head += [_against(study, column) for column in study.tests if study.against]
    head += [HEADS[name] for name in COSTS if name in frame]
    head += ["published accuracy", "F1"] if study.published else []
    return [head, *([line.get(column, tables.ABSENT) for column in head] for line in lines)]


def _ranked(study: Study, model: str, frame: pd.DataFrame) -> pd.DataFrame:
    first = study.tests[0]
    key = column_key(model, first)
    if study.against != "best" or key not in frame:
        return frame
    return frame.sort_values(key, ascending=first in LOWER, kind="stable")


def _line(study: Study, row: Row, model: str, interval: str, wrap: int) -> dict[str, str]:
    """What there is to say of a run and a model, under the columns' heads."""
    line = {"run": row["run"], "model": model, **_bar(study, row["run"])}
    line |= {HEADS[name]: _spent(name, row[name]) for name in COSTS if row.get(name) is not None}
    if row["status"] == "done":
        line |= {column: _value(study, row, column, model, interval) for column in study.show}
        tests = {_against(study, column): _difference(study, row, column, model, interval) for column in study.tests}
        return line | tests
    # What was found; what to turn, after the first semicolon, is in the CSV.
    why = ": ".join(filter(None, [row["status"], (row.get("reason") or "").split("; ")[0]]))
    return line | {study.show[0]: textwrap.fill(why, wrap) if wrap else why}


def _against(study: Study, column: str) -> str:
    return f"{column} − {study.against}"


def _value(study: Study, row: Row, column: str, model: str, interval: str) -> str:
    if column == JUDGE:
        return f"{row[JUDGE]:.3f}"
    figure = [row.get(column_key(model, column, bound)) for bound in Figure._fields]
    return tables.number(figure, f".{study.columns[column].digits}f", interval)


def _difference(study: Study, row: Row, column: str, model: str, interval: str) -> str:
    key = f"{column_key(model, column)} difference"
    verdict = row.get(f"{column_key(model, column)} verdict") or tables.ABSENT
    figure = [row.get(key), row.get(f"{key} low"), row.get(f"{key} high")]
    form = f"+.{study.columns[column].digits}f"
    return verdict if figure[0] is None else f"{verdict} {tables.number(figure, form, interval)}"


def _spent(name: str, value: float) -> str:
    return f"{value / 1e9:.2f} GB" if name == "peak memory bytes" else f"{value:.0f}"


def _bar(study: Study, name: str) -> dict[str, str]:
    bar = study.published.get(name)
    return {"published accuracy": f"{bar.accuracy:.3f}", "F1": f"{bar.f1:.3f}"} if bar else {}


def note(study: Study, frame: pd.DataFrame) -> str:
    """What the table's reader has to know: what all runs share, and what a difference and its verdict are.

    A table that does not say how many tests were corrected for is an older one, corrected by model and metric.
    """
    if study.seeds:
        return f"{study.description} Intervals [95 %] are over dialogues, of that run alone."
    common = ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in study.common.items())
    told = f"{study.description} Up to `{study.target}`{f', all with {common}' if common else ''}."
    if study.against is None:
        return f"{told} Intervals [95 %] are over dialogues, of that run alone."
    if evidence.TESTS in frame:
        corrected = f", p after Holm over all {frame[evidence.TESTS].max():.0f} tests of the study"
    else:
        corrected = ", p after Holm over the comparisons by each model and metric"
    return (
        f"{told} Differences [95 %] are by a paired bootstrap over the same dialogues; noise is p ≥ {LEVEL}{corrected}."
    )


def effects_shown(study: Study, frame: pd.DataFrame, interval: str) -> Table:
    """The table of `effects`: a row a change, a column a model's tested metric; of seeds, a row a figure."""
    if study.seeds:
        return _spread_shown(study, frame, interval)
    columns = list(itertools.product(study.models, study.tests))
    head = ["change", "pairs of runs", *(column_key(model, column) for model, column in columns)]
    return [head] + [
        [f"{row['param']} {row['from']} → {row['to']}", str(row["pairs of runs"])]
        + [_difference(study, row, column, model, interval) for model, column in columns]
        for row in frame.to_dict("records")
    ]


def _spread_shown(study: Study, frame: pd.DataFrame, interval: str) -> Table:
    table = [["", "metric", "mean over seeds", "sd", "lowest–highest", "p", "one seed, over dialogues"]]
    for row in frame.to_dict("records"):
        form = f"{'+' if row['of'] == tables.STEP else ''}.{study.columns[row['metric']].digits}f"
        first = [row.get(f"first {bound}") for bound in Figure._fields]
        mean = tables.number([row["mean"], row.get("low"), row.get("high")], form, interval)
        p = f"{row['p']:.3f}" if row["of"] == tables.STEP else ""
        bounds = f"{row['lowest']:{form}} – {row['highest']:{form}}"
        one = tables.number(first, form, interval)
        table.append([row["of"], row["metric"], mean, f"{row['sd']:.3f}", bounds, p, one])
    return table


def block(name: str, metrics: Path, folder: Path) -> str:
    """The Markdown between `<!-- begin:study-NAME -->` and its end: from the study's file and its committed CSV.

    NAME-effects is the table of `effects`. Of seeds, or of instructions, that nobody has run yet it says so.
    """
    own = name.removesuffix("-effects")
    study = plan.read(folder, own)
    if (study.seeds or study.of_instructions) and not (metrics / "studies" / f"{name}.csv").is_file():
        return f"Not measured yet: `emotune study {(folder.parent / own).as_posix()}` does."
    frame = read(metrics / "studies" / f"{name}.csv")
    if name.endswith("-effects"):
        table = tables.markdown(effects_shown(study, frame, tables.INTERVAL))
        over = f"{study.description} {OVER_GRID}" if study.repeats else ""
        return f"{table}\n\n{OVER_SEEDS if study.seeds else over}".rstrip()
    return f"{tables.markdown(shown(study, frame, tables.INTERVAL))}\n\n{note(study, frame)}"
