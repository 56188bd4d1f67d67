"""base_model: the small Llama that comes with the package, one like it of another size, or the pin of another."""

from emotune.core import records
from emotune.core.contract import Log, Metrics, Out
from emotune.core.sections import Section
from emotune.models import pins
from emotune.models.params import Small


class Model(Section):
    """Which base model."""

    base: str
    revision: str | None


class Params(Section):
    """What is tuned, and nothing of how."""

    model: Model
    pretrain: Small


def main(p: Params, log: Log, out: Out) -> Metrics:
    """Write the embedded model, one from `scratch` by its recipe, or the name, commit and hashes of `model.base`."""
    if p.model.base != pins.SCRATCH:
        return pins.place(p.model.base, p.model.revision, out)
    from emotune.models import embedded

    metrics = embedded.train(embedded.recipe_of(p.pretrain), out, log)
    records.write_json(out / pins.BASE_FILE, {"name": p.model.base})
    return metrics
