"""The questions that baseline, sft and dpo are asked."""

from typing import Annotated, Literal

from pydantic import Field

from emotune.core.sections import Count, Section
from emotune.generation.params import Sampling
from emotune.judges.params import EmotionChoice, JudgeChoice
from emotune.models.params import Model

# The ways in which the base model may be told an emotion in words.
PROMPTED = ("zero-shot", "few-shot")


class Evaluate(Section):
    split: Literal["test", "validation"]
    prompts: Count | None
    control_contexts: Count
    resamples: Annotated[int, Field(ge=100)]
    seed: int
    emotion_judge: EmotionChoice
    gibberish_judge: JudgeChoice
    sampling: Sampling


class Examination(Section):
    """The questions, the judges of the answers, and the model that is asked: what a stage that evaluates reads."""

    evaluate: Evaluate
    history_turns: Count
    model: Model
    system_prompt: str | None
