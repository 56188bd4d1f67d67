"""LoRA training with TRL that survives being killed: one order of rows, checkpoints beside the outs, equal bytes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from transformers import PrinterCallback, TrainerCallback

from emotune.core import processes
from emotune.core.contract import Log

disable_progress_bars()
COMPLETE = "complete"
# The validation loss is that of so many rows: enough for a curve, and little beside the training.
VALIDATION_ROWS = 200


def first(curve: Sequence[Mapping[str, Any]], name: str) -> float:
    """The first value that a curve has under a name."""
    return next(row[name] for row in curve if name in row)


def last(curve: Sequence[Mapping[str, Any]], name: str) -> float:
    """The last value that a curve has under a name."""
    return next(row[name] for row in reversed(curve) if name in row)


class _Listener(TrainerCallback):
    """Marks a checkpoint as complete once all of it is written; passes on what is logged, and prints the progress."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._began = (0, time.monotonic())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = (state.global_step, time.monotonic())

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        processes.wait()
        if processes.first():
            Path(args.output_dir, f"checkpoint-{state.global_step}", COMPLETE).touch()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, float)}
        self._log(numbers, state.global_step)
        if "loss" in numbers and processes.first():
            step, began = self._began
            left = (time.monotonic() - began) / max(1, state.global_step - step) * (state.max_steps - state.global_step)
            place = f"step {state.global_step} of {state.max_steps}"
            print(f"{place}, loss {numbers['loss']:.4f}, {left:.0f} s left", flush=True)


def train(trainer: Any, log: Log) -> list[dict[str, Any]]:
    """Train to the end, from the last complete checkpoint where there is one; returns the logged rows, one a step."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Listener(log))
    folder = Path(trainer.args.output_dir)
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    torn = [path for path in checkpoints if not (path / COMPLETE).exists()]
    checkpoints = [path for path in checkpoints if path not in torn]
    processes.wait()
    if processes.first():
        for path in torn:
            shutil.rmtree(path)
    processes.wait()
    if checkpoints and processes.first():
        print(f"going on from {checkpoints[-1].name} in {folder}", flush=True)
    trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
    rows: dict[int, dict[str, Any]] = {}
    for logged in trainer.state.log_history:
        rows.setdefault(logged["step"], {}).update(logged)
    return [row for row in rows.values() if row.keys() & {"loss", "eval_loss", "control"}]
