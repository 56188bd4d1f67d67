"""The whole of a params.yaml: every section stands in the room that uses it, and here they come together.

That of the root is the emotion pipeline's, that of instruct/ the instruction pipeline's. `publish` alone is here: no
stage reads it, and the room that does lies above this one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from emotune.core.sections import Count, Section, check, read_yaml
from emotune.data.instruction_params import Rows
from emotune.data.params import Data
from emotune.evaluation.instruction_params import Outputs
from emotune.evaluation.params import Evaluate
from emotune.generation.params import Generation
from emotune.judges.params import Judges
from emotune.models import pins
from emotune.models.params import Model, Pretrain, Small
from emotune.preferences.params import Prefs, Reward
from emotune.prompts.params import Format, Template
from emotune.stages.baseline import Baseline
from emotune.stages.dpo import Dpo
from emotune.stages.instruct import sft as instruct
from emotune.stages.instruct.questions import Questions
from emotune.stages.reward_model import Learned
from emotune.stages.sft import Sft
from emotune.training.pairs import VOTES
from emotune.training.params import Training

PARAMS = Path("params.yaml")
Repository = Annotated[str, Field(pattern=r"^\w[\w.-]{0,90}(@\w[\w./-]*)?$")]
License = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]


class Hub(Section):
    """What `publish` says in every pipeline: whose, where base and sft go, and under which licences."""

    owner: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] | None
    base: Repository
    sft: Repository
    license: License | None
    data_license: License | None
    base_license: License | None

    @model_validator(mode="after")
    def _apart(self) -> Self:
        about = {"owner", "license", "data_license", "base_license"}
        names = [name for name in type(self).model_fields if name not in about]
        places = [getattr(self, name) for name in names]
        if len(set(places)) != len(places):
            wanted = f"{', '.join(names[:-1])} and {names[-1]}"
            raise ValueError(f"{wanted} must be {len(names)} repositories or branches, got {places}")
        return self


class Publish(Hub):
    dpo: Repository
    merged: Repository
    prefs: Repository


class PublishInstructions(Hub):
    rows: Repository


class Whole(Section):
    """All of a params.yaml, of whichever pipeline."""

    model: Model

    @property
    def models(self) -> tuple[Model, ...]:
        """Every model that a stage may load."""
        return (self.model,)

    @property
    def quantizes(self) -> bool:
        """Whether it may need bitsandbytes: for 4-bit weights, which a named base may bring, or an 8-bit optimizer."""
        optimizers = {value.optimizer for _, value in self if isinstance(value, Training)}
        loads = any(model.base not in pins.OWN or model.quantization != "none" for model in self.models)
        return loads or optimizers != {"adamw_torch"}


class Params(Whole):
    """The whole of the root's; a section is what a stage of dvc.yaml can depend on."""

    data: Data
    history_turns: Count
    system_prompt: str | None
    pretrain: Pretrain
    judges: Judges
    evaluate: Evaluate
    baseline: Baseline
    template: Template
    sft: Sft
    reward_model: Learned
    generation: Generation
    prefs: Prefs
    dpo: Dpo
    publish: Publish
    reward: Reward

    @model_validator(mode="after")
    def _two_judges(self) -> Self:
        for kind in ("emotion_judge", "gibberish_judge"):
            rewarding, evaluating = getattr(self.reward, kind).name, getattr(self.evaluate, kind).name
            if rewarding != "embedded" and rewarding == evaluating:
                raise ValueError(
                    f"reward.{kind} and evaluate.{kind} must differ: the judge that rewards cannot be the judge that "
                    f"evaluates; got {rewarding!r} for both"
                )
        return self

    @model_validator(mode="after")
    def _votes_apart(self) -> Self:
        pairs = [source.partition("@")[0] for source in self.reward_model.sources]
        if self.evaluate.split == "validation" and (self.prefs.source != "generated" or VOTES in pairs):
            raise ValueError(
                "evaluate.split must be test where prefs.source is votes or both, or reward_model.pairs has votes: "
                f"people voted on contexts of the validation split, which are learned then; got {self.evaluate.split}"
            )
        return self

    @model_validator(mode="after")
    def _guided_here(self) -> Self:
        guidance = self.prefs.sampling.guidance
        if self.generation.engine == "server" and guidance != 1:
            raise ValueError(
                "prefs.sampling.guidance must be 1 where generation.engine is server: no server reads a prompt and its "
                f"twin together; or set generation.engine to local; got {guidance}"
            )
        return self


class Instructions(Whole):
    """The whole of instruct/params.yaml."""

    questions: Questions
    rows: Rows
    system_prompt: str | None
    pretrain: Small
    format: Format
    shots: Count
    evaluate: Outputs
    sft: instruct.Sft
    publish: PublishInstructions

    @property
    def models(self) -> tuple[Model, ...]:
        return self.model, self.questions.model


def kind_of(path: Path) -> type[Whole]:
    """Which params these are, by the sections that they have most of; the root's where there is no such file."""
    return _kind(read_yaml(path) if path.is_file() else {})


def _kind(content: Mapping[str, Any]) -> type[Whole]:
    kinds: tuple[type[Whole], ...] = (Params, Instructions)
    return max(kinds, key=lambda kind: len(kind.model_fields.keys() & content.keys()))


def whole(path: Path) -> Whole:
    """All of a params.yaml, of whichever pipeline, checked."""
    return checked(read_yaml(path), str(path))


def checked(content: Mapping[str, Any], name: str) -> Whole:
    """The same of what a params.yaml holds, which errors call `name`."""
    return check(_kind(content), content, name)


def parse(path: Path = PARAMS) -> Params:
    """All of the root's params.yaml, checked."""
    return check(Params, read_yaml(path), str(path))
