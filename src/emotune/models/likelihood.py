"""What texts cost a model, in nats."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from emotune.models.memory import out_of_memory
from emotune.prompts.prompter import Row

# What a row costs: the sum of -ln p over its marked tokens (nats), and how many these are.
Cost = tuple[float, int]
# At most so many positions go through the layers at once, and the head's scores take at most so many bytes: with a
# vocabulary of 256,000 a token's take 2.5 MB.
POSITIONS, BYTES = 4096, 2**29


def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Rows as one tensor [rows, positions], with `value` on their right up to the longest."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def batches(model: Any, rows: Sequence[Row]) -> list[list[int]]:
    """The numbers of the rows in batches of like length, the longest first: as many as POSITIONS and BYTES allow.

    They depend on the rows and the shape of the model alone, because a sum rounds differently in another batch.
    """
    # Of a token every word's score: in the model's own type, in float32, and once more for its logarithm.
    size = model.config.get_text_config().vocab_size * (model.dtype.itemsize + 4 + 4)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number][0]))
    result = []
    while order:
        most = order[-max(1, POSITIONS // len(rows[order[-1]][0])) :]
        sizes = accumulate(size * sum(rows[number][1]) for number in reversed(most))
        count = max(1, sum(total <= BYTES for total in sizes))
        result.append(order[-count:])
        del order[-count:]
    return result


def negative_log_likelihoods(model: Any, pad: int, batches: Sequence[Sequence[Row]]) -> list[list[Cost]]:
    """What each row of each batch costs; a batch goes in parts, half as many rows each time that memory runs out."""
    results: list[list[Cost]] = []
    most = max(map(len, batches), default=0)
    for batch in batches:
        costs: list[Cost] = []
        while len(costs) < len(batch):
            rows = batch[len(costs) : len(costs) + most]
            try:
                costs += _costs(model, pad, rows)
            except RuntimeError as error:
                if not out_of_memory(error) or len(rows) == 1:
                    raise
                most = len(rows) // 2
                torch.cuda.empty_cache()
                print(f"out of memory: {most} likelihoods at once from here on", flush=True)
        results.append(costs)
    return results


@torch.inference_mode()
def _costs(model: Any, pad: int, rows: Sequence[Row]) -> list[Cost]:
    """The costs of rows that are padded on the right and computed at once; the head scores marked positions alone."""
    ids = padded([ids for ids, _ in rows], pad).to(model.device)
    mask = padded([[1] * len(ids) for ids, _ in rows], 0).to(model.device)
    # A token is scored where the one before it stands.
    marked = padded([marks for _, marks in rows], 0)[:, 1:].bool().to(model.device)

    def marked_alone(_: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0][:, :-1][marked][None],)

    with model.get_output_embeddings().register_forward_pre_hook(marked_alone):
        [scores] = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(scores.float(), ids[:, 1:][marked], reduction="none").double()
    sums = [own.sum().item() for own in losses.split(marked.sum(dim=1).tolist())]
    return [(total, sum(marks)) for total, (_, marks) in zip(sums, rows, strict=True)]
