"""Laws of the tracker, on a real SQLite store that two stages of one pipeline opened at the same moment."""

import getpass
import hashlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from conftest import ROOT
from emotune.core import records
from emotune.runs import tracking

PARAMS = {"sft": {"lora": {"rank": 16}, "learning_rate": 2e-5}, "reward": {"weights": [0.4, 0.25, 0.35]}, "note": "x"}

# Runs in the shells that this stand-in for DVC starts, as DVC's own stages do.
STAGE = """
import sys
from pathlib import Path
from emotune.runs import tracking
stage = sys.argv[1]
data = {"dialogues/train": Path(__file__).with_name("train.jsonl")} if stage == "sft" else None
with tracking.run(stage, %r, {"data/dialogues": "md5:abc"}, data) as run:
    for step in (10, 20, 30):
        run.log({"loss": 1 / step}, step)
    run.metrics({"emotion": {"macro_f1": {"value": 0.25, "low": 0.2}, "labels": ["joy"], "ok": True}, "rows": 7})
    if stage == "dpo":
        raise SystemExit(3)
""" % (PARAMS,)  # noqa: UP031

DVC = """#!{python}
import subprocess, sys
shells = [subprocess.Popen(["/bin/sh", "-c", command + "; exit $?"]) for command in sys.argv[1:]]
sys.exit(sum(shell.wait() for shell in shells))
"""


def elsewhere():
    """What of the environment would lead a stage to another store."""
    return [name for name in os.environ if name.startswith(("MLFLOW_", "DVC_", "EMOTUNE_"))]


@pytest.fixture(autouse=True)
def plain_environment(warm_processes, monkeypatch):
    for name in elsewhere():
        monkeypatch.delenv(name)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(tracking, "_failed", False)


@pytest.fixture(scope="module")
def dvc(tmp_path_factory):
    """A process that is called dvc, as the tracker sees it: it runs its arguments in shells, all at once."""
    program = tmp_path_factory.mktemp("bin") / "dvc"
    program.write_text(DVC.format(python=sys.executable))
    program.chmod(0o755)
    return program


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, dvc, warm_python):
    """What `dvc exp run --temp` does: stages in a throw-away git checkout, DVC_ROOT at the main one."""
    root, workspace = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("workspace")
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "start"]):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *command], cwd=workspace, check=True)
    (root / "train.jsonl").write_text("{}\n")
    stage = root / "stage.py"
    stage.write_text(STAGE)
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere()} | {
        "DVC_ROOT": str(root),
        "DVC_EXP_NAME": "dozy-owl",
        "DVC_EXP_BASELINE_REV": "f00d",
        # Another tool's leftovers, which must not decide where our runs go.
        "MLFLOW_RUN_ID": "0" * 32,
        "MLFLOW_NESTED_RUN": "true",
    }
    commands = [f"{warm_python}/python {stage} {name}" for name in ("sft", "dpo")]
    done = subprocess.run([dvc, *commands], cwd=workspace, env=environment, capture_output=True, text=True)
    return root, workspace, done


