"""emotune chat: talk to a model in the terminal, the emotion of its replies chosen as you go."""

import difflib
import signal
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, TextStreamer

from emotune.core import seeds
from emotune.core.dialogue import ASSISTANT, USER, Turn
from emotune.core.errors import InputError
from emotune.data.splits import clean
from emotune.generation import local
from emotune.generation.engine import Request
from emotune.generation.params import Sampling
from emotune.judges.files import open_judge
from emotune.judges.verdicts import Classifier
from emotune.models import loading
from emotune.models.params import Model
from emotune.prompts.prompter import Prompter
from emotune.runs.params import Params

COMMANDS = ("again", "new", "help", "quit")
# What a slash may name where a reply has an emotion, as an error says it.
EMOTION = "neither an emotion nor a command"
# Names of the base model as it is, in the one pipeline and in the other.
UNTUNED = ("baseline", "zero-shot")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Voice:
    """A model to talk to, and the tokenizer whose template it was trained on."""

    model: Any
    tokenizer: Any


def located(folder: Path, name: str) -> Path:
    """Where a model of that name lies under `folder`; InputError where it or its base model does not."""
    own = folder / ("base" if name in UNTUNED else name)
    for needed in (folder / "base", own):
        if not needed.is_dir():
            raise InputError(f"{needed}: no such folder; `dvc repro` makes it, `dvc pull` fetches it")
    return own


def open_voice(folder: Path, name: str, choice: Model, template: str | None = None) -> Voice:
    """A model as the pipeline evaluates it; `template` is that of the base model, for a tuned one brings its own."""
    own, base = located(folder, name), folder / "base"
    model = loading.load_base(base, choice) if own == base else loading.load_tuned(base, choice, own)
    return Voice(model, open_tokenizer(folder, name, template))


def open_tokenizer(folder: Path, name: str, template: str | None) -> Any:
    """The tokenizer of a model, with the template that it is asked by."""
    return loading.load_tokenizer(located(folder, name), template if name in UNTUNED else None)


def open_listener(folder: Path, p: Params) -> Classifier:
    """The judge that evaluates, which here also hears the emotion of what the user says: the templates name it."""
    return open_judge(folder / "judges" / "evaluate.skops", p.evaluate.emotion_judge)


def heard(judge: Classifier, text: str) -> Turn:
    """The user's turn, cleaned as those of the data are, in the emotion that the undivided judge hears in it.

    People are as often neutral as it learned; only of a reply that was asked for an emotion it should expect any.
    """
    cleaned = clean(text)
    [(emotion, _)] = judge.undivided([cleaned])
    return Turn(USER, cleaned, emotion)


def request(tokenizer: Any, turns: Sequence[Turn], emotion: str, p: Params, key: int) -> Request:
    """What a model is asked that shall answer `turns` in `emotion`, trimmed and guided as the pipeline does.

    At most `history_turns` turns, and of these as many, whole, as leave room for the reply; a last turn that alone is
    too long loses its beginning.
    """
    how = p.evaluate.sampling
    prompter = Prompter(tokenizer, p.system_prompt, p.model.context, p.history_turns, how.twin(p.data.neutral))
    latest = prompter.history(turns, len(turns))
    _, ids, twin = prompter.fitting_prompt(latest, emotion, how.max_new_tokens)
    return Request(ids, (key,), twin=twin)


def stream(voice: Voice, request: Request, how: Sampling, say: Say) -> tuple[str, bool]:
    """One reply by the settings of the pipeline, and whether it is whole: Ctrl-C cuts it short.

    `say` hears it piece by piece as it comes.
    """
    model, tokenizer = voice.model, voice.tokenizer
    # In the place of the model's own, whose every setting that is not named here would count.
    model.generation_config = GenerationConfig(
        do_sample=how.temperature > 0,
        temperature=how.temperature or None,
        # Where nothing is drawn, transformers calls it a mistake.
        top_k=how.top_k if how.temperature else None,
        top_p=how.top_p,
        repetition_penalty=how.repetition_penalty,
        min_new_tokens=how.min_new_tokens,
        max_new_tokens=how.max_new_tokens,
        guidance_scale=None if request.twin is None else how.guidance,
        eos_token_id=sorted(local.end_tokens(model, tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
    )
    streamer = _Streamer(tokenizer, say)
    ids = torch.tensor([request.prompt], device=model.device)
    twin = None if request.twin is None else torch.tensor([request.twin], device=model.device)
    torch.manual_seed(request.keys[0])
    try:
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), negative_prompt_ids=twin, streamer=streamer)
    except KeyboardInterrupt:
        return streamer.text, False
    return streamer.text, True


class _Streamer(TextStreamer):
    """Says a reply word by word, with spaces as in the pipeline's replies: one between words, none at the ends."""

    def __init__(self, tokenizer: Any, say: Say) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.raw, self.text, self.say = "", "", say

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.raw += text
        before, self.text = len(self.text), " ".join(self.raw.split())
        if new := self.text[before:]:
            self.say(new)


