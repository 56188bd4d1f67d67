"""emotune chat and compare of models that know no emotions: an instruction and its input, asked as instruct/ does."""

import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

from pydantic import StringConstraints
from starlette.applications import Starlette

from emotune.core import seeds
from emotune.core.errors import InputError
from emotune.core.sections import Section
from emotune.faces import chat
from emotune.faces.chat import Voice
from emotune.faces.compare import Draw, Lend, Message, about_models, open_voices, parsed, serve, site
from emotune.generation import local
from emotune.generation.engine import Request
from emotune.prompts.instructions import NO_EMOTION, exchange, template_of
from emotune.prompts.prompter import Prompter
from emotune.runs import lock
from emotune.runs.params import Instructions

NAMES = tuple(lock.INSTRUCTED)
INPUT = "input"
MANUAL = """Name the capital.   an instruction, which is answered
/input Norway.      what the next instruction is about; a line more each time
/again              another reply to the last instruction, where replies are drawn
/new                forget the input
/help               this
/quit               end; Ctrl-D does too, and Ctrl-C cuts a reply short"""


class Inquiry(Section):
    """What the page asks: one model, one instruction, and what it is about ("" where that is nothing)."""

    model: str
    instruction: Message
    input: Annotated[str, StringConstraints(strip_whitespace=True, max_length=20_000)]
    draw: Draw


def request(tokenizer: Any, instruction: str, given: str, p: Instructions, key: int) -> Request:
    """What a model is asked, as the stages ask it; a prompt that leaves no room for a reply loses its beginning."""
    prompter = Prompter(tokenizer, p.system_prompt, p.model.context)
    turn, _ = exchange({"instruction": instruction, "input": given, "output": ""}, p.format)
    _, ids, _ = prompter.fitting_prompt([turn], NO_EMOTION, p.evaluate.sampling.max_new_tokens)
    return Request(ids, (key,))


def chat_with(folder: Path, name: str, p: Instructions) -> None:
    """Instruct a model of `folder`: a person at a terminal, or lines from a file or a pipe."""
    # What the libraries will change some day is no news to whoever talks.
    warnings.simplefilter("ignore", FutureWarning)
    voice = chat.open_voice(folder, name, p.model, template_of(p.format))
    converse(voice, name, p, *chat.lines(f"{name} answers instructions, each by itself"))


def converse(voice: Voice, name: str, p: Instructions, lines: Iterable[str], patient: bool) -> None:
    """Answer instructions line by line on stdout. What cannot be understood is told where `patient`, else an error."""
    given, asked, replies = list[str](), ("", ""), 0
    for number, line in enumerate(lines, start=1):
        order = chat.understood(line, number, [INPUT], "no command", bool(replies), patient)
        if order is None:
            continue
        command, text = order
        if command == "quit":
            return
        if command == "help":
            print(MANUAL, file=sys.stderr)
        elif command == "new":
            given.clear()
        elif command == INPUT:
            given.append(text)
        elif command == "again" or text:
            if text:
                asked, given = (text, "\n".join(given)), []
            prompt = request(voice.tokenizer, *asked, p, seeds.key(p.evaluate.seed, "chat", replies))
            chat.answer(name, voice, prompt, p.evaluate.sampling, patient)
            replies += 1


def reply_to(voice: Voice, p: Instructions, inquiry: Inquiry) -> dict[str, Any]:
    """A model's reply, and what it took."""
    key = seeds.key(p.evaluate.seed, "compare", inquiry.draw)
    prompt = request(voice.tokenizer, inquiry.instruction, inquiry.input, p, key)
    began = time.perf_counter()
    [[reply]] = local.replies(voice.model, voice.tokenizer, [prompt], p.evaluate.sampling)
    return {"replies": [{"reply": reply.text}], "tokens": reply.tokens, "seconds": time.perf_counter() - began}


def app(lend: Lend, p: Instructions, hosts: Sequence[str], doubts: Mapping[str, str]) -> Starlette:
    """The page of `emotune compare` without emotions, and the answers to its questions, one at a time."""
    speaking = Lock()

    def speak(body: bytes) -> dict[str, Any]:
        inquiry = parsed(Inquiry, body)
        if inquiry.model not in NAMES:
            raise InputError(f"model must be one of {', '.join(NAMES)}, got {inquiry.model!r}")
        with speaking, lend(inquiry.model) as voice:
            return reply_to(voice, p, inquiry)

    about = about_models(lock.INSTRUCTED, doubts, p.evaluate.sampling) | {"emotions": None}
    return site("compare.html", about, {"/replies": speak}, hosts)


def compare_all(folder: Path, p: Instructions, host: str, port: int, doubts: Mapping[str, str]) -> None:
    """Serve the page for the models of `folder` until Ctrl-C."""

    def opened(hosts: Sequence[str]) -> Starlette:
        return app(open_voices(folder, p.model, NAMES, template_of(p.format)), p, hosts, doubts)

    serve(host, port, f"{', '.join(NAMES)} side by side", opened, "ask")
