"""Many prompts x many candidates -> replies of any OpenAI-compatible `/v1/completions`, each by its own seed.

The law of sampling.replies, as far as a server keeps it. vLLM seeds each request, and its batches round differently,
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
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import httpx2
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emotune.core import seeds
from emotune.core.errors import InputError
from emotune.generation.local import Reply
from emotune.generation.params import Sampling

CONCURRENCY = 32
# Seconds without a byte after which a request has failed, and seconds to wait for a connection.
TIMEOUT, CONNECT_TIMEOUT = 120, 10
# Seven tries wait up to a minute in all, long enough for a gateway that restarts; whoever has just started a stage with
# the wrong URL hears of it after three.
TRIES, FIRST_TRIES = 7, 3
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
SHOWN = 300
# Beyond OpenAI's fields. A key of params.Sampling: the value that changes nothing, vLLM's field, and what that refuses.
EXTRAS: dict[str, tuple[float, str, float]] = {
    "top_k": (0, "top_k", -7),
    "repetition_penalty": (1.0, "repetition_penalty", -1.0),
    "min_new_tokens": (0, "min_tokens", -1),
}


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


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class _Choice(_Shape):
    text: str
    finish_reason: Literal["stop", "length"]


class _Usage(_Shape):
    prompt_tokens: int
    completion_tokens: Annotated[int, Field(ge=0)]


class _Completion(_Shape):
    """An answer that is whole. One without `usage` is not: a count of our own would be another tokenizer's."""

    choices: tuple[_Choice]
    usage: _Usage


class _Model(_Shape):
    id: str


class _Models(_Shape):
    data: tuple[_Model, ...]


Answer = TypeVar("Answer", _Completion, _Models)


class _Refused(InputError):
    """The server understood and said no: asking again would change nothing."""


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
    with _client(endpoint) as client:
        try:
            first = _probe(client, endpoint)
        except _Refused as refusal:
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


def replies(
    endpoint: Endpoint,
    requests: Sequence[tuple[str, tuple[int, ...]]],
    sampling: Sampling,
    done: Callable[[int], None] = lambda count: None,
) -> list[list[Reply]]:
    """One reply for each key of each request (a prompt with its beginning, and 63-bit keys), in that order.

    `done` hears of each reply that has come. A failed request is tried TRIES times; where one fails for good no other
    is started, those under way end, and InputError says how many had come. So it does at once for a setting that the
    server ignores.
    """
    _assert_heeded(endpoint, sampling)
    with _client(endpoint) as client, ThreadPoolExecutor(endpoint.concurrency) as pool:
        asked = [
            pool.submit(_sample, client, endpoint, prompt, key, sampling) for prompt, keys in requests for key in keys
        ]
        try:
            for future in as_completed(asked):
                future.result()
                done(1)
        except BaseException as error:
            pool.shutdown(cancel_futures=True)
            if not isinstance(error, InputError):
                raise
            came = sum(not future.cancelled() and future.exception() is None for future in asked)
            raise InputError(f"{error} ({came} of {len(asked)} replies had come)") from None
    sampled = (future.result() for future in asked)
    return [[next(sampled) for _ in keys] for _, keys in requests]


def _sample(client: httpx2.Client, endpoint: Endpoint, prompt: str, key: int, sampling: Sampling) -> Reply:
    answer = _ask(client, "completions", _Completion, TRIES, _body(endpoint, prompt, key, sampling))
    [choice] = answer.choices
    ended = choice.finish_reason == "stop"
    # Both servers count the end token.
    return Reply(" ".join(choice.text.split()), max(0, answer.usage.completion_tokens - ended), ended)


