"""Many prompts x many candidates -> replies of any OpenAI-compatible `/v1/completions`, each by its own seed.

The law of local.replies, as far as a server keeps it, however many servers there are. vLLM seeds each request, and its
batches round differently, so the same seed gives the same reply but for near ties. `transformers serve` seeds torch as
a whole and answers one request after another, so it is asked one at a time. The law holds there as long as nobody else
asks it, and it runs without --continuous-batching, where the settings of the very first request would be those of all.

vLLM's request form is also that of SGLang and others. `transformers serve` refuses its extra fields, takes the same
settings as a `generation_config`, and is known by that refusal. It says "length" of a reply whose end token is the last
one allowed, so such a reply counts as not ended there. Which settings another server ignores, `connect` finds out.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AnyHttpUrl, BaseModel, Field, ValidationError

from emotune.core.errors import InputError
from emotune.generation.engine import Reply, Request, leading
from emotune.generation.params import Sampling

if TYPE_CHECKING:
    import httpx2
    from openai import OpenAI

T = TypeVar("T")

CONCURRENCY = 32
# Seconds: without a byte, after which a request has failed; and to wait for a connection.
TIMEOUT, CONNECT_TIMEOUT = 120, 10
# Eleven tries wait up to a minute in all, long enough for a gateway that restarts; whoever has just started a stage
# with the wrong URL hears of it after three.
TRIES, FIRST_TRIES = 11, 3
# Beyond OpenAI's fields. A key of params.Sampling: the value that changes nothing, vLLM's field, and what that refuses.
EXTRAS: dict[str, tuple[float, str, float]] = {
    "top_k": (0, "top_k", -7),
    "repetition_penalty": (1.0, "repetition_penalty", -1.0),
    "min_new_tokens": (0, "min_tokens", -1),
}
# Characters shown of an answer that is none.
SHOWN = 300
PROBE = Sampling(
    temperature=1.0, top_k=1, top_p=1.0, repetition_penalty=1.0, min_new_tokens=0, max_new_tokens=1, guidance=1
)


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
    """The engine that asks the environment's servers for a model; it connects when the first reply is wanted."""

    model: str

    @cached_property
    def servers(self) -> Servers:
        return Servers(*connect(self.model))

    def at_once(self, requests: Sequence[Request], sampling: Sampling) -> int:
        """So many that no server is ever idle for want of a request, so few that the caller soon has them."""
        return leading(requests, 4 * self.servers.concurrency)

    def replies(
        self, requests: Sequence[Request], sampling: Sampling, done: Callable[[int], None] = lambda count: None
    ) -> list[list[Reply]]:
        return replies(self.servers, requests, sampling, done)

    def ahead(self) -> int:
        """One: meanwhile this machine's cores are idle."""
        return 1

    def close(self) -> None:
        """The servers' models are theirs."""


