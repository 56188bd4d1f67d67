"""The questions that the models are asked which follow instructions."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from emotune.core.sections import Count, Section
from emotune.generation.params import Sampling
from emotune.models.params import Model
from emotune.prompts.params import Format


class Outputs(Section):
    """The held-out rows of instructions that every model is asked."""

    split: Literal["test", "validation"]
    limit: Count | None
    resamples: Annotated[int, Field(ge=100)]
    seed: int
    sampling: Sampling

    @model_validator(mode="after")
    def _unguided(self) -> Self:
        if self.sampling.guidance != 1:
            raise ValueError(f"sampling.guidance must be 1: no instruction has a twin; got {self.sampling.guidance}")
        return self


class Instructed(Section):
    """The format of a prompt, and what every model is asked."""

    evaluate: Outputs
    format: Format
    model: Model
    system_prompt: str | None
