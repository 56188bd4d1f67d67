"""What a user may turn of the base model, and of one that is trained from nothing."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from emotune.core.sections import Count, Positive, Section


class Model(Section):
    base: str
    revision: str | None
    dtype: Literal["float32", "bfloat16", "float16"]
    attention: Literal["sdpa", "flash_attention_2", "eager"]
    quantization: Literal["none", "nf4"]
    context: Annotated[int, Field(ge=32)]


class Size(Section):
    """How large a model is that is trained from nothing."""

    hidden_size: Annotated[int, Field(ge=16)]
    layers: Count
    heads: Count

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size must be a multiple of 2 x heads = {2 * self.heads}, got {self.hidden_size}")
        return self


class Learning(Size):
    """How a model learns from nothing."""

    vocabulary: Annotated[int, Field(ge=300)]
    epochs: Positive
    learning_rate: Positive
    muon: Positive | None
    batch_size: Count
    seed: int


class Small(Size):
    """One that learns as the embedded model did, from so many dialogues."""

    dialogues: Count


class Pretrain(Learning):
    extra: str | None
    extra_revision: str | None