def _body(endpoint: Endpoint, prompt: str, key: int, sampling: Sampling) -> dict[str, Any]:
    # The lower 31 bits are a seed that every server takes: some keep it in an int32, and JSON readers may round what is
    # above 2^53. Keys are hashes, so that two of a prompt's eight candidates share one in 10^8 prompts.
    asked = {"model": endpoint.model, "prompt": prompt, "seed": key & 0x7FFFFFFF}
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
        return asked | {"generation_config": json.dumps(settings)}
    return asked | {
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


def _ask(
    client: httpx2.Client, path: str, shape: type[Answer], tries: int, body: dict[str, Any] | None = None
) -> Answer:
    """What the server answers to `body`, or to a GET without one, once it is an answer of that shape."""
    failure = ""
    for number in range(1, tries + 1):
        told = ""
        try:
            response = client.request("GET" if body is None else "POST", path, json=body)
            if response.is_success:
                return shape.model_validate_json(response.content)
            failure = f"{response.status_code} {_shown(response)}"
            if response.status_code < 500 and response.status_code not in (408, 429):
                raise _Refused(f"{response.url}: {failure}")
            told = response.headers.get("retry-after", "")
        except httpx2.RequestError as error:
            failure = f"{type(error).__name__}: {error}"
        except ValidationError as error:
            problem = error.errors()[0]
            failure = f"{'.'.join(map(str, problem['loc']))} {problem['msg']}, in {_shown(response)}".strip()
        if number < tries:
            time.sleep(_wait(number, told, seeds.key(path, body, number)))
    raise InputError(f"{client.base_url}{path}: no usable answer in {tries} tries; the last: {failure}")


def _wait(number: int, told: str, key: int) -> float:
    """Seconds before the next try: twice as long each time, spread by the key, and no shorter than the server told."""
    own = FIRST_WAIT * 2 ** (number - 1) * (1 + key / 2**63) / 2
    return min(LONGEST_WAIT, max(own, float(told) if told.isdecimal() else 0.0))


def _shown(response: httpx2.Response) -> str:
    """The body on one line, shortened, and without our key, should the server repeat it."""
    text = " ".join(response.content.decode("utf-8", "replace").split()) or "(no text)"
    if key := _key():
        text = text.replace(key, "(the key)")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def _client(endpoint: Endpoint) -> httpx2.Client:
    return httpx2.Client(
        base_url=endpoint.url,
        headers={"Authorization": f"Bearer {key}"} if (key := _key()) else {},
        timeout=httpx2.Timeout(endpoint.timeout, connect=CONNECT_TIMEOUT, pool=None),
        limits=httpx2.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency),
    )


_PROBE = Sampling(temperature=1.0, top_k=1, top_p=1.0, repetition_penalty=1.0, min_new_tokens=0, max_new_tokens=1)


def _probe(client: httpx2.Client, endpoint: Endpoint, **changed: float) -> _Completion:
    """One token of the whole request form, so that what the server will not have is known before it matters."""
    return _ask(client, "completions", _Completion, FIRST_TRIES, _body(endpoint, "a", 0, _PROBE) | changed)


def _assert_served(client: httpx2.Client, endpoint: Endpoint) -> None:
    served = [model.id for model in _ask(client, "models", _Models, FIRST_TRIES).data]
    if endpoint.model not in served:
        raise InputError(
            f"{endpoint.url} does not serve {endpoint.model!r}; it serves {', '.join(served) or 'nothing'}"
        )


def _unheeded(client: httpx2.Client, endpoint: Endpoint) -> frozenset[str]:
    """The settings whose impossible value the server answers as if nothing were wrong: it does not read them."""
    unheeded = set()
    for key, (_, field, impossible) in EXTRAS.items():
        try:
            _probe(client, endpoint, **{field: impossible})
        except InputError:
            continue
        unheeded.add(key)
    return frozenset(unheeded)


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
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        url = httpx2.URL()
    if url.scheme not in ("http", "https") or not url.host:
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


def _key() -> str:
    key = os.environ.get("EMOTUNE_SERVER_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError("EMOTUNE_SERVER_KEY must be printable ASCII (it is not shown here)")
    return key