class Servers:
    """Servers of one model: the least busy is asked, and one that is dead is asked no more; for several threads."""

    def __init__(self, *endpoints: Endpoint) -> None:
        # How many requests are under way at each that is alive, and what the last of the others died of.
        self._busy = dict.fromkeys(endpoints, 0)
        self._last: Dead | None = None
        self._changed = threading.Condition()

    @property
    def endpoints(self) -> list[Endpoint]:
        """Those that are alive."""
        return list(self._busy)

    @property
    def concurrency(self) -> int:
        return max(1, sum(endpoint.concurrency for endpoint in self._busy))

    def ask(self, question: Callable[[Endpoint], T]) -> T:
        """What one of them answers; where it is dead, what the next does, and Dead where it was the last."""
        while True:
            endpoint = self._least_busy()
            try:
                return question(endpoint)
            except Dead as error:
                self._leave_out(endpoint, error)
            finally:
                with self._changed:
                    if endpoint in self._busy:
                        self._busy[endpoint] -= 1
                    self._changed.notify_all()

    def _least_busy(self) -> Endpoint:
        """The one with the least of its requests under way, once one has room for another; that is one more there."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._busy or any(count < one.concurrency for one, count in self._busy.items())
            )
            if self._last and not self._busy:
                raise self._last
            endpoint = min(self._busy, key=lambda one: self._busy[one] / one.concurrency)
            self._busy[endpoint] += 1
            return endpoint

    def _leave_out(self, endpoint: Endpoint, error: Dead) -> None:
        with self._changed:
            if self._busy.pop(endpoint, None) is not None:
                self._last = error
                if self._busy:
                    _warn(error, len(self._busy))


def connect(model: str) -> list[Endpoint]:
    """The servers of EMOTUNE_SERVER that answer, each after it has shown that it serves `model`, and which settings.

    EMOTUNE_SERVER_CONCURRENCY (32) bounds the requests under way at each, EMOTUNE_SERVER_TIMEOUT (120 seconds) the wait
    for one; EMOTUNE_SERVER_KEY, where set, is sent as the bearer token. Raises InputError for what is missing or wrong
    in these, where no server answers, for one that does not serve the model (with those that it does), and for one that
    puts a beginning of its own before a prompt, which has one.
    """
    bounds = _number("EMOTUNE_SERVER_CONCURRENCY", CONCURRENCY), _number("EMOTUNE_SERVER_TIMEOUT", TIMEOUT)
    endpoints, dead = [], []
    for url in _urls():
        try:
            endpoints.append(_connect(Endpoint(url, model, *bounds)))
        except Dead as error:
            dead.append(error)
    if not endpoints:
        raise InputError("\n".join(map(str, dead)))
    for death in dead:
        _warn(death, len(endpoints))
    return endpoints


def _warn(error: Dead, left: int) -> None:
    print(f"{error}; it is left out, and {left} {'server goes' if left == 1 else 'servers go'} on", flush=True)


def _connect(endpoint: Endpoint) -> Endpoint:
    with _client(endpoint, FIRST_TRIES) as client:
        try:
            first = _probe(client, endpoint)
        except Refused as refusal:
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


def _probe(client: OpenAI, endpoint: Endpoint, **changed: float) -> Completion:
    """One token of the whole request form, so that what the server will not have is known before it matters."""
    return _complete(client, endpoint, "a", 0, _settings(endpoint, PROBE) | changed)


def _assert_served(client: OpenAI, endpoint: Endpoint) -> None:
    served = [model.id for model in Models.model_validate_json(_ask(client.models.with_raw_response.list)).data]
    if endpoint.model not in served:
        raise InputError(
            f"{endpoint.url} does not serve {endpoint.model!r}; it serves {', '.join(served) or 'nothing'}"
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
    servers: Servers,
    requests: Sequence[Request],
    sampling: Sampling,
    done: Callable[[int], None] = lambda count: None,
) -> list[list[Reply]]:
    """One reply for each key of each request, in that order.

    `done` hears of each reply that has come. A failed request is tried TRIES times, and then by another server; where
    one fails for good no other is started, those under way end, and InputError says how many had come. So it does at
    once for a setting that a server ignores.
    """
    for endpoint in servers.endpoints:
        _assert_heeded(endpoint, sampling)
    with ExitStack() as stack:
        clients = {one: stack.enter_context(_client(one, TRIES)) for one in servers.endpoints}
        pool = stack.enter_context(ThreadPoolExecutor(servers.concurrency))

        def ask(text: str, key: int) -> Reply:
            return servers.ask(lambda one: _reply(clients[one], one, text, key, sampling))

        futures = [pool.submit(ask, request.text, key) for request in requests for key in request.keys]
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


def _assert_heeded(endpoint: Endpoint, sampling: Sampling) -> None:
    for key in sorted(endpoint.unheeded):
        neutral, value = EXTRAS[key][0], getattr(sampling, key)
        if value != neutral:
            raise InputError(
                f"sampling.{key}: {endpoint.url} ignores it; set it to {neutral} or ask another server, got {value}"
            )


def _reply(client: OpenAI, endpoint: Endpoint, prompt: str, key: int, sampling: Sampling) -> Reply:
    # The lower 31 bits are a seed that every server takes: some keep it in an int32, and JSON readers may round what is
    # above 2^53. Keys are hashes, so that two of a prompt's eight candidates share one in 10^8 prompts.
    completion = _complete(client, endpoint, prompt, key & 0x7FFFFFFF, _settings(endpoint, sampling))
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


class Choice(BaseModel, strict=True):
    text: str
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel, strict=True):
    prompt_tokens: int
    completion_tokens: Annotated[int, Field(ge=0)]


class Completion(BaseModel):
    """An answer that is whole. One without `usage` is not: a count of our own would be another tokenizer's."""

    choices: tuple[Choice]
    usage: Usage


