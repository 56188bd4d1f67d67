"""The start of each stage: seconds from its process's start to its first work, against an older commit's.

First work is the first pass through a model or the first file opened to be written among data, models and metrics,
whichever comes first: by then a stage has imported, checked, hashed and read whatever it needs, and opened its tracker.
A sitecustomize on PYTHONPATH notes that time, the same for both commits; the data and the models are so small that what
else lies before it is little. The tracker is on, as for a user. `whole` is the process from start to end, the end of
tracking included.

The older commit is a checkout: `git worktree add /some/where b60a4d5`. Both run under this interpreter, one after the
other, stage by stage, in one sitting, those that both have; figures are medians, and `ratio` is the sum over the stages
before over the sum after. Prints one JSON object last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

import scratch

# A pipeline that makes a few pairs within a minute.
SMALL = {
    **scratch.UNAUDITED,
    "data.dialogues": 400,
    "model.base": "scratch",
    "pretrain.vocabulary": 1000,
    "pretrain.learning_rate": 0.01,
    "pretrain.hidden_size": 64,
    "pretrain.layers": 2,
    "pretrain.heads": 2,
    "pretrain.epochs": 6,
    "evaluate.prompts": 8,
    "evaluate.control_contexts": 1,
    "evaluate.resamples": 100,
    "sft.learning_rate": 0.002,
    "sft.batch_size": 8,
    "sft.lora.rank": 4,
    "prefs.prompts": 24,
    "prefs.emotions": "dataset",
    "prefs.candidates": 4,
    "prefs.target_score_range": 0.5,
    "prefs.min_chosen_score": 1.0,
    "prefs.min_clean_confidence": 0.0,
    "prefs.sampling.temperature": 0.7,
    "dpo.control_contexts": 1,
}
# Of that, what a stage does whose time is taken: with the models that are there.
LITTLE = {"pretrain.epochs": 0.1, "sft.epochs": 0.05, "prefs.prompts": 8, "prefs.attempts": 1, "dpo.epochs": 0.1}
ROWS = 60  # of each split
# Runs in each Python process that a stage starts; only the stage itself works.
HOOK = """
import os, sys, threading, time

def note(*_):
    try:
        os.close(os.open(os.environ["FIRST_WORK"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        pass

def look(event, args):
    if event == "open" and isinstance(args[0], str) and not os.path.exists(os.environ["FIRST_WORK"]):
        path, mode, flags = args
        if set(mode or "") & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR):
            if os.path.relpath(path).split(os.sep)[0] in ("data", "models", "metrics"):
                note()

def wait_for_torch():
    while not hasattr(module := sys.modules.get("torch.nn.modules.module"), "register_module_forward_pre_hook"):
        time.sleep(0.01)
    module.register_module_forward_pre_hook(note)

if any(word.startswith(("emotune.stages", "emotune.runs.stage")) for word in sys.orig_argv):
    sys.addaudithook(look)
    threading.Thread(target=wait_for_torch, daemon=True).start()
"""


class Side:
    """A commit, and a small pipeline that it made."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self._checkout, self._made, self._copy = checkout, folder / "made", folder / "copy"
        self.stages: dict[str, Any] = YAML(typ="safe").load((checkout / "dvc.yaml").read_text("utf-8"))["stages"]
        self._made.mkdir(parents=True)
        (self._made / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
        shutil.copy(checkout / "params.yaml", self._made)
        # A base model from nothing was the embedded one before a trained one was.
        trained = (checkout / "src/emotune/models/embedded.yaml").exists()
        scratch.turn(self._made, SMALL if trained else SMALL | {"model.base": "embedded"})
        for stage in self.stages:
            self._run(stage, self._made)

    def times(self, stage: str) -> tuple[float, float]:
        """Seconds of one run of a stage, in a copy, until its first work and until its end."""
        shutil.rmtree(self._copy, ignore_errors=True)
        # Without the journal, from which all would be taken.
        shutil.copytree(self._made, self._copy, ignore=shutil.ignore_patterns(".work", "first_work"))
        for split in (self._copy / "data/dialogues").glob("*.jsonl"):
            split.write_text("".join(split.read_text("utf-8").splitlines(keepends=True)[:ROWS]), "utf-8")
        scratch.turn(self._copy, LITTLE)
        return self._run(stage, self._copy)

    def _run(self, stage: str, folder: Path) -> tuple[float, float]:
        mark = folder / "first_work"
        mark.unlink(missing_ok=True)
        paths = os.pathsep.join(map(str, (folder, self._checkout / "src")))
        own = {"PYTHONPATH": paths, "DVC_ROOT": str(folder), "FIRST_WORK": str(mark), "HF_HUB_OFFLINE": "1"}
        program, *words = self.stages[stage]["cmd"].split()
        # `sh stage` is this module, by the first Python that has emotune; an older commit starts a module itself.
        command = [sys.executable, *(["-m", "emotune.runs.stage", *words[1:]] if program == "sh" else words)]
        began = time.time()
        done = subprocess.run(command, cwd=folder, env=os.environ | own, capture_output=True, text=True, check=False)
        whole = time.time() - began
        if done.returncode:
            sys.exit(f"{stage} of {self._checkout} failed:\n{done.stdout}{done.stderr}")
        return mark.stat().st_mtime - began, whole


def medians(times: Mapping[str, list[tuple[float, float]]], which: int) -> dict[str, float]:
    """The median of each stage's times, of those to its first work (0) or to its end (1)."""
    return {stage: statistics.median(pair[which] for pair in pairs) for stage, pairs in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout of the older commit")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each stage and commit (default %(default)s)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sides = {"before": Side(chosen.before, Path(name, "before")), "after": Side(scratch.ROOT, Path(name, "after"))}
        stages = [stage for stage in sides["after"].stages if stage in sides["before"].stages]
        times: dict[str, dict[str, list[tuple[float, float]]]] = {side: {s: [] for s in stages} for side in sides}
        for _ in range(chosen.repeats):
            for stage in stages:
                for which, side in sides.items():
                    times[which][stage].append(side.times(stage))
                    print(which, stage, *(f"{seconds:.2f}" for seconds in times[which][stage][-1]), flush=True)
    first, whole = ({side: medians(times[side], which) for side in sides} for which in (0, 1))
    commit = ["git", "-C", str(chosen.before), "rev-parse", "--short", "HEAD"]
    result = {
        "benchmark": "stage_start",
        "ratio": round(sum(first["before"].values()) / sum(first["after"].values()), 1),
        "before": subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip(),
        "repeats": chosen.repeats,
        "cores": len(os.sched_getaffinity(0)),
        "first_work_seconds": {side: {s: round(t, 2) for s, t in of.items()} for side, of in first.items()},
        "whole_seconds": {side: {s: round(t, 2) for s, t in of.items()} for side, of in whole.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
