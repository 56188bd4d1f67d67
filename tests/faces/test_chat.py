"""Laws of `emotune chat`: emotions by slash, the pipeline's prompts and replies, and nothing asked of a pipe."""

import io
import os
import pty
import select
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import LABELS, ROOT, write_params
from emotune.core.dialogue import Turn
from emotune.core.errors import InputError
from emotune.faces import chat, cli
from emotune.generation import local
from emotune.generation.engine import Request
from emotune.generation.params import Sampling
from emotune.models.params import Model
from emotune.runs.params import parse

SAMPLING = Sampling(
    temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.3, min_new_tokens=3, max_new_tokens=12, guidance=1.0
)


@pytest.fixture
def repository(tmp_path: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and models/, as `emotune chat` finds them."""
    write_params(tmp_path, {"evaluate.sampling.max_new_tokens": 8})
    (tmp_path / "models").symlink_to(tuned)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def voice(tuned: Path, model_choice: Model) -> chat.Voice:
    return chat.open_voice(tuned, "dpo", model_choice)


def hello(voice: chat.Voice, text: str = "<s>[INST] Hello. [/INST]") -> Request:
    return Request(tuple(voice.tokenizer(text, add_special_tokens=False)["input_ids"]), (7,))


def say(monkeypatch: pytest.MonkeyPatch, *lines: str, model: str = "dpo") -> int:
    """`emotune chat` with these lines piped in."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return cli.main(["chat", "--model", model])


def emotions_of(out: str) -> list[str]:
    return [line.partition(">")[0] for line in out.splitlines()]


@pytest.mark.parametrize(
    ("line", "name", "text"),
    [
        ("I lost my keys. ", None, "I lost my keys."),
        ("  /fear  A spider! ", "fear", "A spider!"),
        ("/Fear", "fear", ""),
        ("/fear of flying Me?", "fear of flying", "Me?"),
        ("/fear of spiders", "fear", "of spiders"),
        ("/again", "again", ""),
        ("either/or", None, "either/or"),
    ],
)
def test_a_slash_names_an_emotion_or_a_command(line: str, name: str | None, text: str) -> None:
    assert chat.parse(line, ("calm", "fear", "fear of flying")) == (name, text)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/hapiness Hello.", "/hapiness is neither an emotion nor a command; the nearest is /happiness"),
        ("/fearless", "/fearless is neither an emotion nor a command; the nearest is /fear"),
        ("/new shoes", "/new takes no text, got 'shoes'"),
        ("/", "/ is neither"),
    ],
)
def test_any_other_slash_is_told_what_is_nearest(line: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        chat.parse(line, LABELS)
    assert str(error.value).startswith(told)


def test_an_emotion_with_text_counts_once_and_without_text_from_there_on(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        say(monkeypatch, "Hello.", "/happiness Hello.", "", "Hello.", "/fear", "Hello.", "/again", "/quit", "Hi") == 0
    )
    found = capsys.readouterr().out
    assert emotions_of(found) == ["neutral", "happiness", "neutral", "fear", "fear"]
    # Another reply to the same.
    assert len(set(found.splitlines()[-2:])) == 2


def test_the_emotions_are_those_of_params(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(repository, {"data.labels": ["calm", "very calm"], "data.neutral": "calm"})
    assert say(monkeypatch, "Hello.", "/very calm Hello.", "/help") == 0
    found = capsys.readouterr()
    assert emotions_of(found.out) == ["calm", "very calm"]
    assert "Emotions: calm, very calm" in found.err
    assert say(monkeypatch, "/happiness Hello.") == 2


def test_the_same_lines_are_answered_by_the_same_bytes_and_each_model_by_its_own(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = []
    for model in ("dpo", "dpo", "sft", "baseline"):
        assert say(monkeypatch, "Why did you shout?", "/anger Tell me!", model=model) == 0
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1]
    assert len(set(outs)) == 3


def test_what_was_said_is_remembered_until_new(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(repository, {"evaluate.sampling.max_new_tokens": 8, "evaluate.sampling.temperature": 0})
    assert say(monkeypatch, "We won!", "We won!", "/new", "We won!") == 0
    first, second, anew = capsys.readouterr().out.splitlines()
    assert first == anew
    assert first != second


def test_a_pipe_ends_with_the_line_that_cannot_be_understood(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert say(monkeypatch, "Hello.", "/sad Hello.", "Hello.") == 2
    found = capsys.readouterr()
    assert emotions_of(found.out) == ["neutral"]
    assert found.err.startswith("emotune: line 2: /sad is neither an emotion nor a command; the nearest is /sadness")
    assert say(monkeypatch, "/again") == 2
    assert capsys.readouterr().err == "emotune: line 1: /again: nothing was said yet\n"


def test_a_model_that_is_not_there_is_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("models").unlink()
    Path("models/base").mkdir(parents=True)
    assert say(monkeypatch, "Hello.") == 2
    assert capsys.readouterr().err.startswith("emotune: models/dpo: no such folder; `dvc repro` makes it")


def test_a_model_is_asked_the_latest_turns_whole_as_in_the_pipeline(voice: chat.Voice) -> None:
    p = parse(ROOT / "params.yaml")
    turns = [
        Turn("user", "We won the match!", "happiness"),
        Turn("assistant", "That is great news!", "surprise"),
        Turn("user", "Will you come?", "neutral"),
        Turn("assistant", "Of course I will.", "happiness"),
        Turn("user", "Thank you.", "happiness"),
    ]
    last = "[INST] [EMOTION] happiness [/EMOTION] Thank you. [/INST] [EMOTION] fear [/EMOTION]"
    before = "[INST] [EMOTION] neutral [/EMOTION] Will you come? [/INST] [EMOTION] happiness [/EMOTION]"
    three = f"{before} Of course I will.</s>{last}"

    def asked(history_turns: int, context: int) -> str:
        model = p.model.model_copy(update={"context": context})
        changed = p.model_copy(update={"history_turns": history_turns, "model": model})
        return voice.tokenizer.decode(chat.request(voice.tokenizer, turns, "fear", changed, 1).prompt)

    # A window of four would begin with a reply.
    assert asked(4, 256) == asked(3, 256) == f"<s>{three}"
    assert asked(1, 256) == f"<s>{last}"
    whole = len(voice.tokenizer(f"<s>{three}", add_special_tokens=False)["input_ids"])
    room = whole + p.evaluate.sampling.max_new_tokens
    assert asked(5, room) == f"<s>{three}"
    assert asked(5, room - 1) == f"<s>{last}"


def test_where_nothing_is_drawn_the_reply_is_the_one_of_the_pipeline_piece_by_piece(voice: chat.Voice) -> None:
    prompt = hello(voice)
    texts = []
    for how in (SAMPLING, SAMPLING.model_copy(update={"temperature": 1.5, "top_k": 1})):
        [[reply]] = local.replies(voice.model, voice.tokenizer, [prompt], how)
        pieces: list[str] = []
        text, whole = chat.stream(voice, prompt, how, pieces.append)
        assert (text, whole) == (reply.text, True)
        assert "".join(pieces) == text
        assert len(pieces) > 1
        texts.append(text)
    assert texts[0] != chat.stream(voice, prompt, SAMPLING.model_copy(update={"repetition_penalty": 1.0}), print)[0]


def test_a_model_is_guided_as_in_the_pipeline(voice: chat.Voice) -> None:
    p = parse(ROOT / "params.yaml")
    how = SAMPLING.model_copy(update={"guidance": 4.0})
    guided = p.model_copy(update={"evaluate": p.evaluate.model_copy(update={"sampling": how})})
    turns, said = [Turn("user", "We won the match!", "happiness")], []
    for emotion in ("fear", "neutral"):
        plain, asked = (chat.request(voice.tokenizer, turns, emotion, each, 7) for each in (p, guided))
        assert (plain.twin, asked.prompt) == (None, plain.prompt)
        [[reply]] = local.replies(voice.model, voice.tokenizer, [asked], how)
        assert chat.stream(voice, asked, how, lambda piece: None) == (reply.text, True)
        said.append((asked.twin, reply.text == chat.stream(voice, plain, SAMPLING, lambda piece: None)[0]))
    assert said == [(chat.request(voice.tokenizer, turns, "neutral", p, 7).prompt, False), (None, True)]


def test_a_setting_of_the_model_s_own_does_not_count(voice: chat.Voice) -> None:
    prompt = hello(voice)
    before = chat.stream(voice, prompt, SAMPLING, lambda piece: None)
    voice.model.generation_config.update(no_repeat_ngram_size=1, suppress_tokens=list(range(50, 300)))
    assert chat.stream(voice, prompt, SAMPLING, lambda piece: None) == before


def test_the_settings_count_where_the_adapter_stays_on_top_too(tuned: Path, model_choice: Model) -> None:
    voice = chat.open_voice(tuned, "dpo", model_choice.model_copy(update={"dtype": "bfloat16"}))
    prompt = hello(voice)

    def said(**changed: float) -> str:
        return chat.stream(voice, prompt, SAMPLING.model_copy(update=changed), lambda piece: None)[0]

    # Of one token there is no choice.
    assert said() == said(temperature=1.5, top_k=1) != said(temperature=1.5)
    assert said() != said(repetition_penalty=1.0)
    assert said().startswith(said(max_new_tokens=4))


class Interrupted(io.StringIO):
    """A stdout at whose third piece, within the first reply, Ctrl-C is pressed."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += bool(text)
        if self.writes == 3:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


@pytest.mark.parametrize("patient", [True, False])
def test_ctrl_c_cuts_a_reply_short_and_ends_what_reads_a_pipe(
    voice: chat.Voice, repository: Path, monkeypatch: pytest.MonkeyPatch, patient: bool
) -> None:
    p = parse(Path("params.yaml"))
    judge = chat.open_listener(Path("models"), p)
    whole, cut = io.StringIO(), Interrupted()
    monkeypatch.setattr(sys, "stdout", whole)
    chat.converse(voice, judge, p, ["Hello.", "Hello."], patient)
    monkeypatch.setattr(sys, "stdout", cut)
    if patient:
        chat.converse(voice, judge, p, ["Hello.", "Hello."], patient)
    else:
        with pytest.raises(SystemExit, match="130"):
            chat.converse(voice, judge, p, ["Hello.", "Hello."], patient)
    lines = cut.getvalue().splitlines()
    assert whole.getvalue().startswith(lines[0])
    assert len("neutral> ") < len(lines[0]) < whole.getvalue().index("\n")
    assert len(lines) == (2 if patient else 1)


def test_what_is_piped_is_utf_8_and_need_not_be_text(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = []
    for line in ("café ☕".encode(), "café ☕ \ufffd".encode(), b"caf\xc3\xa9 \xe2\x98\x95 \xff"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line), encoding="ascii"))
        assert cli.main(["chat"]) == 0
        outs.append(capsys.readouterr().out)
    assert outs[0] != outs[1] == outs[2]


def test_a_reply_gives_the_terminal_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    chat.show("\x1b]0;mine\x07\x9bred ünï 👩‍🚀")
    assert capsys.readouterr().out == "]0;minered ünï 👩‍🚀"


def test_what_the_user_says_is_cleaned_and_heard_in_an_emotion(tuned: Path, repository: Path) -> None:
    judge = chat.open_listener(Path("models"), parse(Path("params.yaml")))
    turn = chat.heard(judge, "We won  the match !")
    said = judge.undivided(["We won the match!"])[0][0]
    assert turn == Turn("user", "We won the match!", said)
    # A user is as often neutral as people are, whatever the judge expects of a reply.
    expecting = replace(judge, prior={label: 1.0 if label == said else 0.01 for label in judge.labels}, tau=5.0)
    assert expecting(["We won the match!"])[0][0] != said
    assert chat.heard(expecting, "We won the match!").emotion == said


def test_on_a_terminal_it_asks_forgives_and_ends_with_ctrl_d(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        monkeypatch.setattr(sys, name, os.fdopen(os.dup(theirs), mode, encoding="utf-8"))
    turns = [
        ("you> ", "/joy\n"),
        ("the nearest is /", "/sadness\n"),
        ("(sadness from here on)", "Hello.\n"),
        ("sadness> ", ""),
        ("you> ", ""),
    ]
    met: list[str] = []

    def type_what_is_asked_for() -> None:
        seen = ""
        try:
            for awaited, typed in turns:
                while awaited not in seen and select.select([ours], [], [], 60)[0]:
                    seen += os.read(ours, 1000).decode()
                met.extend([awaited] * (awaited in seen))
                seen = seen.partition(awaited)[2]
                os.write(ours, typed.encode())
        finally:
            # Whatever was seen.
            os.write(ours, b"\x04")

    person = threading.Thread(target=type_what_is_asked_for)
    person.start()
    assert cli.main(["chat"]) == 0
    person.join()
    assert met == [awaited for awaited, _ in turns]
    for file in (sys.stdin, sys.stdout, sys.stderr):
        file.close()
    os.close(ours)
    os.close(theirs)
