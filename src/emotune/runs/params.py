"""The whole of params.yaml: every section stands in the room that uses it, and here they come together.

`publish` alone is here: no stage reads it, and the room that does lies above this one.
"""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from emotune.core.sections import Count, Section, check, read_yaml
from emotune.data.params import Data
from emotune.evaluation.params import Evaluate
from emotune.generation.params import Generation
from emotune.judges.params import Judges
from emotune.models import pins
from emotune.models.params import Model, Pretrain
from emotune.preferences.params import Prefs, Reward
from emotune.prompts.params import Template
from emotune.stages.baseline import Baseline
from emotune.stages.dpo import Dpo
from emotune.stages.sft import Sft

PARAMS = Path("params.yaml")
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


class Params(Section):
    """The whole of params.yaml; a section is what a stage of dvc.yaml can depend on."""

    data: Data
    history_turns: Count
    system_prompt: str | None
    model: Model
    pretrain: Pretrain
    judges: Judges
    evaluate: Evaluate
    baseline: Baseline
    template: Template
    sft: Sft
    generation: Generation
    prefs: Prefs
    dpo: Dpo
    publish: Publish
    reward: Reward

    @property
    def quantizes(self) -> bool:
        """Whether it may need bitsandbytes: for 4-bit weights, which a named base may bring, or an 8-bit optimizer."""
        optimizers = {self.sft.optimizer, self.dpo.optimizer}
        return self.model.base not in pins.OWN or self.model.quantization != "none" or optimizers != {"adamw_torch"}

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
        if self.prefs.source != "generated" and self.evaluate.split == "validation":
            raise ValueError(
                "evaluate.split must be test where prefs.source is votes or both: people voted on contexts of the "
                f"validation split, and dpo would learn them; got {self.evaluate.split}"
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


def parse(path: Path = PARAMS) -> Params:
    """All of a params.yaml, checked."""
    return check(Params, read_yaml(path), str(path))
