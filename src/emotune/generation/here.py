"""The engine of this machine; torch comes with the first reply, and who finds all in a journal needs none."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from emotune.generation.engine import Reply, Request, leading
from emotune.generation.params import Sampling


@dataclass(frozen=True)
class Local:
    """The engine that samples here, by the model that `open_model` loads when the first reply is wanted."""

    open_model: Callable[[], Any]
    tokenizer: Any

    @cached_property
    def model(self) -> Any:
        return self.open_model()

    def at_once(self, requests: Sequence[Request], sampling: Sampling) -> int:
        """As many as one batch holds, by what memory is free now."""
        from emotune.generation import local

        most = requests[: leading(requests, local.GPU_ROWS)]
        return leading(most, local.fitting_rows(self.model, most, sampling.max_new_tokens))

    def replies(
        self, requests: Sequence[Request], sampling: Sampling, done: Callable[[int], None] = lambda count: None
    ) -> list[list[Reply]]:
        from emotune.generation import local

        return local.replies(self.model, self.tokenizer, requests, sampling, done=done)

    def ahead(self) -> int:
        """None on the same cores."""
        return 0 if self.model.device.type == "cpu" else 1

    def close(self) -> None:
        if vars(self).pop("model", None):
            # What wraps a model's parts knows them, and they it: they go when garbage is looked for.
            gc.collect()
