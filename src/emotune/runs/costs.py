"""What each run of a stage cost, or on what it failed: a line of .work/costs.jsonl, which all experiments share."""

import hashlib
import json
import os
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from emotune.core import git, processes, records
from emotune.core.contract import SAMPLED_TOKENS, SAMPLING_SECONDS

# What DVC applies in an experiment's workspace: it names one entry of the queue, so one attempt at the experiment.
ATTEMPT = "refs/exps/exec/EXEC_MERGE"


class Cost:
    """The cost of one run of a stage, counted from here on."""

    def __init__(self, stage: str) -> None:
        self._stage, self._began = stage, time.monotonic()
        self._tokens, self._sampling = 0.0, 0.0
        # A digest of the params that the stage read, by which a later run knows one like itself.
        self.params: str | None = None

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return time.monotonic() - self._began

    def hear(self, metrics: Mapping[str, float]) -> None:
        """Add what a stage logs of its sampling."""
        self._tokens += metrics.get(SAMPLED_TOKENS, 0)
        self._sampling += metrics.get(SAMPLING_SECONDS, 0)

    def note(self, failed: str | None, measured: bool = True) -> None:
        """Append the line, with this process's memory where it is this process that was `measured`.

        It is one write at the file's end, so that lines of runs side by side do not mix. Times are no bytes of an out.
        """
        memory, device = peak_memory() if measured else (None, None)
        line = {
            "experiment": os.environ.get("DVC_EXP_NAME"),
            "attempt": git.ask("rev-parse", "--verify", "--quiet", ATTEMPT) if "DVC_EXP_NAME" in os.environ else None,
            "stage": self._stage,
            "params": self.params,
            "seconds": round(self.seconds, 1),
            "peak_memory_bytes": memory,
            "device": device,
            "tokens_per_second": round(self._tokens / self._sampling, 1) if self._tokens else None,
            "failed": None if failed is None else " ".join(failed.split()),
        }
        # A disk that is full was told of already.
        with suppress(OSError):
            processes.work().mkdir(parents=True, exist_ok=True)
            with processes.work("costs.jsonl").open("a+b", buffering=0) as file:
                # Whoever found the disk full may have left a line without its end.
                file.seek(-min(1, file.tell()), os.SEEK_END)
                torn = file.read(1) not in (b"", b"\n")
                file.write(f"{chr(10) if torn else ''}{json.dumps(line)}\n".encode())


def digest(values: Mapping[str, Any]) -> str:
    """The params of a stage in 16 digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of costs.jsonl, the oldest first; what a full disk tore is skipped, and said on stderr."""
    for number, text in enumerate(records.read_text(path).split("\n") if path.is_file() else (), start=1):
        if text.strip():
            try:
                yield json.loads(text)
            except json.JSONDecodeError:
                print(f"{path}:{number}: skipped, for it was not written to its end", file=sys.stderr)


def peak_memory() -> tuple[int, str]:
    """The most memory, in bytes, that this process ever held at once, and of what device: its GPU, or "cpu"."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated(), torch.cuda.get_device_name()
    # A process starts with the ru_maxrss of the one that started it, dvc's or a launcher's: Linux has a better one.
    status = Path("/proc/self/status")
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text("utf-8"), re.MULTILINE) if status.exists() else None
    unit = 1 if sys.platform == "darwin" else 1024
    return (int(peak[1]) if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit, "cpu"
