"""What makes a reply better than another, and what makes a pair of two."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from emotune.core.sections import Count, NotNegative, Positive, Section, Share
from emotune.generation.params import Sampling
from emotune.judges.params import EmotionChoice, JudgeChoice
from emotune.preferences.votes import VotesAt


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
    emotion_judge: EmotionChoice
    gibberish_judge: JudgeChoice
    model: Literal["trained"] | None
    bias: float
    copy_penalty: NotNegative
    length: Length
    weights: tuple[float, ...]

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        terms = ["emotion", "length", "gibberish", *(["learned"] if self.model else [])]
        if len(self.weights) != len(terms) or min(self.weights) < 0 or sum(self.weights) == 0:
            raise ValueError(
                f"weights must be {'four' if self.model else 'three'} numbers >= 0 ({', '.join(terms)}), not all 0; "
                f"got {list(self.weights)}{'' if self.model else '; reward.model: trained takes a fourth'}"
            )
        return self


class Audit(Section):
    min_yield: Share
    min_pairs_per_emotion: Annotated[int, Field(ge=0)]
    min_chosen_longer: Share
    max_chosen_longer: Share
    max_duplicate_prompts: Share
    max_duplicate_chosen: Share
    max_prompts_in_test: Share


class Prefs(VotesAt):
    source: Literal["generated", "votes", "both"]
    votes_revision: str | None
    prompts: Count
    emotions: Literal["dataset", "balanced", "every"]
    candidates: Annotated[int, Field(ge=2)]
    attempts: Count
    target_score_range: NotNegative
    min_chosen_score: float
    min_clean_confidence: Share
    rejected: Literal["worst", "contrast"]
    spare: bool
    human_fill: Annotated[int, Field(ge=0)]
    validation: Annotated[float, Field(ge=0, lt=1)]
    seed: int
    sampling: Sampling
    audit: Audit
