"""The gate: under which licence a run may be published, and what speaks against publishing it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from emotune.core import records
from emotune.core.errors import InputError
from emotune.models import pins
from emotune.preferences.pairs import audit
from emotune.runs import tables
from emotune.runs.params import Instructions, Params

# The licences that are known without being stated: emotune's own corpus, and DailyDialog.
DATA_LICENSES = {"embedded": "apache-2.0", "folder": "cc-by-nc-sa-4.0"}
# Those that let what is made of the work have any licence.
PERMISSIVE = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "unlicense")


class Licenses(NamedTuple):
    """The licences of the data, of what is published, and of the base model."""

    data: str
    own: str
    base: str


def licenses(p: Params | Instructions) -> Licenses:
    """The licences of a run; InputError where one has to be stated, or where the data's forbids what is published."""
    data = _of_data(p) if isinstance(p, Params) else _of_rows(p)
    own = p.publish.license or data
    if why := forbidden(data, own):
        raise InputError(f"publish.license: {own} is not possible: the data is under {data}, {why}")
    if p.model.base == pins.SCRATCH and isinstance(p, Params):
        return Licenses(data, own, own)
    # Rows of instructions teach no base model: it has read the grammar alone.
    if p.model.base in pins.OWN:
        return Licenses(data, own, DATA_LICENSES["embedded"])
    if p.publish.base_license is None:
        raise InputError(f"publish.base_license must state the licence of {p.model.base}, got null")
    return Licenses(data, own, p.publish.base_license)


def _of_data(p: Params) -> str:
    known = DATA_LICENSES.get(p.data.source)
    if p.data.name and "dailydialog" in re.sub("[^a-z]", "", p.data.name.lower()):
        known = DATA_LICENSES["folder"]
    if known and p.publish.data_license not in (None, known):
        raise InputError(f"publish.data_license: the data is under {known}, got {p.publish.data_license}")
    if stated := known or p.publish.data_license:
        return stated
    raise InputError(
        f"publish.data_license must state the licence of the data where data.source is {p.data.source}, got null; "
        "accepted: the Hub's names, such as cc-by-4.0"
    )


def _of_rows(p: Instructions) -> str:
    own = p.rows.source == "embedded" and not (p.rows.questions and p.questions.path)
    known = DATA_LICENSES["embedded"] if own else None
    if known and p.publish.data_license not in (None, known):
        raise InputError(f"publish.data_license: the rows are under {known}, got {p.publish.data_license}")
    if stated := known or p.publish.data_license:
        return stated
    raise InputError(
        "publish.data_license must state the licence of rows that do not come with emotune, got null; accepted: the "
        "Hub's names, such as cc-by-4.0"
    )


def forbidden(source: str, wanted: str) -> str | None:
    """Why what is made of a work under one licence cannot be under another; None where it can."""
    terms = source.split("-")
    if "nd" in terms:
        return "which forbids to publish what is made of it"
    if source == wanted or source in PERMISSIVE:
        return None
    if "nc" in terms and "nc" not in wanted.split("-"):
        return "which forbids commercial use"
    if "sa" in terms:
        return "which asks for the same licence"
    return None if "nc" in terms else "of which only the same licence is known to be allowed"


def objections(p: Params, metrics: Path, dirty: bool, stale: Sequence[str]) -> list[str]:
    """What speaks against publishing, a line each, none where dpo is better and can be made again.

    Better is by a test over seeds and dialogues where a study of seeds has this run, else over dialogues alone.
    """
    evaluated = records.read_metrics(metrics / "evaluate.json")
    paired = evaluated["paired"]["sft_to_dpo"]
    tests = {name: paired[section][key] for name, (section, key) in tables.TESTED.items()}
    tests |= tables.steps_over_seeds(metrics / "studies", evaluated)
    # Runs from before fit was measured have no test of it.
    fit = {name: paired[section][key] for name, (section, key) in tables.FIT.items() if key in paired[section]}
    enough, words = tables.prompting(evaluated) or (False, "")
    return [
        *([words] if enough else []),
        *(
            f"dpo is not better than sft in {name}: {tables.difference(test)}, p {test['p']:.3f}, wanted more than 0 "
            f"with p below {tables.SIGNIFICANT}; {over(test)}"
            for name, test in tests.items()
            if test["difference"] <= 0 or test["p"] >= tables.SIGNIFICANT
        ),
        *(
            f"dpo lost {name}: {tables.difference(test)}, wanted an interval that reaches 0"
            for name, test in fit.items()
            if test["high"] < 0
        ),
        *audit(records.read_metrics(metrics / "prefs.json"), p.prefs.audit),
        *_not_again(dirty, stale),
    ]


def objections_to_instructed(metrics: Path, dirty: bool, stale: Sequence[str]) -> list[str]:
    """What speaks against publishing a model of instructions: a prompt does as well, or it cannot be made again."""
    paired = records.read_metrics(metrics / "compare.json")["paired"]
    tests = {way: paired[f"{way}_to_sft"]["perplexity"] for way in ("zero_shot", "few_shot")}
    return [
        *(
            f"sft is not better than {way.replace('_', '-')} in perplexity: {tables.difference(test)}, p "
            f"{test['p']:.3f}, wanted less than 0 with p below {tables.SIGNIFICANT}"
            for way, test in tests.items()
            if test["difference"] >= 0 or test["p"] >= tables.SIGNIFICANT
        ),
        *_not_again(dirty, stale),
    ]


def _not_again(dirty: bool, stale: Sequence[str]) -> list[str]:
    """Why what is here could not be made again from its commit."""
    return [
        *(["the working tree has changes that are in no commit (`git status` names them)"] if dirty else []),
        *(f"dvc.lock is not current: {line}" for line in stale),
    ]


def over(test: Mapping[str, float]) -> str:
    """Over what a step was tested: seeds and dialogues, or dialogues alone, of one seed."""
    if "seeds" in test:
        return f"tested over {test['seeds']:.0f} seeds and the dialogues"
    return "tested over the dialogues, of one seed alone (`emotune study seeds` runs others)"