@pytest.fixture(scope="module")
def runs(pipeline):
    """The parent, sft and dpo runs, and the client that read them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(pipeline[0]))
        client, experiment = tracking.connect()
    found = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert sorted(found) == ["dozy-owl", "dpo", "sft"]
    return found["dozy-owl"], found["sft"], found["dpo"], client


def newest(client, stage="evaluate"):
    """The run that a stage of that name told of last."""
    [experiment] = client.search_experiments(filter_string="name = 'emotune'")
    [run] = client.search_runs([experiment.experiment_id], f"tags.`dvc.stage` = '{stage}'", max_results=1)
    return run


@pytest.fixture(scope="module")
def told(pipeline, runs):
    """What one stage measured, its MLflow run, and when its work began and ended: a listener imports MLflow each time.

    It told more points before MLflow was imported than the pipe holds, and than one request takes.
    """
    files = {path.stem: records.read_metrics(path) for path in sorted((ROOT / "metrics").glob("*.json"))}
    measured = {**files, "digits": {"f1": 2 / 3, "gain": -1e-9}}
    with pytest.MonkeyPatch.context() as patch:
        for name in elsewhere():
            patch.delenv(name)
        patch.setenv("DVC_ROOT", str(pipeline[0]))
        patch.setattr(tracking, "_failed", False)
        before = tracking.now()
        with tracking.run("told", {}, {}) as run:
            began = tracking.now()
            for step in range(2500):
                run.log({"loss": step / 7, "a metric with a long name": 1.0}, step)
            for file, metrics in files.items():
                for name in metrics:
                    run.log({f"{file}.{name}": 17.0}, step=1000)  # a curve may have the name of a metric
            run.metrics(measured)
            ended = tracking.now()
        return measured, newest(runs[3], "told"), (before, began, ended)


def test_a_body_ends_as_it_would_untracked_and_says_nothing(pipeline):
    _, _, done = pipeline
    assert done.returncode == 3
    assert (done.stdout, done.stderr) == ("", "")


def test_nothing_is_written_to_the_working_directory(pipeline):
    root, workspace, _ = pipeline
    assert [path.name for path in workspace.iterdir()] == [".git"]
    assert {path.name for path in root.iterdir()} == {"stage.py", "train.jsonl", "mlflow.db", ".work"}


def test_stages_that_start_together_are_children_of_one_run(runs):
    parent, sft, dpo, _ = runs
    assert sft.data.tags["mlflow.parentRunId"] == dpo.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert "mlflow.parentRunId" not in parent.data.tags


def test_a_stage_that_raises_fails_its_run_and_the_pipelines(runs):
    assert [run.info.status for run in runs[:3]] == ["FAILED", "FINISHED", "FAILED"]


def test_params_have_dotted_names(runs):
    assert runs[1].data.params == {
        "sft.lora.rank": "16",
        "sft.learning_rate": "2e-05",
        "reward.weights": "[0.4, 0.25, 0.35]",
        "note": "x",
    }


def test_metrics_keep_their_history_and_lists_are_left_out(runs):
    _, sft, _, client = runs
    history = client.get_metric_history(sft.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(10, 1 / 10), (20, 1 / 20), (30, 1 / 30)]
    assert sft.data.metrics == {"loss": 1 / 30, "emotion.macro_f1.value": 0.25, "emotion.macro_f1.low": 0.2, "rows": 7}


def test_tags_join_the_run_to_git_dvc_and_its_inputs(pipeline, runs):
    parent, sft, _, _ = runs
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=pipeline[1], capture_output=True, text=True, check=True)
    shared = {
        "dvc.exp.name": "dozy-owl",
        "dvc.exp.baseline_rev": "f00d",
        "git.commit": head.stdout.strip(),
        "git.dirty": "false",
        # Of MLflow's own columns.
        "mlflow.source.git.commit": head.stdout.strip(),
        "mlflow.user": getpass.getuser(),
    }
    assert parent.data.tags["mlflow.source.name"] == "dvc repro"
    own = {
        "dvc.stage": "sft",
        "mlflow.source.name": "emotune.runs.stage sft",
        "input.data/dialogues": "md5:abc",
        "params.sha256": hashlib.sha256(json.dumps(PARAMS, sort_keys=True).encode()).hexdigest(),
    }
    assert shared.items() <= parent.data.tags.items()
    assert (shared | own).items() <= sft.data.tags.items()
    assert {"version.python", "version.torch", "version.transformers", "version.trl", "version.peft"} <= set(
        sft.data.tags
    )


def test_data_sets_are_listed_with_the_digest_of_their_content(pipeline, runs):
    [listed] = runs[1].inputs.dataset_inputs
    assert listed.dataset.name == "dialogues/train"
    assert json.loads(listed.dataset.source) == {"uri": (pipeline[0] / "train.jsonl").as_posix()}
    assert listed.dataset.digest == hashlib.sha256(b"{}\n").hexdigest()[:32]
    assert [(tag.key, tag.value) for tag in listed.tags] == [("mlflow.data.context", "train")]
    assert runs[2].inputs.dataset_inputs == []  # it named none


def test_artifacts_lie_under_the_root(pipeline, runs, tmp_path):
    root, sft, client = pipeline[0], runs[1], runs[3]
    (tmp_path / "report.txt").write_text("worth looking at")
    client.log_artifact(sft.info.run_id, str(tmp_path / "report.txt"))
    copy = root / "mlartifacts" / sft.info.run_id / "artifacts" / "report.txt"
    assert copy.read_text() == "worth looking at"


def test_a_run_by_hand_has_a_parent_of_its_own(pipeline, runs, monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_ROOT", str(pipeline[0]))
    monkeypatch.chdir(tmp_path)  # no repository here: no git tags
    long = {"prompt": "a" * 7000, "we like 'odd' keys": None}
    with pytest.raises(ZeroDivisionError), tracking.run("evaluate", long, {}) as run:  # noqa: PT012
        run.log({"f1.l'amour": 0.5})
        raise ZeroDivisionError
    client = runs[3]
    stored = newest(client)
    parent = client.get_run(stored.data.tags["mlflow.parentRunId"])
    assert (stored.info.status, parent.info.status) == ("FAILED", "FAILED")
    assert parent.info.run_name == "by hand"
    assert "git.commit" not in stored.data.tags
    assert stored.data.params == {"prompt": "a" * 6000, "we like _odd_ keys-2cc49d56": "null"}
    assert stored.data.metrics == {"f1.l_amour-d5deb253": 0.5}
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_fails_midway_warns_once_and_is_still_told_the_end(pipeline, runs, monkeypatch, capfd):
    client = runs[3]
    monkeypatch.setenv("DVC_ROOT", str(pipeline[0]))
    with tracking.run("sft", {}, {"midway": "failed"}) as run:
        while "input.midway" not in (told := newest(client, "sft")).data.tags:
            time.sleep(0.1)
        client.delete_run(told.info.run_id)  # what is deleted takes nothing
        run.log({"loss": 1.0})
        said = ""
        while "\n" not in said:
            said += capfd.readouterr().err
            time.sleep(0.1)
        client.restore_run(told.info.run_id)
        run.log({"loss": 1.0})
    assert said.startswith("emotune: MLflow at sqlite:///")
    assert capfd.readouterr() == ("", "")
    stored = client.get_run(told.info.run_id)
    assert (stored.info.status, stored.data.metrics) == ("FINISHED", {})


def test_a_dead_server_costs_one_warning_and_seconds(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    started = time.monotonic()
    done = []
    for stage in ("sft", "dpo"):
        with tracking.run(stage, PARAMS, {}) as run:
            run.log({"loss": 1.0}, 1)
            done.append(stage)
    assert done == ["sft", "dpo"]
    assert time.monotonic() - started < 15
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("emotune: MLflow at http://127.0.0.1:9 failed, the rest of this process is not tracked: ")
    assert err.count("\n") == 1
    assert "secret" not in err
    assert "Connection refused" in err


def test_a_warning_that_quotes_a_part_of_the_address_quotes_no_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:se/cret@host")
    told = tracking.warning("Failed to parse: user:se")
    assert told.startswith("emotune: MLflow at http://host failed, ")
    assert told.endswith(": Failed to parse: user:***")


@pytest.fixture
def silent_server(monkeypatch, tmp_path):
    """A tracking server that takes every request and answers none, to a client of endless patience."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("DVC_ROOT", str(tmp_path))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
        yield server


