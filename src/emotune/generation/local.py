"""Many prompts x many candidates -> replies, batched, where each reply depends on its own seed and prompt alone.

The prompt of several candidates is read once, and they share its cache. Tokens are drawn by the Gumbel-max trick: the
argmax of logits + Gumbel noise is an exact sample of their softmax (Gumbel 1954; Maddison et al. 2014). The noise is a
hash of (row's key, step, token id), a counter-based generator (Salmon et al. 2011), so neither the batch size, nor
the order, nor the neighbours of a row can change what it draws.

What is left is arithmetic: a matrix product rounds differently in another batch. Where rounding could decide, that is
where two tokens are closer than TOLERANCE of the largest logit, the row's are computed once more for that row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import psutil
import torch

from emotune.generation.params import Sampling

# Far above what another batch shape does to a float32 model's logits (measured on four models: at most 6e-7 of the
# largest), and far below what would make the second look frequent: about one token in a thousand.
TOLERANCE = 1e-5
# At most so many rows are sampled at once, fewer where memory is short. It changes speed, never a reply: a CPU's caches
# hold no more, a GPU goes on gaining for longer.
CPU_ROWS, GPU_ROWS = 192, 1024


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt (token ids) and the 63-bit key of each candidate that is wanted for it."""

    prompt: tuple[int, ...]
    keys: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """A candidate's text, its length in tokens (end token not counted), and whether it ended by itself."""

    text: str
    tokens: int
    ended: bool


