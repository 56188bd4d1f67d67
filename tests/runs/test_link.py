"""Laws of `emotune mirror` and `emotune link`, on a small repository that real DVC, git and MLflow worked in."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from clones import dvc_init
from conftest import ROOT
from emotune.faces import cli
from emotune.runs import link, mirror, tracking

STAGE = """
import sys
from pathlib import Path
from ruamel.yaml import YAML
from emotune.core import records
from emotune.runs import tracking
stage, out, metrics = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
section = {"prepare": "data", "sft": "sft"}[stage]
p = YAML(typ="safe", pure=True).load(Path("params.yaml"))[section]
with tracking.run(stage, {section: p}, {}) as run:
    run.log({"loss": 9.0}, 30)
    measured = {"loss": p["knob"] / 3, "per_emotion": {"joy": p["knob"]}, "labels": ["joy"]}
    records.write_json(out / "deep" / "a.json", {"from": p})
    records.write_json(out / "b.json", {})
    records.write_metrics(metrics, measured)
    if stage == "sft":
        records.write_json(metrics.with_name("headline.json"), {"loss": 0.5})
    run.metrics(measured)
"""

PIPELINE = """
stages:
  prepare:
    cmd: python stage.py prepare data/dialogues metrics/prepare.json
    deps: [stage.py]
    params: [data]
    outs: [data/dialogues]
    metrics: [metrics/prepare.json: {cache: false}]
  sft:
    cmd: python stage.py sft models/sft metrics/sft.json
    deps: [data/dialogues]
    params: [sft]
    outs: [models/sft]
    metrics: [metrics/sft.json: {cache: false}, metrics/headline.json: {cache: false}]
"""

PARAMS = """
data:
  knob: 7
sft:
  knob: 1
  learning_rate: 2e-05
