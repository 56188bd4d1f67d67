"""Laws of `emotune compare`: three models asked the same, only by this machine, on a page that trusts no text."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import torch
import uvicorn

from conftest import LABELS, ROOT, entered_too_early, write_params
from emotune.core.errors import InputError
from emotune.faces import chat, cli, compare
from emotune.generation import local
from emotune.generation.engine import Request
from emotune.judges.verdicts import Classifier
from emotune.models import loading
from emotune.runs.params import Params, parse
from tiny import with_tags

MARKUP = "<img src=x onerror=\"document.title='taken'\"><b>bold</b>"


@pytest.fixture(scope="module")
def p() -> Params:
    """The repository's params.yaml with short replies."""
    whole = parse(ROOT / "params.yaml")
    sampling = whole.evaluate.sampling.model_copy(update={"max_new_tokens": 8})
    return whole.model_copy(update={"evaluate": whole.evaluate.model_copy(update={"sampling": sampling})})


@pytest.fixture(scope="module")
def judge(tuned: Path, p: Params) -> Classifier:
    return chat.open_listener(tuned, p)


@pytest.fixture(scope="module")
def url(tuned: Path, judge: Classifier, p: Params) -> Iterator[str]:
    """The page, served in a thread."""
    app = compare.app(compare.open_voices(tuned, p.model), judge, p, compare.LOOPBACK, {"dpo": "follows sft"})
    listening = compare.listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join()


def question(**changes: Any) -> dict[str, Any]:
    asked = {"model": "dpo", "history": [], "message": "We won the match!", "emotions": ["happiness"], "draw": 0}
    return asked | changes


def ask(url: str, **changes: Any) -> dict[str, Any]:
    answered = httpx2.post(f"{url}replies", json=question(**changes), trust_env=False, timeout=60)
    assert answered.status_code == 200, answered.text
    return answered.json()


def refusal(url: str, body: Any, **headers: str) -> tuple[int, str]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = httpx2.post(
        f"{url}replies", content=content, headers={"content-type": "application/json"} | headers, trust_env=False
    )
    return found.status_code, found.text


def test_a_reply_is_what_the_pipeline_samples_and_its_verdict_what_the_judge_says(
    url: str, tuned: Path, judge: Classifier, p: Params
) -> None:
    found = ask(url, emotions=LABELS)
    assert [reply["emotion"] for reply in found["replies"]] == list(LABELS)
    assert found["heard"] == judge.undivided(["We won the match!"])[0][0]
    voice = chat.open_voice(tuned, "dpo", p.model)
    for reply, (judged, confidence) in zip(
        found["replies"], judge([reply["reply"] for reply in found["replies"]]), strict=True
    ):
        assert (reply["judged"], reply["confidence"]) == (judged, pytest.approx(confidence, abs=1e-5))
    greedy = p.evaluate.sampling.model_copy(update={"temperature": 0.0})
    still = p.model_copy(update={"evaluate": p.evaluate.model_copy(update={"sampling": greedy})})
    asked = compare.checked(json.dumps(question(emotions=["fear"])).encode(), p.data.labels)
    here = compare.replies_to(voice, judge, still, asked)["replies"][0]["reply"]
    prompt = f"<s>[INST] [EMOTION] {found['heard']} [/EMOTION] We won the match! [/INST] [EMOTION] fear [/EMOTION]"
    ids = tuple(voice.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    [[expected]] = local.replies(voice.model, voice.tokenizer, [Request(ids, (1,))], greedy)
    assert here == expected.text


def test_equal_draws_give_equal_replies_whatever_else_is_asked(url: str) -> None:
    [alone] = ask(url, emotions=["fear"], draw=3)["replies"]
    assert ask(url, emotions=LABELS, draw=3)["replies"][LABELS.index("fear")] == alone
    assert ask(url, emotions=["fear"], draw=4)["replies"] != [alone]


def test_each_model_answers_for_itself_and_after_the_history(url: str) -> None:
    history = [
        {"role": "user", "content": "Where are my keys?", "emotion": "fear"},
        {"role": "assistant", "content": "On the table.", "emotion": "neutral"},
    ]
    replies = [ask(url, model=model)["replies"][0]["reply"] for model in compare.NAMES]
    replies.append(ask(url, history=history)["replies"][0]["reply"])
    assert len(set(replies)) == 4


def test_tokens_are_counted_and_timed(url: str) -> None:
    found = ask(url, emotions=LABELS)
    assert 7 <= found["tokens"] <= 7 * 8
    assert found["seconds"] > 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "gpt"}, "model must be one of baseline, sft, dpo, got 'gpt'"),
        ({"emotions": ["joy"]}, "emotions must be some of neutral, anger,"),
        ({"emotions": ["fear", "fear"]}, "each once; got fear, fear"),
        ({"emotions": []}, "emotions: Tuple should have at least 1 item"),
        ({"message": " \n"}, "message: String should have at least 1 character"),
        ({"message": 7}, "message: Input should be a valid string"),
        ({"draw": -1}, "draw: Input should be greater than or equal to 0"),
        ({"shell": "ls"}, "shell: Extra inputs are not permitted"),
        ({"history": [{"role": "user", "content": "Hi", "emotion": "fear"}]}, "history must alternate"),
        ({"history": [{"role": "system", "content": "Hi", "emotion": "fear"}]}, "history.0.role: Input should be"),
    ],
)
def test_a_question_that_is_none_is_told_why(url: str, changes: dict[str, Any], told: str) -> None:
    status, text = refusal(url, question(**changes))
    assert status == 400
    assert told in json.loads(text)["error"]