class Model(BaseModel, strict=True):
    id: str


class Models(BaseModel):
    data: list[Model]


class Refused(InputError):
    """The server understood and said no: asking again would change nothing."""


class Dead(InputError):
    """The server gave no usable answer, however often it was asked."""


def _client(endpoint: Endpoint, tries: int) -> OpenAI:
    """A client that asks again, ever later, where the server is busy, broken or unreachable: so many times in all."""
    import openai

    return openai.OpenAI(
        base_url=endpoint.url,
        # Never empty, or the client would take another server's from OPENAI_API_KEY; `_ask` leaves this one out.
        api_key=_key() or "none",
        timeout=openai.Timeout(endpoint.timeout, connect=CONNECT_TIMEOUT),
        max_retries=tries - 1,
        http_client=openai.DefaultHttpxClient(event_hooks={"response": [_check]}),
    )


def _complete(client: OpenAI, endpoint: Endpoint, prompt: str, seed: int, settings: Mapping[str, object]) -> Completion:
    """The model's completion of a prompt; Refused where the server says no, Dead where it fails for good."""
    call = client.completions.with_raw_response.create
    answer = _ask(call, model=endpoint.model, prompt=prompt, seed=seed, extra_body=settings)
    return Completion.model_validate_json(answer)


def _ask(call: Callable[..., Any], **body: object) -> bytes:
    """What the server answers to a call, once `_check` lets it through; else what came instead, and where from."""
    import openai

    # What says who the user is to OpenAI is no business of this server, nor is it sent a key where it has none.
    private = ("OpenAI-Organization", "OpenAI-Project", *(() if _key() else ("Authorization",)))
    try:
        content: bytes = call(**body, extra_headers=dict.fromkeys(private, openai.omit)).content
        return content
    except openai.APIStatusError as error:
        reason = f"{error.status_code} {_shown(error.response)}"
        if error.status_code < 500 and error.status_code not in (408, 409, 429):
            raise Refused(f"{error.request.url}: {reason}") from None
        request = error.request
    except openai.APIError as error:
        reason, request = f"{type(error.__cause__).__name__}: {error.__cause__}", error.request
    retries = int(request.headers["x-stainless-retry-count"])
    tries = f"{retries + 1} tries; the last" if retries else "one try"
    raise Dead(f"{request.url}: no usable answer in {tries}: {reason}")


def _check(response: httpx2.Response) -> None:
    """An answer that is not whole fails as a broken connection does, so that the client asks again."""
    import httpx2

    if not response.is_success:
        return
    response.read()
    shape = Models if response.request.method == "GET" else Completion
    try:
        shape.model_validate_json(response.content)
    except ValidationError as error:
        problem = error.errors()[0]
        reason = f"{'.'.join(map(str, problem['loc']))} {problem['msg']}, in {_shown(response)}".strip()
        raise httpx2.RemoteProtocolError(reason, request=response.request) from None


def _shown(response: httpx2.Response) -> str:
    """The body on one line, shortened, and without our key, should the server repeat it."""
    text = " ".join(response.content.decode("utf-8", "replace").split()) or "(no text)"
    if key := _key():
        text = text.replace(key, "(the key)")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def _key() -> str:
    key = os.environ.get("EMOTUNE_SERVER_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError("EMOTUNE_SERVER_KEY must be printable ASCII (it is not shown here)")
    return key


def _urls() -> list[str]:
    """The addresses in EMOTUNE_SERVER, each once, with commas or spaces between them."""
    text = os.environ.get("EMOTUNE_SERVER", "").strip()
    # Not shown: what follows these marks may be a password.
    if any(mark in text for mark in "@?#"):
        raise InputError(
            "EMOTUNE_SERVER must be a plain URL without user, query or fragment (EMOTUNE_SERVER_KEY holds a key)"
        )
    urls = text.replace(",", " ").split() or [""]
    for url in urls:
        try:
            AnyHttpUrl(url)
        except ValidationError:
            raise InputError(
                "EMOTUNE_SERVER must be set to the URL of an OpenAI-compatible server, such as "
                f"http://localhost:8000/v1, or to several with commas between them; got {url!r}"
            ) from None
    return list(dict.fromkeys(url.rstrip("/").removesuffix("/v1") + "/v1" for url in urls))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{name} must be a whole number >= 1, got {text!r}")
    return int(text)
