"""Laws of the sampler: a reply depends on its key and its prompt alone, and is an exact sample of the model."""

import copy
import random
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GraniteMoeHybridConfig,
    Lfm2Config,
    LlamaConfig,
    LogitsProcessorList,
    MistralConfig,
    Qwen3NextConfig,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from emotune.core.seeds import key
from emotune.generation import local
from emotune.generation.engine import Reply, Request
from emotune.generation.here import Local
from emotune.generation.local import end_tokens, replies
from emotune.generation.noise import draw, guided, gumbel, largest
from emotune.generation.params import Sampling
from emotune.models import loading
from emotune.models.params import Model

PUBLISHED = Sampling(
    temperature=2.0, top_k=5, top_p=1.0, repetition_penalty=1.5, min_new_tokens=5, max_new_tokens=20, guidance=1.0
)
NUCLEUS = Sampling(
    temperature=0.7, top_k=0, top_p=0.9, repetition_penalty=1.0, min_new_tokens=0, max_new_tokens=20, guidance=1.0
)
GREEDY = Sampling(
    temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0, min_new_tokens=0, max_new_tokens=20, guidance=1.0
)
WAYS = {"published": PUBLISHED, "nucleus": NUCLEUS, "greedy": GREEDY}


def way(sampling: Sampling, **changes: Any) -> Sampling:
    return Sampling.model_validate(sampling.model_dump() | changes)


WAYS |= {"guided": way(NUCLEUS, guidance=1.5), "guided greedy": way(GREEDY, guidance=3.0, repetition_penalty=1.3)}


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    """The tiny Llama with weights so large that its logits are sharp and every token of the prompt matters."""
    choice = Model(base="embedded", revision=None, dtype="float32", attention="sdpa", quantization="none", context=256)
    model = loading.load_base(base, choice)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                weights *= 10
        model.lm_head.weight *= 2
    # Some twenty tokens end a reply, so that rows leave their batch at different steps.
    model.generation_config.eos_token_id = [2, *range(60, 80)]
    return model


@pytest.fixture(scope="module")
def requests(model: Any) -> list[Request]:
    """Prompts of 1 to 120 tokens, in no order, each with one to four candidates."""
    rng = random.Random(7)
    lengths = [60, 1, 17, 120, 3, 18, 90, 5, 40, 17, 2, 33]
    return [
        Request(
            (1, *(rng.randrange(3, model.config.vocab_size) for _ in range(length - 1))),
            tuple(key(7, number, candidate) for candidate in range(1 + number % 4)),
        )
        for number, length in enumerate(lengths)
    ]


def with_twins(requests: list[Request]) -> list[Request]:
    """Prompts with a twin of another length each, but for every fourth, which has none."""
    return [
        request if number % 4 == 3 else replace(request, twin=(1, *range(90, 90 + number % 3), *request.prompt[2:]))
        for number, request in enumerate(requests)
    ]


@pytest.fixture(params=WAYS)
def sampling(request: pytest.FixtureRequest) -> Sampling:
    return WAYS[request.param]


@pytest.fixture
def questions(requests: list[Request], sampling: Sampling) -> list[Request]:
    """The prompts, with their twins where a way of sampling guides."""
    return requests if sampling.guidance == 1 else with_twins(requests)


@pytest.fixture
def passes(model: Any) -> Iterator[Counter[str]]:
    """Counts what goes through the model: rows of the batch, and rows that were looked at once more, alone."""
    counted: Counter[str] = Counter()

    def count(_: Any, __: Any, given: dict[str, Any]) -> None:
        counted["batch" if "use_cache" in given else "alone"] += len(given["input_ids"])

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    yield counted
    hook.remove()


# --- nothing but key and prompt


def test_a_reply_does_not_depend_on_the_batch(
    model: Any, tokenizer: Any, questions: list[Request], sampling: Sampling
) -> None:
    found = replies(model, tokenizer, questions, sampling)
    assert [len(texts) for texts in found] == [len(request.keys) for request in questions]
    for rows in (3, 7, 64):
        assert replies(model, tokenizer, questions, sampling, rows=rows) == found


