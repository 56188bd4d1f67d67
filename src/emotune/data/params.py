"""What a user may turn of the data."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from emotune.core.sections import Count, Section, Share

Labels = Annotated[tuple[str, ...], Field(min_length=2)]


class Data(Section):
    source: Literal["embedded", "folder", "hub", "jsonl"]
    path: str | None
    name: str | None
    revision: str | None
    dialogues: Annotated[int, Field(ge=100)]
    limit: Count | None
    labels: Labels
    neutral: str
    same_speaker: Literal["error", "join"]
    others: Literal["error", "drop", "split"]
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
