"""Many prompts x many candidates -> replies, batched, where each reply depends on its own seed and prompt alone.

The prompt of several candidates is read once, and they share its cache where the model's layers allow it; there what
many prompts begin with is read once for all of them too, and mostly held once (beginnings.py). Each draws by a noise of
its own (noise.py), so what is left is arithmetic: a matrix product rounds differently in another batch. Where rounding
could decide, that is where two tokens are closer than noise.TOLERANCE of the largest logit, a row's logits are computed
again for it alone. A row that is guided is read twice, on its prompt and on the prompt's twin, in the same batch and
cache, and draws once.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch

from emotune.generation import noise
from emotune.generation.beginnings import Beginnings, attending
from emotune.generation.engine import Reply, Request, leading
from emotune.generation.params import Sampling
from emotune.models import memory, prefixes

# At most so many rows are sampled at once, fewer where memory is short. It changes speed, never a reply: a CPU's caches
# hold no more, a GPU goes on gaining for longer.
CPU_ROWS, GPU_ROWS = 192, 1024
# To drop lines copies the cache of all others: for a few it costs more than it spares.
DROPPED = 1 / 8
# What the head scores of a prompt. Of a slice, whose lines are apart, torch makes a product a line, and in 16 bits on a
# CPU copies the whole head for each; what an index picks is a tensor of its own.
LAST = torch.tensor([-1])


def replies(
    model: Any,
    tokenizer: Any,
    requests: Sequence[Request],
    sampling: Sampling,
    rows: int | None = None,
    done: Callable[[int], None] = lambda count: None,
    halve: bool = True,
) -> list[list[Reply]]:
    """One reply for each key of each request, in the order of the requests.

    At most `rows` rows (what memory holds where None) are sampled at once, half as many each time that memory runs
    out, unless `halve` forbids it; `done` hears how many each batch ended.
    """
    if model.config.get_text_config()._attn_implementation == "flash_attention_2":
        # Candidates that share a cache need a mask of who sees what, and flash-attention takes none.
        getattr(model, "get_base_model", lambda: model)().set_attn_implementation("sdpa")
    results: list[list[Reply]] = [[] for _ in requests]
    waiting = sorted(range(len(requests)), key=lambda i: requests[i].longest)
    while waiting:
        rows = rows or fitting_rows(model, [requests[i] for i in waiting], sampling.max_new_tokens)
        # The longest go first: what memory holds of them, it holds of all others.
        count = leading([requests[i] for i in reversed(waiting)], rows)
        batch = [requests[i] for i in waiting[-count:]]
        try:
            sampled = _sample(model, tokenizer, batch, sampling)
        except RuntimeError as error:
            if not memory.out_of_memory(error) or not halve or count == 1:
                raise
            rows = max(1, sum(request.rows for request in batch) // 2)
            torch.cuda.empty_cache()
            print(f"out of memory: {rows} rows at once from here on", flush=True)
            continue
        for i, own in zip(waiting[-count:], sampled, strict=True):
            results[i] = own
        del waiting[-count:]
        done(sum(len(own) for own in sampled))
    return results


def fitting_rows(model: Any, requests: Sequence[Request], new: int) -> int:
    """How many rows of the longest of these requests half of the free memory holds, each with `new` tokens to write.

    Of a row that is its cache, its logits and its part in reading the prompt, which a request's candidates share. On a
    GPU that is free which torch keeps for what comes next, after the tensors that were there are gone.
    """
    import psutil

    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    longest, shared = max(r.longest for r in requests), min(len(r.keys) for r in requests)
    # Keys and values; the logits in float32, with their noise, and what is sorted of them.
    cache = 2 * config.num_hidden_layers * heads * size * (longest + new) * model.dtype.itemsize
    row = cache + 4 * 4 * config.vocab_size + longest * memory.reading(model) // shared
    on_gpu = model.device.type == "cuda"
    free: int = _free_on_gpu(model.device) if on_gpu else psutil.virtual_memory().available
    return max(1, min(GPU_ROWS if on_gpu else CPU_ROWS, free // 2 // row))


def _free_on_gpu(device: torch.device) -> int:
    kept: int = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def shares_cache(config: Any, requests: Sequence[Request], sampling: Sampling) -> bool:
    """Whether all candidates of a prompt may write to one cache: where every layer looks at all that is in it.

    One that does not would mix them, or drop the prompt for what others wrote.
    """
    widest = max(r.longest for r in requests) + max(len(r.keys) for r in requests) * sampling.max_new_tokens
    return prefixes.attends_to_all(config, widest)


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Every token id that ends a reply: the tokenizer's end token, and what the model's generation config adds."""
    configured = model.generation_config.eos_token_id
    more = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return {tokenizer.eos_token_id, *more}


@torch.inference_mode()
def _sample(model: Any, tokenizer: Any, requests: Sequence[Request], sampling: Sampling) -> list[list[Reply]]:
    """One reply for each key of each request, all in one batch."""
    batch = _Batch(model, tokenizer, requests, sampling)
    for step in range(sampling.max_new_tokens):
        tokens = batch.write(batch.draw(step))
        if not len(tokens) or step + 1 == sampling.max_new_tokens:
            break
        batch.read(tokens, step)
    return batch.replies()


