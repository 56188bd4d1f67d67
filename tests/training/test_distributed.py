"""Laws of several processes: on the CPU two make what one makes, byte for byte or up to rounding, killed or not."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from conftest import ROOT, TINY, Pipeline, contents, declared, flags, run_stage, write_params
from emotune.core.errors import InputError
from emotune.runs import tracking

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
    "dpo.epochs": 1,
    "dpo.batch_size": 4,
    "dpo.accumulation": 2,
    "dpo.checkpoints": 1,
    "dpo.sft_weight": 0.5,
    "dpo.control_contexts": 1,
}
DIALOGUES, PAIRS = 77, 29


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
    for stage in ("prepare", "base_model", "judges", "baseline"):
        run_stage(stage, folder)
    train = folder / "data/dialogues/train.jsonl"
    lines = train.read_text("utf-8").splitlines(keepends=True)[:DIALOGUES]
    train.write_text("".join(lines), "utf-8")
    rows = [json.loads(line) for line in lines]
    pairs = [json.dumps(pair(*of)) + "\n" for of in pairwise(rows)]
    (folder / "data/prefs").mkdir()
    (folder / "data/prefs/train.jsonl").write_text("".join(pairs[:PAIRS]), "utf-8")
    (folder / "data/prefs/validation.jsonl").write_text("".join(pairs[PAIRS : PAIRS + 9]), "utf-8")
    for stage in ("sft", "dpo", "evaluate"):
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


def start(stage: str, folder: Path, program: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
    """A stage as dvc starts it, where the user's environment asks for two processes; or another program of it."""
    plain = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"}
    ours = {"EMOTUNE_LAUNCH": TWO, "OMP_NUM_THREADS": "1", "EMOTUNE_TRACKING": "off"}
    return subprocess.Popen(
        [sys.executable, *(program or ["-m", "emotune.runs.stage", stage]), *flags(stage)],
        cwd=folder,
        env=plain | ours | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_as_two(stage: str, folder: Path, program: Sequence[str] = (), **more: str) -> str:
    """What the first of two processes printed on the way to a good end."""
    out, err = (process := start(stage, folder, program, **more)).communicate()
    assert process.returncode == 0, err
    return out


def stop_at_a_checkpoint(stage: str, folder: Path, program: Sequence[str] = (), **more: str) -> Path:
    """The work folder of a stage that was stopped as soon as one checkpoint was complete."""
    process = start(stage, folder, program, **more)
    while not (complete := list(folder.glob(f".work/{stage}/*/checkpoint-*/complete"))):
        assert process.poll() is None, "the stage ended before it could be stopped"
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
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
        tracking.numbers(json.loads((path / f"metrics/{stage}.json").read_text())) for path in (folder, alone)
    )
    assert measured == pytest.approx(wanted, rel=relative, abs=1e-5)
    assert contents(folder / f"models/{stage}").keys() == contents(alone / f"models/{stage}").keys()
    ours, theirs = (load_file(path / f"models/{stage}/adapter_model.safetensors") for path in (folder, alone))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=relative, atol=1e-5)


@pytest.mark.parametrize("stage", ["baseline", "evaluate"])
def test_two_processes_answer_with_the_bytes_of_one(stage: str, alone: Path, tmp_path: Path) -> None:
    folder = without(stage, alone, tmp_path)
    out = run_as_two(stage, folder)
    assert out.count(f"{stage} took ") == 1
    shutil.rmtree(folder / ".work")
    assert contents(folder) == {path: found for path, found in contents(alone).items() if not path.startswith(".work/")}


def test_two_processes_make_the_pairs_of_one(pipeline: Pipeline, tmp_path: Path) -> None:
    """Each samples and judges its own half of the prompts, and both write to one journal."""
    folder = without("generate_prefs", pipeline.folder, tmp_path)
    shutil.rmtree(folder / ".work")
    out = run_as_two("generate_prefs", folder)
    made = [int(count) for count in re.findall(r"(\d+) attempts sampled, 0 taken from the journal", out)]
    measured = json.loads((folder / "metrics/prefs.json").read_text("utf-8"))
    assert len(made) == 2
    assert sum(made) == measured["attempts_total"]
    for path in ("data/prefs", "metrics"):
        assert contents(folder / path) == contents(pipeline.folder / path)


