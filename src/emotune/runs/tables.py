"""A run's metrics as tables: no figure is typed by hand."""

import csv
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from emotune.core import nested, records
from emotune.core.sections import read_yaml
from emotune.evaluation.params import PROMPTED
from emotune.runs import costs

Table = list[list[str]]


class Column(NamedTuple):
    """In what part of a model's measurements a column's value lies, under what name, and its decimals."""

    part: str
    name: str
    digits: int


class Figure(NamedTuple):
    """A value, and the bounds of its 95 % interval where it has one."""

    value: float | None
    low: float | None = None
    high: float | None = None


COLUMNS = {
    "accuracy": Column("replies", "accuracy", 3),
    "weighted F1": Column("replies", "weighted_f1", 3),
    "macro F1": Column("replies", "macro_f1", 3),
    "F1 w/o neutral": Column("replies", "micro_f1_without_neutral", 3),
    "macro recall": Column("replies", "macro_accuracy", 3),
    "control": Column("control", "macro_accuracy", 3),
    "control of human": Column("control", "of_human", 3),
    "fit": Column("replies", "hits_at_1", 3),
    "joint": Column("control", "joint", 3),
    "perplexity": Column("reference", "perplexity", 1),
    "bits/char": Column("reference", "bits_per_character", 2),
    "distinct-2": Column("text", "distinct_2", 3),
    "words": Column("text", "words_mean", 1),
}
# `human` is what people replied, through the same judge: no model can be seen to do much better.
MODELS = ("majority", "baseline", *PROMPTED, "sft", "dpo", "human")
STEP = "sft → dpo"
STEPS = {"baseline → sft": "baseline_to_sft", STEP: "sft_to_dpo"}
# Of a p value, below which a difference is called one.
SIGNIFICANT = 0.05
TESTED = {"macro F1": ("replies", "macro_f1"), "control": ("control", "macro_accuracy")}
JUDGED = {
    "accuracy": "accuracy",
    "weighted F1": "weighted_f1",
    "macro F1": "macro_f1",
    "macro recall": "macro_recall",
    "τ": "tau",
    "accuracy by τ": "divided.accuracy",
    "macro recall by τ": "divided.macro_recall",
}
# What dpo may not lose, though nothing asks it to gain there.
FIT = {"fit": ("replies", "hits_at_1")}
# How often a reply is found in its context by chance: one of ten.
CHANCE = 0.1
# In judges.json it stands beside the judges, and has no labels to find.
MATCHER = "fit"
ABSENT = "–"
# How an interval stands after its value.
INTERVAL = " [{}, {}]"


