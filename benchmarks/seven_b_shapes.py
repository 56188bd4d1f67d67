"""The 7B profiles on random numbers in their models' shapes, on this machine: every stage, and what a layer takes.

Without `--full`, of each shape two layers at full width and vocabulary: all stages of its profile, from prepare to
evaluate, and one step of sft, one of dpo and four replies, with two layers and with `--more`. What those more add is
what a layer takes, and from it follows what all of them do: the more, the less a moment that was missed counts. With
`--full`, the steps and replies with all layers, measured beside that estimate. Rows fill the context; a step has one
row, unless `--rows` says more.
Memory is the most that the process held in each part, weights included; on a CPU that is without the pages of files,
which Linux gives up where memory is short: while a checkpoint is loaded it maps all of it. Beside it stands what
`emotune estimate` says of the stage. Prints one JSON object last.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import scratch
import shapes

ROOT = Path(__file__).resolve().parents[1]
PROFILES = {
    "llama2-7b": "llama2-7b-12gb",
    "mistral-7b": "mistral-7b-12gb",
    "gemma-7b": "gemma-7b-12gb",
}
FEW = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", metavar="shape", help=f"of {', '.join(PROFILES)} (default: all)")
    parser.add_argument("--more", type=int, default=4, metavar="LAYERS", help="(default %(default)s)")
    parser.add_argument("--full", action="store_true", help="all layers; one shape takes 14 GB of disk")
    parser.add_argument("--rows", type=int, default=1, help="of a step (default %(default)s)")
    parser.add_argument("--context", type=int, default=128, help="tokens a row has (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default %(default)s)")
    chosen = parser.parse_args()
    if unknown := set(chosen.shapes) - set(PROFILES):
        parser.error(f"no shape {sorted(unknown)[0]!r}; there are {', '.join(PROFILES)}")
    scratch.report(measure, chosen)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    results = {}
    for name in chosen.shapes or PROFILES:
        all_layers = shapes.SHAPES[name][1]["num_hidden_layers"]
        few, more = (apart(name, layers, chosen) for layers in (FEW, chosen.more))
        layer = {part: (more[part]["peak_bytes"] - few[part]["peak_bytes"]) / (chosen.more - FEW) for part in few}
        results[name] = {
            "layers": {FEW: few, chosen.more: more},
            "bytes_per_layer": {part: round(size) for part, size in layer.items()},
            "estimated_peak_bytes": {
                part: round(few[part]["peak_bytes"] + (all_layers - FEW) * size) for part, size in layer.items()
            },
        }
        results[name]["emotune_estimate_bytes"] = estimates(name, chosen)
        if chosen.full:
            results[name]["all"] = apart(name, all_layers, chosen)
        else:
            with tempfile.TemporaryDirectory() as folder:
                model = shapes.build(name, Path(folder, "model"), texts(), num_hidden_layers=FEW)
                results[name]["stages"] = stages(PROFILES[name], model, Path(folder, "run"))
    return {
        "benchmark": "seven_b_shapes",
        "rows": chosen.rows,
        "context": chosen.context,
        "threads": chosen.threads,
        "shapes": results,
    }


def apart(name: str, layers: int, chosen: argparse.Namespace) -> dict[str, dict[str, float]]:
    """`steps` of a checkpoint with so many layers, in a process of its own, whose memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        model = shapes.build(name, Path(folder, "model"), texts(), num_hidden_layers=layers)
        p = settings(name, chosen)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found = process.submit(steps, model, p, Path(folder, "work")).result()
    print(name, layers, "layers", found, flush=True)
    return found


def estimates(name: str, chosen: argparse.Namespace) -> dict[str, int]:
    """What `emotune estimate` says of a step of all layers, for each stage that trains."""
    from emotune.runs import estimate

    p, text = settings(name, chosen), estimate.Text(chosen.context, chosen.context, estimate.REPLY, 0)
    return {stage: sum(estimate.memory(stage, p, text, estimate.here()).values()) for stage in ("sft", "dpo")}


def settings(name: str, chosen: argparse.Namespace) -> Any:
    """A shape's profile, with the rows and the context of a step that was asked for, and no probe."""
    batch = {"sft.batch_size": chosen.rows, "dpo.batch_size": chosen.rows, "dpo.control_contexts": 0}
    return profile(PROFILES[name], batch | {"model.context": chosen.context})


def profile(name: str, changes: Mapping[str, Any]) -> Any:
    """params.yaml under a profile, with the embedded dialogues, and some dotted keys changed."""
    from emotune.core.nested import overlaid
    from emotune.core.sections import check, read_yaml
    from emotune.runs.params import Params

    whole = overlaid(read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "profiles" / f"{name}.yaml"))
    for key, value in {"data.source": "embedded", **changes}.items():
        inner: Any = value
        for part in reversed(key.split(".")):
            inner = {part: inner}
        whole = overlaid(whole, inner)
    return check(Params, whole, name)


def texts() -> list[str]:
    """What a tokenizer is taught: the dialogues, and tags and emotions, of which a real one makes a few tokens each."""
    from emotune.core.dialogue import DAILY_DIALOG_LABELS
    from emotune.models.pretraining import TAGS, contents

    return contents(talk()) + [*TAGS, *DAILY_DIALOG_LABELS] * 20


def talk() -> list[Any]:
    """A few embedded dialogues."""
    from emotune.data import sources
    from emotune.data.splits import usable

    return usable(sources.embedded(200, 7).splits["train"])[0]