def parse(line: str, emotions: Sequence[str], unlike: str = EMOTION) -> tuple[str | None, str]:
    """The command or emotion that a line begins with, None where it is plain text, and the text after it.

    InputError where a slash stands before anything else, which is then `unlike` all of these, or text after a command.
    """
    line = line.strip()
    if not line.startswith("/"):
        return None, line
    entry = line[1:].strip()
    names = [*COMMANDS, *emotions]
    # The longest first, where one name begins another.
    for name in sorted(names, key=len, reverse=True):
        begins, rest = entry[: len(name)], entry[len(name) :]
        if begins.casefold() == name.casefold() and rest[:1].strip() == "":
            if name in COMMANDS and rest:
                raise InputError(f"/{name} takes no text, got {rest.strip()!r}")
            return name, rest.strip()
    word = entry.partition(" ")[0]
    nearest = difflib.get_close_matches(word.casefold(), names, n=1, cutoff=0.0)[0]
    raise InputError(f"/{word} is {unlike}; the nearest is /{nearest}, and /help lists them")


def manual(emotions: Sequence[str]) -> str:
    """What can be typed, with one of the emotions as the example."""
    example = emotions[-1]
    lines = {
        f"/{example} Hello!": f"say Hello!, and be answered in {example}, this once",
        f"/{example}": f"be answered in {example} from here on",
        "/again": "another reply to what was said last, in the emotion of now",
        "/new": "forget what was said",
        "/help": "this",
        "/quit": "end; Ctrl-D does too, and Ctrl-C cuts a reply short",
    }
    width = max(map(len, lines))
    meanings = (f"{typed:{width}}  {meaning}" for typed, meaning in lines.items())
    return "\n".join([*meanings, f"Emotions: {', '.join(emotions)}"])


def run(folder: Path, name: str, p: Params) -> None:
    """Talk to a model of `folder`: a person at a terminal, or lines from a file or a pipe."""
    # What the libraries will change some day is no news to whoever talks.
    warnings.simplefilter("ignore", FutureWarning)
    voice, judge = open_voice(folder, name, p.model), open_listener(folder, p)
    told = "was never told of emotions, whatever you ask for" if name == "baseline" else f"answers in {p.data.neutral}"
    converse(voice, judge, p, *lines(f"{name} {told}"))


def lines(greeting: str) -> tuple[Iterable[str], bool]:
    """Lines of a file or a pipe; or what a person types, who is greeted, and with whom one has to be patient (True)."""
    if isinstance(sys.stdin, TextIOWrapper):
        # Whatever the locale is, and even if it is no text at all.
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    if not sys.stdin.isatty():
        return sys.stdin, False
    print(f"{greeting}. /help says what you can do.", file=sys.stderr)
    return typed(), True


def typed() -> Iterator[str]:
    """What a person types, line by line, until Ctrl-D or Ctrl-C."""
    with suppress(ImportError):
        import readline  # noqa: F401  (gives input() its arrow keys)
    while True:
        try:
            yield input("you> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


def converse(voice: Voice, judge: Classifier, p: Params, lines: Iterable[str], patient: bool) -> None:
    """Answer line by line on stdout. What cannot be understood is told where `patient`, else it is an InputError."""
    emotion, turns, replies = p.data.neutral, list[Turn](), 0
    for number, line in enumerate(lines, start=1):
        if (order := understood(line, number, p.data.labels, EMOTION, bool(turns), patient)) is None:
            continue
        name, text = order
        if name == "quit":
            return
        if name == "help":
            print(manual(p.data.labels), file=sys.stderr)
        elif name == "new":
            turns.clear()
        elif name == "again" or text:
            turns = turns[:-1] if name == "again" else [*turns, heard(judge, text)]
            wanted = name if name in p.data.labels else emotion
            asked = request(voice.tokenizer, turns, wanted, p, seeds.key(p.evaluate.seed, "chat", replies))
            reply = answer(wanted, voice, asked, p.evaluate.sampling, patient)
            turns.append(Turn(ASSISTANT, reply, wanted))
            replies += 1
        elif name:
            emotion = name
            if patient:
                print(f"({emotion} from here on)", file=sys.stderr)


def understood(
    line: str, number: int, emotions: Sequence[str], unlike: str, begun: bool, patient: bool
) -> tuple[str | None, str] | None:
    """What `parse` makes of a line; None where it told the `patient` why it makes nothing of it."""
    try:
        name, text = parse(line, emotions, unlike)
        if name == "again" and not begun:
            raise InputError("/again: nothing was said yet")
        return name, text
    except InputError as error:
        if not patient:
            raise InputError(f"line {number}: {error}") from None
        print(error, file=sys.stderr)
        return None


def answer(head: str, voice: Voice, asked: Request, how: Sampling, patient: bool) -> str:
    """A reply on stdout, behind its head, as it comes; what Ctrl-C cuts short ends whatever reads a pipe."""
    print(f"{head}> ", end="", flush=True)
    reply, whole = stream(voice, asked, how, show)
    print(flush=True)
    if not whole and not patient:
        raise SystemExit(128 + signal.SIGINT)
    return reply


def show(text: str) -> None:
    """Print a piece of a reply at once, without what a terminal would take for an order."""
    print("".join(c for c in text if unicodedata.category(c) != "Cc"), end="", flush=True)
