"""How replies are sampled, and by whom."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from emotune.core.sections import Count, NotNegative, Section


class Sampling(Section):
    temperature: NotNegative
    top_k: Annotated[int, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    repetition_penalty: Annotated[float, Field(ge=1)]
    min_new_tokens: Annotated[int, Field(ge=0)]
    max_new_tokens: Count
    guidance: NotNegative

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens must be at most max_new_tokens = {self.max_new_tokens}, got {self.min_new_tokens}"
            )
        return self

    def twin(self, neutral: str) -> str | None:
        """The emotion that the twin of a prompt asks for, by which its reply is guided; None where nothing guides."""
        return None if self.guidance == 1 else neutral


class Generation(Section):
    engine: Literal["local", "server"]
    model: str | None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.engine == "server" and not self.model:
            raise ValueError("model must name what the server serves where engine is server, got null")
        return self