def test_a_reply_does_not_depend_on_order_and_company(
    model: Any, tokenizer: Any, questions: list[Request], sampling: Sampling
) -> None:
    found = replies(model, tokenizer, questions, sampling)
    assert replies(model, tokenizer, questions[::-1], sampling) == found[::-1]
    for request, together in zip(questions, found, strict=True):
        alone = [replies(model, tokenizer, [replace(request, keys=(one,))], sampling)[0][0] for one in request.keys]
        assert alone == together


def test_in_bfloat16_a_batch_changes_few_replies(model: Any, tokenizer: Any, requests: list[Request]) -> None:
    """There is no second look: its rounding, 2^-8 of a logit, decides more often than anyone would look twice."""
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    many = [Request(request.prompt, tuple(key("few", i, n) for n in range(8))) for i, request in enumerate(requests)]
    found = [reply for texts in replies(rounded, tokenizer, many, NUCLEUS) for reply in texts]
    for rows in (8, 24):
        others = [reply for texts in replies(rounded, tokenizer, many, NUCLEUS, rows=rows) for reply in texts]
        assert sum(one == other for one, other in zip(found, others, strict=True)) >= 0.9 * len(found)


def test_candidates_differ_and_so_do_seeds(model: Any, tokenizer: Any, requests: list[Request]) -> None:
    [found] = replies(model, tokenizer, [Request(requests[0].prompt, tuple(range(20)))], PUBLISHED)
    assert len({reply.text for reply in found}) > 15
    assert key(7, "a", 1) != key(8, "a", 1) != key(7, "a", 2)
    assert key(7, "a", 1) == key(7, "a", 1) < 2**63
    # Parts do not run into one another.
    assert key("ab", "c") != key("a", "bc")


def test_second_looks_are_rare(
    model: Any, tokenizer: Any, questions: list[Request], passes: Counter[str], sampling: Sampling
) -> None:
    many = [replace(request, keys=tuple(key("rare", i, n) for n in range(8))) for i, request in enumerate(questions)]
    found = replies(model, tokenizer, many, sampling)
    tokens = sum(reply.tokens + reply.ended for texts in found for reply in texts)
    assert passes["alone"] < 0.02 * tokens


def test_a_second_look_at_every_token_changes_nothing(
    model: Any,
    tokenizer: Any,
    questions: list[Request],
    sampling: Sampling,
    passes: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = way(sampling, max_new_tokens=8)
    found = replies(model, tokenizer, questions[:6], few)
    passes.clear()
    monkeypatch.setattr("emotune.generation.noise.TOLERANCE", 1e6)
    assert replies(model, tokenizer, questions[:6], few) == found
    readings = [1 if request.twin is None else 2 for request in questions[:6]]
    tokens = [sum(reply.tokens + reply.ended for reply in texts) for texts in found]
    assert passes["alone"] == sum(n * count for n, count in zip(readings, tokens, strict=True))


# --- what prompts begin with


def few_shot(seed: int, words: int, counts: tuple[int, ...] = (8, 9, 1)) -> list[Request]:
    """Prompts of several emotions, those of one behind the same long examples, with twins of other beginnings."""
    rng = random.Random(seed)

    def text(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, words) for _ in range(length))

    requests = []
    for emotion, count in enumerate(counts):
        examples = (1, *text(100 + 15 * emotion))
        for number in range(count):
            own = text(rng.randrange(1, 24))
            twin = (1, 5, *own) if number % 3 == 0 else (*examples, 5, *own)
            keys = tuple(key(seed, emotion, number, n) for n in range(2))
            requests.append(Request((*examples, *own), keys, twin=twin))
    return requests


def unguided(requests: list[Request]) -> list[Request]:
    return [replace(request, twin=None) for request in requests]


@pytest.fixture
def positions(model: Any) -> Iterator[list[int]]:
    """How many positions went through the model in each pass of a batch."""
    counts: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: counts.append(given["input_ids"].numel()) if "use_cache" in given else None,
        with_kwargs=True,
    )
    yield counts
    hook.remove()