def test_a_server_that_hangs_keeps_no_stage_from_working_or_for_ever_from_ending(silent_server, monkeypatch, capfd):
    monkeypatch.setattr(tracking, "PATIENCE", 2.0)
    started = time.monotonic()
    with tracking.run("sft", PARAMS, {}) as run:
        for step in range(500):  # far more than the pipe holds
            run.log({f"a metric with a long name, number {i}": step / 7 for i in range(10)}, step)
        worked = time.monotonic() - started
    assert worked < 2 < time.monotonic() - started < 10
    assert capfd.readouterr().err == (
        f"emotune: MLflow at {tracking.uri()} failed, the rest of this process is not tracked: "
        "no answer 2 s after the stage's end\n"
    )
    assert listeners() == []
    with tracking.run("dpo", PARAMS, {}) as run:
        run.log({"loss": 1.0}, 1)
        assert listeners() == []


def listeners():
    """The processes that this one feeds. Of one that has just started Linux does not tell the words for a moment."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            while not (words := child.cmdline()):
                time.sleep(0.001)
            found += [child] * ("emotune.runs.listener" in words)
    return found


def test_a_listener_that_dies_costs_one_warning(silent_server, capfd):
    with tracking.run("sft", PARAMS, {}) as run:
        [listener] = listeners()
        listener.kill()
        while listener.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        run.log({"loss": 1.0}, 1)
        run.log({"loss": 1.0}, 2)
    assert capfd.readouterr().err == (
        f"emotune: MLflow at {tracking.uri()} failed, the rest of this process is not tracked: "
        "its process ended with exit code -9\n"
    )


def test_whatever_a_stage_tells_before_mlflow_is_imported_is_written(told, runs):
    history = runs[3].get_metric_history(told[1].info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, step / 7) for step in range(2500)]


def test_a_stage_that_is_killed_fails_its_run_and_has_imported_neither_mlflow_nor_dvc(pipeline, runs, tmp_path):
    code = (
        "import sys, time\nfrom emotune.runs import tracking\n"
        "with tracking.run('judges', {}, {}) as run:\n"
        "    run.log({'loss': 1.0}, 1); run.metrics({'a': {'b': 1}})\n"
        "    heavy = {'mlflow', 'dvc', 'sqlalchemy', 'torch', 'numpy'}\n"
        "    print('works', heavy & {name.split('.')[0] for name in sys.modules}, flush=True); time.sleep(600)\n"
    )
    environment = os.environ | {"DVC_ROOT": str(pipeline[0])}
    stage = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, start_new_session=True
    )
    assert stage.stdout.readline() == b"works set()\n"
    os.killpg(stage.pid, signal.SIGKILL)
    stage.communicate()
    deadline = time.monotonic() + 60
    while not (found := killed(runs[3])):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    parent = runs[3].get_run(found.data.tags["mlflow.parentRunId"])
    assert (found.info.status, parent.info.status) == ("FAILED", "FAILED")
    assert found.data.metrics == {"loss": 1.0, "a.b": 1.0}


def killed(client):
    """The run of the stage that was killed, once its pipeline has ended, too; else None."""
    [experiment] = client.search_experiments(filter_string="name = 'emotune'")
    found = client.search_runs([experiment.experiment_id], "tags.`dvc.stage` = 'judges'")
    parents = [client.get_run(run.data.tags["mlflow.parentRunId"]) for run in found]
    return next((run for run, parent in zip(found, parents, strict=True) if parent.info.end_time), None)


def test_a_run_has_the_times_of_its_stage_not_of_its_listener(told):
    info, (before, began, ended) = told[1].info, told[2]
    assert before <= info.start_time <= began
    assert ended <= info.end_time < ended + 1000


def test_off_starts_no_process_and_writes_nothing(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom emotune.runs import tracking\n"
        "sys.addaudithook(lambda event, _: event == 'subprocess.Popen' and sys.exit('a process'))\n"
        "with tracking.run('sft', {}, {}) as run:\n"
        "    run.log({'loss': 1.0}, 1); run.metrics({'a': {'b': 1}})\n"
    )
    environment = os.environ | {"EMOTUNE_TRACKING": "off", "DVC_ROOT": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert not list(tmp_path.iterdir())


def test_a_rank_above_zero_tracks_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with tracking.run("sft", {}, {}) as run:
        run.log({"loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_stages_of_one_dvc_process_share_a_key_and_two_processes_do_not(dvc):
    # In one write: both show it at once.
    code = (
        'import os; from emotune.runs import tracking; os.write(1, (" ".join(tracking._pipeline()) + "\\n").encode())'
    )
    show = f"{sys.executable} -c {shlex.quote(code)}"
    first, second = (
        subprocess.run([dvc, show, show], capture_output=True, text=True, check=True).stdout.split("\n")[:2]
        for _ in range(2)
    )
    assert first[0] == first[1]
    assert second[0] == second[1]
    assert first[0] != second[0]
    assert first[0].rstrip().endswith(" dvc repro")
    assert tracking._pipeline()[1] == "by hand"


def test_a_clock_that_is_set_meanwhile_changes_no_key(dvc):
    # On Linux psutil takes the time of day of each process's start from the time of boot, which moves with the clock.
    show = (
        "import itertools, psutil; from emotune.runs import tracking; later = itertools.count(1e9, 3600); "
        "psutil._psplatform.boot_time = lambda: next(later); print(*tracking._pipeline(), *tracking._pipeline())"
    )
    done = subprocess.run([dvc, f'{sys.executable} -c "{show}"'], capture_output=True, text=True, check=True)
    first, by, second, by_too = done.stdout.replace("dvc repro", "dvc").split()
    assert first == second
    assert by == by_too == "dvc"


def test_every_number_is_in_mlflow_under_the_name_that_dvc_would_give_it(told, tmp_path):
    measured, run, _ = told
    assert len(measured) >= 9
    # The names of the files are the first words: all of them are one file here, for DVC is slow to start.
    records.write_json(tmp_path / "all.json", measured)
    shown = subprocess.run(
        ["dvc", "metrics", "show", "--json", "all.json"], cwd=tmp_path, capture_output=True, check=True
    )
    found = dotted(json.loads(shown.stdout)[""]["data"]["all.json"]["data"])
    assert "evaluate.sft.control.per_emotion.anger" in found
    assert {name: run.data.metrics.get(name) for name in found} == found
    curves = {f"{file}.{name}" for file in measured.keys() - {"digits"} for name in measured[file]}
    assert set(run.data.metrics) == set(found) | curves | {"loss", "a metric with a long name"}


def dotted(metrics):
    """The names that DVC itself gives to numbers in a file of nested metrics."""
    from dvc.utils.flatten import flatten

    return {name: value for name, value in flatten(metrics).items() if not isinstance(value, str)}


def test_a_metric_has_the_digits_of_its_file(told, tmp_path):
    records.write_json(tmp_path / "metrics.json", told[0]["digits"])
    stored = {name: told[1].data.metrics[f"digits.{name}"] for name in ("f1", "gain")}
    assert stored == records.read_json(tmp_path / "metrics.json") == {"f1": 0.666667, "gain": 0.0}


@pytest.mark.parametrize(
    ("name", "known_as"),
    [
        ("dpo.control.per_emotion.joy/sad", "dpo.control.per_emotion.joy/sad"),
        ("3-grams", "3-grams"),
        ("f1.l'amour", "f1.l_amour-d5deb253"),
        ('f1.l"amour', "f1.l_amour-26f24160"),
        ("a//b", "a/b-7a9acf33"),
        ("..", "-5ec1f7e7"),
        ("/abs", "abs-e802dcc0"),
    ],
)
def test_a_name_that_mlflow_refuses_becomes_one_that_no_other_name_becomes(name, known_as, runs):
    from mlflow.utils.validation import _validate_metric_name

    assert tracking.key(name) == known_as
    _validate_metric_name(known_as)
    _validate_metric_name(tracking.key(300 * name))
    assert len(tracking.key(300 * name)) <= 250


def test_the_store_is_dvcs_then_gits_then_here(monkeypatch, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert tracking.uri() == f"sqlite:///{tmp_path}/a/b/mlflow.db"
    (tmp_path / ".git").mkdir()
    assert tracking.uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("DVC_ROOT", "/elsewhere")
    assert tracking.uri() == "sqlite:////elsewhere/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert tracking.uri() == "http://127.0.0.1:9"
