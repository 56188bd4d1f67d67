"""Accepted pairs per second: generate_prefs against the published procedure, with the same model and acceptance.

`published`: one prompt at a time, six copies of it through `model.generate`, the judges called reply by reply, all six
again where they make no pair. `generate`: sixteen prompts at a time through `model.generate(num_return_sequences=6)`,
the judges called on batches, what failed again in the next round. `emotune`: the stage's own code, its journal empty.
The first two have base and adapter as PEFT loads them; the stage adds their weights up. All sample as params.yaml says
and accept by the same rules. They draw other noise, so they accept other replies: each
rate is that of its own attempts.

By default the models of `make repro`; with `--random` a Llama of 110 M random weights, whose replies no judge likes:
there the ratio is that of attempts per second. `bandwidth_share` is the time that reading weights and cache once a step
would take at the memory's measured rate, as a share of the time taken. Prints one JSON object last.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import scratch

ROOT = Path(__file__).resolve().parents[1]
CANDIDATES, AT_ONCE = 6, 16


class Done(NamedTuple):
    """What a contender made of its prompts."""

    accepted: int
    attempts: int
    tokens: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", action="store_true", help="a Llama of 110 M random weights, not the sft model")
    parser.add_argument("--prompts", type=int, default=384, help="for emotune (default %(default)s)")
    parser.add_argument("--slow-prompts", type=int, default=32, help="for the other two (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each (default %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch (default: all)")
    chosen = parser.parse_args()
    scratch.report(measure, chosen)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    from emotune.core import records
    from emotune.judges.files import open_judge
    from emotune.models import loading
    from emotune.preferences import attempts
    from emotune.prompts.prompter import Prompter
    from emotune.runs.params import parse

    whole = parse(ROOT / "params.yaml")
    every = {"attempts": 1, "target_score_range": 0.0, "min_chosen_score": -100.0}
    p = whole.prefs.model_copy(
        update={"prompts": chosen.prompts, "candidates": CANDIDATES} | (every if chosen.random else {})
    )
    tokenizer = loading.load_tokenizer(ROOT / "models/sft", None)
    # As the stage loads it, and as PEFT does: the same weights.
    model = loading.load_tuned(ROOT / "models/base", whole.model, ROOT / "models/sft")
    adapted = loading.load_adapter(loading.load_base(ROOT / "models/base", whole.model), ROOT / "models/sft")
    if chosen.random:
        model = adapted = random_llama(model.config)
    judges = (
        open_judge(ROOT / "models/judges/reward.skops", whole.reward.emotion_judge),
        open_judge(ROOT / "models/judges/reward_gibberish.skops", whole.reward.gibberish_judge),
    )
    asked = attempts.choose_prompts(
        records.read_dialogues(ROOT / "data/dialogues/train.jsonl"),
        Prompter(tokenizer, whole.system_prompt, whole.model.context, whole.history_turns),
        whole.data.labels,
        p,
    )
    ours = (model, tokenizer, judges, p, whole.reward)
    theirs = (adapted, *ours[1:])
    few = asked[: chosen.slow_prompts]
    contenders: dict[str, Callable[[int], Done]] = {
        "published": lambda seed: by_rounds(few, 1, True, seed, theirs),
        "generate": lambda seed: by_rounds(few, AT_ONCE, False, seed, theirs),
        "emotune": lambda seed: emotune(asked, seed, ours),
    }
    bandwidth = memory_bandwidth()
    rounds: dict[str, list[Done]] = {name: [] for name in contenders}
    shares: dict[str, list[float]] = {name: [] for name in contenders}
    for seed in range(chosen.rounds):
        for name, contender in contenders.items():
            with reading(model if name == "emotune" else adapted) as read:
                done = contender(seed)
            rounds[name].append(done)
            shares[name].append(sum(read) / bandwidth / done.seconds)
            print(name, done)

    def rate(done: Done) -> float:
        return (done.attempts if chosen.random else done.accepted) / done.seconds

    def against(name: str) -> float:
        ratios = [rate(ours) / rate(theirs) for ours, theirs in zip(rounds["emotune"], rounds[name], strict=True)]
        return round(statistics.median(ratios), 1)

    return {
        "benchmark": "prefs_throughput",
        "model": "110 M random weights" if chosen.random else f"embedded, {model.num_parameters() / 1e6:.1f} M",
        "ratio": against("published"),
        "ratio_to_generate": against("generate"),
        "threads": chosen.threads,
        "rounds": chosen.rounds,
        "memory_bandwidth_gb_per_s": round(bandwidth / 1e9, 1),
        **{
            name: {
                "pairs_per_second": round(statistics.median(map(rate, found)), 2),
                "tokens_per_second": round(statistics.median(done.tokens / done.seconds for done in found)),
                "accepted_per_attempt": round(sum(d.accepted for d in found) / sum(d.attempts for d in found), 3),
                "bandwidth_share": round(statistics.median(shares[name]), 3),
                "prompts": len(asked if name == "emotune" else few),
            }
            for name, found in rounds.items()
        },
    }


def by_rounds(asked: Sequence[Any], at_once: int, one_by_one: bool, seed: int, work: tuple[Any, ...]) -> Done:
    """Prompts in fixed batches through transformers' own generate(); what fails goes through once more, all six."""
    import torch
    from transformers import set_seed

    from emotune.generation.engine import Reply
    from emotune.preferences.candidates import judging
    from emotune.preferences.reward import candidate
    from emotune.preferences.selection import Pair, select

    model, tokenizer, judges, p, r = work
    s = p.sampling
    set_seed(seed)
    accepted = attempts = tokens = 0
    began = time.perf_counter()
    waiting = list(asked)
    for _ in range(p.attempts):
        failed = []
        for start in range(0, len(waiting), at_once):
            batch = waiting[start : start + at_once]
            longest = max(len(prompt.ids) for prompt in batch)
            copies = CANDIDATES if one_by_one else 1
            rows = [prompt for prompt in batch for _ in range(copies)]
            ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(a.ids)) + list(a.ids) for a in rows])
            held = torch.tensor([[0] * (longest - len(a.ids)) + [1] * len(a.ids) for a in rows])
            written = model.generate(
                input_ids=ids,
                attention_mask=held,
                do_sample=True,
                num_return_sequences=CANDIDATES // copies,
                pad_token_id=tokenizer.pad_token_id,
                **s.model_dump(exclude={"guidance"}),
            )[:, longest:]
            lengths = (written != tokenizer.pad_token_id).sum(1).tolist()
            tokens += sum(lengths)
            texts = [" ".join(text.split()) for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
            replies = [Reply(text, length, True) for text, length in zip(texts, lengths, strict=True)]
            judge = judging(lambda: judges)
            groups = [[reply] for reply in replies] if one_by_one else [replies]
            judged = [verdict for group in groups for verdict in judge([group])[0]]
            for number, prompt in enumerate(batch):
                own = judged[number * CANDIDATES : (number + 1) * CANDIDATES]
                found = select(
                    [candidate(reply, prompt.emotion, r) for reply in own],
                    prompt.emotion,
                    p.target_score_range,
                    p.min_chosen_score,
                    p.min_clean_confidence,
                )
                accepted += isinstance(found, Pair)
                failed += [] if isinstance(found, Pair) else [prompt]
            attempts += len(batch)
        waiting = failed
    return Done(accepted, attempts, tokens, time.perf_counter() - began)


def emotune(asked: Sequence[Any], seed: int, work: tuple[Any, ...]) -> Done:
    """The stage's own loop, journal and all."""
    from emotune.generation.here import Local
    from emotune.preferences import attempts, journal
    from emotune.preferences.candidates import judging, sampling

    model, tokenizer, judges, p, r = work
    p = p.model_copy(update={"seed": seed})
    tokens = 0
    sample = sampling(Local(lambda: model, tokenizer), p)

    def counted(wanted: Sequence[Any]) -> Any:
        nonlocal tokens
        sampled = sample(wanted)
        tokens += sum(reply.tokens + reply.ended for replies in sampled for reply in replies)
        return sampled

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with journal.opened(Path(folder, "journal.sqlite"), {"benchmark": "prefs_throughput"}) as memo:
            outcomes = attempts.generate(asked, p, r, counted, judging(lambda: judges), memo)
        seconds = time.perf_counter() - began
    accepted = sum(outcome.pair is not None for outcome in outcomes)
    return Done(accepted, sum(outcome.attempts for outcome in outcomes), tokens, seconds)


def random_llama(config: Any) -> Any:
    """12 layers of 768, a vocabulary of 32,000, tied: 110 M parameters that know the embedded tokenizer's ids."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    shape = LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    return LlamaForCausalLM(shape).eval()


@contextmanager
def reading(model: Any) -> Iterator[list[int]]:
    """The bytes that each pass of the model has to read at least: its weights, and the cache that it is given."""
    inner = getattr(model, "get_base_model", lambda: model)()
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    read: list[int] = []

    def count(_: Any, __: Any, given: dict[str, Any]) -> None:
        layers = getattr(given.get("past_key_values"), "layers", [])
        held = [tensor for layer in layers for tensor in (layer.keys, layer.values) if tensor is not None]
        read.append(weights + sum(tensor.numel() * tensor.element_size() for tensor in held))

    hook = inner.register_forward_pre_hook(count, with_kwargs=True)
    yield read
    hook.remove()


def memory_bandwidth() -> float:
    """Bytes per second at which torch sums 1 GiB, the best of five."""
    import torch

    numbers = torch.ones(2**28)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        numbers.sum()
        times.append(time.perf_counter() - began)
    return numbers.numel() * 4 / min(times)


if __name__ == "__main__":
    main()
