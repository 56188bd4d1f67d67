"""How sft and dpo train: the optimisation, which both declare."""

from typing import Annotated, Literal

from pydantic import Field

from emotune.core.sections import Count, Positive, Section


class Training(Section):
    """What sft and dpo share: the optimisation."""

    epochs: Positive
    learning_rate: Positive
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    batch_size: Count
    accumulation: Count
    optimizer: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"]
    gradient_checkpointing: bool
    checkpoints: Annotated[int, Field(ge=0)]
    seed: int
