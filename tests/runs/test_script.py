"""Laws of `sh stage ...`, by which dvc.yaml starts a stage: under real DVC, in a shell where no .venv is active."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from conftest import ROOT, STAGES, TINY, write_params

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage of a second in git and DVC, a .venv that has emotune, and a python on the PATH that has none."""
    folder = tmp_path_factory.mktemp("script") / "repository"
    (folder.parent / "bin").mkdir(parents=True)
    python = folder.parent / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    python.chmod(0o755)
    folder.mkdir()
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / ".gitignore").write_text(".venv\n.work\n/data\n")
    (folder / ".dvcignore").write_text(".venv\n.work\n")
    shutil.copyfile(ROOT / "stage", folder / "stage")
    prepare = {key: value for key, value in STAGES["prepare"].items() if key != "deps"}
    YAML().dump({"stages": {"prepare": prepare}}, folder / "dvc.yaml")
    write_params(folder, TINY | {"data.dialogues": 100})
    for command in (
        "git init -q -b main",
        "git config user.name A",
        "git config user.email a@localhost",
        "dvc init -q",
    ):
        assert in_fresh_shell(folder, *command.split()).returncode == 0
    in_fresh_shell(folder, "git", "add", ".")
    in_fresh_shell(folder, "git", "commit", "-qm", "A stage")
    return folder


def in_fresh_shell(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command where nothing is active; dvc is that of .venv."""
    words = [f"{folder}/.venv/bin/dvc", *command[1:]] if command[0] == "dvc" else command
    without = {"PATH": os.pathsep.join([str(folder.parent / "bin"), "/usr/local/bin", "/usr/bin", "/bin"])}
    if "PYTHONPATH" in os.environ:
        without["PYTHONPATH"] = os.environ["PYTHONPATH"]
    config = {"DVC_NO_ANALYTICS": "1", "DVC_GLOBAL_CONFIG_DIR": str(folder.parent), "GIT_CONFIG_GLOBAL": os.devnull}
    mute = {"EMOTUNE_TRACKING": "off", "HOME": str(folder.parent), "DVC_SITE_CACHE_DIR": str(folder.parent / "dvc")}
    return subprocess.run(words, cwd=folder, env=without | config | mute, capture_output=True, text=True)


def test_a_stage_is_started_where_no_environment_is_active(repository: Path) -> None:
    done = in_fresh_shell(repository, "dvc", "repro")
    assert done.returncode == 0, done.stderr
    assert (repository / "data/dialogues/labels.json").is_file()


def test_an_experiment_in_another_folder_is_too(repository: Path) -> None:
    done = in_fresh_shell(repository, "dvc", "exp", "run", "--temp", "--name", "elsewhere", "-S", "data.dialogues=110")
    assert done.returncode == 0, done.stderr
    assert "elsewhere" in in_fresh_shell(repository, "dvc", "exp", "list", "--name-only").stdout.split()


def test_where_emotune_is_nowhere_the_failure_says_what_installs_it(repository: Path, tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "stage", tmp_path / "stage")
    done = in_fresh_shell(repository, "sh", "-c", f"cd '{tmp_path}' && sh stage prepare --out data/dialogues")
    assert done.returncode == 2
    assert done.stderr == (
        "stage prepare: emotune is neither in the python on the PATH nor in .venv: "
        "`make repro` makes .venv and installs it\n"
    )
