"""base_model: the small Llama that comes with the package, or the pin of somebody else's model."""

from emotune.core.contract import Log, Metrics, Out
from emotune.core.errors import InputError
from emotune.core.sections import Section
from emotune.models import pins


class Model(Section):
    """Which base model."""

    base: str
    revision: str | None


class Params(Section):
    """What is tuned, and nothing of how."""

    model: Model


def main(p: Params, log: Log, out: Out) -> Metrics:
    """Write the embedded model and its tokenizer, or the name, commit and hashes of `model.base`."""
    if p.model.base == pins.SCRATCH:
        raise InputError(
            "model.base: instructions make no model from nothing; accepted: embedded, a folder, owner/model"
        )
    return pins.place(p.model.base, p.model.revision, out)
