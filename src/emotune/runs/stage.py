"""How a stage starts and ends: `python -m emotune.runs.stage NAME --dialogues data/dialogues ...`, for dvc.yaml.

A stage of another pipeline is named with its folder, `instruct.sft`, and reads the params.yaml beside that dvc.yaml.
Flags come from the signature of the stage's `main`, params from its `Params`. Its metrics are written here, the tracker
is told here, what it cost is noted here; what fails is one message and exit code 2. No stage imports any of it.
"""

import argparse
import errno
import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from emotune.core import processes, records, sections
from emotune.core.contract import SAMPLED_TOKENS, SAMPLING_SECONDS, Dep, MaybeDep, Out
from emotune.core.errors import InputError, Refusal
from emotune.runs import costs, estimate, launchers, params, tracking
from emotune.runs.costs import Cost

# No space left, a file above its limit, a quota, by their words: safetensors, tokenizers and torch raise errors of
# kinds of their own, and torch speaks of a position in the file alone.
FULL = (*map(os.strerror, (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)), "unexpected pos")
# The allocators of CPU and GPU; in what Python and NumPy lack, their error's kind says it.
NO_MEMORY = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
COSTS = (SAMPLED_TOKENS, SAMPLING_SECONDS)
STAGES = Path(__file__).parents[1] / "stages"
# What evaluate writes from what the others did: none of it is true of what a stage is about to change, if its metrics
# lie beside it. Those of another pipeline lie below.
HEADLINE = Path("metrics/headline.json")


def start(arguments: Sequence[str]) -> None:
    """Run the stage that the first argument names, with a flag for each of its paths, and `--metrics`.

    InputError, a full disk and too little memory are one message and exit code 2. A stage that says `PARALLEL` obeys
    EMOTUNE_LAUNCH; any other runs as one process whatever it says.
    """
    stage, paths = _parsed(arguments)
    *pipeline, name = _names(stage)
    parallel = getattr(stage, "PARALLEL", False)
    if paths["metrics"].parent.parent == HEADLINE.parent:
        pipeline = [paths["metrics"].parent.name]
    cost = Cost("/".join([*pipeline, name]))
    try:
        # Before anything imports what takes seconds.
        whole = params.whole(params.PARAMS)
        cost.params = costs.digest(sections.part(stage.Params, whole).model_dump(mode="json"))
        # Of several processes each has its share of the rows, and where they spread the model, of that.
        is_alone = processes.processes() == 1 and not (parallel and os.environ.get("EMOTUNE_LAUNCH"))
        if isinstance(whole, params.Params) and is_alone:
            estimate.assert_fits(name, whole, paths.get("dialogues"))
        if parallel and launchers.is_wanted():
            sys.exit(launchers.launch(name, cost))
        _prepare(name, parallel)
        if not whole.quantizes:
            # Where it is installed peft imports it, and with it torch's compiler: a quarter of a start.
            sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
        run(stage, whole, paths, cost)
        processes.wait()
    except Exception as error:
        message = _explained(error)
        # What the process that started the launcher hears of, it notes itself.
        if processes.first() and not launchers.is_under_one():
            cost.note(message or f"{type(error).__name__}: {error}")
        if message is None:
            raise
        launchers.tell(f"emotune {name}: {message}")
        sys.exit(2)
    if processes.first():
        cost.note(None)
        print(f"{name} took {cost.seconds:.1f} s", flush=True)
    if processes.processes() > 1:
        processes.distributed().destroy_process_group()


def _names(stage: ModuleType) -> list[str]:
    """A stage's name, behind that of its pipeline where this is not the root's: [instruct, sft]."""
    return stage.__name__.removeprefix("emotune.stages.").split(".")


def run(stage: ModuleType, whole: params.Whole, paths: Mapping[str, Path], cost: Cost) -> None:
    """A stage's `main` in this process, with the part of params that it declares; its metrics go to `paths["metrics"]`.

    They are written before a Refusal goes on, which says what is wrong with them.
    """
    p = sections.part(stage.Params, whole)
    kinds = get_type_hints(stage.main, include_extras=True)
    deps = [flag for flag, kind in kinds.items() if kind in (Dep, MaybeDep) and flag in paths]
    inputs = records.digests(**{flag: paths[flag] for flag in deps})
    name = _names(stage)[-1]
    if "DVC_STAGE" in os.environ and processes.first() and paths["metrics"].parent == HEADLINE.parent:
        HEADLINE.unlink(missing_ok=True)
    with tracking.run(name, p.model_dump(mode="json"), inputs, _data_sets(stage, p, paths)) as tracked:

        def log(metrics: Mapping[str, float], step: int) -> None:
            cost.hear(metrics)
            # What a stage cost is no metric of it.
            tracked.log({name: value for name, value in metrics.items() if name not in COSTS}, step)

        known = {"p": p, "log": log, "inputs": inputs, **paths}
        refusal = None
        try:
            measured = stage.main(**{flag: known[flag] for flag in kinds if flag in known})
        except Refusal as error:
            refusal, measured = error, error.metrics
        if processes.first():
            records.write_metrics(paths["metrics"], measured)
            tracked.metrics(measured)
        if refusal:
            raise refusal