def test_what_prompts_begin_with_is_read_once_for_all_of_them(
    model: Any, tokenizer: Any, positions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One long beginning an emotion, and of each prompt what is its own, padded to the longest of these."""
    requests = unguided(few_shot(7, len(tokenizer)))
    one = way(NUCLEUS, max_new_tokens=1)
    found = replies(model, tokenizer, requests, one)
    longest = max(request.longest for request in requests)
    heads, tails = positions
    assert heads % 3 == tails % len(requests) == 0
    assert heads // 3 + tails // len(requests) == longest
    assert tails // len(requests) <= 32
    positions.clear()
    monkeypatch.setattr("emotune.models.prefixes.SPARED", 1.0)
    assert replies(model, tokenizer, requests, one) == found
    assert positions == [longest * len(requests)]


def test_a_reply_does_not_depend_on_whether_its_beginning_was_shared(
    model: Any, tokenizer: Any, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = few_shot(8, len(tokenizer))
    found = replies(model, tokenizer, requests, sampling)
    assert replies(model, tokenizer, requests, sampling, rows=12) == found
    assert replies(model, tokenizer, requests[::-1], sampling, rows=20) == found[::-1]
    monkeypatch.setattr("emotune.models.prefixes.SPARED", 1.0)
    assert replies(model, tokenizer, requests, sampling) == found
    assert len({reply for own in found for reply in own}) > len(requests) / 2


def test_prompts_that_begin_differently_are_read_in_one_pass(
    model: Any, tokenizer: Any, requests: list[Request], positions: list[int]
) -> None:
    alike = [replace(request, prompt=request.prompt * 2) for request in requests if len(request.prompt) in (17, 18)]
    replies(model, tokenizer, alike, way(NUCLEUS, max_new_tokens=1))
    assert positions == [36 * 3]


# --- guidance


def test_a_prompt_without_a_twin_is_not_guided_whatever_its_company(
    model: Any, tokenizer: Any, requests: list[Request], passes: Counter[str]
) -> None:
    found = replies(model, tokenizer, with_twins(requests), way(PUBLISHED, guidance=4.0))
    unguided = replies(model, tokenizer, requests, PUBLISHED)
    assert found[3::4] == unguided[3::4]
    assert all(one != other for one, other in zip(found[::4], unguided[::4], strict=True))
    passes.clear()
    replies(model, tokenizer, requests[3:4], way(NUCLEUS, guidance=4.0, max_new_tokens=1))
    assert passes["batch"] == 1


def test_guidance_of_nothing_says_what_the_twin_says_and_of_one_what_the_prompt_says(
    model: Any, tokenizer: Any, requests: list[Request]
) -> None:
    both = [request for request in with_twins(requests) if request.twin]
    twins = [Request(request.twin or (), request.keys) for request in both]
    assert replies(model, tokenizer, both, way(NUCLEUS, guidance=0.0)) == replies(model, tokenizer, twins, NUCLEUS)
    prompts = [Request(request.prompt, request.keys) for request in both]
    assert replies(model, tokenizer, both, NUCLEUS) == replies(model, tokenizer, prompts, NUCLEUS)


def test_no_sure_token_is_another_where_both_readings_round_as_far_as_they_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rounding of a guided logit is that of both readings, and guidance multiplies it."""
    monkeypatch.setattr("emotune.generation.noise.TOLERANCE", 1e-3)
    torch.manual_seed(7)
    rows, vocabulary, end = 4000, 30, torch.tensor([2])
    keys, seen = torch.tensor([key("sure", n) for n in range(rows)]), torch.rand(rows, vocabulary) < 0.5
    readings = [torch.randn(rows, vocabulary) * 3 + shift for shift in (0, 20)]
    rounded = [
        logits + torch.empty_like(logits).bernoulli_().mul(2).sub(1) * 1e-3 * largest(logits) for logits in readings
    ]
    for sampling in (way(GREEDY, guidance=8.0), way(NUCLEUS, guidance=8.0), way(PUBLISHED, guidance=0.5)):
        tokens, unsure = draw(*guided(*readings, sampling.guidance), seen, keys, 9, sampling, end)
        others, _ = draw(*guided(*rounded, sampling.guidance), seen, keys, 9, sampling, end)
        assert 0 < (tokens != others).sum() <= unsure.sum() < rows
        assert not (tokens != others)[~unsure].any()


# --- layers that look at less than all, or keep a state


SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.3,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
STATES = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "shared_intermediate_size": 32,
}
KINDS: dict[str, Any] = {
    "plain": lambda words: LlamaConfig(vocab_size=words, num_hidden_layers=2, **SHAPE),
    "convolution": lambda words: Lfm2Config(
        vocab_size=words, num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"], **SHAPE
    ),
    "linear attention": lambda words: Qwen3NextConfig(
        vocab_size=words, num_hidden_layers=2, layer_types=["linear_attention", "full_attention"], **STATES, **SHAPE
    ),
    "mamba": lambda words: GraniteMoeHybridConfig(
        vocab_size=words, num_hidden_layers=2, layer_types=["mamba", "attention"], **MAMBA, **SHAPE
    ),
    "small window": lambda words: Gemma3TextConfig(
        vocab_size=words,
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=32,
        **SHAPE,
    ),
    "large window": lambda words: MistralConfig(vocab_size=words, num_hidden_layers=2, sliding_window=512, **SHAPE),
}


