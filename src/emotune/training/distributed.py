"""One loss over several processes: the same rows a step, the same mean, as in one process."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from emotune.core import processes


def share_rows(trainer: Any, nothing: Mapping[str, list[int]], compute_loss: Callable[..., Any]) -> None:
    """Let several processes share the rows of each batch, so that a step sees the rows that it sees in one process.

    Each process must have as many as any other: a batch that does not divide is filled up with `nothing`, a row that
    no token is learned from. `compute_loss`, given the trainer and its own before what that takes, makes the loss a
    mean over the rows of all.
    """
    if processes.processes() == 1:
        return

    def loader(dataset: Any, size: int) -> DataLoader[Any]:
        rows = [*dataset, *[nothing] * (-len(dataset) % processes.processes())]
        batches = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
        own = [processes.share(batch) for batch in batches]
        return DataLoader(rows, batch_sampler=own, collate_fn=trainer.data_collator)

    args, many = trainer.args, processes.processes()
    train = loader(trainer.train_dataset, args.per_device_train_batch_size * many)
    held_out = loader(trainer.eval_dataset, args.per_device_eval_batch_size * many) if trainer.eval_dataset else None
    trainer.get_train_dataloader = lambda: train
    trainer.get_eval_dataloader = lambda dataset=None: held_out
    trainer.compute_loss = partial(compute_loss, trainer, trainer.compute_loss)


def sums(trainer: Any, learned: torch.Tensor) -> tuple[int, int]:
    """How many rows and tokens of a batch all processes learn from; `learned` [rows, positions] marks this one's."""
    own = torch.stack([learned.any(1).sum(), learned.sum()])
    rows, tokens = trainer.accelerator.reduce(own, reduction="sum").tolist()
    return rows, tokens


def validation_weight(trainer: Any, rows: int) -> float:
    """What a batch of so many rows weighs where the trainer takes the plain mean over batches."""
    return rows * len(trainer.get_eval_dataloader()) / len(trainer.eval_dataset)


def whole(model: Any) -> Any:
    """The model with the adapter that FSDP spread over the processes put together again, in every process."""
    for name, weight in list(model.named_parameters()):
        if weight.requires_grad and isinstance(weight, DTensor):
            module, _, own = name.rpartition(".")
            setattr(model.get_submodule(module), own, torch.nn.Parameter(weight.full_tensor()))
    return model
