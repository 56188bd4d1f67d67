"""Laws of `emotune compare --blind` and `emotune votes`: no name is seen, no vote is lost, strengths are people's."""

import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from conftest import LABELS, ROOT, entered_too_early, write_params
from emotune.core import records
from emotune.core.dialogue import Dialogue
from emotune.core.errors import InputError
from emotune.faces import blind, chat, cli, compare
from emotune.faces import votes as faces_votes
from emotune.preferences.votes import counted, read
from emotune.runs.params import Params, parse

# By what the simulated voters prefer, the worst first.
RANK = ("baseline", "sft", "dpo")
# Of each of two voters: so many that chance hides no order.
VOTES = 100
MARKUP = "<img src=x onerror=alert(1)><b>bold</b>"


@pytest.fixture(scope="module")
def p() -> Params:
    """The repository's params.yaml with short replies."""
    whole = parse(ROOT / "params.yaml")
    sampling = whole.evaluate.sampling.model_copy(update={"max_new_tokens": 6})
    evaluate = whole.evaluate.model_copy(update={"sampling": sampling, "resamples": 200})
    return whole.model_copy(update={"evaluate": evaluate})


@pytest.fixture(scope="module")
def polls(tuned: Path, dialogues: list[Dialogue], p: Params, tmp_path_factory: pytest.TempPathFactory) -> blind.Polls:
    adapters = {name: records.digest(chat.located(tuned, name)) for name in RANK}
    lend, judge = compare.open_voices(tuned, p.model), chat.open_listener(tuned, p)
    return blind.Polls(lend, RANK, adapters, judge, p, dialogues, tmp_path_factory.mktemp("votes"))


