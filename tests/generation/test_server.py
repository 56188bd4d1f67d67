"""Laws of the server engine: a seed each, order kept, bounded, patient with faults, and no setting ignored unsaid."""

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from emotune.core.dialogue import Dialogue
from emotune.core.errors import InputError
from emotune.generation import local, server
from emotune.generation.engine import Reply, Request
from emotune.generation.params import Sampling
from emotune.generation.server import Server, Servers
from emotune.models import loading
from emotune.models.params import Model
from emotune.preferences import attempts, journal
from emotune.preferences.candidates import judging, sampling
from emotune.prompts.prompter import Prompter
from emotune.runs.params import parse

# What a request is answered with: status, body, and headers.
Answer = tuple[int, bytes, dict[str, str]]

SAMPLING = Sampling(
    temperature=0.8, top_k=40, top_p=0.9, repetition_penalty=1.1, min_new_tokens=2, max_new_tokens=16, guidance=1.0
)
WORDS = ("so", "glad", "you", "came", "back", "home", "at", "last")


def answer(content: Any, status: int = 200, **headers: str) -> Answer:
    return status, json.dumps(content).encode(), headers


def request(text: str, *keys: int) -> Request:
    """A server is asked by the text; the token ids are for this machine."""
    return Request((), keys, text)


def completion(text: str, finish_reason: str = "stop", tokens: int = 4, prompt_tokens: int = 1) -> Answer:
    return answer(
        {
            "choices": [{"text": text, "index": 0, "finish_reason": finish_reason, "logprobs": None}],
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": tokens},
        }
    )


def vllm(body: dict[str, Any]) -> Answer:
    """A reply drawn by prompt and seed, where model and settings are possible ones."""
    if body["model"] != "sft":
        return answer({"error": {"message": f"The model `{body['model']}` does not exist."}}, 404)
    if body["top_k"] < -1 or body["repetition_penalty"] <= 0 or body["min_tokens"] < 0:
        return answer({"error": {"message": "must not be negative"}}, 400)
    draw = random.Random(f"{body['prompt']}/{body['seed']}")
    return completion(f" {' '.join(draw.choices(WORDS, k=5))}\n", tokens=6)