@torch.inference_mode()
def alone(model: Any, tokenizer: Any, request: Request, one: int, sampling: Sampling) -> Reply:
    """A reply written token by token, each from all that stands before it, read anew: no batch, no cache."""
    end, written = torch.tensor(sorted(end_tokens(model, tokenizer))), list[int]()
    for step in range(sampling.max_new_tokens):
        ids = torch.tensor([[*request.prompt, *written]])
        logits = model(input_ids=ids, use_cache=False).logits[:, -1].float()
        seen = torch.zeros(logits.shape, dtype=torch.bool).index_fill_(1, ids[0], True)
        weighed = logits, largest(logits)
        if request.twin:
            twins = model(input_ids=torch.tensor([[*request.twin, *written]]), use_cache=False).logits[:, -1].float()
            weighed = guided(logits, twins, sampling.guidance)
        token = int(draw(*weighed, seen, torch.tensor([one]), step, sampling, end)[0])
        if token in end:
            break
        written.append(token)
    ended = len(written) < sampling.max_new_tokens
    return Reply(" ".join(tokenizer.decode(written, skip_special_tokens=True).split()), len(written), ended)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
@pytest.mark.parametrize("kind", KINDS)
def test_replies_are_those_of_each_candidate_alone_whatever_the_layers(
    kind: str, guidance: float, tokenizer: Any
) -> None:
    torch.manual_seed(7)
    config = KINDS[kind](len(tokenizer))
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = [2, *range(60, 80)]
    rng = random.Random(7)
    requests = [
        Request(
            tuple(rng.randrange(3, len(tokenizer)) for _ in range(length)),
            tuple(key(kind, length, n) for n in range(3)),
        )
        for length in (24, 40, 7)
    ]
    # And one that begins as another does.
    requests.append(Request((*requests[1].prompt, 8, 9), (key(kind, 8),)))
    sampling = way(NUCLEUS, guidance=guidance)
    if guidance != 1:
        requests = with_twins(requests)
    expected = [[alone(model, tokenizer, r, one, sampling) for one in r.keys] for r in requests]
    assert replies(model, tokenizer, requests, sampling) == expected
    # They all speak: long enough to leave a window, and each in its own words.
    assert len({reply for own in expected for reply in own}) > 5
    assert max(reply.tokens for own in expected for reply in own) > 8
    assert local.shares_cache(config, requests, NUCLEUS) == (kind in ("plain", "large window"))


# --- the model's own distribution


