"""emotune compare: a page in the browser that puts the replies of baseline, sft and dpo side by side."""

import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Literal

import psutil
import uvicorn
from peft import PeftModel
from pydantic import Field, StringConstraints, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from emotune.core import records, seeds
from emotune.core.dialogue import ASSISTANT, USER, Turn
from emotune.core.errors import InputError
from emotune.core.sections import S, Section
from emotune.faces import chat
from emotune.faces.chat import UNTUNED, Voice, heard, located, open_listener, open_tokenizer, open_voice
from emotune.generation import local
from emotune.generation.params import Sampling
from emotune.judges.verdicts import Classifier
from emotune.models.params import Model
from emotune.runs import lock
from emotune.runs.params import Params

# Lends a model by its name: models may share their weights, and then only one of them can speak at a time.
Lend = Callable[[str], AbstractContextManager[Voice]]
# The body of a request -> what is answered; InputError says what is wrong with it.
Answer = Callable[[bytes], Mapping[str, Any]]

Message = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=20_000)]
Draw = Annotated[int, Field(ge=0, lt=2**53)]

NAMES = ("baseline", "sft", "dpo")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
# Bytes of a question: more than any conversation that a model of ours can read.
LONGEST = 200_000
# The page brings its own style and script, asks this server and no other, and stands in nobody's frame.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class PastTurn(Section):
    """A turn of the conversation so far."""

    role: Literal["user", "assistant"]
    content: Annotated[str, Field(max_length=20_000)]
    emotion: str


class Inquiry(Section):
    """What the page asks: one model, one message after a history, in some emotions. Equal draws give equal replies."""

    model: str
    history: tuple[PastTurn, ...]
    message: Message
    emotions: Annotated[tuple[str, ...], Field(min_length=1)]
    draw: Draw


def open_voices(folder: Path, choice: Model, names: Sequence[str] = NAMES, template: str | None = None) -> Lend:
    """The models. Where adapters stay on top of their base model, all of them stand on one copy of it."""
    folders = {name: located(folder, name) for name in names}
    sft = open_voice(folder, "sft", choice)
    shared = isinstance(sft.model, PeftModel)
    if shared:
        if "dpo" in names:
            sft.model.load_adapter(folders["dpo"], adapter_name="dpo")
        voices = {name: Voice(sft.model, open_tokenizer(folder, name, template)) for name in names}
    else:
        voices = {name: sft if name == "sft" else open_voice(folder, name, choice, template) for name in names}

    @contextmanager
    def lend(name: str) -> Iterator[Voice]:
        if shared:
            sft.model.set_adapter("dpo" if name == "dpo" else "default")
        with sft.model.disable_adapter() if shared and name in UNTUNED else nullcontext():
            yield voices[name]

    return lend


def replies_to(voice: Voice, judge: Classifier, p: Params, inquiry: Inquiry) -> dict[str, Any]:
    """A model's reply in each emotion that is asked for, sampled together, and what the judge hears in them."""
    message = heard(judge, inquiry.message)
    turns = [*(Turn(turn.role, turn.content, turn.emotion) for turn in inquiry.history), message]
    requests = [
        chat.request(voice.tokenizer, turns, emotion, p, seeds.key(p.evaluate.seed, "compare", inquiry.draw, emotion))
        for emotion in inquiry.emotions
    ]
    began = time.perf_counter()
    replies = [reply for [reply] in local.replies(voice.model, voice.tokenizer, requests, p.evaluate.sampling)]
    seconds = time.perf_counter() - began
    verdicts = judge([reply.text for reply in replies])
    return {
        "message": message.content,
        "heard": message.emotion,
        "replies": [
            {"emotion": emotion, "reply": reply.text, "judged": judged, "confidence": confidence}
            for emotion, reply, (judged, confidence) in zip(inquiry.emotions, replies, verdicts, strict=True)
        ],
        "tokens": sum(reply.tokens for reply in replies),
        "seconds": seconds,
    }


