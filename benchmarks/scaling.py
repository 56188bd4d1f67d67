"""Pairs per second of generate_prefs over prompts and over processes, and what a look-up in a long journal costs.

`prompts`: the whole stage in one process of one thread, for 100, 1,000 and 10,000 prompts; cost per row should be flat.
`processes`: the same prompts under `EMOTUNE_LAUNCH="torchrun --nproc_per_node N"`, one thread each, so that N processes
use N cores. `journal`: microseconds a look-up, found or not, with 10^4, 10^5 and 10^6 rows. `ratio` is the rate of the
most prompts over that of a tenth of them. Needs the outs of `make repro`. Prints one JSON object last.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import scratch

JOURNAL_ROWS = (10**4, 10**5, 10**6)
LOOK_UPS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[100, 1000, 10_000], help="(default 100 1000 10000)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="(default 1 2 4)")
    parser.add_argument("--shared", type=int, default=1000, help="prompts shared by processes (default %(default)s)")
    chosen = parser.parse_args()
    by_prompts = [stage(count, 1) for count in chosen.prompts]
    by_processes = [stage(chosen.shared, count) for count in chosen.processes]
    result = {
        "benchmark": "scaling",
        "ratio": round(by_prompts[-1]["rows_per_second"] / by_prompts[-2]["rows_per_second"], 2),
        "prompts": by_prompts,
        "processes": by_processes,
        "journal": [look_ups(rows) for rows in JOURNAL_ROWS],
    }
    print(json.dumps(result))


def stage(prompts: int, processes: int) -> dict[str, Any]:
    """One run of the stage from an empty journal, one attempt a prompt; start-up is reported apart."""
    with tempfile.TemporaryDirectory() as name:
        changes = {"prefs.prompts": prompts, "prefs.attempts": 1, **scratch.UNAUDITED}
        folder = scratch.copy(Path(name), changes)
        launch = {"EMOTUNE_LAUNCH": f"torchrun --nproc_per_node {processes}"} if processes > 1 else {}
        seconds, printed = scratch.run(folder, "generate_prefs", OMP_NUM_THREADS="1", EMOTUNE_TRACKING="off", **launch)
        made = sum(int(count) for count in re.findall(r"(\d+) attempts sampled", printed))
        # Again, with nothing left to sample: what the stage costs beside sampling and judging.
        start_up, _ = scratch.run(folder, "generate_prefs", OMP_NUM_THREADS="1", EMOTUNE_TRACKING="off", **launch)
    return {
        "prompts": made,
        "processes": processes,
        "seconds": round(seconds, 1),
        "start_up_seconds": round(start_up, 1),
        "rows_per_second": round(made / (seconds - start_up), 2),
    }


def look_ups(rows: int) -> dict[str, float]:
    """Microseconds for a row that is there and for one that is not, in a journal of so many."""
    from emotune.preferences import journal

    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(rows)]
    value = [["A reply of some forty characters or so.", 9, "neutral", 0.87, "clean", 0.93]] * 8
    with tempfile.TemporaryDirectory() as name, journal.opened(Path(name, "journal.sqlite"), {"rows": rows}) as memo:
        for start in range(0, rows, 1000):
            memo.keep((digest, 1, value) for digest in digests[start : start + 1000])
        wanted = random.Random(7).sample(digests, LOOK_UPS)
        seconds = {}
        for kind, attempt in (("found", 1), ("absent", 2)):
            began = time.perf_counter()
            for digest in wanted:
                assert (memo.find(digest, attempt) is None) == (kind == "absent")
            seconds[kind] = time.perf_counter() - began
    return {"rows": rows} | {kind: round(taken / LOOK_UPS * 1e6, 1) for kind, taken in seconds.items()}


if __name__ == "__main__":
    main()
