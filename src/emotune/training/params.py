"""How sft, reward_model and dpo train: the optimisation, which all declare."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from emotune.core.sections import Count, Positive, Section


class Training(Section):
    """What sft, reward_model and dpo share: the optimisation."""

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

    @property
    def section(self) -> str:
        """Its name in params.yaml."""
        return type(self).__name__.lower()


class Adapter(Section):
    """The low-rank matrices that are trained beside a base model's own."""

    rank: Count
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    rslora: bool
    target_modules: Literal["all-linear"] | tuple[str, ...]

    @field_validator("target_modules")
    @classmethod
    def _no_embeddings(cls, modules: str | tuple[str, ...]) -> str | tuple[str, ...]:
        # TRL's frozen reference copy misses LoRA on embeddings, and PEFT refuses lm_head.
        refused = {"lm_head", "embed_tokens"} & set(modules if isinstance(modules, tuple) else ())
        if refused or modules == ():
            raise ValueError(
                f"must be all-linear or names of linear layers such as q_proj, v_proj; got {list(modules)}"
                " (lm_head and embed_tokens are refused: DPO's frozen reference would miss them)"
            )
        return modules


class Tuning(Training):
    """What trains a new adapter."""

    lora: Adapter
