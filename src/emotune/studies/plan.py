"""A study: a file of experiments/, and the params that each of its runs sets."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from emotune.core.errors import InputError
from emotune.core.sections import Section, read_yaml
from emotune.runs import tables
from emotune.runs.params import Params, check

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
# In what part of a model's measurements a column's value lies, and its decimals; all but the judge's are a model's own.
COLUMNS = tables.COLUMNS | {"prompt text": ("text", "prompt_text_share", 3)}
JUDGE = "judge"
# No function of sums over dialogues, so no paired test.
UNTESTED = ("distinct-2", "words")


class Bar(Section):
    """A published result, to stand beside ours."""

    accuracy: float
    f1: float


class Run(Section):
    """One experiment of a study: a profile, single values of params.yaml over it, or both."""

    name: Name
    profile: str | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)


class Study(Section):
    """One file of experiments/. `runs` lists the experiments; or `grid`, lists of values, makes every combination."""

    description: str
    target: Literal["baseline", "evaluate"]
    models: Annotated[tuple[Literal["baseline", "sft", "dpo"], ...], Field(min_length=1)]
    show: Annotated[tuple[str, ...], Field(min_length=1)]
    tests: Annotated[tuple[str, ...], Field(min_length=1)]
    against: str
    common: dict[str, Any] = Field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    published: dict[str, Bar] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.runs) == bool(self.grid):
            raise ValueError("must have either runs or grid")
        tested = [column for column in COLUMNS if column not in UNTESTED]
        for key, known in (("show", [*COLUMNS, JUDGE]), ("tests", tested)):
            if wrong := [name for name in getattr(self, key) if name not in known]:
                raise ValueError(f"{key} takes {', '.join(known)}; got {', '.join(wrong)}")
        names = [run.name for run in self.asked()]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"must name each run once, and two are {twice}")
        if self.against not in ("best", *names):
            raise ValueError(f"against must be best or one of {', '.join(names)}, got {self.against!r}")
        if (self.target == "baseline") != (self.models == ("baseline",)):
            raise ValueError(f"models must be [baseline] where target is baseline, and only there; got {self.models}")
        return self

    def asked(self) -> list[Run]:
        """The runs as listed, or every combination of the grid, named after its values: rank-8_alpha-16."""
        if self.runs:
            return list(self.runs)
        points = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        return [Run(name=_named(point), overrides=point) for point in points]


def _named(point: Mapping[str, Any]) -> str:
    """`rank-8_rslora-true`; a value that is a name is enough where it is the only one: `out_inst`."""
    only = next(iter(point.values())) if len(point) == 1 else None
    if isinstance(only, str):
        return only
    plain = [f"{key.rsplit('.', 1)[-1]}-{v if isinstance(v, str) else json.dumps(v)}" for key, v in point.items()]
    return re.sub(r"[^\w.-]+", "-", "_".join(plain))


def read(folder: Path, name: str) -> Study:
    """experiments/NAME.yaml, checked; InputError says what is wrong with it, or which studies there are."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in folder.glob("*.yaml")))
        raise InputError(f"no study {name!r}; there are {there or f'none in {folder}'}")
    try:
        return Study.model_validate_json(json.dumps(read_yaml(path), default=str))
    except ValidationError as error:
        found = [
            f"{path}: {'.'.join(str(part) for part in problem['loc']) or 'the study'}: "
            + str(problem.get("ctx", {}).get("error", problem["msg"]))
            for problem in error.errors()
        ]
        raise InputError("\n".join(found)) from None


# What a run sets.


def plan(
    name: str, study: Study, content: Mapping[str, Any], profiles: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """For each experiment, the dotted keys that it sets in `content`, a params.yaml, and the whole that comes of it."""
    settings = {f"{name}-{run.name}": overrides(study, run, content, profiles) for run in study.asked()}
    wanted = {made: effective(content, set_to, f"experiments/{name}.yaml, {made}") for made, set_to in settings.items()}
    return settings, wanted


def overrides(study: Study, run: Run, content: Mapping[str, Any], profiles: Path) -> dict[str, Any]:
    """The dotted keys of params.yaml that a run sets, the later over the earlier: profile, common, its own."""
    profile = read_yaml(_profile(profiles, run)) if run.profile else {}
    return dict(_leaves(content, profile)) | study.common | run.overrides


def _profile(profiles: Path, run: Run) -> Path:
    path = profiles / f"{run.profile}.yaml"
    if not path.is_file():
        raise InputError(f"run {run.name}: no profile {run.profile!r} in {profiles}")
    return path


def _leaves(content: Any, overlay: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in overlay.items():
        if isinstance(value, Mapping) and isinstance(content.get(key), Mapping):
            yield from _leaves(content[key], value, f"{above}{key}.")
        else:
            yield above + key, value


def effective(content: Mapping[str, Any], set_to: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The whole of params.yaml with some dotted keys set, checked and normalised; InputError names a wrong key."""
    changed = json.loads(json.dumps(content))
    for key, value in set_to.items():
        section = changed
        *path, last = key.split(".")
        for part in path:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise InputError(f"{name}: {key} is no key of params.yaml: {part} is a value, not a section")
        section[last] = value
    return check(Params, changed, name).model_dump(mode="json")


def hydra(value: Any) -> str:
    """A value as `dvc exp run -S key=value` reads it back: text quoted, lists and mappings in one line."""
    if isinstance(value, str):
        # A backslash is itself, but before a quotation mark, where two of them are one.
        return "'" + re.sub(r"(\\*)('|$)", lambda end: end[1] * 2 + ("\\'" if end[2] else ""), value) + "'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_key(key)}:{hydra(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(hydra, value)) + "]"
    return json.dumps(value)


def _key(key: str) -> str:
    # Keys take no quotation marks.
    return re.sub(r"([\\()\[\]{}:=, ])", r"\\\1", key)
