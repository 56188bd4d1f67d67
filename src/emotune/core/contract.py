"""What a stage is to whoever starts it: a `main` with typed params, a log, deps and outs, that returns its metrics.

    class Params(Section): the sections of params.yaml that it reads, and no others
    def main(p: Params, log: Log, dialogues: Dep, out: Out) -> Metrics

Each Dep and each Out is a flag of its command in dvc.yaml. A main that also names `inputs` is given the digest of
each of its deps. A stage that several processes can share says `PARALLEL = True`; one whose rows are worth a look says
which splits of which deps they are, `data_sets(p) -> DataSets`. Whoever starts it writes the metrics, tells the tracker
and notes what it cost: a stage knows none of that.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

Dep = Annotated[Path, "dep"]
# One that not every pipeline's command names; None where it does not.
MaybeDep = Annotated[Path | None, "dep"]
Out = Annotated[Path, "out"]
Metrics = Mapping[str, Any]
Inputs = Mapping[str, str]
DataSets = Mapping[str, Sequence[str]]
# A point in the history of each metric, and its step.
Log = Callable[[Mapping[str, float], int], None]
# What a stage that samples logs beside its metrics: its speed is of these.
SAMPLED_TOKENS, SAMPLING_SECONDS = "sampled_tokens", "sampling_seconds"