@pytest.mark.parametrize(("penalty", "shortest", "guidance"), [(1.0, 0, 1.0), (1.5, 6, 1.0), (1.5, 6, 1.5)])
def test_greedy_is_what_transformers_generates(
    model: Any, tokenizer: Any, requests: list[Request], penalty: float, shortest: int, guidance: float
) -> None:
    greedy = way(GREEDY, repetition_penalty=penalty, min_new_tokens=shortest, guidance=guidance)
    if guidance != 1:
        requests = with_twins(requests)
    found = replies(model, tokenizer, requests, greedy)
    ends = end_tokens(model, tokenizer)
    for request, (reply, *others) in zip(requests, found, strict=True):
        prompt = torch.tensor([request.prompt])
        written = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            repetition_penalty=penalty,
            min_new_tokens=shortest,
            max_new_tokens=20,
            pad_token_id=0,
            guidance_scale=None if request.twin is None else guidance,
            negative_prompt_ids=None if request.twin is None else torch.tensor([request.twin]),
        )[0, len(request.prompt) :].tolist()
        ended = written[-1] in ends
        text = tokenizer.decode(written[:-1] if ended else written, skip_special_tokens=True)
        assert reply == Reply(" ".join(text.split()), len(written) - ended, ended)
        assert others == [reply] * len(others)
    assert {reply.ended for texts in found for reply in texts} == {True, False}


@pytest.mark.parametrize(
    "sampling",
    [
        way(PUBLISHED, min_new_tokens=0, max_new_tokens=1),
        way(NUCLEUS, temperature=1.3, max_new_tokens=1),
        Sampling(
            temperature=1.0,
            top_k=40,
            top_p=0.8,
            repetition_penalty=1.2,
            min_new_tokens=0,
            max_new_tokens=1,
            guidance=1.0,
        ),
        way(NUCLEUS, temperature=1.3, max_new_tokens=1, guidance=2.5),
    ],
    ids=["top-k", "top-p", "all", "guided"],
)
def test_a_token_is_drawn_as_often_as_the_filtered_softmax_says(
    model: Any, tokenizer: Any, requests: list[Request], sampling: Sampling
) -> None:
    draws, prompt = 4000, requests[5].prompt
    twin = None if sampling.guidance == 1 else requests[2].prompt
    keys = tuple(key("draw", n) for n in range(draws))
    [found] = replies(model, tokenizer, [Request(prompt, keys, twin=twin)], sampling)
    guidance = (
        [UnbatchedClassifierFreeGuidanceLogitsProcessor(sampling.guidance, model, torch.tensor([twin]))] if twin else []
    )
    filters = LogitsProcessorList(
        [
            *guidance,
            RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
            TemperatureLogitsWarper(sampling.temperature),
            TopKLogitsWarper(sampling.top_k or model.config.vocab_size),
            TopPLogitsWarper(sampling.top_p),
        ]
    )
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        shares = filters(ids, model(input_ids=ids).logits[:, -1])[0].softmax(dim=0)
    expected: Counter[Reply] = Counter()
    for token in shares.nonzero().flatten().tolist():
        if token in end_tokens(model, tokenizer):
            expected[Reply("", 0, True)] += shares[token].item()
        else:
            text = " ".join(tokenizer.decode([token], skip_special_tokens=True).split())
            expected[Reply(text, 1, False)] += shares[token].item()
    drawn = Counter(found)
    assert set(drawn) <= set(expected)
    assert len(expected) >= 3
    for reply, share in expected.items():
        # Four standard deviations of a share out of 4,000 draws.
        assert abs(drawn[reply] / draws - share) <= 4 * (share * (1 - share) / draws) ** 0.5 + 1e-9


def test_the_noise_is_gumbels() -> None:
    keys = torch.tensor([key("noise", n) for n in range(1000)])
    noise = gumbel(keys, 3, torch.arange(500).expand(1000, 500)).double()
    # Euler's constant and pi^2 / 6; the tolerance is four standard errors of 500,000 numbers.
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.0075)
    assert noise.var().item() == pytest.approx(1.6449, abs=0.025)
    assert torch.isfinite(noise).all()
    # exp(-exp(-x)) is its distribution function: what it maps to is uniform.
    deciles = (torch.exp(-torch.exp(-noise.flatten())) * 10).long().bincount(minlength=10) / noise.numel()
    assert (deciles - 0.1).abs().max() < 0.002


