"""Many prompts x many candidates -> replies of any OpenAI-compatible `/v1/completions`, each by its own seed.

The law of local.replies, as far as a server keeps it. vLLM seeds each request, and its batches round differently,
so the same seed gives the same reply but for near ties. `transformers serve` seeds torch as a whole and answers one
request after another, so it is asked one at a time. The law holds there as long as nobody else asks it, and it runs
without --continuous-batching, where the settings of the very first request would be those of all.

vLLM's request form is also that of SGLang and others. `transformers serve` refuses its extra fields, takes the same
settings as a `generation_config`, and is known by that refusal. It says "length" of a reply whose end token is the last
one allowed, so such a reply counts as not ended there. Which settings another server ignores, `connect` finds out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from emotune.core.errors import InputError
from emotune.generation import completions
from emotune.generation.engine import Reply, Request, leading
from emotune.generation.params import Sampling

if TYPE_CHECKING:
    from openai import OpenAI

CONCURRENCY = 32
# Seconds without a byte after which a request has failed.
TIMEOUT = 120
# Eleven tries wait up to a minute in all, long enough for a gateway that restarts; whoever has just started a stage
# with the wrong URL hears of it after three.
TRIES, FIRST_TRIES = 11, 3
# Beyond OpenAI's fields. A key of params.Sampling: the value that changes nothing, vLLM's field, and what that refuses.
EXTRAS: dict[str, tuple[float, str, float]] = {
    "top_k": (0, "top_k", -7),
    "repetition_penalty": (1.0, "repetition_penalty", -1.0),
    "min_new_tokens": (0, "min_tokens", -1),
}
PROBE = Sampling(temperature=1.0, top_k=1, top_p=1.0, repetition_penalty=1.0, min_new_tokens=0, max_new_tokens=1)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server (`url` ends in /v1), the model it is asked for, and how it wants to be asked.

    At most `concurrency` requests are under way at once, each fails after `timeout` seconds of silence. `unheeded` are
    the keys of params.Sampling that the server ignores. The API key is not here: it stays in the environment.
    """

    url: str
    model: str
    concurrency: int = CONCURRENCY
    timeout: float = TIMEOUT
    dialect: Literal["vllm", "transformers"] = "vllm"
    unheeded: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Server:
    """The engine that asks the environment's server for a model; it connects when the first reply is wanted."""

    model: str

    @cached_property
    def endpoint(self) -> Endpoint:
        return connect(self.model)

    def at_once(self, requests: Sequence[Request], sampling: Sampling) -> int:
        """So many that the server is never idle for want of a request, so few that the caller soon has them."""
        return leading(requests, 4 * self.endpoint.concurrency)

    def replies(
        self, requests: Sequence[Request], sampling: Sampling, done: Callable[[int], None] = lambda count: None
    ) -> list[list[Reply]]:
        return replies(self.endpoint, requests, sampling, done)


def connect(model: str) -> Endpoint:
    """The server of EMOTUNE_SERVER, after it has shown that it serves `model` and which settings it heeds.

    EMOTUNE_SERVER_CONCURRENCY (32) bounds the requests under way, EMOTUNE_SERVER_TIMEOUT (120 seconds) the wait for
    each; EMOTUNE_SERVER_KEY, where set, is sent as the bearer token. Raises InputError for what is missing or wrong in
    these, for a model that is not served (with those that are), and for a server that puts a beginning of its own
    before a prompt, which has one.
    """
    endpoint = Endpoint(
        _url(), model, _number("EMOTUNE_SERVER_CONCURRENCY", CONCURRENCY), _number("EMOTUNE_SERVER_TIMEOUT", TIMEOUT)
    )
    with completions.client(endpoint.url, endpoint.timeout, FIRST_TRIES) as client:
        try:
            first = _probe(client, endpoint)
        except completions.Refused as refusal:
            if "Unexpected fields" not in str(refusal):
                _assert_served(client, endpoint)
                raise
            # Its list of models is its cache, not what it serves; it says itself which model it is pinned to.
            endpoint = replace(endpoint, dialect="transformers", concurrency=1)
            first = _probe(client, endpoint)
        if endpoint.dialect == "vllm":
            _assert_served(client, endpoint)
            endpoint = replace(endpoint, unheeded=_unheeded(client, endpoint))
    if first.usage.prompt_tokens > 1:
        raise InputError(
            f"{endpoint.url} reads the prompt 'a' as {first.usage.prompt_tokens} tokens: it puts a beginning of its own"
            " before prompts, and ours have theirs already; vLLM can be told not to (add_special_tokens)"
        )
    return endpoint


def _probe(client: OpenAI, endpoint: Endpoint, **changed: float) -> completions.Completion:
    """One token of the whole request form, so that what the server will not have is known before it matters."""
    return completions.complete(client, endpoint.model, "a", 0, _settings(endpoint, PROBE) | changed)


