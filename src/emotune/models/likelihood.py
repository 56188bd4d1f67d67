"""What texts cost a model, in nats."""

from collections.abc import Sequence
from typing import Any

import torch

from emotune.prompts.prompter import Row


def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Rows as one tensor [rows, positions], with `value` on their right up to the longest."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


@torch.inference_mode()
def negative_log_likelihoods(model: Any, pad: int, rows: Sequence[Row], tokens: int = 4096) -> list[tuple[float, int]]:
    """For each row the sum of -ln p over its marked tokens (nats), and how many these are.

    Rows of like length go together, right-padded, at most `tokens` positions at a time.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    results: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    while order:
        longest = len(rows[order[-1]][0])
        batch, order = order[-max(1, tokens // longest) :], order[: -max(1, tokens // longest)]
        ids = padded([rows[i][0] for i in batch], pad).to(model.device)
        marked = padded([rows[i][1] for i in batch], 0).to(model.device)
        mask = padded([[1] * len(rows[i][0]) for i in batch], 0).to(model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        sums = (losses * marked[:, 1:]).sum(dim=1, dtype=torch.float64).tolist()
        for i, total in zip(batch, sums, strict=True):
            results[i] = (total, sum(rows[i][1]))
    return results