def parsed(kind: type[S], body: bytes) -> S:
    """The section in a request's body; InputError says all that is wrong with it."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise InputError("; ".join(wrong)) from None


def checked(body: bytes, emotions: tuple[str, ...]) -> Inquiry:
    """The inquiry in a request's body; InputError says all that is wrong with it."""
    inquiry = parsed(Inquiry, body)
    if inquiry.model not in NAMES:
        raise InputError(f"model must be one of {', '.join(NAMES)}, got {inquiry.model!r}")
    named = [*inquiry.emotions, *(turn.emotion for turn in inquiry.history)]
    if not set(named) <= set(emotions) or len(set(inquiry.emotions)) < len(inquiry.emotions):
        raise InputError(f"emotions must be some of {', '.join(emotions)}, each once; got {', '.join(named)}")
    roles = [turn.role for turn in inquiry.history]
    if roles != [USER, ASSISTANT] * (len(roles) // 2):
        raise InputError(f"history must alternate from the user to a reply, got {roles}")
    return inquiry


def app(lend: Lend, judge: Classifier, p: Params, hosts: Sequence[str], doubts: Mapping[str, str]) -> Starlette:
    """The page, what it shows at first, and the answers to its questions, one at a time.

    `doubts` says of which stages what is here may be of another run, and why.
    """
    about = about_models(lock.MAKERS, doubts, p.evaluate.sampling)
    about |= {"emotions": p.data.labels, "neutral": p.data.neutral}
    speaking = Lock()

    def speak(body: bytes) -> dict[str, Any]:
        inquiry = checked(body, p.data.labels)
        with speaking, lend(inquiry.model) as voice:
            return replies_to(voice, judge, p, inquiry)

    return site("compare.html", about, {"/replies": speak}, hosts)


def about_models(makers: Mapping[str, str], doubts: Mapping[str, str], how: Sampling) -> dict[str, Any]:
    """What the page is told of models, by the stage that makes each."""
    stale = {name: doubts[stage] for name, stage in makers.items() if stage in doubts}
    return {"models": list(makers), "stale": stale, "sampling": how.model_dump()}


def site(page: str, about: Mapping[str, Any], answers: Mapping[str, Answer], hosts: Sequence[str]) -> Starlette:
    """A page of this folder, what it is told at first, and at each path the answer to what it posts there.

    A request must name one of `hosts` as its host, or a page elsewhere could give its own name our address.
    """
    html = (files("emotune.faces") / page).read_text("utf-8")
    return Starlette(
        routes=[
            Route("/", lambda request: HTMLResponse(html, headers=HEADERS)),
            Route("/about", lambda request: JSONResponse(about)),
            *(Route(path, partial(_answered, answer), methods=["POST"]) for path, answer in answers.items()),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
    )


async def _answered(answer: Answer, request: Request) -> Response:
    """The answer to what was posted, as JSON, or what is wrong with it."""
    # No form of another page can send this type, and its scripts would have to ask us first.
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        return JSONResponse({"error": "a question must be application/json"}, 415)
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST:
            return JSONResponse({"error": f"a question may have {LONGEST} bytes"}, 413)
    try:
        return JSONResponse(records.rounded(await run_in_threadpool(answer, body)))
    except InputError as error:
        return JSONResponse({"error": str(error)}, 400)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there and nowhere else; InputError where it cannot."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        return socket.create_server((str(address[0]), port), family=family)
    except (OSError, OverflowError) as error:
        raise InputError(f"--host {host} --port {port}: {getattr(error, 'strerror', None) or error}") from None


def hosts(host: str, address: str) -> list[str]:
    """What a request may call `address`, which is listened to as `host`; where that is any address, each of ours."""
    names = [host, address]
    if ip_address(address).is_unspecified:
        families = (socket.AF_INET, socket.AF_INET6)
        own = (one for every in psutil.net_if_addrs().values() for one in every if one.family in families)
        names += [socket.gethostname(), *(one.address.partition("%")[0] for one in own)]
    if ip_address(address).is_loopback or ip_address(address).is_unspecified:
        names += LOOPBACK
    return [*names, *(f"[{name}]" for name in names if ":" in name)]


def run(folder: Path, p: Params, host: str, port: int, doubts: Mapping[str, str]) -> None:
    """Serve the page for the models of `folder` until Ctrl-C."""

    def opened(hosts: Sequence[str]) -> Starlette:
        return app(open_voices(folder, p.model), open_listener(folder, p), p, hosts, doubts)

    serve(host, port, f"{', '.join(NAMES)} side by side", opened, "ask")


def serve(host: str, port: int, what: str, opened: Callable[[Sequence[str]], Starlette], may: str) -> None:
    """Serve the site that `opened` makes for the hosts that a request may name, until Ctrl-C."""
    # What the libraries will change some day is no news to whoever compares.
    warnings.simplefilter("ignore", FutureWarning)
    with listen(host, port) as listening:
        address, number = listening.getsockname()[:2]
        page = opened(hosts(host, address))
        where = f"[{address}]" if ":" in address else address
        print(f"{what}: http://{where}:{number}/ (Ctrl-C ends it)", flush=True)
        if not ip_address(address).is_loopback:
            print(f"Whoever reaches this machine can {may}: there is no password.", flush=True)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(page, log_level="warning")).run(sockets=[listening])
