"""What a user may turn of the rows that instructions are learned from."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from emotune.core.sections import Count, Section, Share


class Rows(Section):
    source: Literal["embedded", "folder", "hub"]
    path: str | None
    name: str | None
    revision: str | None
    dialogues: Annotated[int, Field(ge=100)]
    each: Count
    questions: bool
    limit: Count | None
    held_out: Annotated[float, Field(gt=0, lt=0.5)]
    longest: Count | None
    max_dropped: Share
    seed: int

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {"folder": "path", "hub": "name"}.get(self.source)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"{needed} must be set where source is {self.source}, got null")
        return self