def test_half_a_question_and_one_that_is_no_text_are_refused(url: str) -> None:
    assert refusal(url, b'{"model": "d')[0] == 400
    assert refusal(url, json.dumps(question(message="\ud800")).encode())[0] == 400
    assert refusal(url, b"x" * (compare.LONGEST + 1))[0] == 413


def test_no_page_from_elsewhere_can_ask(url: str) -> None:
    """Neither by a form or a plain script of its own, nor by giving its own name our address."""
    assert refusal(url, question(), **{"content-type": "text/plain"})[0] == 415
    assert refusal(url, question(), host="evil.example")[0] == 400
    assert httpx2.get(url, headers={"host": "evil.example"}, trust_env=False).status_code == 400
    assert "frame-ancestors 'none'" in httpx2.get(url, trust_env=False).headers["content-security-policy"]


def statuses(hosts: list[str], judge: Classifier, p: Params, *named: str) -> list[int]:
    """What the page answers to a request that names each host."""
    page = compare.app(lambda name: pytest.fail("nobody was asked"), judge, p, hosts, {})

    async def ask_all() -> list[int]:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(page)) as client:
            return [(await client.get("http://any/about", headers={"host": host})).status_code for host in named]

    return asyncio.run(ask_all())


def test_beyond_this_machine_too_a_request_must_name_where_it_is_listened_to(judge: Classifier, p: Params) -> None:
    other = "192.168.7.7"
    named = ("box.lan:8765", f"{other}:8765", "evil.example", "localhost")
    assert statuses(compare.hosts("box.lan", other), judge, p, *named) == [200, 200, 400, 400]
    assert statuses(compare.hosts("fe80::7", "fe80::7"), judge, p, "[fe80::7]:8765", "[fe80::8]") == [200, 400]
    own = next(a.address for each in psutil.net_if_addrs().values() for a in each if a.family == socket.AF_INET)
    everywhere = ("localhost:8765", f"{own}:8765", socket.gethostname(), "[::1]:8765", "evil.example")
    for host in ("0.0.0.0", "::"):
        assert statuses(compare.hosts(host, host), judge, p, *everywhere) == [200, 200, 200, 200, 400]


def test_where_it_cannot_listen_it_says_so() -> None:
    with compare.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--host 127.0.0.1 --port {port}: Address already in use"):
            compare.listen("127.0.0.1", port)
    with pytest.raises(InputError, match="--port 65536"):
        compare.listen("127.0.0.1", 65536)


def listening() -> set[tuple[str, int]]:
    """Where this process can be reached."""
    return {tuple(one.laddr) for one in psutil.Process().net_connections() if one.status == "LISTEN"}


