"""A change of the reward's weights: wall time of generate_prefs against its first run, and what it samples anew.

The whole stage runs as `dvc repro` runs it, interpreter and tracking included, by default with the published settings:
30 attempts a prompt, at a temperature at which few succeed. First from an empty journal; then again with those weights,
where no attempt is missing (`ratio` = first / again); then with nine others, in a row. Needs the outs of `make repro`.
Prints one JSON object last.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
from pathlib import Path

import scratch
from emotune.faces.profiles import apply, read_profile

# Emotion, length, gibberish; the published ones first.
WEIGHTS = [
    [0.4, 0.25, 0.35],
    [0.35, 0.25, 0.4],
    [0.45, 0.25, 0.3],
    [0.5, 0.25, 0.25],
    [0.3, 0.25, 0.45],
    [0.4, 0.3, 0.3],
    [0.4, 0.2, 0.4],
    [0.5, 0.2, 0.3],
    [0.3, 0.3, 0.4],
    [0.45, 0.2, 0.35],
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2048, help="as many as were published (default %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch (default: all cores)"
    )
    parser.add_argument("--profile", default="published", help="or none: params.yaml (default %(default)s)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = scratch.copy(Path(name), scratch.UNAUDITED)
        if chosen.profile != "none":
            overlay = read_profile(scratch.ROOT / "profiles", chosen.profile)
            apply(folder / "params.yaml", {chosen.profile: overlay})
        scratch.turn(folder, {"prefs.prompts": chosen.prompts})

        def stage(weights: list[float]) -> dict[str, float]:
            scratch.turn(folder, {"reward.weights": weights})
            seconds, printed = scratch.run(folder, "generate_prefs", OMP_NUM_THREADS=str(chosen.threads))
            made, known = map(int, re.findall(r"(\d+) attempts sampled, (\d+) taken", printed)[0])
            return {"seconds": seconds, "sampled": made, "from_journal": known}

        first = stage(WEIGHTS[0])
        pairs = (folder / "data/prefs/train.jsonl").read_bytes()
        again = [stage(WEIGHTS[0]) for _ in range(3)]
        assert (folder / "data/prefs/train.jsonl").read_bytes() == pairs
        assert all(run["sampled"] == 0 for run in again)
        sweep = [{"weights": weights, **stage(weights)} for weights in WEIGHTS[1:]]
    seconds = statistics.median(run["seconds"] for run in again)
    result = {
        "benchmark": "reward_sweep",
        "ratio": round(first["seconds"] / seconds, 1),
        "profile": chosen.profile,
        "prompts": chosen.prompts,
        "threads": chosen.threads,
        "first_seconds": round(first["seconds"], 1),
        "again_seconds": round(seconds, 1),
        "attempts_of_the_first_run": first["sampled"],
        "weightings": [
            {
                "weights": run["weights"],
                "new_attempts": round(run["sampled"] / (run["sampled"] + run["from_journal"]), 3),
                "seconds": round(run["seconds"], 1),
            }
            for run in sweep
        ],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
