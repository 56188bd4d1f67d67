"""What the shape of the length term does to the chosen replies, under the published weights.

The same candidates of the same sft model, ranked with `reward.length.shape: published` and `plateau` and, to compare,
without a length term. Needs the outs of `make repro`. `ratio` is the share of chosen replies of 30 to 39 characters,
published over plateau. Prints one JSON object last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import scratch

PUBLISHED = [0.4, 0.25, 0.35]
RANKINGS = {
    "published": {"reward.length.shape": "published", "reward.weights": PUBLISHED},
    "plateau": {"reward.length.shape": "plateau", "reward.weights": PUBLISHED},
    "no length term": {"reward.weights": [0.4, 0.0, 0.35]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=700, help="(default %(default)s)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = scratch.copy(Path(name), {"prefs.prompts": chosen.prompts, "prefs.target_score_range": 1.0})
        # One bound for all, which the sum of the weights would else decide; what is chosen must still fit its emotion.
        scratch.turn(folder, {"prefs.min_chosen_score": 4.0, **scratch.UNAUDITED})
        shapes = {}
        for shape, changes in RANKINGS.items():
            scratch.turn(folder, changes)
            scratch.run(folder, "generate_prefs", EMOTUNE_TRACKING="off")
            shapes[shape] = lengths(folder / "data/prefs")
    shares = [shapes[shape]["chosen_30_to_39"] for shape in ("published", "plateau")]
    print(json.dumps({"benchmark": "length_shapes", "ratio": round(shares[0] / shares[1], 2), "shapes": shapes}))


def lengths(prefs: Path) -> dict[str, Any]:
    """How long chosen and rejected replies are, in characters."""
    rows = [json.loads(line) for path in sorted(prefs.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    chosen, rejected = ([len(row[side]) for row in rows] for side in ("chosen", "rejected"))
    return {
        "pairs": len(rows),
        "chosen_median": statistics.median(chosen),
        "rejected_median": statistics.median(rejected),
        "chosen_30_to_39": round(sum(30 <= length < 40 for length in chosen) / len(rows), 3),
        "chosen_40_or_more": round(sum(length >= 40 for length in chosen) / len(rows), 3),
        "gap_median": round(statistics.median(row["chosen_score"] - row["rejected_score"] for row in rows), 2),
    }


if __name__ == "__main__":
    main()
