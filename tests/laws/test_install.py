"""Laws of the Makefile's installation: which torch it asks pip for, and what it says before."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

# Stands for pip, which is not ours: writes down what it is told, and where LACKING says so has no build without CUDA.
PIP = """#!/bin/sh
echo "$*" >> pip.txt
case "$*" in *+cpu*) exit ${LACKING:-0};; esac
"""


def install(folder: Path, gpu: bool, *words: str, system: str = "Linux", **environment: str) -> tuple[list[str], str]:
    """What pip is told, less what it always is, and what make says."""
    programs = {"bin/nvidia-smi": f"#!/bin/sh\nexit {int(not gpu)}\n", "bin/uname": f"#!/bin/sh\necho {system}\n"}
    for name, text in {**programs, ".venv/bin/python": PIP, ".venv/bin/pip": PIP}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copyfile(ROOT / name, folder / name)
    target = f".venv/.installed{'-' + words[0].split('=')[1] if words else ''}"
    path = f"{folder}/bin{os.pathsep}{os.environ['PATH']}"
    without = {name: value for name, value in os.environ.items() if name not in ("TORCH", "MAKEFLAGS", "MAKELEVEL")}
    command = ["make", *words, target]
    done = subprocess.run(
        command, cwd=folder, env=without | {"PATH": path} | environment, capture_output=True, text=True
    )
    told = (folder / "pip.txt").read_text().splitlines() if (folder / "pip.txt").exists() else []
    return [line.split("--disable-pip-version-check ")[1] for line in told], done.stdout + done.stderr


PIN = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
ALL = "-c constraints.txt -e .[dev]"
WITHOUT = f"--retries 1 --timeout 15 --no-deps --extra-index-url https://download.pytorch.org/whl/cpu {PIN}+cpu"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs make and sh")


@pytest.mark.parametrize(
    ("gpu", "words", "system", "told"),
    [
        (False, [], "Linux", [WITHOUT, ALL]),
        (True, [], "Linux", [ALL]),
        (True, ["TORCH=cpu"], "Linux", [WITHOUT, ALL]),
        (False, ["TORCH=cuda"], "Linux", [f"--no-deps {PIN.replace('==', '===')}", ALL]),
        (False, [], "Darwin", [ALL]),
        (False, ["TORCH=cpu"], "Darwin", [ALL]),
    ],
)
def test_torch_comes_without_cuda_where_no_gpu_is_seen(
    tmp_path: Path, gpu: bool, words: list[str], system: str, told: list[str]
) -> None:
    asked, said = install(tmp_path, gpu, *words, system=system)
    assert asked == told, said
    assert said.startswith("Downloading the pinned dependencies into .venv, and torch")
    assert ("without CUDA" in said) == (WITHOUT in told)


def test_where_the_build_without_cuda_is_not_to_be_had_the_plain_pin_is_taken_and_said(tmp_path: Path) -> None:
    asked, said = install(tmp_path, False, LACKING="1")
    assert asked == [WITHOUT, ALL]
    assert f"{PIN}+cpu is not to be had: taking {PIN} from where pip is told to look" in said
    assert (tmp_path / ".venv/.installed").exists()


@pytest.mark.parametrize(("word", "system"), [("gpu", "Linux"), ("cuda", "Darwin")])
def test_a_torch_that_there_is_not_is_refused(tmp_path: Path, word: str, system: str) -> None:
    asked, said = install(tmp_path, False, f"TORCH={word}", system=system)
    assert asked == []
    assert f"TORCH must be cpu, or cuda on Linux; got {word} on {system}" in said