"""


@dataclass(frozen=True)
class Repository:
    """The small repository, the commit of its first results, and what `emotune mirror` said of the experiments."""

    folder: Path
    first: str
    mirrored: list[str]

    def runs(self, name: str) -> dict[str, Any]:
        """The runs of the pipeline with this name, by stage; its own under ''."""
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{self.folder}/mlflow.db")
        runs = client.search_runs([client.get_experiment_by_name("emotune").experiment_id])
        (parent,) = [run for run in runs if run.info.run_name == name]
        own = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert len({run.info.run_name for run in own}) == len(own)
        return {"": parent} | {run.info.run_name: run for run in own}


def elsewhere() -> list[str]:
    """What of the environment would lead a command to another store, cache or repository."""
    return [name for name in os.environ if name.startswith(("MLFLOW_", "DVC_", "EMOTUNE_", "GIT_"))]


@pytest.fixture(scope="module")
def repository(warm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """One `dvc repro`; then an experiment that runs one stage of two, one in a temporary workspace, and one of none."""
    folder = tmp_path_factory.mktemp("repository")
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere()} | {
        "PATH": os.pathsep.join([str(warm_python), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT / "src"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(tmp_path_factory.mktemp("site")),
        "DVC_GLOBAL_CONFIG_DIR": str(tmp_path_factory.mktemp("config")),
    }

    def run(command: str) -> str:
        done = subprocess.run(command.split(), cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    (folder / "stage.py").write_text(STAGE)
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "params.yaml").write_text(PARAMS)
    (folder / ".gitignore").write_text("/data/dialogues\n/models/sft\n/mlflow.db*\n/mlartifacts\n/.work\n__pycache__\n")
    run("git init --quiet --initial-branch main")
    run("git config user.name Tester")
    run("git config user.email tester@localhost")
    with dvc_init(folder):
        pass
    run("git add .")
    run("git commit --quiet -m code")
    run("dvc repro --quiet")
    run("git add .")
    run("git commit --quiet -m results")
    first = run("git rev-parse HEAD").strip()

    run("dvc exp run --quiet --name one-stage -S sft.knob=2")
    run("dvc exp run --quiet --temp --name apart -S sft.knob=3")
    run("dvc exp run --quiet --name no-stage -S sft.knob=1")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as said:
        for name in elsewhere():
            patch.delenv(name)
        patch.chdir(folder)
        assert cli.main(["mirror"]) == 0
    return Repository(folder, first, said.getvalue().splitlines())


@pytest.fixture
def here(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """In the small repository, as a user who tracks."""
    for name in elsewhere():
        monkeypatch.delenv(name)
    monkeypatch.chdir(repository.folder)
    return repository


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


# --- what a stage says of itself


def test_a_stage_names_its_deps_and_outs_with_the_hashes_of_dvc_lock(here: Repository) -> None:
    lock = YAML(typ="safe", pure=True).load((here.folder / "dvc.lock").read_text())["stages"]
    runs = here.runs(f"dvc repro {git('rev-parse', 'HEAD~1')[:7]}")
    for stage, entry in lock.items():
        tags = runs[stage].data.tags
        expected = {f"dvc.dep.{dep['path']}": dep["md5"] for dep in entry["deps"]}
        expected |= {f"dvc.out.{out['path']}": out["md5"] for out in entry["outs"]}
        assert {name: tag for name, tag in tags.items() if name.startswith(("dvc.dep.", "dvc.out."))} == expected
    assert runs["sft"].data.tags["dvc.out.models/sft"].endswith(".dir")
    assert runs["sft"].data.tags["dvc.dep.data/dialogues"] == runs["prepare"].data.tags["dvc.out.data/dialogues"]


def test_its_metrics_file_is_what_mlflow_shows_even_over_a_curve_of_the_same_name(here: Repository) -> None:
    metrics = here.runs("apart")["sft"].data.metrics
    assert metrics == {"loss": 1.0, "per_emotion.joy": 3.0}


# --- mirror


def test_what_dvc_skipped_or_restored_is_mirrored_and_nothing_else(repository: Repository) -> None:
    assert sorted(repository.mirrored) == [
        "mirrored apart: prepare",
        "mirrored no-stage: prepare, sft",
        "mirrored one-stage: prepare",
    ]


def test_a_mirrored_run_has_metrics_params_and_a_link_to_the_run_that_wrote_them(here: Repository) -> None:
    first = here.runs(f"dvc repro {git('rev-parse', 'HEAD~1')[:7]}")
    mirrored = here.runs("no-stage")
    assert set(mirrored) == {"", "prepare", "sft"}
    for stage in ("prepare", "sft"):
        run, original = mirrored[stage], first[stage].info.run_id
        assert run.info.status == "FINISHED"
        assert run.data.tags["dvc.cached"] == "true"
        assert run.data.tags["dvc.cached.run"] == original
        assert f"/runs/{original})" in run.data.tags["mlflow.note.content"]
        assert run.data.metrics == first[stage].data.metrics
        assert run.data.params == first[stage].data.params
        assert "dvc.cached" not in first[stage].data.tags
    assert mirrored["sft"].data.params == {"sft.knob": "1", "sft.learning_rate": "2e-05"}
    assert mirrored["sft"].data.metrics == {"loss": 0.333333, "per_emotion.joy": 1.0}
    tags = mirrored[""].data.tags
    assert (tags["dvc.exp.name"], tags["git.commit"]) == ("no-stage", here.first)


def test_an_experiment_that_ran_a_stage_keeps_it_and_gains_the_skipped_one(here: Repository) -> None:
    for name in ("one-stage", "apart"):
        runs = here.runs(name)
        assert set(runs) == {"", "prepare", "sft"}
        assert "dvc.cached" not in runs["sft"].data.tags
        assert runs["prepare"].data.tags["dvc.cached"] == "true"


def test_a_second_mirror_writes_nothing(here: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mirror"]) == 0
    assert capsys.readouterr().out == ""


def test_results_of_another_machine_are_mirrored_without_a_link(here: Repository, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "empty")
    with tracking.store() as (client, experiment):
        assert len(list(mirror.mirror(client, experiment))) == 3  # the working tree is where `no-stage` is
        for family in mirror.families(client, experiment):
            # What was mirrored is not the original of what else is mirrored.
            assert [run.data.tags.get("dvc.cached.run") for run in family.children] == [None, None]
            assert "is not in this store" in family.stages["sft"].data.tags["mlflow.note.content"]


def test_a_metrics_file_that_dvc_lock_does_not_name_is_not_taken_for_it(here: Repository, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "edited")
    monkeypatch.setattr(mirror, "experiments", list)
    metrics = here.folder / "metrics" / "sft.json"
    before = metrics.read_bytes()
    metrics.write_text("{}")
    name = f"dvc repro {here.first[:7]}"
    try:
        with tracking.store() as (client, experiment):
            assert list(mirror.mirror(client, experiment)) == [
                f"{name}: prepare",
                f"{name}: sft is left out: its metrics file is not the one that dvc.lock names",
            ]
            metrics.write_bytes(before)
            assert list(mirror.mirror(client, experiment)) == [f"{name}: sft"]
            assert list(mirror.mirror(client, experiment)) == []
    finally:
        metrics.write_bytes(before)


def test_a_tracker_turned_off_mirrors_nothing(here: Repository, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("EMOTUNE_TRACKING", "off")
    assert cli.main(["mirror"]) == 0
    assert capsys.readouterr().out == "EMOTUNE_TRACKING=off: nothing is mirrored\n"


def test_a_dead_server_is_one_message_without_its_password(here: Repository, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    assert cli.main(["mirror"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("emotune: MLflow at http://127.0.0.1:9: ")
    assert err.count("\n") == 1
    assert "secret" not in err


def test_a_stage_that_reads_what_was_written_since_is_of_an_older_state(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    stages: dict[str, Any] = {
        "prepare": {"outs": [{"path": "data", "md5": "new"}]},
        "sft": {"deps": [{"path": "data", "md5": "old"}], "outs": [{"path": "model", "md5": "m"}]},
        "judges": {"deps": [{"path": "data", "md5": "new"}]},
        "evaluate": {"deps": [{"path": "model", "md5": "m"}]},
    }
    Path("dvc.lock").write_text(json.dumps({"stages": stages}))
    assert list(mirror.entries(None)) == ["prepare", "judges"]


# --- link


def linked(name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """What `emotune link` prints: the ids of each kind."""
    assert cli.main(["link", name]) == 0
    found: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        kind, id = re.split(r" {2,}", line)[:2]
        found.setdefault(kind, []).append(id)
    return found


def test_any_of_the_four_names_finds_the_other_three(here: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    git("branch", "--force", "kept", "refs/exps/" + f"{here.first[:2]}/{here.first[2:]}/apart")
    commit, run = git("rev-parse", "kept"), here.runs("apart")
    published = here.folder / ".work" / "published.jsonl"
    published.write_text(json.dumps({"repo": "me/bot", "revision": "ab" * 20, "commit": commit, "at": "now"}) + "\n")
    expected = {
        "experiment": ["apart"],
        "MLflow run": [run[""].info.run_id],
        "git commit": [commit],
        "published": [f"me/bot@{'ab' * 20}"],
    }
    for name in (
        "apart",
        run[""].info.run_id,
        run["sft"].info.run_id,
        run["prepare"].info.run_id,
        commit,
        commit[:7],
        "kept",
        "ab" * 20,
        f"me/bot@{'ab' * 20}",
    ):
        assert linked(name, capsys) == expected, name
    published.unlink()
    git("branch", "-D", "kept")


def test_of_two_experiments_of_one_name_the_newest_is_meant(here: Repository) -> None:
    namesakes = [replace(experiment, name="same") for experiment in mirror.experiments()]
    dates = [int(git("show", "--no-patch", "--format=%ct", one.revision)) for one in namesakes]
    state = link._state("same", namesakes, [], [])
    assert state
    assert state.commit == namesakes[-1].revision
    assert dates[-1] == max(dates) > dates[0]


def test_what_there_is_none_of_reads_none(here: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    found = linked("one-stage", capsys)
    assert found == {
        "experiment": ["one-stage"],
        "MLflow run": [here.runs("one-stage")[""].info.run_id],
        "git commit": ["none"],
        "published": ["none"],
    }


def test_a_commit_is_linked_to_all_that_has_its_results(here: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    found = linked("main", capsys)
    assert found["git commit"] == [here.first]
    assert found["experiment"] == ["no-stage"]
    names = ("no-stage", f"dvc repro {git('rev-parse', 'HEAD~1')[:7]}")
    assert sorted(found["MLflow run"]) == sorted(here.runs(name)[""].info.run_id for name in names)


def test_an_unknown_name_is_an_error_that_lists_what_was_looked_in(here: Repository, capsys: Any) -> None:
    assert cli.main(["link", "nobody"]) == 2
    assert capsys.readouterr().err == (
        "emotune: link: nothing is called 'nobody'; looked among 3 experiments of DVC, 4 pipelines and their stages in "
        f"MLflow, git's commits, and 0 revisions in {here.folder.resolve()}/.work/published.jsonl; owner/name@revision "
        "is looked for on the Hub, too\n"
    )


# --- a server

# What `mlflow server` starts, which imports MLflow once more for that.
SERVER = """
import os, sys
from mlflow.server import app, constants
os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = sys.argv[1]
os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = "mlflow-artifacts:/"
os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"
app.run("127.0.0.1", int(sys.argv[2]), threaded=True)
"""


@pytest.fixture
def served(here: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of the small repository's store, which the user's tracker is, with an experiment of its own there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVER, f"sqlite:///{here.folder}/mlflow.db", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=tmp_path, **quiet) as process:
        try:
            url, until = f"http://127.0.0.1:{port}", time.monotonic() + 120
            while not answers(f"{url}/health"):
                assert time.monotonic() < until
                assert process.poll() is None
                time.sleep(0.1)
            monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
            monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "served")
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
            yield url
        finally:
            process.kill()


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url).close()
    except OSError:
        return False
    return True


def asked(server: str, path: str, **body: Any) -> Any:
    """What the server answers to anybody, without MLflow's client."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{server}/api/2.0/mlflow/{path}", json.dumps(body).encode() if body else None, headers
    )
    return json.load(urllib.request.urlopen(request))


def test_a_server_gets_parents_children_and_metrics_and_says_itself_where_artifacts_lie(
    served: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["mirror"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == [f"mirrored {name}: prepare, sft" for name in ("apart", "no-stage", "one-stage")]

    experiment = asked(served, "experiments/get-by-name?experiment_name=served")["experiment"]
    assert experiment["artifact_location"].startswith("mlflow-artifacts:/")
    (parent,) = linked("apart", capsys)["MLflow run"]
    children = {"experiment_ids": [experiment["experiment_id"]], "filter": f"tags.mlflow.parentRunId = '{parent}'"}
    runs = {run["info"]["run_name"]: run["data"] for run in asked(served, "runs/search", **children)["runs"]}
    assert set(runs) == {"prepare", "sft"}
    assert {metric["key"]: metric["value"] for metric in runs["sft"]["metrics"]} == {
        "loss": 1.0,
        "per_emotion.joy": 3.0,
    }
