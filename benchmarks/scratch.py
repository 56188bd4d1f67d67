"""A scratch copy of the repository's state, in which a stage runs with other params and a journal of its own."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]


def copy(folder: Path, changes: Mapping[str, Any]) -> Path:
    """`folder` with dvc.yaml's inputs of generate_prefs as links, and params.yaml with some dotted keys changed."""
    for path in ("data/dialogues", "models/base", "models/sft", "models/judges", "models/reward"):
        if not (ROOT / path).exists():
            sys.exit(f"{path} is absent: `make repro` makes what this benchmark needs")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to(ROOT / path)
    shutil.copy(ROOT / "params.yaml", folder)
    turn(folder, changes)
    return folder


def turn(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change some dotted keys of a scratch copy's params.yaml, of those that it has: an older commit lacks some."""
    yaml = YAML()
    content = yaml.load(folder / "params.yaml")
    for key, value in changes.items():
        *path, last = key.split(".")
        section = reduce(getitem, path, content)
        if last in section:
            section[last] = value
    yaml.dump(content, folder / "params.yaml")


def run(folder: Path, stage: str, **environment: str) -> tuple[float, str]:
    """Run a stage of dvc.yaml in a scratch copy; returns its wall time in seconds and what it printed."""
    command = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage]["cmd"].split()
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "emotune.runs.stage", *command[2:]],
        cwd=folder,
        env=os.environ | {"DVC_ROOT": str(folder)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{stage} failed:\n{done.stdout}")
    return time.perf_counter() - began, done.stdout


def report(measure: Callable[[argparse.Namespace], Mapping[str, Any]], chosen: argparse.Namespace) -> None:
    """Print what is measured with `chosen.threads` of torch's as one JSON object, and nothing else on stdout."""
    os.environ |= {"OMP_NUM_THREADS": str(chosen.threads), "TOKENIZERS_PARALLELISM": "false"}
    with redirect_stdout(sys.stderr):
        result = measure(chosen)
    print(json.dumps(result))


# Bounds of the audit that nothing breaks: a benchmark measures what it measures.
UNAUDITED = {
    "prefs.audit.min_yield": 0.0,
    "prefs.audit.min_pairs_per_emotion": 0,
    "prefs.audit.min_chosen_longer": 0.0,
    "prefs.audit.max_chosen_longer": 1.0,
    "prefs.audit.max_duplicate_prompts": 1.0,
    "prefs.audit.max_duplicate_chosen": 1.0,
    "prefs.audit.max_prompts_in_test": 1.0,
}