def last_costs(path: Path, stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the last run of each stage cost that ended well here, in the order of the pipeline."""
    ended = {line["stage"]: line for line in costs.lines(path) if not line["failed"]}
    return {name: ended[name] for name in stages if name in ended}


def stages(dvc_yaml: Path) -> list[str]:
    """The names of the pipeline's stages, in the order in which dvc.yaml tells them."""
    return list(read_yaml(dvc_yaml)["stages"])


def value_of(measured: Mapping[str, Any], column: Column) -> Any:
    """What was measured of a model for a column: a number, `{"value", "low", "high"}`, or None."""
    return measured.get(column.part, {}).get(column.name)


def figure(measured: Mapping[str, Any], column: Column) -> Figure:
    """What was measured of a model for a column, with its interval where it has one."""
    value = value_of(measured, column)
    return Figure(*map(value.get, Figure._fields)) if isinstance(value, Mapping) else Figure(value)


def number(figure: Sequence[float | None], form: str, interval: str) -> str:
    """`0.512 [0.480, 0.544]`: a value and, where it has bounds, its interval; ABSENT where there is no value."""
    value, *bounds = figure
    if value is None:
        return ABSENT
    shown = [f"{bound:{form}}" for bound in bounds if bound is not None]
    return f"{value:{form}}" + (interval.format(*shown) if shown else "")


def comparison(evaluated: Mapping[str, Any], interval: str) -> Table:
    """A row a model; `interval` formats the bounds of a value's 95 % interval, to stand after it.

    Where replies were guided, its corner says by how much.
    """
    # Runs from before the human replies were judged have no row of them, those from before fit was no column of it.
    models = [model for model in MODELS if model in evaluated]
    columns = {
        name: column
        for name, column in COLUMNS.items()
        if any(value_of(evaluated[model], column) is not None for model in models)
    }
    table = [[f"guidance {evaluated['guidance']}" if "guidance" in evaluated else "", *columns]]
    for model in models:
        figures = ((figure(evaluated[model], column), f".{column.digits}f") for column in columns.values())
        table.append([model, *(number(value, form, interval) for value, form in figures)])
    return table


def differences(evaluated: Mapping[str, Any]) -> Table:
    """A row a step: what it changed in macro F1, control and, where it was measured, fit, with interval and p."""
    known = evaluated["paired"]["sft_to_dpo"]
    tested = {metric: (part, name) for metric, (part, name) in (TESTED | FIT).items() if name in known[part]}
    table = [["", *(heading for metric in tested for heading in (metric, "p"))]]
    # Of runs from before the base model was told emotions there is none.
    prompt = {f"{evaluated['best_prompt']} → sft": "best_prompt_to_sft"} if "best_prompt" in evaluated else {}
    for step, key in (prompt | STEPS).items():
        row = [step]
        for part, name in tested.values():
            test = evaluated["paired"][key][part][name]
            row += [difference(test), f"{test['p']:.3f}"]
        table.append(row)
    return table


def prompting(evaluated: Mapping[str, Any]) -> tuple[bool, str] | None:
    """Whether prompting is enough, that is sft does not beat the best prompt in control, and so in words.

    None where the base model was told no emotion.
    """
    if "best_prompt" not in evaluated:
        return None
    test = evaluated["paired"]["best_prompt_to_sft"]["control"]["macro_accuracy"]
    enough = test["difference"] <= 0 or test["p"] >= SIGNIFICANT
    words = "Prompting is enough here: sft is not better" if enough else "Prompting is not enough here: sft is better"
    return enough, f"{words} in control than {evaluated['best_prompt']}: {difference(test)}, p {test['p']:.3f}"


def difference(test: Mapping[str, float], form: str = ".3f") -> str:
    """`+0.051 [+0.021, +0.080]`: the difference of two models by a paired test, with its interval."""
    return number((test["difference"], test["low"], test["high"]), f"+{form}", INTERVAL)


def steps_over_seeds(studies: Path, evaluated: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What each tested metric's step from sft to dpo is over seeds, by a study of them that this run is one of.

    It is one of them where a row has the same figures to the last digit: a study of other code, params or data has
    none. Empty where there is no such study.
    """
    for path in sorted(studies.glob("seeds*-effects.csv")):
        if any(_is_of(row, evaluated) for row in _rows(path.with_stem(path.stem.removesuffix("-effects")))):
            steps = [row for row in _rows(path) if row["of"] == STEP and row.get("p")]
            names = {"difference": "mean", "low": "low", "high": "high", "p": "p", "seeds": "seeds"}
            return {row["metric"]: {name: float(row[own]) for name, own in names.items()} for row in steps}
    return {}


def _is_of(row: Mapping[str, str], evaluated: Mapping[str, Any]) -> bool:
    figures = {f"{m} {name}": figure(evaluated[m], COLUMNS[name]).value for m in ("sft", "dpo") for name in TESTED}
    return all(row.get(key) and float(row[key]) == value for key, value in figures.items())


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def preferences(metrics: Path) -> Table:
    """How many prompts made a pair, in how many attempts, and how far apart chosen and rejected are."""
    prefs = records.read_metrics(metrics / "prefs.json")
    cells = {
        "pairs": str(prefs["pairs"]),
        "of prompts": str(prefs["prompts"]),
        "yield": f"{prefs['yield_total']:.0%}",
        "attempts a prompt": f"{prefs['attempts_total'] / prefs['prompts']:.1f}",
        "median gap": f"{prefs['gap']['median']:.2f}",
        "longer one chosen": f"{prefs['chosen_is_longer']:.0%}",
    }
    if human := sum(prefs.get("human_pairs_per_emotion", {}).values()):
        cells["a human's chosen"] = str(human)
    if voted := prefs.get("votes"):
        cells["voted"] = str(voted["pairs"])
    return [[*cells], [*cells.values()]]


def votes(voted: Mapping[str, Any], form: str = INTERVAL) -> dict[str, Table]:
    """What people's votes say, by the head of each table: of the models, and of who or what agrees with them."""
    # The content of an adapter stands where the name alone would say two, or one that is not here.
    every = [one["model"] for one in voted["models"]]
    names = {
        one["adapter"]: one["model"]
        if one["here"] and every.count(one["model"]) == 1
        else f"{one['model']} {one['adapter'][:8]}"
        for one in voted["models"]
    }

    def rated(one: Mapping[str, Any], digits: int = 3) -> str:
        return number((one["value"], one["low"], one["high"]), f".{digits}f", form)

    pairs = [["preferred to", "votes", "win rate", "wins", "losses", "both good", "both bad"]]
    for pair in voted["pairs"]:
        one, other = (names[adapter] for adapter in pair["models"])
        counts = [*pair["wins"], pair["both_good"], pair["both_bad"]]
        pairs.append([f"{one} to {other}", str(pair["votes"]), rated(pair["win_rate"]), *map(str, counts)])
    grouped = len({row["group"] for row in voted["strengths"]}) > 1
    strengths = [["model", "strength", *(["group"] if grouped else [])]]
    for row in sorted(voted["strengths"], key=lambda row: (row["group"], -row["value"])):
        strengths.append([names[row["adapter"]], rated(row, 2), *([str(row["group"] + 1)] if grouped else [])])
    agreed = [["agrees", "share of votes", "votes", "undecided"]]
    for name, score in voted["scores"].items():
        agreed.append([name, rated(score), str(score["votes"]), str(score["equal"])])
    tables = {
        "How often people preferred whose reply, of the votes that preferred one": pairs,
        "Strengths (Bradley–Terry, ln)": strengths,
        "Is the judge right? How often the reply that people prefer is better to": agreed,
    }
    if alpha := voted["agreement"]:
        head = f"Do people agree? Over the {alpha['questions']} questions that several answered"
        tables[head] = [["", "alpha"], ["voters (Krippendorff)", rated(alpha)]]
    return {head: table for head, table in tables.items() if len(table) > 1}


def what_if(prefs: Mapping[str, Any]) -> Table:
    """How many prompts would make a pair by other thresholds, in all and of 100 for each emotion, as set first."""
    labels = [label for label, n in prefs["prompts_per_emotion"].items() if n]
    names = ("min_chosen_score", "target_score_range", "attempts")
    table = [[*names, "pairs", "of all", *labels]]
    for row in prefs["what_if"]:
        shares = [row["pairs"][label] / prefs["prompts_per_emotion"][label] for label in labels]
        total = sum(row["pairs"].values())
        cells = [total / prefs["prompts"], *shares]
        table.append([*(f"{row[name]:g}" for name in names), str(total), *(f"{share:.0%}" for share in cells)])
    return table


def over_optimised(prefs: Mapping[str, Any]) -> Table:
    """What choosing the best of all candidates by the reward gains, by each measure, and where it begins to cost."""
    table = [["of the best of n", "gain from 1 to n [95 %]", "curves part at n ="]]
    for name in ("reward", "control", "learned_score"):
        own = prefs["best_of_n"][name]
        gain = number([own["gain"][end] for end in Figure._fields], "+.3f", INTERVAL)
        table.append([name.replace("_", " "), gain, str(own["parts_at"] or "nowhere")])
    return table


def reward_model(metrics: Path) -> Table:
    """How often the reward model, and two dummies, order held-out pairs right, and how often it finds one of four."""
    measured = records.read_metrics(metrics / "reward_model.json")
    of = {"reward model": measured["accuracy"], "best of four": measured["best_of_4"]}
    of |= {"tokens alone": measured["tokens_alone"]} if "tokens_alone" in measured else {}
    of |= {f"{name} alone": own for name, own in measured["dummies"].items()}
    of |= measured["accuracy_per_emotion"]
    rows = [[name, number([own[end] for end in Figure._fields], ".3f", INTERVAL)] for name, own in of.items() if own]
    return [["by", "accuracy"], *rows, ["calibration error", f"{measured['calibration_error']:.3f}"]]


def judges(metrics: Path) -> Table:
    """How often each judge finds the label that people gave, on the test split; those of emotions by their tau too."""
    table = [["judge", *JUDGED]]
    measured = records.read_metrics(metrics / "judges.json")
    for name, judged in ((name, measured[name]) for name in measured if name != MATCHER):
        # No judge of gibberish is divided, and in runs from before others were, none.
        figures = dict(nested.leaves(judged))
        cells = (number((figures.get(name),), ".3f", "") for name in JUDGED.values())
        table.append([name.replace("_", " "), *cells])
    return table


def replies(evaluated: Mapping[str, Any]) -> Table:
    """A row a context of the examples: what dpo replied in one emotion, of these each in turn."""
    contexts, emotions = _examples(evaluated)
    turn = [own[number % len(emotions)] for number, own in enumerate(contexts)]
    return [["said", "asked for", "reply"], *([row["said"], row["emotion"], row["reply"]] for row in turn)]


def all_replies(evaluated: Mapping[str, Any]) -> Table:
    """A row a context of the examples: what dpo replied in every emotion; what is judged as another one is struck."""
    contexts, emotions = _examples(evaluated)
    table = [["said", *emotions]]
    for own in contexts:
        struck = (row["reply"] if row["judged"] == row["emotion"] else f"~~{row['reply']}~~" for row in own)
        table.append([own[0]["said"], *struck])
    return table


def _examples(evaluated: Mapping[str, Any]) -> tuple[list[list[dict[str, str]]], list[str]]:
    """The rows of each context, and the emotions, one a row."""
    rows = evaluated["examples"]
    emotions = list(dict.fromkeys(row["emotion"] for row in rows))
    return [rows[start : start + len(emotions)] for start in range(0, len(rows), len(emotions))], emotions


def markdown(table: Table, others: str = "---:") -> str:
    """A Markdown table: the first row is its head, all columns but the first stand at the right; a `|` is escaped.

    `others` is how all but the first stand: `---` is at the left.
    """
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table]
    rule = ["---", *[others] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def aligned(table: Table) -> str:
    """Plain text, columns two spaces apart, the first at the left, the others at the right; a cell may hold lines."""
    lines = [line for row in table for line in zip_longest(*(cell.split("\n") for cell in row), fillvalue="")]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join("  ".join([left.ljust(first), *map(str.rjust, right, others)]).rstrip() for left, *right in lines)
