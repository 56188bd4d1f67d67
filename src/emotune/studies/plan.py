"""A study: a file of experiments/, and the params that each of its runs sets."""

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from emotune.core import nested
from emotune.core.errors import InputError
from emotune.core.sections import Section, read_yaml
from emotune.runs import params, tables
from emotune.runs.tables import Column

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
# All but the judge's are a model's own.
COLUMNS = tables.COLUMNS | {
    "learned score": Column("replies", "learned_score", 2),
    "prompt text": Column("text", "prompt_text_share", 3),
}
JUDGE = "judge"
# Of models of instructions.
OUTPUTS = {
    "perplexity": Column("overall", "perplexity", 2),
    "mean of rows' perplexities": Column("overall", "mean_row_perplexity", 1),
    "exact match": Column("overall", "exact_match", 3),
    "F1": Column("overall", "f1", 3),
}
# The stage that a study may go on to, and whose answers are compared then.
MODELS = {"baseline": ("baseline",), "evaluate": ("sft", "dpo"), "compare": ("zero_shot", "few_shot", "sft")}
# No function of sums over a model's dialogues, or of what no row of a reply says, so no paired test.
UNTESTED = ("control of human", "joint", "distinct-2", "words")
# What rows of sft and dpo say, and the baseline's do not.
OF_TUNED = ("fit", "learned score")
# What a study of seeds sets, together: all that is drawn after base and judges. Questions and data stay the same.
SEEDS = ("sft.seed", "prefs.seed", "dpo.seed")


class Bar(Section):
    """A published result, to stand beside ours."""

    accuracy: float
    f1: float


class Variant(Section):
    """What one experiment of a study sets: a profile, single values of params.yaml over it, or both."""

    name: Name
    profile: str | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)


class Study(Section):
    """One file of experiments/. `runs` lists the experiments; or `grid`, lists of values, makes every combination.

    Or `seeds` repeats one run with others of SEEDS: nothing is chosen, so it may look at test, and has no `against`.
    Nor needs one a grid that lists seeds, over which it measures its other changes.
    """

    description: str
    target: Literal["baseline", "evaluate", "compare"]
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    show: Annotated[tuple[str, ...], Field(min_length=1)]
    tests: Annotated[tuple[str, ...], Field(min_length=1)]
    against: str | None = None
    common: dict[str, Any] = Field(default_factory=dict)
    runs: tuple[Variant, ...] = ()
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    published: dict[str, Bar] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if sum(map(bool, (self.runs, self.grid, self.seeds))) != 1:
            raise ValueError("must have either runs, grid or seeds")
        untested = UNTESTED + (OF_TUNED if self.target == "baseline" else ())
        tested = [column for column in self.columns if column not in untested]
        shown = [*self.columns, *([] if self.of_instructions else [JUDGE])]
        for key, known in (("models", MODELS[self.target]), ("show", shown), ("tests", tested)):
            if wrong := [name for name in getattr(self, key) if name not in known]:
                raise ValueError(f"{key} takes {', '.join(known)} up to {self.target}; got {', '.join(wrong)}")
        names = [run.name for run in self.variants()]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"must name each run once, and two are {twice}")
        is_step = self.models == ("sft", "dpo")
        if self.seeds and (len(self.seeds) < 2 or self.against is not None or not is_step):
            raise ValueError("seeds must be two or more, with models: [sft, dpo], whose step is tested, and no against")
        if not (self.seeds or self.against in ("best", *names) or (self.repeats and self.against is None)):
            raise ValueError(f"against must be best or one of {', '.join(names)}, got {self.against!r}")
        return self

    @property
    def repeats(self) -> bool:
        """Whether its grid repeats each run with other seeds."""
        return any(is_seed(key) and len(values) > 1 for key, values in self.grid.items())

    @property
    def of_instructions(self) -> bool:
        """Whether it is one of instruct/experiments."""
        return self.target == "compare"

    @property
    def columns(self) -> Mapping[str, Column]:
        """What is measured of its models, by the heads of a table."""
        return OUTPUTS if self.of_instructions else COLUMNS

    def variants(self) -> list[Variant]:
        """The runs as listed, or one a seed, or every combination of the grid, named after its values."""
        if self.runs:
            return list(self.runs)
        if self.seeds:
            return [Variant(name=f"seed-{seed}", overrides=dict.fromkeys(SEEDS, seed)) for seed in self.seeds]
        points = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        return [Variant(name=_name_of(point), overrides=point) for point in points]


