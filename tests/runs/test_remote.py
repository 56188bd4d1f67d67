"""Laws of a DVC remote, a folder or an S3 server on loopback: what was pushed another clone pulls, and runs nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clones import Clone, reproduced
from conftest import STAGES, Pipeline, contents
from emotune.faces import cli

pytestmark = pytest.mark.pipeline

REMOTE = "[core]\n    remote = store\n['remote \"store\"']\n    url = {url}\n"
AWS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "aSecretOfSomebody", "AWS_DEFAULT_REGION": "us-east-1"}
# The others are `path: {cache: false}`, and git's.
CACHED = [out for stage in STAGES.values() for out in stage["outs"] if isinstance(out, str)]


@pytest.fixture(scope="module")
def source(pipeline: Pipeline, warm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return reproduced(tmp_path_factory.mktemp("source") / "clone", pipeline, warm_python)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 server with one bucket; whoever asks it needs the keys of AWS in the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        for name, value in AWS.items():
            patch.setenv(name, value)
        server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        server.start()
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="emotune")
        yield endpoint
        server.stop()


@pytest.fixture(scope="module", params=["folder", "s3"])
def pushed(request: pytest.FixtureRequest, source: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The project after `dvc push` to a remote that dvc.yaml's repository names."""
    remote = REMOTE.format(url=tmp_path_factory.mktemp("store"))
    if request.param == "s3":
        remote = f"{REMOTE.format(url='s3://emotune/store')}    endpointurl = {request.getfixturevalue('s3')}\n"
    (source.folder / ".dvc/config").write_text(remote)
    source("git", "commit", "--quiet", "-m", f"A remote: {request.param}", ".dvc/config")
    assert "files pushed" in source("dvc", "push")
    return source


@pytest.fixture
def second(pushed: Clone, tmp_path: Path) -> Clone:
    """Another clone, with a cache of its own and no data."""
    clone = Clone(tmp_path / "second", pushed.python)
    clone.folder.mkdir()
    clone("git", "clone", "--quiet", str(pushed.folder), ".")
    return clone


def current(clone: Clone, capsys: pytest.CaptureFixture[str]) -> str:
    """What `emotune current` prints there."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clone.environment.items():
            patch.setenv(name, value)
        patch.chdir(clone.folder)
        cli.main(["current"])
    return capsys.readouterr().out.strip()


def test_a_second_clone_pulls_and_reproduces_nothing(
    second: Clone, pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    told = f"dvc.lock is current; outs not in the workspace, {len(CACHED)} in the remote: dvc pull dvc.yaml"
    assert current(second, capsys) == told
    second("dvc", "pull", "dvc.yaml")
    output = second("dvc", "repro")
    assert second.ran(output) == []
    assert "Data and pipelines are up to date." in output
    assert not (second.folder / ".work").exists()  # where every stage leaves a note
    assert second("git", "status", "--porcelain") == ""
    for path in ("data", "models"):
        assert contents(second.folder / path) == contents(pipeline.folder / path) | ignored(second.folder / path)


def ignored(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name.endswith(".gitignore")}


def test_a_server_that_is_down_is_a_reason(
    source: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (AWS | {"AWS_MAX_ATTEMPTS": "1"}).items():
        monkeypatch.setenv(name, value)
    clone = Clone(tmp_path / "second")
    clone.folder.mkdir()
    clone("git", "clone", "--quiet", str(source.folder), ".")
    down = f"{REMOTE.format(url='s3://emotune/store')}    endpointurl = http://127.0.0.1:9\n"
    (clone.folder / ".dvc/config.local").write_text(down)
    assert "the remote store did not answer: " in current(clone, capsys)