def full_rows(tokenizer: Any, context: int, count: int) -> list[Any]:
    """So many dialogues, each as long as the context allows."""
    from emotune.core.dialogue import Dialogue
    from emotune.prompts.prompter import Prompter

    turns = [turn for dialogue in talk() for turn in dialogue.turns]
    pieces = Prompter(tokenizer, None, context).pieces(turns * (1 + count * context // 2000))
    # The last one is what was left over.
    return [Dialogue(f"full/{number}", piece) for number, piece in enumerate(pieces[:-1][:count])]


def steps(base: Path, p: Any, folder: Path) -> dict[str, dict[str, float]]:
    """Seconds and peak memory of: loading a checkpoint, one step of sft, one of dpo, and four replies."""
    from emotune.generation.engine import Request
    from emotune.generation.local import replies
    from emotune.models import loading
    from emotune.prompts.prompter import Prompter
    from emotune.stages import dpo, sft

    measured: dict[str, dict[str, float]] = {}
    tokenizer = loading.load_tokenizer(base, p.template)
    one = {"epochs": 1.0, "accumulation": 1, "checkpoints": 0}
    tuning = sft.Params(model=p.model, sft=turned(p.sft, one), system_prompt=None, template=p.template)
    rows = full_rows(tokenizer, p.model.context, p.sft.batch_size)
    with part("load", measured):
        model = loading.load_base(base, p.model)
    with part("sft", measured):
        tuned, _, _ = sft.tune(model, tokenizer, rows, rows[:1], "neutral", tuning, folder / "sft", silent)
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    aligning = dpo.Params.model_construct(
        model=p.model, system_prompt=None, dpo=turned(p.dpo, one | {"control_contexts": 0})
    )
    pairs = pairs_of(full_rows(tokenizer, p.model.context - 40, p.dpo.batch_size))
    with part("dpo", measured):
        aligned, _, _ = dpo.align(tuned, tokenizer, pairs, [], aligning, folder / "dpo", silent)
    ids = tuple(Prompter(tokenizer, None, p.model.context).ids(rows[0].turns[:1], "happiness"))
    with part("replies", measured):
        replies(aligned.eval(), tokenizer, [Request(ids, (1, 2, 3, 4))], p.prefs.sampling)
    return measured


def turned(section: Any, changes: Mapping[str, Any]) -> Any:
    return type(section).model_validate(section.model_dump() | changes)


def pairs_of(dialogues: Sequence[Any]) -> list[dict[str, Any]]:
    """The last turn of each dialogue preferred to that of the one before."""
    rejected = [dialogue.turns[-1].content for dialogue in [dialogues[-1], *dialogues[:-1]]]
    return [
        {
            "history": [{"role": t.role, "content": t.content, "emotion": t.emotion} for t in own.turns[:-1]],
            "emotion": own.turns[-1].emotion,
            "prompt": " ".join(turn.content for turn in own.turns[:-1]),
            "chosen": own.turns[-1].content,
            "rejected": other if other != own.turns[-1].content else f"{other} No.",
        }
        for own, other in zip(dialogues, rejected, strict=True)
    ]


def silent(logs: Mapping[str, float], step: int) -> None:
    pass


@contextmanager
def part(name: str, measured: dict[str, dict[str, float]]) -> Iterator[None]:
    """Notes the seconds of what is done within, and the most memory that this process held meanwhile."""
    import torch

    gc.collect()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        # What was freed goes back, or a layer would seem to take what the part before it has left.
        ctypes.CDLL(None).malloc_trim(0)
    began, cores, over, held = time.perf_counter(), time.process_time(), threading.Event(), [0]
    watch = threading.Thread(target=watched, args=(over, held), daemon=True)
    watch.start()
    yield
    if on_gpu:
        torch.cuda.synchronize()
    seconds, work = time.perf_counter() - began, time.process_time() - cores
    over.set()
    watch.join()
    peak = torch.cuda.max_memory_allocated() if on_gpu else held[0]
    measured[name] = {"seconds": round(seconds, 2), "work_seconds": round(work, 2), "peak_bytes": peak}


def watched(over: threading.Event, held: list[int]) -> None:
    """Until it is over, the most memory of its own that this process holds, looked at 200 times a second."""
    while not over.wait(0.005):
        own = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"), re.MULTILINE)
        held[0] = max(held[0], 1024 * int(own[1]) if own else 0)


def stages(name: str, model: Path, folder: Path, changes: Mapping[str, Any] = shapes.SHORT) -> dict[str, Any]:
    """Seconds and peak memory of each stage of a profile, from prepare to evaluate, on a checkpoint."""
    from ruamel.yaml import YAML

    from emotune.core.nested import leaves
    from emotune.core.sections import read_yaml
    from emotune.models import pins
    from emotune.runs import costs

    folder.mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", folder)
    own = {"model.base": str(model), "model.revision": pins.folder_revision(model)}
    overlay = dict(leaves(read_yaml(ROOT / "profiles" / f"{name}.yaml")))
    scratch.turn(folder, overlay | dict(changes) | scratch.UNAUDITED | own)
    for stage in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]:
        print(stage, file=sys.stderr, flush=True)
        scratch.run(folder, stage, EMOTUNE_TRACKING="off")
    lines = costs.lines(folder / ".work/costs.jsonl")
    return {line["stage"]: {"seconds": line["seconds"], "peak_bytes": line["peak_memory_bytes"]} for line in lines}


if __name__ == "__main__":
    main()
