"""params.yaml, typed, frozen and strict: the one reader of every value that a user may turn."""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from emotune.errors import InputError

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Template = Literal["in_inst", "out_inst", "in_inst_uni", "out_inst_uni"]
TEMPLATES: tuple[str, ...] = ("in_inst", "out_inst", "in_inst_uni", "out_inst_uni")


class Section(BaseModel):
    """A mapping of params.yaml: no unknown key, no silent conversion, no change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Section):
    source: Literal["embedded", "folder", "hub", "jsonl"]
    path: str | None
    name: str | None
    revision: str | None
    dialogues: Annotated[int, Field(ge=100)]
    limit: Count | None
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    neutral: str
    max_dropped: Share
    seed: int

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {"folder": "path", "jsonl": "path", "hub": "name"}.get(self.source)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"{needed} must be set where source is {self.source}, got null")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must name each emotion once, got {list(self.labels)}")
        if self.neutral not in self.labels:
            raise ValueError(f"neutral must be one of labels {list(self.labels)}, got {self.neutral!r}")
        return self


class Model(Section):
    base: str
    revision: str | None
    dtype: Literal["float32", "bfloat16", "float16"]
    attention: Literal["sdpa", "flash_attention_2", "eager"]
    quantization: Literal["none", "nf4"]
    context: Annotated[int, Field(ge=32)]


class Pretrain(Section):
    vocabulary: Annotated[int, Field(ge=300)]
    hidden_size: Annotated[int, Field(ge=16)]
    layers: Count
    heads: Count
    epochs: Positive
    learning_rate: Positive
    batch_size: Count
    seed: int

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size must be a multiple of 2 x heads = {2 * self.heads}, got {self.hidden_size}")
        return self


class JudgeChoice(Section):
    name: str
    revision: str | None
    labels: dict[str, str] | None


class Sampling(Section):
    temperature: NotNegative
    top_k: Annotated[int, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    repetition_penalty: Annotated[float, Field(ge=1)]
    min_new_tokens: Annotated[int, Field(ge=0)]
    max_new_tokens: Count

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens must be at most max_new_tokens = {self.max_new_tokens}, got {self.min_new_tokens}"
            )
        return self


class Evaluate(Section):
    split: Literal["test", "validation"]
    prompts: Count | None
    control_contexts: Count
    resamples: Annotated[int, Field(ge=100)]
    seed: int
    emotion_judge: JudgeChoice
    sampling: Sampling


class Lora(Section):
    rank: Count
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    rslora: bool
    target_modules: Literal["all-linear"] | tuple[str, ...]

    @field_validator("target_modules")
    @classmethod
    def _no_embeddings(cls, modules: str | tuple[str, ...]) -> str | tuple[str, ...]:
        # TRL's frozen reference copy misses LoRA on embeddings (FIELD_NOTES 0.1), and PEFT refuses lm_head.
        refused = {"lm_head", "embed_tokens"} & set(modules if isinstance(modules, tuple) else ())
        if refused or modules == ():
            raise ValueError(
                f"must be all-linear or names of linear layers such as q_proj, v_proj; got {list(modules)}"
                " (lm_head and embed_tokens are refused: DPO's frozen reference would miss them)"
            )
        return modules


class Training(Section):
    """What sft and dpo share: the optimisation."""

    epochs: Positive
    learning_rate: Positive
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    batch_size: Count
    accumulation: Count
    optimizer: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"]
    gradient_checkpointing: bool
    checkpoints: Annotated[int, Field(ge=0)]
    seed: int


class Sft(Training):
    loss_on: Literal["replies", "all"]
    neutral_replies: Positive | None
    lora: Lora


class Generation(Section):
    engine: Literal["local", "server"]
    model: str | None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.engine == "server" and not self.model:
            raise ValueError("model must name what the server serves where engine is server, got null")
        return self


class Audit(Section):
    min_yield: Share
    min_pairs_per_emotion: Annotated[int, Field(ge=0)]
    max_chosen_longer: Share
    max_duplicate_prompts: Share
    max_duplicate_chosen: Share
    max_prompts_in_test: Share


class Prefs(Section):
    prompts: Count
    emotions: Literal["dataset", "balanced"]
    candidates: Annotated[int, Field(ge=2)]
    attempts: Count
    target_score_range: NotNegative
    min_chosen_score: float
    min_clean_confidence: Share
    validation: Annotated[float, Field(ge=0, lt=1)]
    seed: int
    sampling: Sampling
    audit: Audit


class Dpo(Training):
    beta: Positive
    sft_weight: NotNegative
    control_contexts: Annotated[int, Field(ge=0)]


Repository = Annotated[str, Field(pattern=r"^\w[\w.-]{0,90}(@\w[\w./-]*)?$")]
License = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]


class Publish(Section):
    owner: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] | None
    base: Repository
    sft: Repository
    dpo: Repository
    merged: Repository
    prefs: Repository
    license: License | None
    data_license: License | None
    base_license: License | None

    @model_validator(mode="after")
    def _apart(self) -> Self:
        places = [self.base, self.sft, self.dpo, self.merged, self.prefs]
        if len(set(places)) != len(places):
            raise ValueError(f"base, sft, dpo, merged and prefs must be five repositories or branches, got {places}")
        return self


class Length(Section):
    shape: Literal["published", "plateau"]
    unit: Literal["characters", "words", "tokens"]
    low: Positive
    high: Positive

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high = {self.high}, got {self.low}")
        return self


class Reward(Section):
    emotion_judge: JudgeChoice
    bias: float
    length: Length
    weights: tuple[float, ...]

    @field_validator("weights")
    @classmethod
    def _three(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if len(weights) != 3 or min(weights) < 0 or sum(weights) == 0:
            raise ValueError(f"must be three numbers >= 0 (emotion, length, gibberish), not all 0; got {list(weights)}")
        return weights


class Params(Section):
    """The whole of params.yaml; a section is what a stage of dvc.yaml can depend on."""

    data: Data
    history_turns: Count
    system_prompt: str | None
    model: Model
    pretrain: Pretrain
    gibberish_judge: JudgeChoice
    evaluate: Evaluate
    template: Template
    sft: Sft
    generation: Generation
    prefs: Prefs
    dpo: Dpo
    publish: Publish
    reward: Reward

    @model_validator(mode="after")
    def _two_judges(self) -> Self:
        rewarding, evaluating = self.reward.emotion_judge, self.evaluate.emotion_judge
        if rewarding.name != "embedded" and rewarding.name == evaluating.name:
            raise ValueError(
                "reward.emotion_judge and evaluate.emotion_judge must differ: the judge that rewards cannot be the "
                f"judge that evaluates; got {rewarding.name!r} for both"
            )
        return self


class _Declared:
    """The part of a section tree that a stage declared; anything else is not there to be read."""

    def __init__(self, section: Section, names: tuple[tuple[str, ...], ...], path: str = "") -> None:
        self._section, self._names, self._path = section, names, path

    def __getattr__(self, name: str) -> Any:
        below = tuple(rest for first, *rest in self._names if first == name)
        if not below:
            raise AttributeError(f"{self._path}{name} is not among the params this stage declares")
        value = getattr(self._section, name)
        if [] in below:
            return value
        return _Declared(value, tuple(tuple(rest) for rest in below), f"{self._path}{name}.")

    def model_dump(self) -> dict[str, Any]:
        """The declared values as plain JSON-ready mappings, for fingerprints and for the tracker."""
        dumped = {}
        for first in dict.fromkeys(name[0] for name in self._names):
            value = getattr(self, first)
            is_tree = isinstance(value, _Declared)
            dumped[first] = value.model_dump() if is_tree else _plain(value)
        return dumped


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else json.loads(json.dumps(value))


def load(*names: str, path: Path = Path("params.yaml")) -> Params:
    """The sections `names` (dotted keys allowed) of params.yaml, after the whole file was checked.

    What is returned has just these sections: a stage cannot read what dvc.yaml does not say it depends on.
    Raises InputError with every wrong key, what it got, what it takes and the nearest key.
    """
    whole = parse(path)
    return cast(Params, _Declared(whole, tuple(tuple(name.split(".")) for name in names)))


def parse(path: Path) -> Params:
    """All of a params.yaml, checked."""
    return check(read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML 1.2 mapping: `2e-05`, which `dvc exp run -S` writes, is a float here (PyYAML makes it a string)."""
    try:
        content = YAML(typ="safe", pure=True).load(io.StringIO(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"{path}:{line}: not YAML: {error.problem}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping of sections, found {type(content).__name__}")
    return content


def check(content: Mapping[str, Any], name: str) -> Params:
    """The typed params of a mapping, or one InputError that lists all that is wrong with it."""
    try:
        # Through JSON, whose strict mode takes a list for a tuple and nothing else for what it is not. A date, which
        # only YAML has, becomes text.
        return Params.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        lines = [_explain(dict(problem)) for problem in error.errors()]
        raise InputError(f"{name}: " + (f"\n{name}: ".join(lines))) from None
    except TypeError as error:
        raise InputError(f"{name}: {error}") from None


def _explain(problem: dict[str, Any]) -> str:
    path = [part for part in problem["loc"] if not (isinstance(part, str) and part.startswith(("literal[", "tuple[")))]
    key = ".".join(str(part) for part in path)
    got = json.dumps(problem.get("input"), ensure_ascii=False, default=str)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(path[-1]), _keys(path[:-1]), n=1, cutoff=0.0)
        return f"unknown key {key}; the nearest is {'.'.join([*map(str, path[:-1]), near[0]])}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "value_error":
        # A field's validator says "must ...", that of a section "field must ...", that of the whole file says it all.
        reason = str(problem["ctx"]["error"])
        return f"{key}{' ' if reason.startswith('must ') else '.'}{reason}" if key else reason
    return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {got}"


def _keys(path: list[Any]) -> list[str]:
    section: Any = Params
    for part in path:
        section = section.model_fields[part].annotation if part in section.model_fields else section
    return list(section.model_fields)
