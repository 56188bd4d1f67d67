"""Laws of costs.jsonl: a line that a full disk tore costs nobody more than itself, and lines of older form are read."""

from pathlib import Path

import pytest

from emotune.runs import costs, tables

OLD = '{"experiment": null, "stage": "sft", "seconds": 61.5, "peak_memory_bytes": 5, "device": "cpu", "failed": null}\n'
TORN = '{"experiment": null, "stage": "dpo", "seco'


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    (tmp_path / ".work").mkdir()
    return tmp_path / ".work/costs.jsonl"


def test_a_torn_line_is_skipped_and_said(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(OLD + TORN + "\n" + OLD.replace("61.5", "80.0"))
    assert tables.last_costs(path, ["sft", "dpo"])["sft"]["seconds"] == 80.0
    assert capsys.readouterr().err == f"{path}:2: skipped, for it was not written to its end\n"


def test_after_a_torn_line_the_next_stage_begins_its_own(path: Path) -> None:
    path.write_text(OLD + TORN)
    costs.Cost("prepare").note(None)
    assert [line["stage"] for line in costs.lines(path)] == ["sft", "prepare"]
    costs.Cost("judges").note("no room")
    assert path.read_text().count("\n") == 4
    assert [line["stage"] for line in costs.lines(path)] == ["sft", "prepare", "judges"]


def test_of_a_machine_on_which_nothing_ran_there_are_no_lines(path: Path) -> None:
    assert list(costs.lines(path)) == []