@pytest.fixture(scope="module", params=["sft", "dpo"])
def trained(request: pytest.FixtureRequest, alone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """sft or dpo, and a folder in which two processes ran it."""
    folder = without(request.param, alone, tmp_path_factory.mktemp(request.param))
    assert run_as_two(request.param, folder).count("step 1 of ") == 1
    return request.param, folder


def test_two_processes_take_the_steps_of_one(trained: tuple[str, Path], alone: Path) -> None:
    stage, folder = trained
    assert_same_training(stage, folder, alone, 1e-4)
    assert [path.name for path in folder.glob(f".work/{stage}/*") if path.is_dir()] == []


def test_two_processes_that_are_stopped_go_on_to_the_same_bytes(
    trained: tuple[str, Path], alone: Path, tmp_path: Path
) -> None:
    stage, done = trained
    folder = without(stage, alone, tmp_path)
    work = stop_at_a_checkpoint(stage, folder)
    (work / "checkpoint-9999").mkdir()
    assert run_as_two(stage, folder).count("going on from checkpoint-") == 1
    assert contents(folder / f"models/{stage}") == contents(done / f"models/{stage}")
    assert contents(folder / "metrics") == contents(done / "metrics")


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from emotune.runs.params import load
    from emotune.training.arguments import arguments

    write_params(tmp_path, SMALL)
    p = load("sft", "dpo", path=tmp_path / "params.yaml")
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = arguments(p.sft, "float32", tmp_path, 77)
    assert (found["per_device_train_batch_size"], found["per_device_eval_batch_size"]) == (2, 4)
    monkeypatch.setenv("WORLD_SIZE", "3")
    message = r"dpo\.batch_size must be a multiple of the number of processes, 3; got 4"
    with pytest.raises(InputError, match=message):
        arguments(p.dpo, "float32", tmp_path, 29)


# accelerate 1.15 keeps FSDP for GPUs, and on a CPU trains without it: here the CPU's processes pass for GPUs.
SHARDED = """
import os

if "RANK" in os.environ:
    from accelerate import state
    from torch.distributed.fsdp import FSDPModule
    from emotune import finetuning

    join, whole = state.PartialState.__init__, finetuning._whole

    def join_as_gpus(self, *given, **named):
        join(self, *given, **named)
        if self.distributed_type == state.DistributedType.MULTI_CPU:
            self.distributed_type = state.DistributedType.MULTI_GPU

    def whole_of_parts(model):
        assert isinstance(model, FSDPModule)
        return whole(model)

    state.PartialState.__init__, finetuning._whole = join_as_gpus, whole_of_parts

from emotune import launch
from emotune.stages import STAGE

launch.stage(STAGE.main, parallel=True)
"""


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_fsdp_takes_the_same_steps_when_stopped_too_and_its_adapter_is_whole(
    stage: str, alone: Path, tmp_path: Path
) -> None:
    folder = without(stage, alone, tmp_path)
    (folder / "sharded.py").write_text(SHARDED.replace("STAGE", stage))
    settings = YAML(typ="safe").load((ROOT / "launch/fsdp.yaml").read_text())["fsdp_config"]
    more = {name.upper(): str(value) for name, value in settings.items()} | {"ACCELERATE_USE_FSDP": "true"}
    stop_at_a_checkpoint(stage, folder, ["sharded.py"], **more)
    assert run_as_two(stage, folder, ["sharded.py"], **more).count("going on from checkpoint-") == 1
    assert_same_training(stage, folder, alone, 1e-4)


def test_accelerate_knows_every_key_of_our_configuration() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "launch/fsdp.yaml"))
    assert (config.distributed_type, config.fsdp_config["fsdp_version"]) == ("FSDP", 2)