def _assert_served(client: OpenAI, endpoint: Endpoint) -> None:
    models = completions.served(client)
    if endpoint.model not in models:
        raise InputError(
            f"{endpoint.url} does not serve {endpoint.model!r}; it serves {', '.join(models) or 'nothing'}"
        )


def _unheeded(client: OpenAI, endpoint: Endpoint) -> frozenset[str]:
    """The settings whose impossible value the server answers as if nothing were wrong: it does not read them."""
    unheeded = set()
    for key, (_, field, impossible) in EXTRAS.items():
        try:
            _probe(client, endpoint, **{field: impossible})
        except InputError:
            continue
        unheeded.add(key)
    return frozenset(unheeded)


def replies(
    endpoint: Endpoint,
    requests: Sequence[Request],
    sampling: Sampling,
    done: Callable[[int], None] = lambda count: None,
) -> list[list[Reply]]:
    """One reply for each key of each request, in that order.

    `done` hears of each reply that has come. A failed request is tried TRIES times; where one fails for good no other
    is started, those under way end, and InputError says how many had come. So it does at once for a setting that the
    server ignores.
    """
    _assert_heeded(endpoint, sampling)
    with (
        completions.client(endpoint.url, endpoint.timeout, TRIES) as client,
        ThreadPoolExecutor(endpoint.concurrency) as pool,
    ):
        futures = [
            pool.submit(_sample, client, endpoint, request.text, key, sampling)
            for request in requests
            for key in request.keys
        ]
        try:
            for future in as_completed(futures):
                future.result()
                done(1)
        except BaseException as error:
            pool.shutdown(cancel_futures=True)
            if not isinstance(error, InputError):
                raise
            came = sum(not future.cancelled() and future.exception() is None for future in futures)
            raise InputError(f"{error} ({came} of {len(futures)} replies had come)") from None
    rows = (future.result() for future in futures)
    return [[next(rows) for _ in request.keys] for request in requests]


def _sample(client: OpenAI, endpoint: Endpoint, prompt: str, key: int, sampling: Sampling) -> Reply:
    # The lower 31 bits are a seed that every server takes: some keep it in an int32, and JSON readers may round what is
    # above 2^53. Keys are hashes, so that two of a prompt's eight candidates share one in 10^8 prompts.
    settings = _settings(endpoint, sampling)
    completion = completions.complete(client, endpoint.model, prompt, key & 0x7FFFFFFF, settings)
    [choice] = completion.choices
    ended = choice.finish_reason == "stop"
    # Both servers count the end token.
    return Reply(" ".join(choice.text.split()), max(0, completion.usage.completion_tokens - ended), ended)


def _settings(endpoint: Endpoint, sampling: Sampling) -> dict[str, object]:
    """What a request says beside model, prompt and seed, in the server's dialect."""
    if endpoint.dialect == "transformers":
        # Without do_sample it is greedy at any temperature.
        drawn = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p, "min_p": 0.0}
        settings = {
            "do_sample": sampling.temperature > 0,
            **(drawn if sampling.temperature else {}),
            "num_beams": 1,
            "repetition_penalty": sampling.repetition_penalty,
            "min_new_tokens": sampling.min_new_tokens,
            "max_new_tokens": sampling.max_new_tokens,
        }
        return {"generation_config": json.dumps(settings)}
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "repetition_penalty": sampling.repetition_penalty,
        "min_tokens": sampling.min_new_tokens,
        "max_tokens": sampling.max_new_tokens,
        "add_special_tokens": False,
        "skip_special_tokens": True,
        # What the generation config of the model might bring in.
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def _assert_heeded(endpoint: Endpoint, sampling: Sampling) -> None:
    for key in sorted(endpoint.unheeded):
        neutral, value = EXTRAS[key][0], getattr(sampling, key)
        if value != neutral:
            raise InputError(
                f"sampling.{key}: {endpoint.url} ignores it; set it to {neutral} or ask another server, got {value}"
            )


def _url() -> str:
    text = os.environ.get("EMOTUNE_SERVER", "").strip()
    # Not shown: what follows these marks may be a password.
    if any(mark in text for mark in "@?#"):
        raise InputError(
            "EMOTUNE_SERVER must be a plain URL without user, query or fragment (EMOTUNE_SERVER_KEY holds a key)"
        )
    if not completions.is_address(text):
        raise InputError(
            "EMOTUNE_SERVER must be set to the URL of an OpenAI-compatible server, such as http://localhost:8000/v1; "
            f"got {text!r}"
        )
    return text.rstrip("/").removesuffix("/v1") + "/v1"


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{name} must be a whole number >= 1, got {text!r}")
    return int(text)