class Loopback:
    """A loopback server that answers as it is told, and notes what it was asked and how many asked at once."""

    def __init__(self) -> None:
        self.complete: Callable[[dict[str, Any]], Answer] = vllm
        self.models = answer({"object": "list", "data": [{"id": "base"}, {"id": "sft"}]})
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: set[str | None] = set()
        self.headers: list[str] = []
        self.at_once = self.most_at_once = 0
        self.killed = False
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.send(outer.models)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if outer.killed:
                    # No answer, and no connection any more.
                    self.close_connection = True
                    return
                with lock:
                    outer.bodies.append(body)
                    outer.authorizations.add(self.headers["Authorization"])
                    outer.headers.append(str(self.headers))
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                found = outer.complete(body)
                with lock:
                    outer.at_once -= 1
                self.send(found)

            def send(self, found: Answer) -> None:
                status, content, headers = found
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(content)
                # An answer cut short ends with its connection.
                self.close_connection = "Content_Length" in headers

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def kill(self) -> None:
        """Whoever waits for an answer gets none, and nobody can connect again."""
        if not self.killed:
            self.killed = True
            self.http.shutdown()
            self.http.server_close()

    def endpoint(self, concurrency: int = 4, **fields: Any) -> server.Endpoint:
        return server.Endpoint(self.url, "sft", concurrency, **fields)

    def fails_first(self, times: int, fault: Answer) -> None:
        """Each prompt and seed meets the fault so many times, and then is answered."""
        met: Counter[tuple[str, int]] = Counter()

        def complete(body: dict[str, Any]) -> Answer:
            asked = body["prompt"], body["seed"]
            met[asked] += 1
            return fault if met[asked] <= times else vllm(body)

        self.complete = complete


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    for name in (
        "EMOTUNE_SERVER_KEY",
        "EMOTUNE_SERVER_CONCURRENCY",
        "EMOTUNE_SERVER_TIMEOUT",
        "http_proxy",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("INITIAL_RETRY_DELAY", "MAX_RETRY_DELAY"):
        monkeypatch.setattr(f"openai._base_client.{name}", 0.001)
    found = Loopback()
    monkeypatch.setenv("EMOTUNE_SERVER", found.url)
    yield found
    found.kill()


@pytest.fixture
def other(served: Loopback, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """A second server of the same model, named behind the first."""
    found = Loopback()
    monkeypatch.setenv("EMOTUNE_SERVER", f"{served.url}, {found.url}")
    yield found
    found.kill()


def test_each_candidate_is_one_request_with_its_own_seed_and_every_setting(served: Loopback) -> None:
    server.replies(Servers(served.endpoint()), [request("<s>one", 1, 2**31 + 2), request("<s>two", 3)], SAMPLING)
    assert sorted((body["prompt"], body["seed"]) for body in served.bodies) == [
        ("<s>one", 1),
        ("<s>one", 2),
        ("<s>two", 3),
    ]
    body = next(body for body in served.bodies if body["seed"] == 3)
    assert body == {
        "model": "sft",
        "prompt": "<s>two",
        "seed": 3,
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": 40,
        "repetition_penalty": 1.1,
        "min_tokens": 2,
        "max_tokens": 16,
        "add_special_tokens": False,
        "skip_special_tokens": True,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def test_a_seed_fits_into_31_bits(served: Loopback) -> None:
    server.replies(Servers(served.endpoint()), [request("<s>", 2**63 - 1)], SAMPLING)
    assert [body["seed"] for body in served.bodies] == [2**31 - 1]


def test_no_top_k_is_minus_one_which_every_release_of_vllm_takes(served: Loopback) -> None:
    server.replies(Servers(served.endpoint()), [request("<s>", 1)], SAMPLING.model_copy(update={"top_k": 0}))
    assert [body["top_k"] for body in served.bodies] == [-1]


def test_transformers_serve_gets_the_same_settings_as_a_generation_config(served: Loopback) -> None:
    served.complete = lambda body: completion("Fine.")
    endpoint = served.endpoint(1, dialect="transformers")
    server.replies(Servers(endpoint), [request("<s>", 5)], SAMPLING)
    server.replies(Servers(endpoint), [request("<s>", 5)], SAMPLING.model_copy(update={"temperature": 0.0}))
    settings = [json.loads(body.pop("generation_config")) for body in served.bodies]
    assert served.bodies == [{"model": "sft", "prompt": "<s>", "seed": 5}] * 2
    lengths = {"num_beams": 1, "repetition_penalty": 1.1, "min_new_tokens": 2, "max_new_tokens": 16}
    drawn = {"do_sample": True, "temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0}
    assert settings == [drawn | lengths, {"do_sample": False} | lengths]


def test_a_reply_is_on_one_line_and_its_end_token_is_not_counted(served: Loopback) -> None:
    told = {1: completion(" I am\n so  glad. ", "stop", 6), 2: completion(" I am so", "length", 16)}
    served.complete = lambda body: told[body["seed"]]
    assert server.replies(Servers(served.endpoint()), [request("<s>", 1, 2)], SAMPLING) == [
        [Reply("I am so glad.", 5, True), Reply("I am so", 16, False)]
    ]


def test_replies_come_in_the_order_of_the_requests_whichever_ends_first(served: Loopback) -> None:
    def complete(body: dict[str, Any]) -> Answer:
        time.sleep(0.02 * (8 - body["seed"]))
        return completion(f"{body['prompt']} {body['seed']}")

    served.complete = complete
    counts: list[int] = []
    found = server.replies(
        Servers(served.endpoint(8)),
        [request("a", 1, 2, 3), request("b"), request("c", 4, 5, 6, 7)],
        SAMPLING,
        counts.append,
    )
    assert [[reply.text for reply in of] for of in found] == [["a 1", "a 2", "a 3"], [], ["c 4", "c 5", "c 6", "c 7"]]
    assert sum(counts) == 7


def test_the_same_seed_gives_the_same_reply_and_another_seed_another(served: Loopback) -> None:
    [first, second] = server.replies(Servers(served.endpoint()), [request("a", 1, 2), request("a", 2, 1)], SAMPLING)
    assert first[0] == second[1]
    assert first[1] == second[0]
    assert first[0] != first[1]


def test_as_many_requests_as_allowed_are_under_way_and_never_more(served: Loopback) -> None:
    # No round of three is let through before there are three of them.
    three = threading.Barrier(3)

    def complete(body: dict[str, Any]) -> Answer:
        three.wait(timeout=10)
        time.sleep(0.02)
        return vllm(body)

    served.complete = complete
    server.replies(Servers(served.endpoint(3)), [request("a", *range(12))], SAMPLING)
    assert served.most_at_once == 3


def test_the_engine_takes_four_requests_for_each_that_may_be_under_way(
    served: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer than the server could have waiting, and whole prompts only; none before the first is wanted."""
    monkeypatch.setenv("EMOTUNE_SERVER_CONCURRENCY", "3")
    engine = Server("sft")
    assert not served.bodies
    requests = [request("a", *range(5))] * 10
    assert engine.at_once(requests, SAMPLING) == 2
    assert engine.replies(requests[:2], SAMPLING) == server.replies(Servers(served.endpoint()), requests[:2], SAMPLING)


FAULTS = {
    "too many requests": answer({"error": "slow down"}, 429),
    "told to wait": answer({"error": "slow down"}, 429, retry_after="0"),
    "internal error": (500, b"Internal Server Error", {}),
    "bad gateway": (502, b"<html>Bad Gateway</html>", {}),
    "garbage": (200, b"<html>Welcome!</html>", {}),
    "binary": (200, b"\xff\xfe\x00", {}),
    "half of the JSON": (200, b'{"choices": [{"text": "I am', {}),
    "half of the bytes": (200, b'{"choices": [{"te', {"Content_Length": "200"}),
    "no choices": answer({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}),
    "no usage": answer({"choices": [{"text": "I am", "finish_reason": "stop"}]}),
    "another shape": answer(["I am"]),
    "given up": completion("I am", "abort"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_passing_fault_changes_no_reply(served: Loopback, fault: Answer) -> None:
    requests = [request("a", 1, 2), request("b", 3)]
    undisturbed = server.replies(Servers(served.endpoint()), requests, SAMPLING)
    served.bodies.clear()
    served.fails_first(2, fault)
    assert server.replies(Servers(served.endpoint()), requests, SAMPLING) == undisturbed
    assert len(served.bodies) == 9


def test_a_server_that_hangs_is_asked_again(served: Loopback) -> None:
    hung = threading.Event()

    def complete(body: dict[str, Any]) -> Answer:
        if not hung.is_set():
            hung.set()
            time.sleep(3)
        return vllm(body)

    served.complete = complete
    [[reply]] = server.replies(Servers(served.endpoint(timeout=1)), [request("a", 1)], SAMPLING)
    assert reply.tokens == 5
    assert len(served.bodies) == 2


def test_retry_after_is_waited_for(served: Loopback) -> None:
    served.fails_first(1, answer({}, 429, retry_after="1"))
    began = time.monotonic()
    server.replies(Servers(served.endpoint()), [request("a", 1)], SAMPLING)
    assert time.monotonic() - began >= 1.0


def test_a_server_that_says_to_wait_for_longer_than_two_minutes_is_given_up(served: Loopback) -> None:
    served.complete = lambda body: answer({"error": "come back in an hour"}, 429, retry_after="3600")
    with pytest.raises(InputError, match=r"no usable answer in one try: 429 .*come back in an hour"):
        server.replies(Servers(served.endpoint()), [request("a", 1)], SAMPLING)
    assert len(served.bodies) == 1


def test_nonsense_is_told_with_what_is_wrong_with_it(served: Loopback) -> None:
    served.complete = lambda body: FAULTS["no usage"]
    with pytest.raises(InputError, match=r"in 11 tries; the last: RemoteProtocolError: usage Field required, in {"):
        server.replies(Servers(served.endpoint()), [request("a", 1)], SAMPLING)


def test_a_server_that_never_recovers_is_given_up_with_its_last_words(served: Loopback) -> None:
    served.complete = lambda body: (503, b"<html>" + b"down for repair " * 100 + b"</html>", {})
    with pytest.raises(InputError) as error:
        server.replies(Servers(served.endpoint()), [request("a", 1)], SAMPLING)
    assert str(error.value).startswith(
        f"{served.url}/completions: no usable answer in 11 tries; the last: 503 <html>down"
    )
    assert str(error.value).endswith(" repair down f ... (0 of 1 replies had come)")
    assert len(served.bodies) == 11


def test_a_server_that_is_not_there_is_named(served: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("EMOTUNE_SERVER", f"http://127.0.0.1:{port}/v1")
    with pytest.raises(
        InputError, match=rf"http://127.0.0.1:{port}/v1/completions: no usable .* 3 tries.*ConnectError"
    ):
        server.connect("sft")


def test_a_refusal_is_final_and_told_in_the_words_of_the_server(served: Loopback) -> None:
    served.complete = lambda body: answer({"error": {"message": "the prompt is longer than 256 tokens"}}, 400)
    with pytest.raises(InputError, match=r"/v1/completions: 400 .*the prompt is longer than 256 tokens"):
        server.replies(Servers(served.endpoint()), [request("a", 1)], SAMPLING)
    assert len(served.bodies) == 1


def test_where_one_request_fails_those_under_way_end_and_no_other_starts(served: Loopback) -> None:
    three, failed = threading.Barrier(3), threading.Event()

    def complete(body: dict[str, Any]) -> Answer:
        if not failed.is_set():
            three.wait(timeout=10)
        if body["seed"] == 0:
            failed.set()
            return answer({"error": "no"}, 400)
        # What is under way ends after the failure.
        failed.wait(10)
        time.sleep(0.3)
        return vllm(body)

    served.complete = complete
    with pytest.raises(InputError) as error:
        server.replies(Servers(served.endpoint(3)), [request("a", *range(100))], SAMPLING)
    # The thread that failed may have begun with another before it was stopped.
    assert 3 <= len(served.bodies) < 10
    assert str(error.value).endswith(f"({len(served.bodies) - 1} of 100 replies had come)")


def test_connect_reads_the_environment_and_takes_the_url_with_or_without_v1(
    served: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.connect("sft") == [server.Endpoint(served.url, "sft", 32, 120)]
    monkeypatch.setenv("EMOTUNE_SERVER", served.url.removesuffix("v1"))
    monkeypatch.setenv("EMOTUNE_SERVER_CONCURRENCY", "5")
    monkeypatch.setenv("EMOTUNE_SERVER_TIMEOUT", "9")
    assert server.connect("sft") == [server.Endpoint(served.url, "sft", 5, 9)]


@pytest.mark.parametrize("url", ["", "localhost:8000/v1", "ftp://localhost/v1", "http://", "http://a:b:c/v1"])
def test_what_is_no_url_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("EMOTUNE_SERVER", url)
    with pytest.raises(
        InputError, match="EMOTUNE_SERVER must be set to the URL of an OpenAI-compatible server"
    ) as error:
        server.connect("sft")
    assert str(error.value).endswith(f"got {url!r}")


def test_no_server_set_is_told_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMOTUNE_SERVER", raising=False)
    with pytest.raises(InputError, match="EMOTUNE_SERVER must be set"):
        server.connect("sft")


@pytest.mark.parametrize("url", ["http://me:secret@localhost/v1", "http://localhost/v1?key=secret"])
def test_a_url_with_a_secret_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("EMOTUNE_SERVER", url)
    with pytest.raises(InputError, match="without user, query or fragment") as error:
        server.connect("sft")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("name", ["EMOTUNE_SERVER_CONCURRENCY", "EMOTUNE_SERVER_TIMEOUT"])
@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", ""])
def test_what_must_be_a_whole_number_is_checked(
    served: Loopback, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name} must be a whole number >= 1, got '{value}'"):
        server.connect("sft")


def test_the_key_is_sent_and_nowhere_shown(served: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOTUNE_SERVER_KEY", "s3cret\n")
    [endpoint] = server.connect("sft")
    assert served.authorizations == {"Bearer s3cret"}
    assert "s3cret" not in repr(endpoint)
    served.complete = lambda body: answer({"error": "wrong key: s3cret"}, 401)
    with pytest.raises(InputError, match=r"401 .*wrong key: \(the key\)") as error:
        server.replies(Servers(endpoint), [request("a", 1)], SAMPLING)
    assert "s3cret" not in str(error.value)


def test_without_a_key_none_is_sent_nor_what_the_environment_holds_for_another_server(
    served: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "s3cret")
    server.connect("sft")
    assert served.authorizations == {None}
    assert not any("s3cret" in headers for headers in served.headers)


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(
    served: Loopback, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("EMOTUNE_SERVER_KEY", key)
    with pytest.raises(InputError, match="EMOTUNE_SERVER_KEY must be printable ASCII") as error:
        server.connect("sft")
    assert key not in str(error.value)


def test_a_model_that_is_not_served_is_told_which_are(served: Loopback) -> None:
    with pytest.raises(InputError, match=f"{served.url} does not serve 'dpo'; it serves base, sft"):
        server.connect("dpo")


def test_so_it_is_by_a_server_that_answers_for_any_model(served: Loopback) -> None:
    served.complete = lambda body: vllm(body | {"model": "sft"})
    with pytest.raises(InputError, match="does not serve 'dpo'; it serves base, sft"):
        server.connect("dpo")


def test_a_setting_that_the_server_ignores_is_refused_unless_it_changes_nothing(served: Loopback) -> None:
    served.complete = lambda body: vllm(body | {"repetition_penalty": 1.0, "min_tokens": 0})
    [endpoint] = server.connect("sft")
    assert endpoint.unheeded == {"repetition_penalty", "min_new_tokens"}
    with pytest.raises(InputError, match=r"sampling.min_new_tokens: .* ignores it; set it to 0 .*, got 2"):
        server.replies(Servers(endpoint), [request("a", 1)], SAMPLING)
    with pytest.raises(InputError, match=r"sampling.repetition_penalty: .* ignores it; set it to 1.0 .*, got 1.1"):
        server.replies(Servers(endpoint), [request("a", 1)], SAMPLING.model_copy(update={"min_new_tokens": 0}))
    neutral = SAMPLING.model_copy(update={"min_new_tokens": 0, "repetition_penalty": 1.0})
    assert len(server.replies(Servers(endpoint), [request("a", 1)], neutral)[0]) == 1


def test_a_server_that_begins_prompts_by_itself_is_refused(served: Loopback) -> None:
    served.complete = lambda body: vllm(body) if body["top_k"] < -1 else completion("", prompt_tokens=2)
    with pytest.raises(InputError, match="reads the prompt 'a' as 2 tokens: it puts a beginning of its own"):
        server.connect("sft")


# --- several servers


def test_several_addresses_stand_between_commas_or_spaces_each_once(
    served: Loopback, other: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMOTUNE_SERVER", f" {served.url},{other.url}  {served.url} ")
    assert [endpoint.url for endpoint in server.connect("sft")] == [served.url, other.url]
    monkeypatch.setenv("EMOTUNE_SERVER", f"{served.url}, localhost:1")
    with pytest.raises(InputError, match=r"or to several with commas between them; got 'localhost:1'"):
        server.connect("sft")


def test_the_least_busy_is_asked(served: Loopback, other: Loopback) -> None:
    """All eight places are taken before any request has ended: two at one server, and six at the other."""
    eight = threading.Barrier(8)

    def complete(body: dict[str, Any]) -> Answer:
        eight.wait(timeout=10)
        return vllm(body)

    served.complete = other.complete = complete
    both = Servers(served.endpoint(2), other.endpoint(6))
    found = server.replies(both, [request("a", *range(24))], SAMPLING)
    assert (served.most_at_once, other.most_at_once) == (2, 6)
    served.complete = vllm
    assert server.replies(Servers(served.endpoint()), [request("a", *range(24))], SAMPLING) == found


def test_pairs_are_those_of_one_server_where_one_of_two_dies_in_mid_run(
    served: Loopback,
    other: Loopback,
    tmp_path: Path,
    tokenizer: Any,
    dialogues: list[Dialogue],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = parse(Path(__file__).parents[2] / "params.yaml")
    few = {"candidates": 3, "attempts": 2, "prompts": 8, "emotions": "dataset", "sampling": SAMPLING}
    p = whole.prefs.model_copy(update=few)
    asked = attempts.choose_prompts(dialogues, Prompter(tokenizer, None, 256, 5), whole.data.labels, p)

    def outcomes(name: str) -> Any:
        with journal.opened(tmp_path / name, {}) as memo:
            sample = sampling(Server("sft"), p)
            return attempts.generate(
                asked, p, whole.reward, sample, judging(lambda: (unsure, unsure)), memo, ahead=lambda: 1
            )

    def dies(body: dict[str, Any]) -> Answer:
        if len(other.bodies) > 12:
            other.kill()
        return vllm(body)

    monkeypatch.setenv("EMOTUNE_SERVER_CONCURRENCY", "2")
    other.complete = dies
    found = outcomes("two")
    assert other.killed
    # It died with requests under way: they were asked again.
    assert len(other.bodies) > 12
    warnings = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{other.url}/completions: no usable answer in 11 tries")
    assert warnings[0].endswith("; it is left out, and 1 server goes on")
    monkeypatch.setenv("EMOTUNE_SERVER", served.url)
    assert outcomes("one") == found


def test_where_all_die_the_last_words_are_told(served: Loopback, other: Loopback) -> None:
    both = Servers(served.endpoint(2), other.endpoint(2))
    served.kill()
    other.kill()
    with pytest.raises(InputError, match=r"no usable answer in 11 tries; .* \(0 of 8 replies had come\)"):
        server.replies(both, [request("a", *range(8))], SAMPLING)


def test_one_that_is_not_there_at_the_start_is_left_out_and_none_is_an_error_that_names_all(
    served: Loopback, other: Loopback, capsys: pytest.CaptureFixture[str]
) -> None:
    served.kill()
    assert [endpoint.url for endpoint in server.connect("sft")] == [other.url]
    assert capsys.readouterr().out.startswith(f"{served.url}/completions: no usable answer in 3 tries")
    other.kill()
    with pytest.raises(
        InputError, match=rf"{served.url}/completions: no usable .*\n{other.url}/completions: no usable"
    ):
        server.connect("sft")


def test_one_that_serves_another_model_is_an_error_whatever_the_others_do(served: Loopback, other: Loopback) -> None:
    other.models = answer({"object": "list", "data": [{"id": "dpo"}]})
    with pytest.raises(InputError, match=f"{other.url} does not serve 'sft'; it serves dpo"):
        server.connect("sft")


@pytest.fixture(scope="module")
def merged(tuned: Path, model_choice: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dpo model with its adapter merged into the base, and its tokenizer with the template."""
    folder = tmp_path_factory.mktemp("merged")
    loading.load_tuned(tuned / "base", model_choice, tuned / "dpo").save_pretrained(folder)
    loading.load_tokenizer(tuned / "dpo", None).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def transformers_serve(merged: Path) -> Iterator[str]:
    """The URL of a `transformers serve` of the merged model, in a thread: a process would import torch once more."""
    pytest.importorskip("openai", reason="transformers serve needs openai, fastapi and uvicorn")
    from transformers.cli.serve import Serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = Serve(str(merged), host="127.0.0.1", port=port, device="cpu", non_blocking=True)
    deadline = time.monotonic() + 60
    while not serving.server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}/v1"
    serving.kill_server()


def test_transformers_serve_heeds_seed_and_settings(
    transformers_serve: str, merged: Path, model_choice: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("EMOTUNE_SERVER", transformers_serve)
    [endpoint] = server.connect(str(merged))
    assert (endpoint.dialect, endpoint.concurrency, endpoint.unheeded) == ("transformers", 1, frozenset())
    prompt = "<s>I lost my keys again."

    def sample(keys: tuple[int, ...], **changed: float) -> list[Reply]:
        return server.replies(Servers(endpoint), [request(prompt, *keys)], SAMPLING.model_copy(update=changed))[0]

    first, second, again = sample((1, 2, 1))
    assert first == again
    assert first.text != second.text
    assert 2 <= first.tokens <= 16
    # A random model hardly ever ends by itself: the longest allowed is what it writes.
    assert [(r.tokens, r.ended) for r in sample((1,), min_new_tokens=7, max_new_tokens=7)] == [(7, False)]
    # Of one token there is no choice, whatever the seed.
    assert sample((1,), top_k=1) == sample((2,), top_k=1)
    # Where nothing is drawn both engines give the same reply. A heavy penalty makes it another.
    tokenizer = loading.load_tokenizer(merged, None)
    one = Request(tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"]), (1,), prompt)
    greedy = {
        penalty: SAMPLING.model_copy(update={"temperature": 0.0, "repetition_penalty": penalty})
        for penalty in (1.1, 5.0)
    }
    model = loading.load_base(merged, model_choice)
    here = [local.replies(model, tokenizer, [one], settings) for settings in greedy.values()]
    assert [server.replies(Servers(endpoint), [one], settings) for settings in greedy.values()] == here
    assert here[0] != here[1]


def test_preferences_are_sampled_by_a_server_as_they_are_here(
    transformers_serve: str, merged: Path, tmp_path: Path, dialogues: list[Dialogue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the journal holds is not asked for again, by whichever name."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("EMOTUNE_SERVER", transformers_serve)
    whole = parse(Path(__file__).parents[2] / "params.yaml")
    few = {"candidates": 2, "attempts": 2, "prompts": 3, "emotions": "dataset"}
    p = whole.prefs.model_copy(update={"sampling": SAMPLING, **few})
    tokenizer = loading.load_tokenizer(merged, "out_inst_uni")
    asked = attempts.choose_prompts(dialogues, Prompter(tokenizer, None, 256, 5), whole.data.labels, p)
    judge = judging(lambda: (unsure, unsure))
    with journal.opened(tmp_path / "journal.sqlite", {}) as memo:
        sample = sampling(Server(str(merged)), p)
        first = attempts.generate(asked, p, whole.reward, sample, judge, memo, ahead=lambda: 1)
        again = attempts.generate(asked, p, whole.reward, sampling(Server("absent"), p), judge, memo, ahead=lambda: 1)
        kept = [memo.find(prompt.digest, attempt) for prompt in asked for attempt in (1, 2)]
    assert first == again
    assert [outcome.attempts for outcome in first] == [2, 2, 2]
    assert len({replies[0][0] for replies in kept}) == 6


def unsure(texts: Sequence[str]) -> list[tuple[str, float]]:
    return [("neutral", 0.2)] * len(texts)


def test_transformers_serve_names_the_model_it_is_pinned_to(
    transformers_serve: str, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("EMOTUNE_SERVER", transformers_serve)
    with pytest.raises(InputError, match=f"400 .*Server is pinned to '{merged}'; requested 'dpo'"):
        server.connect("dpo")


def test_transformers_serve_replies_in_the_emotion_that_an_openai_client_asks_for(
    transformers_serve: str, merged: Path, model_choice: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the template that the tokenizer carries. Of a message it hands role and content alone to the template, so the
    emotion of what the user said is empty there.
    """
    openai = pytest.importorskip("openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    client = openai.OpenAI(base_url=transformers_serve, api_key="none", max_retries=0)
    model, tokenizer = loading.load_base(merged, model_choice), loading.load_tokenizer(merged, None)
    greedy = SAMPLING.model_copy(update={"temperature": 0.0, "repetition_penalty": 1.0, "min_new_tokens": 0})
    said = {"role": "user", "content": "I lost my keys again.", "emotion": "sadness"}
    texts = []
    for emotion in ("happiness", "anger"):
        asked = {
            "model": str(merged),
            "messages": [said],
            "max_tokens": greedy.max_new_tokens,
            "temperature": 0,
            "extra_body": {"chat_template_kwargs": {"emotion": emotion}},
        }
        prompt = f"<s>[INST] [EMOTION]  [/EMOTION] I lost my keys again. [/INST] [EMOTION] {emotion} [/EMOTION]"
        ids = tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        [[reply]] = local.replies(model, tokenizer, [Request(ids, (1,))], greedy)
        whole = client.chat.completions.create(**asked)
        assert whole.usage.prompt_tokens == len(ids)
        assert " ".join(whole.choices[0].message.content.split()) == reply.text
        pieces = [
            chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)
        ]
        assert " ".join("".join(pieces).split()) == reply.text
        texts.append(reply.text)
    assert texts[0] != texts[1]