def test_noise_of_neighbouring_keys_steps_and_tokens_is_unrelated() -> None:
    tokens = torch.arange(200).expand(1000, 200)
    noise = gumbel(torch.arange(1000), 0, tokens).double()
    others = [
        gumbel(torch.arange(1, 1001), 0, tokens),
        gumbel(torch.arange(1000), 1, tokens),
        gumbel(torch.arange(1000), 0, tokens + 1),
    ]
    for other in others:
        pairs = torch.stack([noise.flatten(), other.double().flatten()])
        assert abs(torch.corrcoef(pairs)[0, 1].item()) < 0.01


def test_noise_does_not_depend_on_the_batch() -> None:
    keys = torch.tensor([key(n) for n in range(50)])
    whole = gumbel(keys, 4, torch.arange(300).expand(50, 300))
    assert torch.equal(gumbel(keys[17:18], 4, torch.tensor([[299, 5]])), whole[17:18, [299, 5]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_noise_is_the_same_on_a_gpu() -> None:
    keys, tokens = torch.tensor([key(n) for n in range(50)]), torch.arange(300).expand(50, 300)
    assert torch.allclose(gumbel(keys.cuda(), 4, tokens.cuda()).cpu(), gumbel(keys, 4, tokens), atol=1e-6)


# --- lengths


def test_a_reply_has_at_least_and_at_most_so_many_tokens(model: Any, tokenizer: Any, requests: list[Request]) -> None:
    many = [Request(request.prompt, tuple(range(20))) for request in requests]
    found = [r for texts in replies(model, tokenizer, many, way(PUBLISHED, max_new_tokens=8)) for r in texts]
    assert {reply.tokens for reply in found if reply.ended} == {5, 6, 7}
    assert {reply.tokens for reply in found if not reply.ended} == {8}


def test_a_reply_that_may_end_at_once_can_be_empty(model: Any, tokenizer: Any, requests: list[Request]) -> None:
    many = [Request(request.prompt, tuple(range(20))) for request in requests]
    found = {r for texts in replies(model, tokenizer, many, way(NUCLEUS, temperature=2.0)) for r in texts}
    assert Reply("", 0, True) in found


def test_one_new_token_is_one_token(model: Any, tokenizer: Any, requests: list[Request]) -> None:
    one = way(PUBLISHED, min_new_tokens=1, max_new_tokens=1)
    found = [reply for texts in replies(model, tokenizer, requests, one) for reply in texts]
    assert {(reply.tokens, reply.ended) for reply in found} == {(1, False)}


def test_the_texts_have_no_special_token_and_single_spaces(model: Any, tokenizer: Any, requests: list[Request]) -> None:
    for texts in replies(model, tokenizer, requests, way(NUCLEUS, temperature=2.0)):
        for reply in texts:
            assert reply.text == " ".join(reply.text.split())
            assert not any(token in reply.text for token in ("<pad>", "<s>", "</s>"))


def test_progress_adds_up_to_all_replies(model: Any, tokenizer: Any, requests: list[Request]) -> None:
    heard: list[int] = []
    replies(model, tokenizer, requests, way(GREEDY, max_new_tokens=1), rows=5, done=heard.append)
    assert sum(heard) == sum(len(request.keys) for request in requests)
    assert max(heard) <= 5


def test_no_requests_have_no_replies(model: Any, tokenizer: Any) -> None:
    assert replies(model, tokenizer, [], GREEDY) == []


# --- memory


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no"), RuntimeError("DefaultCPUAllocator: not enough memory")]
)
def test_where_memory_runs_out_batches_are_halved_and_no_reply_changes(
    model: Any, tokenizer: Any, requests: list[Request], error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = replies(model, tokenizer, requests, NUCLEUS)

    def small(_: Any, __: Any, given: dict[str, Any]) -> None:
        if len(given["input_ids"]) > 6:
            raise error

    hook = model.register_forward_pre_hook(small, with_kwargs=True)
    try:
        assert replies(model, tokenizer, requests, NUCLEUS, rows=30) == expected
    finally:
        hook.remove()
    assert capsys.readouterr().out.startswith("out of memory: 15 rows at once from here on\n")


def test_another_error_is_not_taken_for_a_lack_of_memory(model: Any, tokenizer: Any, requests: list[Request]) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("shapes differ")

    hook = model.register_forward_pre_hook(broken, with_kwargs=True)
    try:
        with pytest.raises(RuntimeError, match="shapes differ"):
            replies(model, tokenizer, requests, NUCLEUS)
    finally:
        hook.remove()


def test_a_guided_row_takes_two(model: Any, tokenizer: Any, requests: list[Request]) -> None:
    both = with_twins(requests)
    guided = way(NUCLEUS, guidance=1.5)
    expected = replies(model, tokenizer, both, guided)
    most: list[int] = []

    def count(_: Any, __: Any, given: dict[str, Any]) -> None:
        if "logits_to_keep" not in given:
            most.append(int((given["input_ids"] != tokenizer.pad_token_id).sum()))

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        assert replies(model, tokenizer, both, guided, rows=8) == expected
    finally:
        hook.remove()
    assert max(most) == 8


def test_the_head_is_given_whole_tensors_which_no_line_of_a_batch_needs_a_copy_of_it_for(
    model: Any, tokenizer: Any, requests: list[Request]
) -> None:
    whole: list[bool] = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, given: whole.append(given[0].is_contiguous()))
    try:
        replies(model, tokenizer, requests, NUCLEUS)
    finally:
        hook.remove()
    assert len(requests) > 1
    assert all(whole)


def test_an_engine_that_was_closed_holds_no_model_and_loads_it_again(
    base: Path, tokenizer: Any, requests: list[Request]
) -> None:
    choice = Model(base="embedded", revision=None, dtype="float32", attention="sdpa", quantization="none", context=256)
    engine = Local(lambda: loading.load_base(base, choice), tokenizer)
    said = engine.replies(requests, NUCLEUS)
    held = weakref.ref(engine.model)
    engine.close()
    assert held() is None
    assert engine.replies(requests, NUCLEUS) == said


def of_50_positions(candidates: int = 1) -> list[Request]:
    """Requests of which the longest has 40 tokens, to be answered in 10."""
    return [Request(tuple(range(length)), tuple(range(candidates))) for length in (3, 40, 7)]


def row_of_50_positions(model: Any, candidates: int = 1) -> int:
    """Two layers of 2 heads x 16, keys and values of 50 positions in float32; four floats for each word; its reading.

    A token is read by 4 times the gated width, 3 times 2 heads x 16 of attention and 2 times 32 of norms, in float32.
    """
    a_token = (4 * model.config.intermediate_size + 3 * 2 * 16 + 2 * 32) * 4
    return 2 * 2 * 2 * 16 * 50 * 4 + 4 * 4 * int(model.config.vocab_size) + 40 * int(a_token) // candidates


@pytest.mark.parametrize("candidates", [1, 4])
def test_rows_fit_in_half_of_the_free_memory_and_candidates_share_a_prompt(
    model: Any, candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = row_of_50_positions(model, candidates)
    for free, rows in ((20 * row, 10), (0, 1), (10**12, local.CPU_ROWS)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        assert local.fitting_rows(model, of_50_positions(candidates), 10) == rows


def test_what_torch_keeps_of_a_gpu_is_free(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row = row_of_50_positions(model)
    on_gpu = SimpleNamespace(
        config=model.config, modules=model.modules, dtype=torch.float32, device=torch.device("cuda", 0)
    )
    for free, reserved, allocated in ((20 * row, 0, 0), (2 * row, 48 * row, 30 * row), (0, 20 * row, 0)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 80 << 30))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device, reserved=reserved: reserved)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device, allocated=allocated: allocated)
        assert local.fitting_rows(on_gpu, of_50_positions(), 10) == 10