def _laid(row: Sequence[int], head: int, tail: int, value: int) -> list[int]:
    """A row in `head` + `tail` places: its last `tail` at the end, all before at the start, `value` between them."""
    own = row[:-tail]
    return [*own, *[value] * (head + tail - len(row)), *row[len(own) :]]


class _Batch:
    """Requests whose replies are written together, token by token.

    A row is a candidate, a line is what the model is given of a prompt or of its twin: all of a prompt's rows are
    queries on its one line, so that its cache is held and read once, and what each of them writes only itself can see.
    Where a model has layers that cannot tell them apart, each row has a line of its own. A row is read on its prompt's
    line and, where it is guided, on its twin's.
    """

    def __init__(self, model: Any, tokenizer: Any, requests: Sequence[Request], sampling: Sampling) -> None:
        self.model, self.tokenizer, self.requests, self.sampling = model, tokenizer, requests, sampling
        self.device = model.device
        self.end = self._tensor(sorted(end_tokens(model, tokenizer)))
        # Of each row: its key, what it has written, and whether it has ended by itself; the rows that go on.
        self.keys = self._tensor([key for request in requests for key in request.keys])
        self.written: list[list[int]] = [[] for _ in range(len(self.keys))]
        self.ended = [False] * len(self.keys)
        self.alive = torch.arange(len(self.keys), device=self.device)
        # Of each reading: its row and its line. Those on the twins stand behind all others, so that both orders rise.
        ends = accumulate(len(request.keys) for request in requests)
        own = [(request, range(end - len(request.keys), end)) for request, end in zip(requests, ends, strict=True)]
        lines = [(request.prompt, rows) for request, rows in own]
        lines += [(request.twin, rows) for request, rows in own if request.twin is not None]
        self.prompts = [prompt for prompt, _ in lines]
        self.reader = self._tensor([row for _, rows in lines for row in rows])
        self.owner = self._tensor([line for line, (_, rows) in enumerate(lines) for _ in rows])
        self.guided = self.reader.bincount() > 1
        # Of each line that the model still holds: the row that wrote a position behind the prompt, -1 where none did.
        self.lines = torch.arange(len(lines), device=self.device)
        self.writers = self.owner.new_empty((len(lines), 0))
        self.shared = shares_cache(model.config, requests, sampling)
        # What lines begin with, where it is held once for all of them: the cache then holds the rest of each alone.
        self.beginnings: Beginnings | None = None
        self._read_prompts()
        if not self.shared:
            self._part_lines()

    def _tensor(self, numbers: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)

    def _read_prompts(self) -> None:
        """Each prompt once; then the logits of its last token are those of each of its rows.

        What lies in front of the last `tail` positions is read once for all prompts that begin so, padded on the right,
        and the rest padded on the left. Where nothing is shared, that is the whole prompt.
        """
        longest = max(map(len, self.prompts))
        tail, readers = prefixes.shared(self.prompts) if self.shared else (longest, [])
        head, pad = longest - tail, self.tokenizer.pad_token_id
        ids = self._tensor([_laid(prompt, head, tail, pad) for prompt in self.prompts])
        self.held = self._tensor([_laid([1] * len(prompt), head, tail, 0) for prompt in self.prompts])
        cache = self._read_heads(ids[:, :head], readers) if head else None
        output = self.model(
            input_ids=ids[:, head:],
            attention_mask=self.held,
            position_ids=(self.held.cumsum(1) - 1).clamp(min=0)[:, head:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=LAST,
        )
        self.cache = output.past_key_values
        if self.beginnings is not None:
            self.beginnings.cut(self.cache)
        self.logits, self.scale = self._weighed(output.logits[self.owner, -1].float(), self.alive)
        counts = torch.zeros(self.logits.shape, dtype=torch.int64, device=self.device)
        own = self.owner[self.alive]
        self.seen = counts.scatter_add_(1, ids[own], self.held[own]) > 0

    def _read_heads(self, ids: torch.Tensor, readers: list[int]) -> Any:
        """The cache of the heads of all prompts [lines, head], of which the model reads those of `readers` alone."""
        lines = self._tensor(readers)
        own, place = lines.unique(return_inverse=True)
        mask = self.held[own, : ids.shape[1]]
        cache = self.model(input_ids=ids[own], attention_mask=mask, use_cache=True, logits_to_keep=LAST).past_key_values
        beginnings = Beginnings(cache, place)
        self.beginnings = beginnings if beginnings.serve(self.model) else None
        cache.reorder_cache(place)
        return cache

    def _weighed(self, logits: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `rows` draw from, and its scale, of the logits of all that they read: their twins' stand at the end."""
        own, twins = logits[: len(rows)], logits[len(rows) :]
        scale = noise.largest(own)
        if len(twins):
            at = self.guided[rows]
            own[at], scale[at] = noise.guided(own[at], twins, self.sampling.guidance)
        return own, scale

    def _part_lines(self) -> None:
        """Each reading gets a line, with a copy of its prompt's cache: what its row writes is then all that it sees."""
        self.cache.reorder_cache(self.owner)
        self.held, self.prompts = self.held[self.owner], [self.prompts[line] for line in self.owner.tolist()]
        self.lines = self.owner = torch.arange(len(self.owner), device=self.device)
        self.writers = self.owner.new_empty((len(self.owner), 0))

    def draw(self, step: int) -> torch.Tensor:
        """The next token of each row that goes on [rows alive]."""
        tokens, unsure = self._draw(self.logits, self.scale, self.alive, step)
        if self.model.dtype == torch.float32 and self.device.type == "cpu":
            for place in unsure.nonzero().flatten().tolist():
                tokens[place] = self._draw_alone(self.alive[place : place + 1], step)
        return tokens

    def _draw(
        self, logits: torch.Tensor, scale: torch.Tensor, rows: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return noise.draw(logits, scale, self.seen[rows], self.keys[rows], step, self.sampling, self.end)

    def _draw_alone(self, row: torch.Tensor, step: int) -> torch.Tensor:
        """The next token of one row [1], by logits that no other row had a part in."""
        prompts = [self.prompts[line] for line in self.owner[self.reader == row].tolist()]
        texts = [self._tensor([[*prompt, *self.written[int(row)]]]) for prompt in prompts]
        logits = [self.model(input_ids=ids, logits_to_keep=1).logits[:, -1].float() for ids in texts]
        return self._draw(*self._weighed(torch.cat(logits), row), row, step)[0][0]

    def write(self, tokens: torch.Tensor) -> torch.Tensor:
        """Note a token for each row that goes on; those that go on still, and of `tokens` only theirs, stay."""
        stops = torch.isin(tokens, self.end)
        for row, token, stop in zip(self.alive.tolist(), tokens.tolist(), stops.tolist(), strict=True):
            if stop:
                self.ended[row] = True
            else:
                self.written[row].append(token)
        self.seen[self.alive, tokens] = True
        self.alive = self.alive[~stops]
        return tokens[~stops]

    def read(self, tokens: torch.Tensor, step: int) -> None:
        """The model reads the token of each row that goes on, the `step`-th after its prompt (from 0)."""
        readings = torch.isin(self.reader, self.alive)
        readers, owner = self.reader[readings], self.owner[readings]
        self._drop_lines(owner.unique())
        line, place = self._places(owner)
        rows = self.writers.new_full((len(self.lines), int(place.max()) + 1), -1)
        rows[line, place] = readers
        ids = torch.full_like(rows, self.tokenizer.pad_token_id)
        ids[line, place] = tokens[torch.searchsorted(self.alive, readers)]
        self.writers = torch.cat([self.writers, rows], dim=1)
        with attending(self.model, self.beginnings) as beginnings:
            output = self.model(
                input_ids=ids,
                attention_mask=self._mask(rows),
                position_ids=(self.held[self.lines].sum(1, keepdim=True) + step).expand(-1, rows.shape[1]),
                past_key_values=self.cache,
                use_cache=True,
                **beginnings,
            )
        self.cache = output.past_key_values
        self.logits, self.scale = self._weighed(output.logits[line, place].float(), self.alive)

    def _drop_lines(self, needed: torch.Tensor) -> None:
        """Lines whose rows have all ended are held no longer, once they are DROPPED of all."""
        if len(needed) <= (1 - DROPPED) * len(self.lines):
            left = torch.searchsorted(self.lines, needed)
            self.cache.reorder_cache(left)
            self.lines, self.writers = needed, self.writers[left]
            if self.beginnings is not None:
                self.beginnings.keep(left)

    def _places(self, owner: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each reading, whose line is `owner`: that line among those held, and its number among its readings."""
        line = torch.searchsorted(self.lines, owner)
        return line, torch.arange(len(line), device=self.device) - torch.searchsorted(line, line)

    def _mask(self, rows: torch.Tensor) -> torch.Tensor:
        """What a row [lines, places] sees of its line: the prompt, and what it has written itself."""
        if not self.shared:
            # The whole line; the model looks to its windows and states itself.
            return torch.cat([self.held[self.lines], torch.ones_like(self.writers)], dim=1)
        prompt = self.held[self.lines].bool()[:, None].expand(-1, rows.shape[1], -1)
        sees = torch.cat([prompt, self.writers[:, None] == rows[:, :, None]], dim=2)
        mask = torch.zeros(sees.shape, dtype=self.model.dtype, device=self.device)
        return mask.masked_fill_(~sees, torch.finfo(self.model.dtype).min)[:, None]

    def replies(self) -> list[list[Reply]]:
        """What each row has written, by request."""
        texts = self.tokenizer.batch_decode(self.written, skip_special_tokens=True)
        rows = (
            Reply(" ".join(text.split()), len(tokens), ended)
            for text, tokens, ended in zip(texts, self.written, self.ended, strict=True)
        )
        return [[next(rows) for _ in request.keys] for request in self.requests]