def is_seed(key: str) -> bool:
    """Whether nothing but chance hangs on a key of params.yaml."""
    return key.rpartition(".")[2] == "seed"


def _name_of(point: Mapping[str, Any]) -> str:
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
        there = ", ".join(sorted(other.stem for other in folder.glob("*.yaml")))
        raise InputError(f"no study {name!r}; there are {there or f'none in {folder}'}")
    try:
        return Study.model_validate_json(json.dumps(read_yaml(path), default=str))
    except ValidationError as error:
        raise InputError("\n".join(f"{path}: {_explained(problem)}" for problem in error.errors())) from None


def _explained(problem: Mapping[str, Any]) -> str:
    where = ".".join(map(str, problem["loc"])) or "the study"
    return f"{where}: {problem.get('ctx', {}).get('error', problem['msg'])}"


@dataclass(frozen=True, slots=True)
class Setup:
    """The dotted keys of params.yaml that an experiment sets, and the whole that comes of it."""

    settings: dict[str, Any]
    params: dict[str, Any]


def setups(name: str, study: Study, content: Mapping[str, Any], profiles: Path) -> dict[str, Setup]:
    """For each experiment, by its name, what it makes of `content`, a params.yaml."""
    whole = {}
    for variant in study.variants():
        # DVC's experiments are those of the whole repository.
        experiment = f"{'instruct-' * study.of_instructions}{name}-{variant.name}"
        settings = overrides(study, variant, content, profiles)
        whole[experiment] = Setup(settings, effective(content, settings, f"experiments/{name}.yaml, {experiment}"))
    return whole


def overrides(study: Study, variant: Variant, content: Mapping[str, Any], profiles: Path) -> dict[str, Any]:
    """The dotted keys of params.yaml that a variant sets, the later over the earlier: profile, common, its own."""
    profile: Mapping[str, Any] = {}
    if variant.profile:
        path = profiles / f"{variant.profile}.yaml"
        if not path.is_file():
            raise InputError(f"run {variant.name}: no profile {variant.profile!r} in {profiles}")
        profile = read_yaml(path)
    return dict(nested.settings(profile, content)) | study.common | variant.overrides


def effective(content: Mapping[str, Any], settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The whole of params.yaml with some dotted keys set, checked and normalised; InputError names a wrong key."""
    changed = json.loads(json.dumps(content))
    for key, value in settings.items():
        section = changed
        *path, last = key.split(".")
        for part in path:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise InputError(f"{name}: {key} is no key of params.yaml: {part} is a value, not a section")
        section[last] = value
    return params.checked(changed, name).model_dump(mode="json")


def hydra(value: Any) -> str:
    """A value as `dvc exp run -S key=value` reads it back: text quoted, lists and mappings in one line."""
    if isinstance(value, str):
        # A backslash is itself, but before a quotation mark, where two of them are one.
        return "'" + re.sub(r"(\\*)('|$)", lambda end: end[1] * 2 + ("\\'" if end[2] else ""), value) + "'"
    if isinstance(value, Mapping):
        # Keys take no quotation marks.
        keys = (re.sub(r"([\\()\[\]{}:=, ])", r"\\\1", key) for key in value)
        return "{" + ",".join(f"{key}:{hydra(inner)}" for key, inner in zip(keys, value.values(), strict=True)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(hydra, value)) + "]"
    return json.dumps(value)