def replies(
    model: Any,
    tokenizer: Any,
    requests: Sequence[Request],
    sampling: Sampling,
    rows: int | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> list[list[Reply]]:
    """One reply for each key of each request, in the order of the requests.

    Temperature 0 is greedy. Filters apply in the order of transformers: repetition penalty (over prompt and reply),
    no end token before `min_new_tokens`, temperature, top-k, top-p. At most `rows` replies (what memory holds where
    None) are sampled at once, half as many each time that memory runs out; `done` hears how many each batch ended.
    """
    if model.config.get_text_config()._attn_implementation == "flash_attention_2":
        # Candidates that share a cache need a mask of who sees what, and flash-attention takes none.
        getattr(model, "get_base_model", lambda: model)().set_attn_implementation("sdpa")
    results: list[list[Reply]] = [[] for _ in requests]
    waiting = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
    while waiting:
        longest = len(requests[waiting[-1]].prompt) + sampling.max_new_tokens
        rows = rows or fitting_rows(model, longest)
        # The longest go first: what memory holds of them, it holds of all others.
        held = accumulate(len(requests[i].keys) for i in reversed(waiting))
        count = max(1, sum(total <= rows for total in held))
        batch = waiting[-count:]
        try:
            sampled = _sample(model, tokenizer, [requests[i] for i in batch], sampling)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _out_of_memory(error) or count == 1:
                raise
            rows = max(1, sum(len(requests[i].keys) for i in batch) // 2)
            torch.cuda.empty_cache()
            print(f"out of memory: {rows} replies at once from here on", flush=True)
            continue
        del waiting[-count:]
        for i, found in zip(batch, sampled, strict=True):
            results[i] = found
        done(sum(len(found) for found in sampled))
    return results


def fitting_rows(model: Any, positions: int) -> int:
    """How many rows of `positions` tokens half of the free memory holds, by their cache and their logits."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Keys and values; the logits in float32, with their noise, and what is sorted of them.
    row = 2 * config.num_hidden_layers * heads * size * positions * model.dtype.itemsize + 4 * 4 * config.vocab_size
    on_gpu = model.device.type == "cuda"
    free = torch.cuda.mem_get_info(model.device)[0] if on_gpu else psutil.virtual_memory().available
    return max(1, min(GPU_ROWS if on_gpu else CPU_ROWS, free // 2 // row))


def _out_of_memory(error: Exception) -> bool:
    """On a CPU torch says so in words alone."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@torch.inference_mode()
def _sample(model: Any, tokenizer: Any, requests: Sequence[Request], sampling: Sampling) -> list[list[Reply]]:
    device = model.device
    end = torch.tensor(sorted(end_tokens(model, tokenizer)), device=device)
    counts = torch.tensor([len(request.keys) for request in requests], device=device)
    keys = torch.tensor([key for request in requests for key in request.keys], dtype=torch.int64, device=device)
    longest = max(len(request.prompt) for request in requests)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(r.prompt)) + list(r.prompt) for r in requests], device=device)
    held = torch.tensor([[0] * (longest - len(r.prompt)) + [1] * len(r.prompt) for r in requests], device=device)

    first = model(
        input_ids=ids,
        attention_mask=held,
        position_ids=(held.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    # From here on a row is a candidate. All of a prompt's are queries on one line of the batch, so that its cache is
    # held and read once; what each of them writes only itself can see.
    owner = torch.repeat_interleave(torch.arange(len(requests), device=device), counts)
    logits, cache = first.logits[owner, -1].float(), first.past_key_values
    seen = torch.zeros(logits.shape, dtype=torch.int64, device=device).scatter_add_(1, ids[owner], held[owner]) > 0
    lines = torch.arange(len(requests), device=device)
    writers = owner.new_empty((len(requests), 0))

    alive = torch.arange(len(owner), device=device)
    written: list[list[int]] = [[] for _ in range(len(owner))]
    ended = [False] * len(owner)
    prompts = [request.prompt for request in requests for _ in request.keys]
    exact = model.dtype == torch.float32 and device.type == "cpu"
    for step in range(sampling.max_new_tokens):
        tokens, unsure = _draw(logits, seen[alive], keys[alive], step, sampling, end)
        if exact:
            for row in unsure.nonzero().flatten().tolist():
                own = alive[row].item()
                alone = torch.tensor([[*prompts[own], *written[own]]], device=device)
                settled = model(input_ids=alone, logits_to_keep=1).logits[:, -1].float()
                tokens[row] = _draw(settled, seen[own : own + 1], keys[own : own + 1], step, sampling, end)[0][0]
        stops = torch.isin(tokens, end)
        for row, token, stop in zip(alive.tolist(), tokens.tolist(), stops.tolist(), strict=True):
            if stop:
                ended[row] = True
            else:
                written[row].append(token)
        seen[alive, tokens] = True
        alive, tokens = alive[~stops], tokens[~stops]
        if not len(alive) or step + 1 == sampling.max_new_tokens:
            break
        needed = owner[alive].unique()
        if len(needed) < len(lines):
            kept = torch.searchsorted(lines, needed)
            cache.batch_select_indices(kept)
            lines, writers = needed, writers[kept]
        # A row's place: its prompt's line, and its number among the rows of that line.
        line = torch.searchsorted(lines, owner[alive])
        place = torch.arange(len(alive), device=device) - torch.searchsorted(line, line)
        asking = writers.new_full((len(lines), int(place.max()) + 1), -1)
        asking[line, place] = alive
        given = torch.full_like(asking, pad)
        given[line, place] = tokens
        writers = torch.cat([writers, asking], dim=1)
        of_prompt = held[lines].bool()[:, None].expand(-1, asking.shape[1], -1)
        sees = torch.cat([of_prompt, writers[:, None] == asking[:, :, None]], dim=2)
        output = model(
            input_ids=given,
            attention_mask=torch.zeros(sees.shape, dtype=model.dtype, device=device).masked_fill_(
                ~sees, torch.finfo(model.dtype).min
            )[:, None],
            position_ids=(held[lines].sum(1, keepdim=True) + step).expand(-1, asking.shape[1]),
            past_key_values=cache,
            use_cache=True,
        )
        logits, cache = output.logits[line, place].float(), output.past_key_values

    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    flat = [
        Reply(" ".join(text.split()), len(tokens), stop)
        for text, tokens, stop in zip(texts, written, ended, strict=True)
    ]
    starts = [0, *counts.cumsum(0).tolist()]
    return [flat[start:stop] for start, stop in pairwise(starts)]


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Every token id that ends a reply: the tokenizer's end token, and what the model's generation config adds."""
    configured = model.generation_config.eos_token_id
    more = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return {tokenizer.eos_token_id, *more}


def _draw(
    logits: torch.Tensor,
    seen: torch.Tensor,
    keys: torch.Tensor,
    step: int,
    sampling: Sampling,
    end: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's next token [rows], and whether TOLERANCE in its logits [rows, vocabulary] could change it."""
    penalty = sampling.repetition_penalty
    tolerance = 2 * TOLERANCE * penalty * logits.abs().amax(dim=1, keepdim=True)
    if penalty != 1.0:
        logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    if step < sampling.min_new_tokens:
        logits = logits.index_fill(1, end, -torch.inf)
    if sampling.temperature == 0:
        best = logits.topk(2, dim=1)
        return best.indices[:, 0], best.values[:, 0] - best.values[:, 1] < tolerance[:, 0]
    tolerance /= sampling.temperature
    kept = min(sampling.top_k or logits.shape[1], logits.shape[1])
    # One more than is kept: the first one left out tells how close it was.
    values, indices = (logits / sampling.temperature).topk(min(kept + 1, logits.shape[1]), dim=1)
    noisy = values + _gumbel(keys, step, indices)
    allowed = torch.zeros_like(noisy, dtype=torch.bool)
    allowed[:, :kept] = True
    boundary = torch.zeros_like(allowed)
    if values.shape[1] > kept:
        near = values[:, kept - 1] - values[:, kept] < tolerance[:, 0]
        boundary[:, kept - 1] = boundary[:, kept] = near
    if sampling.top_p < 1.0:
        shares = values[:, :kept].softmax(dim=1)
        before = shares.cumsum(dim=1) - shares
        allowed[:, :kept] &= before < sampling.top_p
        boundary[:, :kept] |= (before - sampling.top_p).abs() < tolerance
    candidates = noisy.masked_fill(~allowed, -torch.inf)
    best = candidates.topk(min(2, candidates.shape[1]), dim=1)
    winner = best.indices[:, 0]
    unsure = best.values[:, 0] - best.values[:, -1] < tolerance[:, 0] if kept > 1 else torch.zeros_like(winner).bool()
    # A token at the edge of the filter matters only if it would win, or wins.
    unsure |= (boundary & (noisy >= best.values[:, :1] - tolerance)).any(dim=1)
    return indices.gather(1, winner[:, None])[:, 0], unsure


def _gumbel(keys: torch.Tensor, step: int, tokens: torch.Tensor) -> torch.Tensor:
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
