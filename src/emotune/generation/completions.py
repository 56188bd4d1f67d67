"""`/v1/completions` of an OpenAI-compatible server by the openai client: a whole answer, or one message that says why.

The client asks again, ever later, where a server is busy, broken or unreachable, and waits as long as it is told to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emotune.core.errors import InputError

if TYPE_CHECKING:
    import httpx2
    from openai import APIError, OpenAI

# Seconds to wait for a connection; characters shown of an answer that is none.
CONNECT_TIMEOUT, SHOWN = 10, 300


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class Choice(_Shape):
    text: str
    finish_reason: Literal["stop", "length"]


class Usage(_Shape):
    prompt_tokens: int
    completion_tokens: Annotated[int, Field(ge=0)]


class Completion(_Shape):
    """An answer that is whole. One without `usage` is not: a count of our own would be another tokenizer's."""

    choices: tuple[Choice]
    usage: Usage


class _Model(_Shape):
    id: str


class _Models(_Shape):
    data: tuple[_Model, ...]


Answer = TypeVar("Answer", Completion, _Models)


class Refused(InputError):
    """The server understood and said no: asking again would change nothing."""


def is_address(text: str) -> bool:
    """Whether the client can ask there: an absolute http or https URL."""
    import httpx2

    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)


def client(url: str, timeout: float, tries: int) -> OpenAI:
    """A client that gives a request up after so many tries, each after `timeout` seconds of silence."""
    import openai

    return openai.OpenAI(
        base_url=url,
        # Never empty, or the client would take another server's from OPENAI_API_KEY; `_ask` leaves this one out.
        api_key=_key() or "none",
        timeout=openai.Timeout(timeout, connect=CONNECT_TIMEOUT),
        max_retries=tries - 1,
        http_client=openai.DefaultHttpxClient(event_hooks={"response": [_check]}),
    )


def complete(client: OpenAI, model: str, prompt: str, seed: int, settings: Mapping[str, object]) -> Completion:
    """The model's completion of a prompt; Refused where the server says no, else InputError where it fails for good."""
    call = client.completions.with_raw_response.create
    return _ask(call, Completion, model=model, prompt=prompt, seed=seed, extra_body=settings)


def served(client: OpenAI) -> list[str]:
    """The models that the server says it serves."""
    return [model.id for model in _ask(client.models.with_raw_response.list, _Models).data]


def _ask(call: Callable[..., Any], shape: type[Answer], **body: object) -> Answer:
    import openai

    # What says who the user is to OpenAI is no business of this server, nor is it sent a key where it has none.
    private = ("OpenAI-Organization", "OpenAI-Project", *(() if _key() else ("Authorization",)))
    try:
        response = call(**body, extra_headers=dict.fromkeys(private, openai.omit))
    except openai.APIError as error:
        raise _failure(error) from None
    return shape.model_validate_json(response.content)


def _check(response: httpx2.Response) -> None:
    """An answer that is not whole fails as a broken connection does, so that the client asks again."""
    import httpx2

    if not response.is_success:
        return
    response.read()
    shape = _Models if response.request.method == "GET" else Completion
    try:
        shape.model_validate_json(response.content)
    except ValidationError as error:
        problem = error.errors()[0]
        reason = f"{'.'.join(map(str, problem['loc']))} {problem['msg']}, in {_shown(response)}".strip()
        raise httpx2.RemoteProtocolError(reason, request=response.request) from None


def _failure(error: APIError) -> InputError:
    """What came instead of an answer, and where from."""
    import openai

    request = error.request
    if isinstance(error, openai.APIStatusError):
        last = f"{error.status_code} {_shown(error.response)}"
        if error.status_code < 500 and error.status_code not in (408, 409, 429):
            return Refused(f"{request.url}: {last}")
    else:
        last = f"{type(error.__cause__).__name__}: {error.__cause__}"
    retries = int(request.headers["x-stainless-retry-count"])
    tries = f"{retries + 1} tries; the last" if retries else "one try"
    return InputError(f"{request.url}: no usable answer in {tries}: {last}")


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
