"""Laws of a stage's start: flags from its signature, one message for bad input, and a place that outlives it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emotune import launch

STAGE = '''
from pathlib import Path
from emotune import launch
from emotune.errors import InputError

def main(dialogues: Path, base_model: Path) -> None:
    """Copy one file."""
    if not dialogues.is_file():
        raise InputError(f"{dialogues}:3: expected a dialogue, found nothing")
    base_model.write_text(dialogues.read_text())
    if base_model.name == "bug":
        raise ValueError("a bug of ours")

launch.stage(main)
'''


def start(folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "copy_one.py").write_text(STAGE)
    (folder / "in.txt").write_text("hello")
    plain = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"}
    return subprocess.run(
        [sys.executable, "copy_one.py", *flags], cwd=folder, env=plain | environment, capture_output=True, text=True
    )


def test_a_stage_takes_a_flag_for_each_path_and_notes_its_seconds(tmp_path: Path) -> None:
    run = start(tmp_path, "--dialogues", "in.txt", "--base-model", "out.txt")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("copy_one took ")
    assert (tmp_path / "out.txt").read_text() == "hello"
    assert float((tmp_path / ".work/seconds/copy_one").read_text()) >= 0


def test_bad_input_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    run = start(tmp_path, "--dialogues", "gone.txt", "--base-model", "out.txt")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "emotune copy_one: gone.txt:3: expected a dialogue, found nothing\n"


def test_a_bug_of_ours_keeps_its_traceback(tmp_path: Path) -> None:
    run = start(tmp_path, "--dialogues", "in.txt", "--base-model", "bug")
    assert run.returncode == 1
    assert "Traceback" in run.stderr


def test_a_missing_flag_is_named_with_the_usage(tmp_path: Path) -> None:
    run = start(tmp_path, "--dialogues", "in.txt")
    assert run.returncode == 2
    assert "python -m emotune.stages.copy_one" in run.stderr
    assert "--base-model" in run.stderr


def test_in_an_experiments_workspace_the_work_lies_in_the_repository(tmp_path: Path) -> None:
    workspace, repository = tmp_path / "workspace", tmp_path / "repository"
    run = start(workspace, "--dialogues", "in.txt", "--base-model", "out.txt", DVC_ROOT=str(repository))
    assert run.returncode == 0
    assert (repository / ".work/seconds/copy_one").is_file()
    assert not (workspace / ".work").exists()


def test_root_is_dvcs_or_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert launch.work("sft", "abc") == tmp_path / ".work" / "sft" / "abc"
    monkeypatch.setenv("DVC_ROOT", "/elsewhere")
    assert launch.root() == Path("/elsewhere")


def test_processes_of_one_launcher_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = launch.cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert launch.cores() == max(1, alone // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100000")
    assert launch.cores() == 1
