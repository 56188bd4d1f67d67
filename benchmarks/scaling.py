"""Pairs per second of generate_prefs over prompts or over processes, and what a look-up in a long journal costs.

`prompts`: the whole stage in one process of one thread, for 100, 1,000 and 10,000 prompts; cost per row should be flat.
`ratio` is the rate of the most over that of a tenth of them. With it, `journal`: microseconds a look-up, found or not,
with 10^4, 10^5 and 10^6 rows. `processes`: the same prompts under `EMOTUNE_LAUNCH="torchrun --nproc_per_node N"`, one
thread each, so that N processes use N cores, which should be idle; two candidates a prompt and short replies, so that
10,000 prompts take minutes. `ratio` is the rate of the most processes over that of the fewest. Seconds of work are
those that all processes had a core: where they stay and the rate does not rise, processes wait; where they grow,
memory or work done by each of them is in the way. Needs the outs of `make repro`. Prints one JSON object last.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import scratch

PROMPTS = (100, 1000, 10_000)
SHORT = {"prefs.candidates": 2, "prefs.sampling.max_new_tokens": 12}
JOURNAL_ROWS = (10**4, 10**5, 10**6)
LOOK_UPS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("over", choices=("prompts", "processes"))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="(default 1 2)")
    parser.add_argument("--shared", type=int, default=10_000, help="prompts shared by processes (default %(default)s)")
    chosen = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "scaling"}
    if chosen.over == "prompts":
        runs = [stage(count, 1) for count in PROMPTS]
        result |= {"ratio": ratio(runs[-1], runs[-2]), "journal": [look_ups(rows) for rows in JOURNAL_ROWS]}
    else:
        runs = [stage(chosen.shared, count, SHORT) for count in chosen.processes]
        result["ratio"] = ratio(runs[-1], runs[0])
    print(json.dumps(result | {chosen.over: runs}))


def ratio(most: Mapping[str, float], least: Mapping[str, float]) -> float:
    return round(most["rows_per_second"] / least["rows_per_second"], 2)


def stage(prompts: int, processes: int, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One run of the stage from an empty journal, one attempt a prompt; start-up is reported apart."""
    with tempfile.TemporaryDirectory() as name:
        own = {"prefs.prompts": prompts, "prefs.attempts": 1, **scratch.UNAUDITED, **(changes or {})}
        folder = scratch.copy(Path(name), own)
        launch = {"EMOTUNE_LAUNCH": f"torchrun --nproc_per_node {processes}"} if processes > 1 else {}
        seconds, work, printed = timed(folder, launch)
        made = sum(int(count) for count in re.findall(r"(\d+) attempts sampled", printed))
        # Again, with nothing left to sample: what the stage costs beside sampling and judging.
        start_up, idle_work, _ = timed(folder, launch)
    return {
        "prompts": made,
        "processes": processes,
        "seconds": round(seconds, 1),
        "start_up_seconds": round(start_up, 1),
        "work_seconds": round(work, 1),
        "start_up_work_seconds": round(idle_work, 1),
        "rows_per_second": round(made / (seconds - start_up), 2),
    }


def timed(folder: Path, launch: Mapping[str, str]) -> tuple[float, float, str]:
    """Seconds that the stage took, seconds that its processes had a core, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Tokenizers would use all cores in one process.
    alone = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "EMOTUNE_TRACKING": "off"}
    seconds, printed = scratch.run(folder, "generate_prefs", **alone, **launch)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, printed


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
