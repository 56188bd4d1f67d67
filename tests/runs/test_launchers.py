"""Laws of a stage's start: flags from its signature, one message for bad input, and a place that outlives it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import ROOT
from emotune.core import processes
from emotune.runs import launchers, stage

PACKAGE = ROOT / "src" / "emotune"
COPY_ONE = '''
import os
from emotune.core.contract import SAMPLED_TOKENS, SAMPLING_SECONDS, Dep, Log, Metrics, Out
from emotune.core.errors import InputError
from emotune.core.sections import Section

class Params(Section):
    system_prompt: str | None

def main(p: Params, log: Log, dialogues: Dep, base_model: Out) -> Metrics:
    """Copy one file."""
    words = dialogues.read_text()
    if words != "hello":
        raise InputError(f"{dialogues}:3: expected a dialogue, found nothing")
    base_model.write_text(words)
    if base_model.name == "bug":
        raise ValueError("a bug\\nof ours")
    if base_model.name == "python":
        raise MemoryError
    if base_model.name == "numpy":
        import numpy
        numpy.ones(1 << 60, "int8")
    if base_model.name == "gpus":
        base_model.write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    if base_model.name == "sampled":
        held = b"x" * (300 << 20)
        log({SAMPLED_TOKENS: 300, SAMPLING_SECONDS: 1.5}, 0)
        log({SAMPLED_TOKENS: 100, SAMPLING_SECONDS: 0.5}, 0)
    return {"words": 1}
'''
SQUARE = '''
import os
import time
from emotune.core import processes
from emotune.core.contract import Log, Metrics, Out
from emotune.core.errors import InputError
from emotune.core.sections import Section

PARALLEL = True

class Params(Section):
    system_prompt: str | None

def main(p: Params, log: Log, out: Out) -> Metrics:
    """Square numbers, or fail as the name of the out says."""
    if out.name == "refused_by_one" and not processes.first():
        raise InputError("numbers.txt:3: no number")
    if out.name == "bug":
        raise ValueError("a bug of ours")
    if out.name == "exit":
        os._exit(5)
    if out.name == "endless":
        out.with_name(f"{os.getpid()}.pid").touch()
        time.sleep(600)
    counts = (7, 2, 1, 0)
    squares = [processes.gather([number**2 for number in processes.share(range(count))]) for count in counts]
    processes.wait()
    if processes.first():
        out.write_text(f"{squares} {processes.processes()} {os.environ['OMP_NUM_THREADS']}")
    return {}
'''


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is, and three stages more: `square_alone` is `square` where it is not parallel."""
    source = tmp_path_factory.mktemp("package")
    stages = source / "emotune" / "stages"
    stages.mkdir(parents=True)
    for path in [*PACKAGE.iterdir(), *(PACKAGE / "stages").iterdir()]:
        if path.name not in ("stages", "__pycache__"):
            (source / "emotune" / path.relative_to(PACKAGE)).symlink_to(path)
    (stages / "copy_one.py").write_text(COPY_ONE)
    (stages / "square.py").write_text(SQUARE)
    (stages / "square_alone.py").write_text(SQUARE.replace("PARALLEL = True", ""))
    return source


@pytest.fixture(autouse=True)
def of_that_package(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test starts imports that package."""
    monkeypatch.setenv("PYTHONPATH", str(package))
    monkeypatch.delenv("DVC_ROOT", raising=False)


def command(folder: Path, name: str, *flags: str) -> list[str]:
    """A stage's command in a folder with its input and params.yaml."""
    folder.mkdir(exist_ok=True)
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "in.txt").write_text("hello")
    (folder / "gone.txt").write_text("")
    return [sys.executable, "-m", "emotune.runs.stage", name, *flags, "--metrics", "metrics.json"]


def start(folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, "copy_one", *flags), cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )


def test_a_stage_takes_a_flag_for_each_path_and_says_how_long_it_took(tmp_path: Path) -> None:
    run = start(tmp_path, "--dialogues", "in.txt", "--base-model", "out.txt")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("copy_one took ")
    assert (tmp_path / "out.txt").read_text() == "hello"


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
    assert "python -m emotune.runs.stage copy_one" in run.stderr
    assert "--base-model" in run.stderr