def test_only_this_machine_is_listened_to_unless_told_otherwise_and_ctrl_c_ends_it(
    tmp_path: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(tmp_path, {})
    (tmp_path / "models").symlink_to(tuned)
    monkeypatch.chdir(tmp_path)
    before, ended, seen = listening(), threading.Event(), list[Any]()

    def look() -> None:
        while not (found := listening() - before) and not ended.wait(0.05):
            pass
        for host, port in found:
            seen.append((host, port, httpx2.get(f"http://{host}:{port}/", trust_env=False, timeout=60).text))
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    person = threading.Thread(target=look)
    person.start()
    try:
        assert cli.main(["compare", "--port", "0"]) == 0
    finally:
        ended.set()
        person.join()
    [(host, port, page)] = seen
    assert host == "127.0.0.1"
    assert "emotune compare" in page
    what = "baseline, sft, dpo side by side"
    assert capsys.readouterr() == (f"{what}: http://127.0.0.1:{port}/ (Ctrl-C ends it)\n", "")
    assert listening() == before


def test_where_adapters_stay_on_top_the_three_share_one_base_and_say_the_same(
    tuned: Path, tokenizer: Any, judge: Classifier, p: Params, tmp_path: Path
) -> None:
    choice = p.model.model_copy(update={"dtype": "bfloat16"})
    shutil.copytree(tuned / "base", tmp_path / "base")
    for seed, name in enumerate(("sft", "dpo")):
        torch.manual_seed(seed)
        adapted = with_tags(tmp_path / "base", tokenizer, r=4, init_lora_weights=False)
        loading.save_adapter(adapted, tokenizer, tmp_path / "base", tmp_path / name)
    lend = compare.open_voices(tmp_path, choice)
    # dpo before and after the others: what one leaves behind must not change the next.
    for name in ("dpo", "baseline", "sft", "dpo"):
        asked = compare.checked(json.dumps(question(model=name, emotions=LABELS)).encode(), p.data.labels)
        with lend(name) as voice:
            shared = compare.replies_to(voice, judge, p, asked)["replies"]
        assert shared == compare.replies_to(chat.open_voice(tmp_path, name, choice), judge, p, asked)["replies"]
    with lend("baseline") as first, lend("dpo") as second:
        assert first.model is second.model


def test_a_model_that_dvc_lock_does_not_vouch_for_is_said_to_be_stale(url: str) -> None:
    assert httpx2.get(f"{url}about", trust_env=False).json()["stale"] == {"dpo": "follows sft"}


def test_the_page_asks_all_three_in_every_emotion_and_shows_what_came(page: Any, url: str) -> None:
    page.goto(url)
    page.get_by_text("all 7").click()
    page.get_by_label("Your message").fill("We won the match!")
    page.keyboard.press("Enter")
    page.locator(".card:not(.waiting)").nth(20).wait_for()
    assert page.locator(".model h3").all_text_contents() == ["baseline", "sft", "dpo stale"]
    assert page.locator(".round .asked").all_text_contents() == list(LABELS)
    # Row by row: an emotion, and the three models' replies to it.
    shown = page.locator(".card .reply").all_text_contents()
    for place, model in enumerate(compare.NAMES):
        replies = ask(url, model=model, emotions=LABELS, draw=0)["replies"]
        assert shown[place::3] == [reply["reply"] for reply in replies]
        hits = sum(reply["judged"] == reply["emotion"] for reply in replies)
        speed = page.locator(".model p:last-child").nth(place).text_content()
        assert re.fullmatch(rf"{hits} of 7 as asked · [\d.]+ tokens/s", speed)
    first = ask(url, model="baseline", emotions=LABELS, draw=0)["replies"][0]
    sign = "✓" if first["judged"] == "neutral" else "✗"
    verdict = page.locator(".verdict").first
    assert verdict.text_content() == f"{sign} {first['judged']} {round(100 * first['confidence'])} %"
    share = "e => e.querySelector('i').offsetWidth / e.querySelector('.bar').offsetWidth"
    assert verdict.evaluate(share) == pytest.approx(first["confidence"], abs=0.02)


def test_the_next_message_follows_the_reply_that_was_chosen(page: Any, url: str) -> None:
    page.goto(url)
    page.get_by_text("fear", exact=True).click()
    page.get_by_label("Your message").fill("There is a spider!")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_role("button", name="go on").nth(2).click()
    chosen = page.locator(".card .reply").nth(2).text_content()
    assert chosen in page.locator(".thread").text_content()
    page.get_by_label("Your message").fill("Where?")
    with page.expect_request("**/replies") as asked:
        page.keyboard.press("Enter")
    sent = asked.value.post_data_json
    assert sent["emotions"] == ["fear"]
    assert [(turn["role"], turn["content"]) for turn in sent["history"]] == [
        ("user", "There is a spider!"),
        ("assistant", chosen),
    ]
    page.get_by_role("button", name="start anew").click()
    assert page.locator(".thread").is_hidden()


def test_whoever_asks_before_the_page_knows_the_models_is_answered(page: Any, url: str) -> None:
    entered_too_early(page, url, "Your message", "We won the match!")
    page.locator(".card:not(.waiting)").nth(20).wait_for()


def test_text_is_shown_as_text_whoever_wrote_it(page: Any, url: str) -> None:
    found = {"message": MARKUP, "heard": MARKUP, "tokens": 1, "seconds": 1}
    reply = {"emotion": "fear", "reply": MARKUP, "judged": MARKUP, "confidence": 0.5}
    page.route("**/replies", lambda route: route.fulfill(json=found | {"replies": [reply]}))
    page.goto(url)
    page.get_by_text("fear", exact=True).click()
    page.get_by_label("Your message").fill(MARKUP)
    page.keyboard.press("Enter")
    page.locator(".card:not(.waiting)").nth(2).wait_for()
    page.get_by_role("button", name="go on").first.click()
    assert page.locator(".card .reply").all_text_contents() == [MARKUP] * 3
    assert MARKUP in page.locator(".bubble").text_content()
    assert page.locator("main img, main b:has-text('bold') b, .thread img").count() == 0
    assert page.title() == "emotune compare"


def test_a_server_that_is_gone_is_told(page: Any, url: str) -> None:
    page.route("**/replies", lambda route: route.abort())
    page.goto(url)
    page.get_by_role("button", name="We won the match!").click()
    page.wait_for_selector(".card.failed")
    assert "does emotune compare still run?" in page.locator(".card.failed .reply").first.text_content()


def test_a_phone_shows_it_without_scrolling_sideways(page: Any, url: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(url)
    page.get_by_label("Your message").fill("Donaudampfschifffahrtsgesellschaft" * 4)
    page.keyboard.press("Enter")
    page.locator(".card:not(.waiting)").nth(20).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator(".card .name").first.is_visible()
