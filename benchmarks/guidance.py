"""Candidates per second with classifier-free guidance over those without, side by side: the same prompts and keys.

Both are sampled by the stage's own code, as params.yaml says but for `guidance`, by the sft model of `make repro`, a
batch of 128 prompts of emotions other than neutral. A guided candidate is read twice and drawn once. Rounds alternate;
`ratio` is the median of theirs, per candidate, and `ratio_tokens` per token: guided replies may be longer. Prints one
JSON object last.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import scratch

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=128, help="(default %(default)s)")
    parser.add_argument("--guidance", type=float, default=1.5, help="(default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each (default %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch (default: all)")
    parser.add_argument("--run", type=Path, default=ROOT, help="the repository whose models/ and data/ it takes")
    chosen = parser.parse_args()
    scratch.report(measure, chosen)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    from emotune.core import records
    from emotune.generation import local
    from emotune.models import loading
    from emotune.prompts.prompter import Prompter
    from emotune.runs.params import parse

    whole, models = parse(ROOT / "params.yaml"), chosen.run / "models"
    tokenizer = loading.load_tokenizer(models / "sft", None)
    model = loading.load_tuned(models / "base", whole.model, models / "sft")
    prompter = Prompter(tokenizer, whole.system_prompt, whole.model.context, whole.history_turns, whole.data.neutral)
    train = records.read_dialogues(chosen.run / "data/dialogues/train.jsonl")
    ways = requests(whole, prompter, train, chosen.prompts)
    times: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, int] = {}
    for number in range(chosen.rounds + 1):
        for name, asked in ways.items():
            guidance = chosen.guidance if name == "guided" else 1.0
            began = time.perf_counter()
            found = local.replies(
                model, tokenizer, asked, whole.prefs.sampling.model_copy(update={"guidance": guidance})
            )
            if number:  # the first warms up
                times[name].append(time.perf_counter() - began)
            tokens[name] = sum(reply.tokens + reply.ended for replies in found for reply in replies)
    ratio = statistics.median(plain / guided for plain, guided in zip(times["unguided"], times["guided"], strict=True))
    candidates = len(ways["guided"]) * whole.prefs.candidates
    return {
        "benchmark": "guidance",
        "model": f"embedded, {model.num_parameters() / 1e6:.1f} M",
        "ratio": round(ratio, 2),
        "ratio_tokens": round(ratio * tokens["guided"] / tokens["unguided"], 2),
        "guidance": chosen.guidance,
        "threads": chosen.threads,
        "rounds": chosen.rounds,
        **{
            name: {
                "candidates_per_second": round(statistics.median(candidates / seconds for seconds in own), 1),
                "tokens_per_candidate": round(tokens[name] / candidates, 2),
            }
            for name, own in times.items()
        },
    }


def requests(whole: Any, prompter: Any, train: Any, count: int) -> dict[str, list[Any]]:
    """The first prompts of generate_prefs that ask for another emotion than neutral, with and without their twins."""
    from dataclasses import replace

    from emotune.core import seeds
    from emotune.generation.engine import Request
    from emotune.preferences import attempts

    chosen = attempts.choose_prompts(train, prompter, whole.data.labels, whole.prefs)
    guided = [
        Request(p.ids, tuple(seeds.key(7, p.id, n) for n in range(whole.prefs.candidates)), twin=p.twin)
        for p in chosen
        if p.twin
    ][:count]
    return {"unguided": [replace(request, twin=None) for request in guided], "guided": guided}


if __name__ == "__main__":
    main()
