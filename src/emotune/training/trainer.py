"""LoRA training with TRL that survives being killed: one order of rows, checkpoints beside the outs, equal bytes."""

import gc
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from transformers import PrinterCallback, TrainerCallback

from emotune.core import processes
from emotune.core.contract import Log
from emotune.core.errors import InputError
from emotune.training.params import Training

disable_progress_bars()
COMPLETE = "complete"
# So many points the curve of the loss has.
POINTS = 20
# The validation loss is that of so many rows: enough for a curve, and little beside the training.
VALIDATION_ROWS = 200
# A probe is asked before the first step and at so many more points, the last step among them.
PROBE_POINTS = 4
# What a row of the history calls all that a probe said.
PROBED = "control"

# What a model is worth on its way: shares by name, and of each what its points have.
Probe = Callable[[Any], Mapping[str, Sequence[float]]]
# Hears what is logged of step 1, and whether it was computed in 16 bits.
FirstLog = Callable[[Mapping[str, float], bool], None]


def arguments(p: Training, dtype: str, folder: Path, rows: int) -> dict[str, Any]:
    """What the configurations of TRL's trainers share, for rows that already stand in the order of training."""
    if p.batch_size % processes.processes():
        raise InputError(
            f"{p.section}.batch_size must be a multiple of the number of processes, "
            f"{processes.processes()}; got {p.batch_size}"
        )
    steps = max(1, math.ceil(rows / (p.batch_size * p.accumulation)))
    on_gpu = torch.cuda.is_available()
    if dtype == "float16" and not on_gpu:
        raise InputError("model.dtype: float16 is trained on a CUDA GPU alone; accepted here: float32, bfloat16")
    every = max(1, steps // POINTS)
    return {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": p.batch_size // processes.processes(),
        "per_device_eval_batch_size": 2 * p.batch_size // processes.processes(),
        "gradient_accumulation_steps": p.accumulation,
        "gradient_checkpointing": p.gradient_checkpointing,
        "learning_rate": p.learning_rate,
        "lr_scheduler_type": p.schedule,
        "warmup_steps": round(p.warmup * steps),
        "optim": p.optimizer,
        "seed": p.seed,
        "use_cpu": not on_gpu,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "logging_strategy": "steps",
        "logging_steps": every,
        "logging_first_step": True,
        "eval_strategy": "steps",
        "eval_steps": max(1, steps // 5),
        "save_strategy": "steps" if p.checkpoints else "no",
        # On a logged step: what was summed up since the last one is in no checkpoint, and the curve would lack it.
        "save_steps": max(every, steps // (p.checkpoints + 1) // every * every),
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": on_gpu,
        # Each step uses the whole adapter, and DPO's frozen copy is no parameter to look for.
        "ddp_find_unused_parameters": False,
    }


@contextmanager
def adapter_in_float32(model: Any) -> Iterator[None]:
    """What is trained of the model stays float32, bit for bit, whatever a trainer does that is made meanwhile.

    TRL rounds the adapter of 4-bit weights to bfloat16, but not the reference, nor what a checkpoint brings back.
    """
    exact = {weight: weight.data for weight in model.parameters() if weight.requires_grad}
    yield
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = exact.get(weight, weight.data).float()


def values(curve: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """What a curve has under a name, in order."""
    return [row[name] for row in curve if name in row]


def train(
    trainer: Any, log: Log, probe: Probe | None = None, first_log: FirstLog | None = None
) -> list[dict[str, Any]]:
    """Train to the end, from the last complete checkpoint where there is one; returns the logged rows, one a step.

    `probe` is asked of the model before the first step and at PROBE_POINTS more; a row has the means of what it says,
    and in PROBED the whole. `first_log` may raise where step 1 is not what it must be.
    """
    trainer.remove_callback(PrinterCallback)
    if probe is not None:
        trainer.add_callback(_Probing(probe, log))
    trainer.add_callback(_Listener(log, first_log))
    checkpoint = _last_checkpoint(Path(trainer.args.output_dir))
    # Before its first step accelerate looks for garbage: not among all that was imported, which takes half a second.
    gc.freeze()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    gc.unfreeze()
    rows: dict[int, dict[str, Any]] = {}
    for logged in trainer.state.log_history:
        rows.setdefault(logged["step"], {}).update(logged)
    return [row for row in rows.values() if row.keys() & {"loss", "eval_loss", PROBED}]


def _last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint of which all was written; those of which not all was are removed."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    complete = [path for path in checkpoints if (path / COMPLETE).exists()]
    processes.wait()
    if processes.first():
        for path in set(checkpoints) - set(complete):
            shutil.rmtree(path)
        if complete:
            print(f"going on from {complete[-1].name} in {folder}", flush=True)
    processes.wait()
    return complete[-1] if complete else None


class _Listener(TrainerCallback):
    """Marks a checkpoint as complete once all of it is written; passes on what is logged, and prints the progress."""

    def __init__(self, log: Log, first_log: FirstLog | None) -> None:
        self._log, self._first_log = log, first_log
        self._began = (0, time.monotonic())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = (state.global_step, time.monotonic())

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        processes.wait()
        if processes.first():
            Path(args.output_dir, f"checkpoint-{state.global_step}", COMPLETE).touch()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, float)}
        if self._first_log and state.global_step == 1 and "loss" in numbers:
            self._first_log(numbers, args.bf16 or args.fp16)
        self._log(numbers, state.global_step)
        if "loss" in numbers and processes.first():
            step, began = self._began
            left = (time.monotonic() - began) / max(1, state.global_step - step) * (state.max_steps - state.global_step)
            place = f"step {state.global_step} of {state.max_steps}"
            print(f"{place}, loss {numbers['loss']:.4f}, {left:.0f} s left", flush=True)


class _Probing(TrainerCallback):
    """Adds what a probe says of the model to the trainer's history, where it is part of every later checkpoint.

    A probe draws nothing and changes no weight, so that training is the same with it and without it.
    """

    def __init__(self, probe: Probe, log: Log) -> None:
        self._probe, self._log = probe, log

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 0:
            # FSDP keeps the buffers of its first pass; made under inference mode, no later pass could be trained.
            with torch.no_grad():
                model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device))
            self._measure(model, state)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        points = range(1, PROBE_POINTS + 1)
        if state.global_step in {round(state.max_steps * point / PROBE_POINTS) for point in points}:
            self._measure(model, state)

    def _measure(self, model: Any, state: Any) -> None:
        base = model.get_base_model()
        attention = base.config._attn_implementation
        model.eval()
        shares = self._probe(model)
        model.train()
        # Sampling cannot use every kind that training can.
        if base.config._attn_implementation != attention:
            base.set_attn_implementation(attention)
        means = {name: statistics.fmean(points) for name, points in shares.items()}
        state.log_history.append({"step": state.global_step, PROBED: shares, **means})
        self._log(means, state.global_step)