def _data_sets(stage: ModuleType, p: Any, paths: Mapping[str, Path]) -> dict[str, Path]:
    """The files of a stage's data sets, where it says which, by the name of the dep and of the split."""
    named = stage.data_sets(p) if hasattr(stage, "data_sets") else {}
    return {f"{dep}/{split}": paths[dep] / f"{split}.jsonl" for dep, splits in named.items() for split in splits}


def flags(main: Any) -> list[str]:
    """The paths that a stage's command names, `metrics` among them; those of MaybeDep it may name."""
    kinds = get_type_hints(main, include_extras=True)
    return [*(flag for flag, kind in kinds.items() if kind in (Dep, MaybeDep, Out)), "metrics"]


def _parsed(arguments: Sequence[str]) -> tuple[ModuleType, dict[str, Path]]:
    """The stage's module, and its paths by the names of its parameters."""
    files = (path.relative_to(STAGES) for path in STAGES.rglob("[!_]*.py"))
    names = sorted(".".join(path.with_suffix("").parts) for path in files)
    parser = argparse.ArgumentParser(prog="python -m emotune.runs.stage")
    parser.add_argument("stage", choices=names)
    stage = importlib.import_module(f"emotune.stages.{parser.parse_args(arguments[:1]).stage}")
    parser = argparse.ArgumentParser(
        prog=f"python -m emotune.runs.stage {arguments[0]}", description=inspect.getdoc(stage.main)
    )
    kinds = get_type_hints(stage.main, include_extras=True)
    for flag in flags(stage.main):
        parser.add_argument(f"--{flag.replace('_', '-')}", type=Path, required=kinds.get(flag) != MaybeDep)
    return stage, {flag: path for flag, path in vars(parser.parse_args(arguments[1:])).items() if path is not None}


def take_code_of_this_workspace() -> None:
    """Start this process again with the code that lies here, where another's was imported.

    DVC runs a queued experiment in a copy of the repository and hashes the code there; an editable install imports the
    repository's own, which may have been edited since.
    """
    # A pipeline in a folder of its own runs there.
    here = next((path for path in (Path("src").absolute(), Path("..", "src").resolve()) if path.is_dir()), Path("src"))
    is_other = (here / "emotune").is_dir() and not (here / "emotune").samefile(STAGES.parent)
    if is_other and str(here) not in sys.path:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH")]))
        os.execv(sys.executable, sys.orig_argv)


def _prepare(name: str, parallel: bool) -> None:
    """Threads, what the libraries say, and the group of processes, before anything imports torch."""
    # More threads than cores can cost a factor of twenty; one thread, torchrun's choice, leaves the others idle.
    if "EMOTUNE_SHARE_CORES" in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(processes.cores())
    os.environ.setdefault("OMP_NUM_THREADS", str(processes.cores()))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # What the libraries will change some day is no news to whoever runs a stage.
    warnings.simplefilter("ignore", FutureWarning)
    launchers.assert_launched(name, parallel)
    if processes.processes() > 1:
        launchers.join()
    else:
        launchers.take_one_gpu()


def _explained(error: Exception) -> str | None:
    """What to tell the user of an error that is not ours: input, a full disk, or too little memory; else None."""
    if isinstance(error, InputError):
        return str(error)
    reason = " ".join(str(error).split())
    if any(words in str(error) for words in FULL):
        return f"no room to write ({reason}): make room and start it again; nothing is half-written"
    if isinstance(error, MemoryError) or any(words in reason for words in NO_MEMORY):
        return f"out of memory: {reason or 'no more to be had'}; a smaller base model, batch or context takes less"
    return None


if __name__ == "__main__":
    processes.collect_when_imported()
    take_code_of_this_workspace()
    start(sys.argv[1:])
