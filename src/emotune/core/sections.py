"""Sections of a YAML file, typed, frozen and strict: what a stage or a study may be told, and what is wrong with it."""

import difflib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from emotune.core.errors import InputError
from emotune.core.records import read_text

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A mapping of params.yaml: no unknown key, no silent conversion, no change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML 1.2 mapping: `2e-05`, which `dvc exp run -S` writes, is a float here (PyYAML makes it a string)."""
    try:
        content = YAML(typ="safe", pure=True).load(io.StringIO(read_text(path)))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"{path}:{line}: not YAML: {error.problem}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping of sections, found {type(content).__name__}")
    return content


def check(kind: type[S], content: Mapping[str, Any], name: str) -> S:
    """A mapping as a section of that kind, or one InputError that lists all that is wrong with it, `name` before each.

    It names every wrong key, what it got, what it takes and the nearest key.
    """
    try:
        # Through JSON, whose strict mode takes a list for a tuple and nothing else for what it is not. A date, which
        # only YAML has, becomes text.
        return kind.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise InputError("\n".join(f"{name}: {_explained(kind, dict(e))}" for e in error.errors())) from None
    except TypeError as error:
        raise InputError(f"{name}: {error}") from None


def part(kind: type[S], whole: Section) -> S:
    """The keys of `whole` that `kind` declares, its sections' too: what a stage may read, and nothing else."""
    return check(kind, _declared(kind, whole.model_dump(mode="json")), kind.__name__)


def names(kind: type[Section], whole: type[Section], above: str = "") -> list[str]:
    """The dotted keys of `whole` that `kind` declares: a section as one name where it is declared whole."""
    dotted = []
    for key, field in kind.model_fields.items():
        declared, there = _section(field.annotation), _section(whole.model_fields[key].annotation)
        if declared is None or there is None or declared is there:
            dotted.append(f"{above}{key}")
        else:
            dotted += names(declared, there, f"{above}{key}.")
    return dotted


def _declared(kind: type[Section], content: Mapping[str, Any]) -> dict[str, Any]:
    declared = {}
    for key, field in kind.model_fields.items():
        section = _section(field.annotation)
        declared[key] = _declared(section, content[key]) if section and content[key] is not None else content[key]
    return declared


def _section(annotation: Any) -> type[Section] | None:
    """The section that a field holds, also as `Section | None`; None where it holds none."""
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _explained(kind: type[Section], problem: dict[str, Any]) -> str:
    path = [part for part in problem["loc"] if not (isinstance(part, str) and part.startswith(("literal[", "tuple[")))]
    key = ".".join(str(part) for part in path)
    got = json.dumps(problem.get("input"), ensure_ascii=False, default=str)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(path[-1]), _keys(kind, path[:-1]), n=1, cutoff=0.0)
        return f"unknown key {key}; the nearest is {'.'.join([*map(str, path[:-1]), near[0]])}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "value_error":
        # A field's validator says "must ...", that of a section "field must ...", that of the whole file says it all.
        reason = str(problem["ctx"]["error"])
        return f"{key}{' ' if reason.startswith('must ') else '.'}{reason}" if key else reason
    return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {got}"


def _keys(kind: type[Section], path: list[Any]) -> list[str]:
    for key in path:
        kind = _section(kind.model_fields[key].annotation) or kind if key in kind.model_fields else kind
    return list(kind.model_fields)
