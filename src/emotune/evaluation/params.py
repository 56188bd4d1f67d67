"""The questions that baseline, sft and dpo are asked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from emotune.core.sections import Count, Section
from emotune.generation.params import Sampling
from emotune.judges.params import JudgeChoice


class Evaluate(Section):
    split: Literal["test", "validation"]
    prompts: Count | None
    control_contexts: Count
    resamples: Annotated[int, Field(ge=100)]
    seed: int
    emotion_judge: JudgeChoice
    sampling: Sampling
