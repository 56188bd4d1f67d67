"""Laws of questions asked by a model: what is checked of an answer, and that no passage is asked twice."""

from pathlib import Path
from typing import Any

import pytest
from test_server import Answer, Loopback, answer, completion, served, vllm

from conftest import ROOT
from emotune.core import records
from emotune.core.errors import InputError
from emotune.core.sections import check
from emotune.stages.instruct import questions as stage

__all__ = ["served"]
PASSAGES = [f"The {name} keeps every reply that was sampled, for 30 days, in one file." for name in "abcdef"]
DEFAULT: dict[str, Any] = {
    "path": "text",
    "revision": None,
    "engine": "model",
    "template": "{passage}\nAsk about it.\nQ:",
    "generation": {"engine": "server", "model": "sft"},
    "model": {
        "base": "embedded",
        "revision": None,
        "dtype": "float32",
        "attention": "sdpa",
        "quantization": "none",
        "context": 128,
    },
    "sampling": {
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "min_new_tokens": 0,
        "max_new_tokens": 16,
        "guidance": 1.0,
    },
    "seed": 7,
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the stage on a folder of the passages, with these keys of `questions`; gives metrics and rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("EMOTUNE_SERVER_CONCURRENCY", "1")
    Path("text").mkdir()
    Path("text/a.txt").write_text("\n\n".join(PASSAGES), "utf-8")
    pin = records.content_hash({"a.txt": records.sha256(Path("text/a.txt"))})

    def run(**keys: Any) -> tuple[Any, list[dict[str, Any]]]:
        p = check(stage.Params, {"questions": DEFAULT | {"revision": pin} | keys}, "params.yaml")
        measured = stage.main(p, lambda metrics, step: None, Path("data/questions.jsonl"))
        return measured, list(records.read_jsonl(Path("data/questions.jsonl")))

    return run


def letter(body: dict[str, Any]) -> str:
    return body["prompt"].split()[1]


def asks(body: dict[str, Any]) -> Answer:
    """What a model that does what it is told answers."""
    if body["prompt"] == "a":
        return vllm(body)
    return completion(f" What does the {letter(body)} keep? A: Each sampled reply for 30 days.")


def asked(served: Loopback) -> list[str]:
    return [letter(body) for body in served.bodies if body["prompt"] != "a"]


def test_a_passage_gives_a_row_that_names_its_line(served: Loopback, run: Any) -> None:
    served.complete = asks
    measured, rows = run()
    assert measured == {"rows": 6, "rules": {"model": 6}, "files": {"a.txt": 6}, "passages": 6, "dropped": {}}
    assert rows[2] == {
        "id": "question-00002",
        "task": "question",
        "instruction": "What does the c keep?",
        "input": "",
        "output": "Each sampled reply for 30 days.",
        "source": "a.txt:5",
        "exact": False,
        "rule": "model",
    }
    assert {body["prompt"] for body in served.bodies} >= {f"{text}\nAsk about it.\nQ:" for text in PASSAGES}


def test_what_is_no_question_and_what_the_passage_does_not_say_is_dropped_and_counted(
    served: Loopback, run: Any
) -> None:
    replies = {
        "a": completion("blah blah"),
        "b": completion(""),
        "c": completion("What does it keep? A: Secrets of the queen."),
        "d": completion("What does it keep? A: Every reply for", "length"),
        "e": completion("What is kept? A: Every reply. Q: What is it? A: One dragon."),
    }

    def complete(body: dict[str, Any]) -> Answer:
        return replies.get(letter(body), asks(body)) if body["prompt"] != "a" else vllm(body)

    served.complete = complete
    measured, rows = run()
    assert measured["dropped"] == {"no_question": 2, "not_in_passage": 2, "unfinished": 1}
    assert [row["output"] for row in rows] == ["Every reply.", "Each sampled reply for 30 days."]


def test_a_run_that_was_stopped_goes_on_behind_the_last_batch_and_asks_nobody_again(served: Loopback, run: Any) -> None:
    def refuses(body: dict[str, Any]) -> Answer:
        return answer({"error": "full"}, 400) if "The e " in body["prompt"] else asks(body)

    served.complete = refuses
    with pytest.raises(InputError, match=r"400 .*full"):
        run()
    assert not Path("data").exists()
    assert {*asked(served)} >= {*"abcde"}
    served.complete = asks
    served.bodies.clear()
    _, rows = run()
    assert sorted(asked(served)) == list("ef")
    served.bodies.clear()
    assert run()[1] == rows
    assert asked(served) == []
    Path(".work/journal.sqlite").unlink()
    assert run()[1] == rows
    assert sorted(asked(served)) == list("abcdef")


def test_a_server_that_says_nothing_of_use_stops_the_stage(served: Loopback, run: Any) -> None:
    served.complete = lambda body: vllm(body) if body["prompt"] == "a" else completion("")
    with pytest.raises(InputError, match=r"none of the 6 passages gave a row \(no_question 6\); .*template must"):
        run()
    assert not Path("data").exists()


def test_a_model_of_this_machine_is_asked_as_a_server_is(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The embedded one has never seen a question of this form."""
    local = {"generation": {"engine": "local", "model": None}}
    for asked_again in (0, 6):
        with pytest.raises(InputError, match=r"none of the 6 passages gave a row \(no_question"):
            run(**local)
        assert f"{6 - asked_again} passages asked, {asked_again} taken from the journal" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"none of the 6 passages gave a row \(too_long 6\)"):
        run(**local, model=DEFAULT["model"] | {"context": 32})


def test_rules_ask_nobody_and_without_a_folder_there_is_no_row(run: Any, tmp_path: Path) -> None:
    assert run(path=None, engine="rules") == (
        {"rows": 0, "rules": {}, "files": {}, "passages": 0, "dropped": {}},
        [],
    )
    for name in ("README.md", "docs/preferences.md"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "mine/logo.png").write_bytes(b"\0")
    pin = records.content_hash(
        {name: records.sha256(tmp_path / "mine" / name) for name in ("README.md", "docs/preferences.md")}
    )
    measured, rows = run(path="mine", revision=pin, engine="rules")
    assert measured["rows"] == len(rows) == sum(measured["files"].values()) == sum(measured["rules"].values()) > 10
    assert {row["rule"] for row in rows} == set(measured["rules"])
    assert not (tmp_path / ".work").exists()
    for row in rows:
        name, line = row["source"].rsplit(":", 1)
        text = (tmp_path / "mine" / name).read_text("utf-8").split("\n")[int(line) - 1 :]
        assert row["output"].split()[0].strip("`*") in " ".join(text[:12])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"template": "Ask!"}, r"questions.template must hold \{passage\}, where the passage stands, got 'Ask!'"),
        ({"engine": "magic"}, r"questions.engine: input should be 'rules' or 'model', got \"magic\""),
        ({"path": "absent"}, "questions.path: no such folder or file"),
        ({"revision": "0"}, "questions.revision pins what DVC cannot hash"),
    ],
)
def test_what_is_wrong_with_the_params_is_told(run: Any, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(**keys)