@pytest.fixture(scope="module")
def url(polls: blind.Polls) -> Iterator[str]:
    """The page, served in a thread."""
    listening = compare.listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(blind.app(polls, compare.LOOPBACK), log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join()


def simulated(ballot: blind.Ballot, rng: random.Random) -> str:
    """What a voter says who knows the models by heart, and errs in one vote of ten."""
    better = RANK.index(ballot.left.model) > RANK.index(ballot.right.model)
    return "left" if better != (rng.random() < 0.1) else "right"


def post(client: Any, path: str, **content: Any) -> dict[str, Any]:
    answered = client.post(path, json=content)
    assert answered.status_code == 200, answered.text
    return answered.json()


def client(url: str) -> Any:
    return httpx2.Client(base_url=url, trust_env=False, timeout=60)


def ballot(open: Any, voter: str, **changes: Any) -> dict[str, Any]:
    return post(open, "ballots", **({"voter": voter, "message": None, "emotion": None} | changes))


def cast(open: Any, id: str, choice: str, **changes: Any) -> dict[str, Any]:
    return post(open, "votes", **({"ballot": id, "choice": choice, "note": "", "seconds": 1.0} | changes))


def test_two_voters_at_once_lose_no_vote_and_their_strengths_are_in_the_order_of_their_rule(
    url: str, polls: blind.Polls, tuned: Path, p: Params, tmp_path: Path
) -> None:
    def sit(voter: str) -> None:
        rng = random.Random(voter)
        with client(url) as open:
            for number in range(VOTES):
                drawn = ballot(open, voter)
                assert drawn["counted"] == number
                choice = simulated(polls.open[drawn["ballot"]], rng)
                cast(open, drawn["ballot"], choice)
                if number % 10 == 0:
                    # Double votes count once.
                    assert cast(open, drawn["ballot"], choice) == {"kept": choice}

    threads = [threading.Thread(target=sit, args=(voter,)) for voter in ("ann", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    votes = [vote for voter in ("ann", "bob") for vote in read(polls.folder / f"{voter}.jsonl", LABELS)]
    assert len(votes) == 2 * VOTES * 11 // 10
    assert len(counted(votes)) == 2 * VOTES
    # Both were asked the same, so that whether they agree can be told; each saw either model on either side.
    assert len({vote.question for vote in votes}) == VOTES
    assert {(vote.left.model, vote.voter) for vote in votes} == {(name, v) for name in RANK for v in ("ann", "bob")}
    merged = tmp_path / "all.jsonl"
    merged.write_bytes(b"".join((polls.folder / f"{voter}.jsonl").read_bytes() for voter in ("bob", "ann", "bob")))
    told = faces_votes.measured(merged, tuned, p)
    assert (told["votes"], told["voters"], told["questions"]) == (2 * VOTES, 2, VOTES)
    names = {one["adapter"]: one["model"] for one in told["models"]}
    strengths = {names[row["adapter"]]: row for row in told["strengths"]}
    assert strengths["baseline"]["high"] < strengths["sft"]["low"]
    assert strengths["sft"]["high"] < strengths["dpo"]["low"]
    for pair in told["pairs"]:
        better = RANK.index(names[pair["models"][0]]) > RANK.index(names[pair["models"][1]])
        assert pair["win_rate"]["low"] < (0.9 if better else 0.1) < pair["win_rate"]["high"]
    # Two that err apart agree in .82 of the votes; by chance it would be half.
    assert 0.45 < told["agreement"]["value"] < 0.8
    assert told["agreement"]["questions"] == VOTES


def test_no_ballot_names_a_model_and_equal_seeds_ask_the_same(url: str, polls: blind.Polls) -> None:
    with client(url) as open:
        drawn = ballot(open, "zoe")
        text = json.dumps(drawn) + open.get("about").text
        assert not any(word in text for word in (*polls.adapters.values(), *RANK))
        again = ballot(open, "zoe")
        assert again | {"ballot": None} == drawn | {"ballot": None}
        other = ballot(open, "eve")
        assert {other["left"], other["right"]} == {drawn["left"], drawn["right"]}


def test_the_last_word_on_a_ballot_counts_and_may_withdraw_it(url: str, polls: blind.Polls) -> None:
    with client(url) as open:
        drawn = ballot(open, "kim")
        cast(open, drawn["ballot"], "left")
        assert ballot(open, "kim")["counted"] == 1
        cast(open, drawn["ballot"], "withdrawn")
        assert ballot(open, "kim") | {"ballot": None} == drawn | {"ballot": None}
        cast(open, drawn["ballot"], "both good", note=MARKUP, seconds=2.5)
    [vote] = polls.votes("kim")
    assert (vote.choice, vote.note, vote.seconds) == ("both good", MARKUP, 2.5)
    assert [vote.choice for vote in read(polls.file("kim"), LABELS)] == ["left", "withdrawn", "both good"]


def test_what_a_voter_types_is_answered_in_the_emotion_he_chose(url: str, polls: blind.Polls) -> None:
    with client(url) as open:
        drawn = ballot(open, "lee", message="  We won\nthe match! ", emotion="fear")
        assert (drawn["context"], drawn["emotion"]) == ([{"role": "user", "content": "We won the match!"}], "fear")
        cast(open, drawn["ballot"], "right")
        assert polls.votes("lee")[0].dialogue is None
        # The contexts of the split begin where they would have.
        assert ballot(open, "lee")["context"] == ballot(open, "mia")["context"]


@pytest.mark.parametrize(
    ("path", "changes", "told"),
    [
        ("ballots", {"voter": "../etc/passwd"}, "voter: String should match pattern"),
        ("ballots", {"emotion": "joy"}, "emotion must be one of neutral, anger"),
        ("ballots", {"message": " "}, "message: String should have at least 1 character"),
        ("votes", {"ballot": "none"}, "this ballot is not open: emotune compare was started anew"),
        ("votes", {"choice": "middle"}, "choice: Input should be 'left'"),
        ("votes", {"note": "x" * 2001}, "note: String should have at most 2000 characters"),
        ("votes", {"seconds": -1}, "seconds: Input should be greater than or equal to 0"),
    ],
)
def test_what_is_no_vote_is_refused_and_told_why(url: str, path: str, changes: dict[str, Any], told: str) -> None:
    whole = {
        "ballots": {"voter": "pat", "message": None, "emotion": None},
        "votes": {"ballot": "none", "choice": "left", "note": "", "seconds": 1.0},
    }
    refused = httpx2.post(f"{url}{path}", json=whole[path] | changes, trust_env=False)
    assert (refused.status_code, told in refused.json()["error"]) == (400, True), refused.text


def test_no_page_from_elsewhere_can_vote(url: str) -> None:
    for path in ("ballots", "votes"):
        assert httpx2.post(f"{url}{path}", content=b"{}", trust_env=False).status_code == 415
        assert (
            httpx2.post(f"{url}{path}", json={}, headers={"host": "evil.example"}, trust_env=False).status_code == 400
        )
        assert httpx2.post(f"{url}{path}", json="x" * compare.LONGEST, trust_env=False).status_code == 413
    assert "frame-ancestors 'none'" in httpx2.get(url, trust_env=False).headers["content-security-policy"]


def test_a_damaged_file_is_named_to_its_voter(url: str, polls: blind.Polls) -> None:
    polls.file("dan").write_text("{}\n")
    refused = httpx2.post(f"{url}ballots", json={"voter": "dan", "message": None, "emotion": None}, trust_env=False)
    polls.file("dan").unlink()
    assert "dan.jsonl:1: voter is missing" in refused.json()["error"]


def test_models_that_always_say_the_same_are_not_compared_for_ever(polls: blind.Polls, p: Params) -> None:
    greedy = p.evaluate.sampling.model_copy(update={"temperature": 0.0, "max_new_tokens": 1, "min_new_tokens": 1})
    still = p.model_copy(update={"evaluate": p.evaluate.model_copy(update={"sampling": greedy})})
    dialogues = [dialogue for dialogue, _ in polls.places]
    twice = blind.Polls(polls.lend, ("dpo", "dpo"), polls.adapters, polls.judge, still, dialogues, polls.folder)
    with pytest.raises(InputError, match="the models said the same 64 times in a row"):
        twice.next([])


@pytest.fixture
def repository(tmp_path: Path, tuned: Path, dialogues: list[Dialogue], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which the subcommands can be called."""
    write_params(tmp_path, {"evaluate.sampling.max_new_tokens": 6, "evaluate.resamples": 100})
    (tmp_path / "models").symlink_to(tuned)
    records.write_jsonl(tmp_path / "data/dialogues/validation.jsonl", map(asdict, dialogues))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def vote_on(url: str, told: list[str]) -> None:
    """Vote until the server is gone; `told` are the left replies of the votes that it said to have."""
    with client(url) as open, suppress(httpx2.TransportError):
        while True:
            drawn = ballot(open, "ann")
            cast(open, drawn["ballot"], "left")
            told.append(drawn["left"])


@pytest.mark.usefixtures("warm_processes")
def test_a_killed_server_loses_at_most_the_vote_in_flight(repository: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "emotune.faces.cli", "compare", "--blind", "--port", "0"],
        cwd=repository,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "Two replies without names, votes go to data/votes: http://127.0.0.1:" in line
        told: list[str] = []
        voting = threading.Thread(target=vote_on, args=(re.findall("http://[0-9.:]+/", line)[0], told))
        voting.start()
        while len(told) < 10:
            time.sleep(0.01)
            assert voting.is_alive()
        process.send_signal(signal.SIGKILL)
        voting.join()
        kept = [vote.left.reply for vote in read(repository / "data/votes", LABELS)]
        assert kept[: len(told)] == told
        assert len(kept) <= len(told) + 1
    finally:
        process.kill()
        process.wait()


def test_the_terminal_tells_what_votes_say_and_writes_it_for_page_and_cards(
    repository: Path, polls: blind.Polls, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with client(url) as open:
        for choice in ("left", "right", "both bad", "left"):
            cast(open, ballot(open, "una")["ballot"], choice)
    lines = polls.file("una").read_text().splitlines()
    gone = json.loads(lines[0])
    gone["left"]["adapter"] = "f" * 64
    (repository / "data/votes").mkdir()
    (repository / "data/votes/una.jsonl").write_text("\n".join([json.dumps(gone), *lines[1:]]) + "\n")
    assert cli.main(["votes"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("votes 4, voters 1, questions 4\n")
    assert "evaluating judge" in out
    assert "reward model" in out
    content = records.digest(repository / "data/votes")
    assert f"prefs.votes_revision: {content}\nreward_model.pairs: [contrast, votes@{content}]" in out
    assert err == f"not in models, so of another run: {gone['left']['model']} ffffffffffff\n"
    assert f"{gone['left']['model']} ffffffff" in out
    told = records.read_metrics(repository / "metrics/votes.json")
    assert told["votes"] == 4
    assert "una" not in (repository / "metrics/votes.json").read_text()
    assert cli.main(["votes", "--pairs", "pairs.jsonl"]) == 0
    rows = list(records.read_jsonl(repository / "pairs.jsonl"))
    assert len(rows) == 3
    assert all(row.keys() >= {"prompt", "history", "emotion", "chosen", "rejected"} for row in rows)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["votes"], "data/votes: no such file or folder; `emotune compare --blind` writes votes"),
        (["votes", "bad.jsonl"], "bad.jsonl:1: not JSON"),
        (["votes", "none.jsonl"], "none.jsonl: no vote counts"),
        (["compare", "--models", "sft", "dpo"], "--models says whose replies are voted on, so it needs --blind"),
        (["compare", "--blind", "--models", "sft"], "--models takes two or more, got sft"),
    ],
)
def test_what_cannot_be_told_is_one_message(
    repository: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "bad.jsonl").write_text("{\n")
    (repository / "none.jsonl").write_text("")
    assert cli.main(words) == 2
    assert told in capsys.readouterr().err
    assert not (repository / "metrics").exists()


def test_a_model_that_is_gone_is_told(repository: Path, tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "models").unlink()
    (repository / "models").mkdir()
    for part in ("base", "judges", "sft"):
        (repository / "models" / part).symlink_to(tuned / part)
    assert cli.main(["compare", "--blind", "--port", "0"]) == 2
    assert "models/dpo: no such folder; `dvc repro` makes it" in capsys.readouterr().err


def idle(page: Any) -> None:
    page.wait_for_selector(".choices button:not([disabled])")


def test_twenty_votes_by_the_keyboard_alone(page: Any, url: str, polls: blind.Polls) -> None:
    page.goto(url)
    assert "What is stored" in page.locator(".told").text_content()
    page.wait_for_selector(f".told:has-text('{polls.folder}/NAME.jsonl')")
    assert not polls.file("joe").exists()
    page.keyboard.press("Tab")
    page.keyboard.type("joe")
    page.keyboard.press("Enter")
    rng = random.Random(7)
    for number in range(20):
        idle(page)
        shown = next(reversed(polls.open.values()))
        assert page.locator(".left, .right").all_text_contents() == [shown.left.reply, shown.right.reply]
        assert page.locator(".context li").all_text_contents() == [turn.content for turn in shown.question.context]
        assert page.locator(".asked .pill").text_content() == shown.question.emotion
        page.keyboard.press("12"[simulated(shown, rng) == "right"])
        page.wait_for_selector(f".progress:text-is('{number + 1} {'votes' if number else 'vote'}')")
    idle(page)
    votes = polls.votes("joe")
    assert len(votes) == 20
    assert sum(RANK.index(vote.winner.model) > RANK.index(vote.loser.model) for vote in votes) > 13
    # Undone, it is asked again; a note goes with the next word on it, and what is typed there is no vote.
    page.keyboard.press("u")
    page.wait_for_selector(".progress:text-is('19 votes')")
    idle(page)
    page.keyboard.press("n")
    page.keyboard.type(f"1 {MARKUP}")
    page.keyboard.press("Escape")
    page.keyboard.press("4")
    page.wait_for_selector(".progress:text-is('20 votes')")
    last = max(polls.votes("joe"), key=lambda vote: vote.at)
    assert (last.question, last.choice, last.note) == (votes[-1].question, "both bad", f"1 {MARKUP}")
    assert last.seconds > 0


def test_text_is_shown_as_text_on_a_phone_by_day_and_by_night_and_no_name_is_asked_for(
    page: Any, url: str, polls: blind.Polls
) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(url)
    before = {file.name for file in polls.folder.iterdir()}
    page.get_by_role("button", name="Begin").click()
    idle(page)
    page.get_by_text("Say something of your own").click()
    page.get_by_label("Your message").fill(MARKUP + "Donaudampfschifffahrtsgesellschaft" * 4)
    page.get_by_label("The emotion of the replies").select_option("anger")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector(".context li:has-text('Donau')")
    idle(page)
    assert MARKUP in page.locator(".context .user").text_content()
    assert page.locator("main img, .context b").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.get_by_role("button", name="both good").click()
    page.wait_for_selector(".progress:text-is('1 vote')")
    [new] = {file.name for file in polls.folder.iterdir()} - before
    assert new.startswith("anon-")
    paper = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(paper)
    page.emulate_media(color_scheme="light")
    assert dark != page.evaluate(paper)


def test_whoever_begins_before_the_page_knows_the_emotions_is_asked(page: Any, url: str) -> None:
    entered_too_early(page, url, "A name, if you like", "ada")
    idle(page)
    page.keyboard.press("1")
    page.wait_for_selector(".progress:text-is('1 vote')")


def test_a_server_that_is_gone_is_told_and_the_vote_can_be_given_again(page: Any, url: str, polls: blind.Polls) -> None:
    page.goto(url)
    page.get_by_label("A name, if you like").fill("max")
    page.get_by_role("button", name="Begin").click()
    idle(page)
    page.route("**/votes", lambda route: route.abort())
    page.route("**/ballots", lambda route: route.abort())
    page.keyboard.press("1")
    page.wait_for_selector(".wrong:has-text('does emotune compare still run?')")
    page.unroute("**/votes")
    page.unroute("**/ballots")
    idle(page)
    page.keyboard.press("1")
    page.wait_for_selector(".progress:text-is('1 vote')")
    assert len(polls.votes("max")) == 1
