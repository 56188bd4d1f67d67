"""Under which licence what the pipeline made may be published."""

from __future__ import annotations

import re
from typing import NamedTuple

from emotune.core.errors import InputError
from emotune.runs.params import Params

# The licences that are known without being stated: emotune's own corpus, and DailyDialog.
DATA_LICENSES = {"embedded": "apache-2.0", "folder": "cc-by-nc-sa-4.0"}
# Those that let what is made of the work have any licence.
PERMISSIVE = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "unlicense")


class Licenses(NamedTuple):
    """The licences of the data, of what is published, and of the base model."""

    data: str
    own: str
    base: str


def licenses(p: Params) -> Licenses:
    """The licences of a run; InputError where one has to be stated, or where the data's forbids what is published."""
    data = _of_data(p)
    own = p.publish.license or data
    if why := forbidden(data, own):
        raise InputError(f"publish.license: {own} is not possible: the data is under {data}, {why}")
    if p.model.base == "embedded":
        return Licenses(data, own, own)
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
