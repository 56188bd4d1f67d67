"""One loss over several processes: the same rows a step, the same mean, as in one process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from emotune.core import processes


def share_rows(trainer: Any, batch: int, nothing: Mapping[str, list[int]]) -> None:
    """Let several processes share the rows of each batch, so that a step sees the rows that it sees in one process.

    Each process must have as many as any other: a batch that does not divide is filled up with `nothing`, a row that
    no token is learned from.
    """
    if processes.processes() == 1:
        return

    def loader(dataset: Any, size: int) -> DataLoader[Any]:
        rows = [*dataset, *[nothing] * (-len(dataset) % processes.processes())]
        batches = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
        return DataLoader(
            rows, batch_sampler=[processes.share(own) for own in batches], collate_fn=trainer.data_collator
        )

    train = loader(trainer.train_dataset, batch)
    held_out = loader(trainer.eval_dataset, 2 * batch) if trainer.eval_dataset is not None else None
    trainer.get_train_dataloader = lambda: train
    trainer.get_eval_dataloader = lambda dataset=None: held_out


def mean_over_all_tokens(trainer: Any) -> None:
    """Make the validation loss of SFT the mean over the tokens of all processes, as TRL makes that of training."""
    if processes.processes() == 1:
        return
    of_trl = trainer.compute_loss

    def compute_loss(model: Any, inputs: Any, **more: Any) -> Any:
        if model.training:
            return of_trl(model, inputs, **more)
        learned = inputs["labels"][:, 1:] != -100
        rows, tokens = _sums(trainer, learned)
        return of_trl(model, inputs, num_items_in_batch=tokens) * _validation_weight(trainer, rows)

    trainer.compute_loss = compute_loss


# What TRL logs of a batch as a mean over its pairs.
OF_PAIRS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


def mean_over_all_pairs(trainer: Any) -> None:
    """Make the losses of DPO means over the pairs, and over the chosen replies' tokens, of all processes.

    TRL takes each process's own means. A token would weigh more where a process has few, and a row that only fills a
    batch up would count: its sigmoid loss is ln 2, and what is logged of it is 0.
    """
    if processes.processes() == 1:
        return
    of_trl, weights = trainer.compute_loss, dict(zip(trainer.loss_types, trainer.loss_weights, strict=True))

    def compute_loss(model: Any, inputs: Any, **more: Any) -> Any:
        learned = inputs["completion_mask"].chunk(2)[0][:, 1:] != 0
        pairs, tokens = _sums(trainer, learned)
        own_pairs, own_tokens = int(learned.any(1).sum()), int(learned.sum())
        # TRL divides by the rows of this process, DDP by the processes: back to one part in all pairs.
        stretch = processes.processes() * len(learned) / pairs
        own = {"sigmoid": weights["sigmoid"] * stretch}
        if "sft" in weights and own_tokens:
            own["sft"] = weights["sft"] * processes.processes() * own_tokens / tokens
        trainer.loss_types, trainer.loss_weights = list(own), list(own.values())
        loss = of_trl(model, inputs, **more) - own["sigmoid"] * (1 - own_pairs / len(learned)) * math.log(2)
        logged = trainer._metrics["train" if model.training else "eval"]
        for name in OF_PAIRS:
            logged[name][-1] *= stretch
        return loss if model.training else loss * _validation_weight(trainer, pairs)

    trainer.compute_loss = compute_loss


def _sums(trainer: Any, learned: torch.Tensor) -> tuple[int, int]:
    """How many rows and tokens of a batch all processes learn from; `learned` [rows, positions] marks this one's."""
    own = torch.stack([learned.any(1).sum(), learned.sum()])
    rows, tokens = trainer.accelerator.reduce(own, reduction="sum").tolist()
    return rows, tokens


def _validation_weight(trainer: Any, rows: int) -> float:
    """What a batch of so many rows weighs where the trainer takes the plain mean over batches."""
    return rows * len(trainer.get_eval_dataloader()) / len(trainer.eval_dataset)


def whole(model: Any) -> Any:
    """The model with the adapter that FSDP spread over the processes put together again, in every process."""
    for name, weight in list(model.named_parameters()):
        if weight.requires_grad and isinstance(weight, DTensor):
            module, _, own = name.rpartition(".")
            setattr(model.get_submodule(module), own, torch.nn.Parameter(weight.full_tensor()))
    return model
