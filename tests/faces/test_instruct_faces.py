"""Laws of `emotune chat` and `emotune compare` in instruct/: models without emotions are asked as its stages ask."""

import asyncio
import io
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
import uvicorn
from peft import LoraConfig, get_peft_model

from conftest import write_params
from emotune.faces import chat, cli, compare, instructions
from emotune.generation import local
from emotune.generation.engine import Request
from emotune.models import loading
from emotune.models.params import Model
from emotune.runs.params import PARAMS, Instructions, whole

SMALL = {"evaluate.sampling.max_new_tokens": 6}
PROMPT = "<s>### Instruction:\nName the emotion.\n\n### Input:\nWe won!\n\n### Response:\n"


@pytest.fixture(scope="module")
def models(base: Path, model_choice: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/ of the instruction pipeline: the tiny base, and a random adapter that brings the template of alpaca."""
    folder = tmp_path_factory.mktemp("instruct") / "models"
    shutil.copytree(base, folder / "base")
    torch.manual_seed(3)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(loading.load_base(base, model_choice), lora)
    loading.save_adapter(adapted, loading.load_tokenizer(base, "alpaca"), base, folder / "sft")
    return folder


@pytest.fixture
def repository(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """instruct/ as a user stands in it."""
    write_params(tmp_path, SMALL, "instruct")
    (tmp_path / "models").symlink_to(models)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def p(tmp_path_factory: pytest.TempPathFactory) -> Instructions:
    folder = tmp_path_factory.mktemp("params")
    write_params(folder, SMALL, "instruct")
    parsed = whole(folder / PARAMS)
    assert isinstance(parsed, Instructions)
    return parsed


@pytest.fixture(scope="module")
def url(models: Path, p: Instructions) -> Iterator[str]:
    """The page, served in a thread."""
    lend = compare.open_voices(models, p.model, instructions.NAMES, "alpaca")
    app = instructions.app(lend, p, compare.LOOPBACK, {"sft": "follows rows", "dpo": "of another pipeline"})
    listening = compare.listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join()


def reply(models: Path, name: str, prompt: str, p: Instructions) -> str:
    """What a model of the folder says to a prompt that was written by hand."""
    voice = chat.open_voice(models, name, p.model, "alpaca")
    ids = tuple(voice.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    [[said]] = local.replies(voice.model, voice.tokenizer, [Request(ids, (1,))], p.evaluate.sampling)
    return said.text


def say(monkeypatch: pytest.MonkeyPatch, *lines: str, model: str | None = None) -> int:
    """`emotune chat` with these lines piped in."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return cli.main(["chat", *(["--model", model] if model else [])])


def inquiry(**changes: Any) -> dict[str, Any]:
    return {"model": "sft", "instruction": "Name the emotion.", "input": "We won!", "draw": 0} | changes


def answered(app: Any, **changes: Any) -> tuple[int, Any]:
    async def ask() -> Any:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as client:
            return await client.post("http://localhost/replies", json=inquiry(**changes))

    response = asyncio.run(ask())
    return response.status_code, response.json()


def test_chat_asks_an_instruction_with_the_lines_of_input_before_it_and_each_by_itself(
    repository: Path, models: Path, p: Instructions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, ask = [], instructions.request

    def noted(tokenizer: Any, *asked: Any) -> Request:
        found = ask(tokenizer, *asked)
        prompts.append(tokenizer.decode(found.prompt))
        return found

    monkeypatch.setattr(instructions, "request", noted)
    two = PROMPT.replace("We won!", "A: We won!\nB: Well done.")
    none = PROMPT.replace("### Input:\nWe won!\n\n", "")
    for model in ("sft", "zero-shot"):
        lines = ["/input We won!", "Name the emotion.", "Name the emotion.", "/input x", "/new"]
        lines += ["/input A: We won!", "/input B: Well done.", "Name the emotion.", "/again", "/quit", "Name."]
        assert say(monkeypatch, *lines, model=model) == 0
        assert prompts[-4:] == [PROMPT, none, two, two]
        told = capsys.readouterr().out
        for prompt in prompts[-4:]:
            chat.show(f"{model}> {reply(models, model, prompt, p)}")
            print()
        assert told == capsys.readouterr().out


def test_chat_answers_by_sft_and_names_what_is_of_the_other_pipeline(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert say(monkeypatch, "Hello.") == 0
    assert capsys.readouterr().out.startswith("sft> ")
    assert say(monkeypatch, "Hello.", model="dpo") == 2
    assert "--model must be one of zero-shot, sft in this pipeline, got dpo" in capsys.readouterr().err
    assert say(monkeypatch, "Hello.", "/joy") == 2
    assert "line 2: /joy is no command; the nearest is /" in capsys.readouterr().err
    assert say(monkeypatch, "/input x", "/again") == 2
    assert "line 2: /again: nothing was said yet" in capsys.readouterr().err
    assert cli.main(["compare", "--blind"]) == 2
    assert "models of instructions know none" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["estimate"], ["votes"], ["prefs"]])
def test_what_is_of_the_emotion_pipeline_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    write_params(tmp_path, {}, "instruct")
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 2
    told = f"emotune: {command[0]}: of the emotion pipeline, and params.yaml here is of instructions; run it above\n"
    assert capsys.readouterr().err == told


def test_compare_answers_as_the_pipeline_does_and_tells_what_is_no_question(models: Path, p: Instructions) -> None:
    lend = compare.open_voices(models, p.model, instructions.NAMES, "alpaca")
    app = instructions.app(lend, p, compare.LOOPBACK, {})
    for model in instructions.NAMES:
        status, told = answered(app, model=model)
        assert (status, told["replies"]) == (200, [{"reply": reply(models, model, PROMPT, p)}])
        assert told["tokens"] > 0
    for changes, why in (
        ({"model": "dpo"}, "model must be one of zero-shot, sft, got 'dpo'"),
        ({"instruction": " "}, "instruction: String should have at least 1 character"),
        ({"emotions": ["fear"]}, "emotions: Extra inputs are not permitted"),
        ({"input": "x" * 20_001}, "input: String should have at most 20000 characters"),
    ):
        status, told = answered(app, **changes)
        assert status == 400
        assert why in told["error"]


def test_an_adapter_that_stays_on_top_is_taken_off_for_zero_shot(models: Path, p: Instructions) -> None:
    choice = p.model.model_copy(update={"dtype": "bfloat16"})
    lend = compare.open_voices(models, choice, instructions.NAMES, "alpaca")
    asked = instructions.Inquiry(**inquiry())
    for name in ("sft", "zero-shot", "sft"):
        alone = chat.open_voice(models, name, choice, "alpaca")
        with lend(name) as voice:
            assert (
                instructions.reply_to(voice, p, asked)["replies"] == instructions.reply_to(alone, p, asked)["replies"]
            )
    with lend("sft") as first, lend("zero-shot") as second:
        assert first.model is second.model


def test_a_prompt_without_room_for_a_reply_loses_its_beginning(models: Path, p: Instructions) -> None:
    tokenizer = loading.load_tokenizer(models / "sft", None)
    prompt = instructions.request(tokenizer, "Name it. " * 200, "We won!", p, 1).prompt
    assert len(prompt) == p.model.context - p.evaluate.sampling.max_new_tokens
    assert tokenizer.decode(prompt).endswith("### Input:\nWe won!\n\n### Response:\n")


def test_the_page_asks_an_instruction_and_its_input_and_shows_a_reply_of_each_model(
    page: Any, url: str, models: Path, p: Instructions
) -> None:
    page.goto(url)
    page.get_by_label("Input").fill("We won!")
    page.get_by_label("Your instruction").fill("Name the emotion.")
    with page.expect_request("**/replies") as asked:
        page.keyboard.press("Enter")
    assert asked.value.post_data_json == inquiry(model="zero-shot")
    page.locator(".card:not(.waiting)").nth(1).wait_for()
    assert page.locator(".card .reply").all_text_contents() == [
        reply(models, name, PROMPT, p) for name in ("zero-shot", "sft")
    ]
    assert page.locator(".model h3").all_text_contents() == ["zero-shot", "sft stale"]
    assert page.locator("fieldset, .verdict, .asked").count() == 0
    assert page.locator(".bubble").text_content().strip() == "Name the emotion.\n\nWe won!"
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_page_s_examples_are_asked_with_what_they_are_about(page: Any, url: str) -> None:
    page.goto(url)
    with page.expect_request("**/replies") as asked:
        page.get_by_role("button", name="What does B say next?").click()
    assert json.loads(asked.value.post_data)["input"] == "A: We won the match!"