@pytest.mark.parametrize(("visible", "taken"), [(None, "0"), ("2,3", "2"), ("GPU-5a, GPU-7b", "GPU-5a"), ("", "")])
def test_a_stage_of_one_process_takes_one_gpu(
    visible: str | None, taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    start(tmp_path, "--dialogues", "in.txt", "--base-model", "gpus", **environment)
    assert (tmp_path / "gpus").read_text() == taken


# --- what a stage costs


def costs(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ".work/costs.jsonl").read_text("utf-8").splitlines()]


def test_a_stage_notes_what_it_cost(tmp_path: Path) -> None:
    plain = ("--dialogues", "in.txt", "--base-model")
    start(tmp_path, *plain, "out.txt")
    start(tmp_path / "elsewhere", *plain, "sampled", DVC_EXP_NAME="wide", DVC_ROOT=str(tmp_path))
    first, second = costs(tmp_path)
    for line in (first, second):
        assert 0 <= line.pop("seconds") < 60
        assert len(line.pop("params")) == 16
    little, much = (line.pop("peak_memory_bytes") / (1 << 20) for line in (first, second))
    # Nobody's queue: an attempt has a name there alone.
    nothing = {"stage": "copy_one", "attempt": None, "device": "cpu", "failed": None}
    assert first == nothing | {"experiment": None, "tokens_per_second": None}
    assert second == nothing | {"experiment": "wide", "tokens_per_second": 200.0}
    assert 1 < little < 300 < much < 600


def test_the_memory_of_a_stage_is_not_that_of_what_started_it(tmp_path: Path) -> None:
    held = bytearray(os.urandom(1 << 20) * 400)
    start(tmp_path, "--dialogues", "in.txt", "--base-model", "out.txt")
    assert costs(tmp_path)[0]["peak_memory_bytes"] < len(held)


def test_a_stage_that_fails_notes_the_reason_in_one_line(tmp_path: Path) -> None:
    start(tmp_path, "--dialogues", "gone.txt", "--base-model", "out.txt")
    start(tmp_path, "--dialogues", "in.txt", "--base-model", "bug")
    assert [line["failed"] for line in costs(tmp_path)] == [
        "gone.txt:3: expected a dialogue, found nothing",
        "ValueError: a bug of ours",
    ]
    assert [line["stage"] for line in costs(tmp_path)] == ["copy_one", "copy_one"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("python", "no more to be had"), ("numpy", "Unable to allocate 1.00 EiB for an array .*")],
)
def test_too_little_memory_is_one_message_and_noted(kind: str, reason: str, tmp_path: Path) -> None:
    run = start(tmp_path, "--dialogues", "in.txt", "--base-model", kind)
    assert run.returncode == 2
    expected = f"out of memory: {reason}; a smaller base model, batch or context takes less"
    assert re.fullmatch(f"emotune copy_one: {expected}\n", run.stderr), run.stderr
    [line] = costs(tmp_path)
    assert re.fullmatch(expected, line["failed"])


def test_too_little_memory_for_a_tensor_is_told_too() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.int8)
    assert re.match("out of memory: .*DefaultCPUAllocator: can't allocate memory", stage._explained(error.value) or "")


def test_lines_of_many_stages_at_once_do_not_mix(tmp_path: Path) -> None:
    started = []
    for number in range(4):
        folder = tmp_path / str(number)
        words = command(folder, "copy_one", "--dialogues", "gone.txt" * 20, "--base-model", "out.txt")
        environment = os.environ | {"DVC_EXP_NAME": f"e{number}" * 100, "DVC_ROOT": str(tmp_path)}
        started.append(subprocess.Popen(words, cwd=folder, env=environment, stderr=subprocess.DEVNULL))
    assert {process.wait() for process in started} == {2}
    assert sorted(line["experiment"] for line in costs(tmp_path)) == [f"e{number}" * 100 for number in range(4)]


