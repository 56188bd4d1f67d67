"""The next token of each row, drawn by its own noise: the argmax of logits + Gumbel noise.

That is an exact sample of their softmax (Gumbel 1954; Maddison et al. 2014). The noise is a hash of (row's key, step,
token id), a counter-based generator (Salmon et al. 2011), so neither the batch size, nor the order, nor the neighbours
of a row can change what it draws.
"""

import torch

from emotune.generation.params import Sampling

# Far above what another batch shape does to a float32 model's logits (measured on four models: at most 6e-7 of the
# largest), and far below what would make the second look frequent: about one token in a thousand.
TOLERANCE = 1e-5


def largest(logits: torch.Tensor) -> torch.Tensor:
    """Of each row [rows, vocabulary] the largest logit, whatever its sign: what TOLERANCE is a share of [rows, 1]."""
    return logits.abs().amax(dim=1, keepdim=True)


def guided(logits: torch.Tensor, twins: torch.Tensor, guidance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Classifier-free guidance, n + guidance (e - n), of a prompt's logits e and its twin's n (Sanchez et al. 2023).

    And what TOLERANCE is a share of: as much as the rounding of both can add up to. Both are taken as log-softmax: a
    model's logits mean the same whatever number is added to all of them, but the repetition penalty looks at their
    sign, and that number may be another for each prompt.
    """
    away = twins.log_softmax(dim=1)
    scale = guidance * largest(logits) + abs(1 - guidance) * largest(twins)
    return away + guidance * (logits.log_softmax(dim=1) - away), scale


def draw(
    logits: torch.Tensor,
    scale: torch.Tensor,
    seen: torch.Tensor,
    keys: torch.Tensor,
    step: int,
    sampling: Sampling,
    end: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's next token [rows], and whether TOLERANCE of `scale` [rows, 1] in its logits could change it.

    Temperature 0 is greedy. Filters apply in the order of transformers: repetition penalty (over the tokens `seen`), no
    end token before `min_new_tokens`, temperature, top-k, top-p.
    """
    penalty = sampling.repetition_penalty
    tolerance = 2 * TOLERANCE * penalty * scale
    if penalty != 1.0:
        logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    if step < sampling.min_new_tokens:
        logits = logits.index_fill(1, end, -torch.inf)
    if sampling.temperature == 0:
        best = logits.topk(2, dim=1)
        return best.indices[:, 0], best.values[:, 0] - best.values[:, 1] < tolerance[:, 0]
    tolerance /= sampling.temperature
    count = min(sampling.top_k or logits.shape[1], logits.shape[1])
    # One more than top-k lets through: the first one left out tells how close it was.
    values, indices = (logits / sampling.temperature).topk(min(count + 1, logits.shape[1]), dim=1)
    allowed, edge = _filter(values, count, sampling.top_p, tolerance)
    winner, unsure = _winner(values + gumbel(keys, step, indices), allowed, edge, tolerance)
    return indices.gather(1, winner[:, None])[:, 0], unsure


def _filter(
    values: torch.Tensor, count: int, top_p: float, tolerance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of the falling values [rows, count + 1] top-k and top-p let through, and which stand at the edge."""
    allowed = torch.zeros_like(values, dtype=torch.bool)
    allowed[:, :count] = True
    edge = torch.zeros_like(allowed)
    if values.shape[1] > count:
        near = values[:, count - 1] - values[:, count] < tolerance[:, 0]
        edge[:, count - 1] = edge[:, count] = near
    if top_p < 1.0:
        shares = values[:, :count].softmax(dim=1)
        before = shares.cumsum(dim=1) - shares
        allowed[:, :count] &= before < top_p
        edge[:, :count] |= (before - top_p).abs() < tolerance
    return allowed, edge


def _winner(
    noisy: torch.Tensor, allowed: torch.Tensor, edge: torch.Tensor, tolerance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The place of each row's largest value that is allowed, and whether `tolerance` could make it another."""
    best = noisy.masked_fill(~allowed, -torch.inf).topk(min(2, noisy.shape[1]), dim=1)
    unsure = best.values[:, 0] - best.values[:, -1] < tolerance[:, 0]
    # A token at the edge of the filter matters only if it would win, or wins.
    unsure |= (edge & (noisy >= best.values[:, :1] - tolerance)).any(dim=1)
    return best.indices[:, 0], unsure


def gumbel(keys: torch.Tensor, step: int, tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise [rows, tokens]: -ln(-ln u), u a hash of (key, step, token id), the same on any device."""
    mixed = _mix(keys + _signed(0x9E3779B97F4A7C15 * (step + 1)))
    bits = _mix(_mix(mixed[:, None] + tokens * _signed(0xD1342543DE82EF95)))
    uniform = (((bits >> 11) & ((1 << 53) - 1)).double() + 0.5) / (1 << 53)
    return -torch.log(-torch.log(uniform)).to(torch.float32)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014) on int64, whose products wrap as unsigned ones do."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _signed(unsigned: int) -> int:
    """The int64 with the same 64 bits."""
    return (unsigned + (1 << 63)) % (1 << 64) - (1 << 63)
