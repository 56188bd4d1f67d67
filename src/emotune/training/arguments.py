"""What SFTConfig and DPOConfig share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from emotune.core import processes
from emotune.core.errors import InputError
from emotune.training.params import Training

POINTS = 20


def arguments(p: Training, dtype: str, folder: Path, rows: int) -> dict[str, Any]:
    """What SFTConfig and DPOConfig share, for rows that already stand in the order of training."""
    if p.batch_size % processes.processes():
        raise InputError(
            f"{type(p).__name__.lower()}.batch_size must be a multiple of the number of processes, "
            f"{processes.processes()}; got {p.batch_size}"
        )
    steps = max(1, math.ceil(rows / (p.batch_size * p.accumulation)))
    on_gpu = torch.cuda.is_available()
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
        "bf16": on_gpu and dtype == "bfloat16",
        "fp16": on_gpu and dtype == "float16",
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