def test_in_an_experiments_workspace_the_work_lies_in_the_repository(tmp_path: Path) -> None:
    workspace, repository = tmp_path / "workspace", tmp_path / "repository"
    run = start(workspace, "--dialogues", "in.txt", "--base-model", "out.txt", DVC_ROOT=str(repository))
    assert run.returncode == 0
    assert (repository / ".work/costs.jsonl").is_file()
    assert not (workspace / ".work").exists()


def test_in_an_experiments_workspace_the_code_there_runs_not_the_one_that_is_installed(
    tmp_path: Path, package: Path
) -> None:
    shutil.copytree(package, tmp_path / "src")
    with (tmp_path / "src" / "emotune" / "stages" / "copy_one.py").open("a") as file:
        file.write("print('as it was when the experiment was queued')\n")
    run = start(tmp_path, "--dialogues", "in.txt", "--base-model", "out.txt")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("as it was when the experiment was queued\ncopy_one took ")


def test_root_is_dvcs_or_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert processes.work("sft", "abc") == tmp_path / ".work" / "sft" / "abc"
    monkeypatch.setenv("DVC_ROOT", "/elsewhere")
    assert processes.root() == Path("/elsewhere")


def test_processes_of_one_launcher_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = processes.cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert processes.cores() == max(1, alone // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100000")
    assert processes.cores() == 1


# --- several processes

SQUARES = "[[0, 1, 4, 9, 16, 25, 36], [0, 1], [0], []]"
TWO = "torchrun --nproc_per_node 2"


def start_shared(folder: Path, out: str, launcher: str, parallel: bool = True, **more: str) -> subprocess.Popen[str]:
    plain = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.Popen(
        command(folder, "square" if parallel else "square_alone", "--out", out),
        cwd=folder,
        env=plain | {"EMOTUNE_LAUNCH": launcher} | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_shared(folder: Path, out: str, launcher: str, parallel: bool = True, **more: str) -> tuple[int, str, str]:
    said, complained = (process := start_shared(folder, out, launcher, parallel, **more)).communicate(timeout=120)
    return process.returncode, said, complained


def test_one_process_shares_with_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert processes.gather(processes.share([3, 1, 2])) == [3, 1, 2]
    assert processes.first()
    processes.wait()


def test_each_process_has_every_nth_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = []
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("RANK", rank)
        parts.append((processes.first(), processes.share("abcdefg")))
    assert parts == [(True, ["a", "d", "g"]), (False, ["b", "e"]), (False, ["c", "f"])]


@pytest.mark.pipeline
@pytest.mark.usefixtures("warm_processes")
def test_a_stage_starts_itself_under_the_users_launcher(tmp_path: Path) -> None:
    code, said, complained = run_shared(tmp_path, "out.txt", TWO)
    assert (code, complained) == (0, "")
    # One process writes, notes its seconds and says so; the cores are divided, although torchrun would give one each.
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert (tmp_path / "out.txt").read_text() == f"{SQUARES} 2 {share}"
    assert said.count("square took ") == 1
    [line] = costs(tmp_path)
    assert (line["failed"], line["device"]) == (None, "cpu")
    assert list(tmp_path.glob(".work/*/*")) == []


@pytest.mark.usefixtures("warm_processes")
def test_a_stage_that_is_not_parallel_stays_one_process(tmp_path: Path) -> None:
    code, _, complained = run_shared(tmp_path, "out.txt", TWO, parallel=False)
    assert (code, complained) == (0, "")
    assert (tmp_path / "out.txt").read_text().startswith(f"{SQUARES} 1 ")
    code, _, complained = run_shared(tmp_path, "out.txt", "", parallel=False, RANK="1", WORLD_SIZE="2")
    assert (code, complained) == (
        2,
        "emotune square_alone: square_alone runs as one process: start it plainly, not as 2\n",
    )


@pytest.mark.pipeline
@pytest.mark.usefixtures("warm_processes")
def test_bad_input_in_any_process_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    assert run_shared(tmp_path, "refused_by_one", TWO) == (2, "", "emotune square: numbers.txt:3: no number\n")
    [line] = costs(tmp_path)
    assert (line["failed"], line["peak_memory_bytes"], line["device"]) == ("numbers.txt:3: no number", None, None)
    assert list(tmp_path.glob(".work/launch/*")) == []


def test_of_several_processes_with_bad_input_the_first_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMOTUNE_LAUNCHED", str(tmp_path / "told"))
    for message in ("numbers.txt:3: no number", "numbers.txt:4: no number"):
        launchers.tell(message)
    assert (tmp_path / "told").read_text() == "numbers.txt:3: no number"
    assert capsys.readouterr() == ("", "")


@pytest.mark.pipeline
@pytest.mark.usefixtures("warm_processes")
def test_a_bug_in_a_process_keeps_its_traceback_and_the_launchers_exit_code(tmp_path: Path) -> None:
    code, _, complained = run_shared(tmp_path, "bug", TWO)
    assert code == 1
    assert "ValueError: a bug of ours" in complained
    assert [line["failed"] for line in costs(tmp_path)] == ["exit code 1 of the launcher"]


@pytest.mark.pipeline
@pytest.mark.usefixtures("warm_processes")
@pytest.mark.parametrize(("number", "count"), [(signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_a_stopped_stage_takes_its_processes_with_it(number: signal.Signals, count: int, tmp_path: Path) -> None:
    process = start_shared(tmp_path, "endless", f"torchrun --nproc_per_node {count}")
    while len(pids := [int(path.stem) for path in tmp_path.glob("*.pid")]) < count:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, complained = process.communicate(timeout=60)
    assert (process.returncode, complained) == (128 + number, "")
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        ("torchrun --nproc_per_node '4", "must be a line with torchrun or accelerate launch in it"),
        (
            "accelerate --num_processes 2",
            "must be a line with torchrun or accelerate launch in it, such as 'torchrun --",
        ),
        ("srun", "must be a line with torchrun or accelerate launch in it, .* got 'srun'"),
        ("srun-of-nobody torchrun --nproc_per_node 2", "srun-of-nobody is installed neither beside .* nor on PATH"),
        ("/nowhere/torchrun --nproc_per_node 2", "/nowhere/torchrun is installed neither beside .* nor on PATH"),
    ],
)
def test_a_launcher_that_starts_nothing_is_one_message(launcher: str, message: str, tmp_path: Path) -> None:
    code, said, complained = run_shared(tmp_path, "out.txt", launcher)
    assert (code, said, complained.count("\n")) == (2, "", 1)
    assert re.match(f"emotune square: EMOTUNE_LAUNCH:? {message}", complained), complained


@pytest.mark.pipeline
@pytest.mark.usefixtures("warm_processes")
def test_a_launcher_that_starts_one_process_where_two_were_asked_for_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n")
    code, said, complained = run_shared(tmp_path, "out.txt", "accelerate launch --config_file two.yaml")
    assert (code, said) == (2, "")
    assert complained.splitlines()[-1].startswith(
        "emotune square: EMOTUNE_LAUNCH asked for 2 processes and one came (accelerate launch does that on a CPU; "
    )


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("accelerate launch --cpu --num_processes=2", 2),
        ("accelerate launch --num-processes 3 --cpu", 3),
        ("srun -N 2 torchrun --nnodes 2 --nproc_per_node=4", 4),
        ("torchrun --nproc-per-node gpu", 1),
        ("accelerate launch", 1),
    ],
)
def test_a_flag_says_how_many_processes_were_asked_for(line: str, wanted: int) -> None:
    assert launchers.wanted_by(line) == wanted


@pytest.mark.pipeline
@pytest.mark.usefixtures("warm_processes")
def test_accelerate_launches_too_and_threads_that_the_user_chose_stay(tmp_path: Path) -> None:
    code, _, _ = run_shared(tmp_path, "out.txt", "accelerate launch --cpu --num_processes 1", OMP_NUM_THREADS="3")
    assert code == 0
    assert (tmp_path / "out.txt").read_text() == f"{SQUARES} 1 3"
