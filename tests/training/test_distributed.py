"""Laws of several processes: on the CPU two make what one makes, byte for byte or up to rounding, killed or not."""

import csv
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from conftest import ROOT, TINY, Pipeline, contents, declared, flags, run_stage, write_params
from emotune.core import records
from emotune.runs import tracking
from tiny import Two

pytestmark = pytest.mark.pipeline

TWO = "torchrun --nproc_per_node 2"
# Every step is logged, and neither the last batch of sft nor that of dpo divides by two.
SMALL = TINY | {
    "data.dialogues": 100,
    "pretrain.epochs": 2,
    "evaluate.prompts": 15,
    "evaluate.control_contexts": 1,
    "sft.epochs": 1,
    "sft.neutral_replies": None,
    "sft.batch_size": 8,
    "reward_model.contrast_pairs": 60,
    "dpo.epochs": 1,
    "dpo.batch_size": 4,
    "dpo.accumulation": 2,
    "dpo.checkpoints": 1,
    "dpo.sft_weight": 0.5,
    "dpo.control_contexts": 1,
}
DIALOGUES, PAIRS = 77, 29
TRAINED = {"sft": "models/sft", "reward_model": "models/reward", "dpo": "models/dpo"}


def pair(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    history, reply = row["turns"][:1], row["turns"][1]
    return {
        "history": history,
        "emotion": reply["emotion"],
        "prompt": history[0]["content"],
        "chosen": reply["content"],
        "rejected": other["turns"][1]["content"],
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one process, of one thread, ran the stages that may run as several: look, do not touch."""
    folder = tmp_path_factory.mktemp("alone")
    write_params(folder, SMALL)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for stage in ("prepare", "base_model", "judges"):
        run_stage(stage, folder)
    train = folder / "data/dialogues/train.jsonl"
    lines = train.read_text("utf-8").splitlines(keepends=True)[:DIALOGUES]
    train.write_text("".join(lines), "utf-8")
    rows = [json.loads(line) for line in lines]
    pairs = [json.dumps(pair(*of)) + "\n" for of in pairwise(rows)]
    (folder / "data/prefs").mkdir()
    (folder / "data/prefs/train.jsonl").write_text("".join(pairs[:PAIRS]), "utf-8")
    (folder / "data/prefs/validation.jsonl").write_text("".join(pairs[PAIRS : PAIRS + 9]), "utf-8")
    records.write_metrics(folder / "metrics/prefs.json", {"pairs": PAIRS + 9, "yield_total": 1.0})
    for stage in ("baseline", "sft", "reward_model", "dpo", "evaluate"):
        run_stage(stage, folder)
    torch.set_num_threads(threads)
    return folder


def without(stage: str, done: Path, folder: Path) -> Path:
    """A copy of a finished folder in which a stage has not run yet."""
    copy = folder / "copy"
    shutil.copytree(done, copy)
    for path in declared(stage):
        shutil.rmtree(copy / path) if (copy / path).is_dir() else (copy / path).unlink()
    return copy


def pass_for_gpus(settings: Mapping[str, Any]) -> None:
    """Let the processes of a CPU be sharded by FSDP, which accelerate 1.15 keeps for GPUs."""
    from accelerate import state
    from torch.distributed.fsdp import FSDPModule

    from emotune.training import distributed

    os.environ |= {name.upper(): str(value) for name, value in settings.items()} | {"ACCELERATE_USE_FSDP": "true"}
    join, whole = state.PartialState.__init__, distributed.whole

    def join_as_gpus(self: Any, *given: Any, **named: Any) -> None:
        join(self, *given, **named)
        if self.distributed_type == state.DistributedType.MULTI_CPU:
            self.distributed_type = state.DistributedType.MULTI_GPU

    def whole_of_parts(model: Any) -> Any:
        assert isinstance(model, FSDPModule)
        return whole(model)

    state.PartialState.__init__, distributed.whole = join_as_gpus, whole_of_parts


def launched(stage: str, folder: Path, python: Path) -> subprocess.CompletedProcess[str]:
    """A stage as dvc starts it, where the user's environment asks for two processes, which torchrun starts by a python
    of ours."""
    plain = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"}
    ours = {"EMOTUNE_LAUNCH": TWO, "OMP_NUM_THREADS": "1", "EMOTUNE_TRACKING": "off", "PYTHON_EXEC": f"{python}/python"}
    words = [sys.executable, "-m", "emotune.runs.stage", stage, *flags(stage)]
    return subprocess.run(words, cwd=folder, env=plain | ours, capture_output=True, text=True)


def kill_at_a_checkpoint(stage: str, folder: Path, prepare: Callable[[], None] = lambda: None) -> Path:
    """Kill two processes as soon as one checkpoint of theirs is complete; returns their work folder."""
    two = Two(stage, folder, prepare)
    while not (complete := list(folder.glob(f".work/{stage}/*/checkpoint-*/complete"))):
        assert all(process.is_alive() for process in two.processes), "the stage ended before it could be stopped"
        time.sleep(0.002)
    two.kill()
    return complete[0].parents[1]


def curve(folder: Path, stage: str) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / f"metrics/{stage}_history.csv").open()))


def assert_same_training(stage: str, folder: Path, alone: Path, relative: float) -> None:
    """The same losses in the same steps, the same metrics and the same adapter, up to rounding.

    A reward is a tenth of the difference of two sums of some fifty, in float32.
    """
    rows, expected = curve(folder, stage), curve(alone, stage)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert [name for name in row if row[name]] == [name for name in other if other[name]]
        for name in row:
            if row[name]:
                assert float(row[name]) == pytest.approx(float(other[name]), rel=relative, abs=1e-5), (
                    row["step"],
                    name,
                )
    measured, wanted = (
        tracking.numbers(records.read_metrics(path / f"metrics/{stage}.json")) for path in (folder, alone)
    )
    assert measured == pytest.approx(wanted, rel=relative, abs=1e-5)
    assert contents(folder / TRAINED[stage]).keys() == contents(alone / TRAINED[stage]).keys()
    ours, theirs = (load_file(path / TRAINED[stage] / "adapter_model.safetensors") for path in (folder, alone))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=relative, atol=1e-5)


@pytest.mark.parametrize("stage", ["baseline", "evaluate"])
def test_two_processes_answer_with_the_bytes_of_one(stage: str, alone: Path, tmp_path: Path) -> None:
    folder = without(stage, alone, tmp_path)
    Two(stage, folder).outputs()
    shutil.rmtree(folder / ".work", ignore_errors=True)
    assert contents(folder) == {path: found for path, found in contents(alone).items() if not path.startswith(".work/")}


def test_two_processes_make_the_pairs_of_one(pipeline: Pipeline, tmp_path: Path) -> None:
    """Each samples and judges its own half of the prompts, and both write to one journal."""
    folder = without("generate_prefs", pipeline.folder, tmp_path)
    shutil.rmtree(folder / ".work")
    out = "".join(Two("generate_prefs", folder).outputs())
    made = [int(count) for count in re.findall(r"(\d+) attempts sampled, 0 taken from the journal", out)]
    measured = records.read_metrics(folder / "metrics/prefs.json")
    assert len(made) == 2
    assert sum(made) == measured["attempts_total"]
    for path in ("data/prefs", "metrics"):
        assert contents(folder / path) == contents(pipeline.folder / path)


def test_two_processes_make_the_pairs_of_one_where_prompts_help_each_other(pipeline: Pipeline, tmp_path: Path) -> None:
    """Contexts are whole, spare attempts go where all prompts need them, and human replies where all pairs lack them;
    the first of the two runs left no journal to the second."""
    folder = without("generate_prefs", pipeline.folder, tmp_path)
    settings = {"prompts": 21, "emotions": "every", "rejected": "contrast", "spare": True, "human_fill": 6}
    write_params(folder, TINY | {f"prefs.{name}": value for name, value in settings.items()})
    run_stage("generate_prefs", folder)
    alone = contents(folder / "data/prefs") | contents(folder / "metrics")
    measured = records.read_metrics(folder / "metrics/prefs.json")
    assert sum(measured["human_pairs_per_emotion"].values()) > 0
    assert measured["attempts_total"] == 3 * measured["prompts"] > 3 * 20
    assert measured["pairs"] > sum(measured["human_pairs_per_emotion"].values())
    shutil.rmtree(folder / "data/prefs")
    shutil.rmtree(folder / ".work")
    Two("generate_prefs", folder).outputs()
    assert contents(folder / "data/prefs") | contents(folder / "metrics") == alone


@pytest.fixture(scope="module")
def trained(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder in which two processes ran a stage that trains, made where it is first asked for: look, do not touch."""

    @functools.cache
    def by_two(stage: str) -> Path:
        folder = without(stage, alone, tmp_path_factory.mktemp(stage))
        assert "".join(Two(stage, folder).outputs()).count("step 1 of ") == 1
        return folder

    return by_two


@pytest.mark.parametrize("stage", TRAINED)
def test_two_processes_take_the_steps_of_one(stage: str, trained: Callable[[str], Path], alone: Path) -> None:
    folder = trained(stage)
    assert_same_training(stage, folder, alone, 1e-4)
    assert [path.name for path in folder.glob(f".work/{stage}/*") if path.is_dir()] == []


def test_what_a_launcher_starts_goes_on_from_two_that_were_killed_to_the_same_bytes(
    trained: Callable[[str], Path], alone: Path, warm_python: Path, tmp_path: Path
) -> None:
    folder = without("dpo", alone, tmp_path)
    work = kill_at_a_checkpoint("dpo", folder)
    (work / "checkpoint-9999").mkdir()
    done = launched("dpo", folder, warm_python)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("going on from checkpoint-") == done.stdout.count("dpo took ") == 1
    for path in (TRAINED["dpo"], "metrics"):
        assert contents(folder / path) == contents(trained("dpo") / path)


@pytest.mark.parametrize("stage", TRAINED)
def test_fsdp_takes_the_same_steps_when_killed_too_and_its_adapter_is_whole(
    stage: str, alone: Path, tmp_path: Path
) -> None:
    folder = without(stage, alone, tmp_path)
    settings = YAML(typ="safe").load((ROOT / "launch/fsdp.yaml").read_text())["fsdp_config"]
    sharded = functools.partial(pass_for_gpus, settings)
    kill_at_a_checkpoint(stage, folder, sharded)
    assert "".join(Two(stage, folder, sharded).outputs()).count("going on from checkpoint-") == 1
    assert_same_training(stage, folder, alone, 1e-4)


def test_accelerate_knows_every_key_of_our_configuration() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "launch/fsdp.yaml"))
    assert (config.distributed_type, config.fsdp_config["fsdp_version"]) == ("FSDP", 2)
