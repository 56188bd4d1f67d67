"""The exceptions that mean "your input, not our bug": each is shown as one message, without a traceback."""

from collections.abc import Mapping
from typing import Any


class InputError(ValueError):
    """Bad input. The message names the file and line or the key, what was found and what is accepted."""


class Refusal(InputError):
    """What a stage made is not good enough to go on with; `metrics` say why, and are written all the same."""

    def __init__(self, message: str, metrics: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.metrics = metrics
