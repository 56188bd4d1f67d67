"""What `emotune estimate` says of a stage's memory, over what the stage took: 0.8 to 1.25 is good to plan by.

Where the pipeline ran (`--ran NAME=FOLDER`, several), each stage's last run there with the params that stand there.
Beside it sft, reward_model, generate_prefs and dpo as they are, on random weights of 110 M parameters and a few
dialogues joined until they are long; on a GPU, on the three models of 7 B with their profiles' settings (each writes up
to 17 GB of weights to the folder of temporary files). The peak is what the process held at most or, on a GPU, what
torch allocated. Needs `make repro` before. Prints one JSON object last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import scratch
from emotune.core.sections import read_yaml

JOINED = 4
# Few of everything: the peak is that of the largest batch.
LITTLE = {
    **scratch.UNAUDITED,
    "sft.epochs": 1,
    "sft.neutral_replies": None,
    "sft.repeats": None,
    "prefs.prompts": 42,
    "prefs.attempts": 1,
    "prefs.min_chosen_score": -100.0,
    "prefs.target_score_range": 0.0,
    "prefs.min_clean_confidence": 0.0,
    "prefs.rejected": "worst",
    "dpo.epochs": 1,
    "reward_model.contrast_pairs": 32,
    "reward_model.epochs": 1,
    "reward_model.checkpoints": 0,
    "sft.checkpoints": 0,
    "dpo.checkpoints": 0,
}
SMALL = {"model.base": "scratch", "sft.batch_size": 4, "dpo.batch_size": 2, "dpo.control_contexts": 2}
CASES: dict[str, dict[str, Any]] = {
    "110m": SMALL
    | {"pretrain.vocabulary": 32000, "pretrain.hidden_size": 768, "pretrain.heads": 12, "pretrain.layers": 12},
    "110m, bfloat16, checkpointing": SMALL
    | {"pretrain.vocabulary": 32000, "pretrain.hidden_size": 768, "pretrain.heads": 12, "pretrain.layers": 12}
    | {"model.dtype": "bfloat16", "sft.gradient_checkpointing": True, "dpo.gradient_checkpointing": True},
}
ON_GPU = ("llama2-7b-12gb", "mistral-7b-12gb", "gemma-7b-12gb")
STAGES = ("sft", "reward_model", "generate_prefs", "dpo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=[*CASES, *ON_GPU], help="some of them (default: all)")
    parser.add_argument("--ran", nargs="*", default=[f"embedded={scratch.ROOT}"], metavar="NAME=FOLDER")
    chosen = parser.parse_args()
    import torch

    on_gpu = torch.cuda.is_available()
    with redirect_stdout(sys.stderr):
        cases = {name: list(ran(Path(folder))) for name, _, folder in (own.partition("=") for own in chosen.ran)}
        cases |= {name: list(measured(name, on_gpu)) for name in chosen.cases if on_gpu or name in CASES}
    ratios = [row["ratio"] for rows in cases.values() for row in rows]
    print(json.dumps({"benchmark": "estimate", "ratio": max(ratios), "least": min(ratios), "cases": cases}))


def ran(folder: Path) -> Iterator[dict[str, Any]]:
    """A row a stage that ran in a repository, as its params are."""
    from emotune.faces.estimate import ran_before, text_of
    from emotune.runs import estimate
    from emotune.runs.params import parse

    p = parse(folder / "params.yaml")
    text, _ = text_of(p, folder)
    before = ran_before(folder, p)
    for stage in estimate.STAGES:
        if stage in before:
            terms = estimate.memory(stage, p, text, estimate.here())
            yield row_of(stage, sum(terms.values()), before[stage]["peak_memory_bytes"], terms)


def row_of(stage: str, said: int, took: int, terms: Mapping[str, int]) -> dict[str, Any]:
    row = {"stage": stage, "estimated": said, "measured": took, "ratio": round(said / took, 2), "terms": terms}
    print(json.dumps(row), flush=True)
    return row


def measured(name: str, on_gpu: bool) -> Iterator[dict[str, Any]]:
    """A row a stage of a case: what was estimated, what it took, and the one over the other."""
    from emotune.faces.estimate import text_of
    from emotune.runs import estimate
    from emotune.runs.params import parse

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, CASES.get(name, {}), name if name in ON_GPU else None)
        p = parse(folder / "params.yaml")
        text, _ = text_of(p, folder)
        for stage in STAGES:
            took = peak(folder, stage)
            terms = estimate.memory(stage, p, text, estimate.here())
            # torch counts no context of its own.
            yield row_of(stage, sum(terms.values()) - (terms["libraries"] if on_gpu else 0), took, terms)


def peak(folder: Path, stage: str) -> int:
    """What a stage of dvc.yaml took in a scratch copy; random weights make no pair, and that is refused at its end."""
    words = read_yaml(scratch.ROOT / "dvc.yaml")["stages"][stage]["cmd"].split()[2:]
    own = os.environ | {"DVC_ROOT": str(folder), "EMOTUNE_TRACKING": "off"}
    done = subprocess.run(
        [sys.executable, "-m", "emotune.runs.stage", *words], cwd=folder, env=own, capture_output=True, text=True
    )
    line = json.loads((folder / ".work/costs.jsonl").read_text("utf-8").splitlines()[-1])
    if line["stage"] != stage or (done.returncode and stage != "generate_prefs"):
        sys.exit(f"{stage} failed:\n{done.stdout}{done.stderr}")
    return int(line["peak_memory_bytes"])


def prepare(folder: Path, changes: Mapping[str, Any], profile: str | None) -> None:
    """A scratch copy with few and long dialogues, and random weights."""
    from emotune.core import records
    from emotune.core.nested import settings

    scratch.copy(folder, {})
    whole = read_yaml(folder / "params.yaml")
    overlay = read_yaml(scratch.ROOT / f"profiles/{profile}.yaml") if profile else {}
    scratch.turn(folder, dict(settings(overlay, whole)) | LITTLE | {"data.source": "embedded"} | changes)
    for name in ("data/dialogues", "models/base"):
        linked = (folder / name).resolve()
        (folder / name).unlink()
        shutil.copytree(linked, folder / name)
    for made_here in ("models/sft", "models/reward"):
        (folder / made_here).unlink()
    # Validation has batches of twice as many.
    batch = read_yaml(folder / "params.yaml")["sft"]["batch_size"]
    for split, count, pairs in (("train", batch, 5), ("validation", 2 * batch, 1)):
        file = folder / f"data/dialogues/{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        joined = [rows[n * JOINED : (n + 1) * JOINED] for n in range(count)]
        joined = [{**few[0], "turns": [turn for row in few for turn in row["turns"]]} for few in joined]
        records.write_jsonl(file, joined)
        made = [pair(row, number) for row in joined for number in range(pairs)]
        records.write_jsonl(folder / f"data/prefs/{split}.jsonl", made)
    random_weights(folder)


def pair(dialogue: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A pair that people wrote, behind as many turns as a prompt has."""
    *history, chosen, _, rejected = dialogue["turns"][2 * number : 2 * number + 8]
    return {
        "history": history[:5],
        "emotion": "neutral",
        "prompt": "",
        "chosen": chosen["content"],
        "rejected": rejected["content"],
    }


def random_weights(folder: Path) -> None:
    """Weights of the case's shape under the tokenizer that is there, as if base_model had made them here."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from emotune.core import records
    from emotune.runs.estimate import config_of
    from emotune.runs.params import parse

    p = parse(folder / "params.yaml")
    config = config_of(p)
    base = folder / "models/base"
    kept = AutoConfig.for_model(**config, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    torch.set_default_dtype(getattr(torch, p.model.dtype))
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(kept)
    torch.set_default_dtype(torch.float32)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base)
    records.write_json(base / "base.json", {"name": "scratch"})


if __name__ == "__main__":
    main()
