"""Laws of `emotune current`: when dvc.lock is current, with data and without, on two stages under real DVC."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clones import dvc_init
from emotune.core.errors import InputError
from emotune.faces import cli
from emotune.runs import lock

pytestmark = pytest.mark.usefixtures("warm_module")

DVC_YAML = """\
stages:
  first:
    cmd: mkdir -p made && cp source.txt made/a && echo ${count} > made/b && echo 1 > score.json
    deps: [source.txt]
    params: [count, deep]
    outs: [made]
    metrics: [score.json: {cache: false}]
  second:
    cmd: cat made/a made/b > last.txt
    deps: [made]
    outs: [last.txt]
"""
PARAMS = "count: 3\ndeep: {rank: 16, names: [a, b]}\n"


def run(folder: Path, *command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"} | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(folder.parent / "dvc"),
    }
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lock") / "repository"
    folder.mkdir()
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_text(PARAMS)
    (folder / "source.txt").write_text("a source\n")
    (folder / ".gitignore").write_text("/made\n/last.txt\n")
    run(folder, "git", "init", "--quiet", "--initial-branch", "main")
    run(folder, "git", "config", "user.name", "A tester")
    run(folder, "git", "config", "user.email", "tester@localhost")
    with dvc_init(folder):
        pass
    run(folder, "dvc", "repro", "--quiet")
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "--quiet", "-m", "What a run left")
    return folder


@pytest.fixture
def repository(reproduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two stages that ran, their outs in the workspace and in the cache, everything else in git; ours to spoil."""
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "dvc"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    folder = tmp_path / "repository"
    shutil.copytree(reproduced, folder)
    monkeypatch.chdir(folder)
    return folder


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.unlink()  # DVC may have made it read-only, and a link
    path.write_text(text.replace(old, new))


def remote(repository: Path, url: object) -> None:
    text = f"[core]\n    remote = store\n['remote \"store\"']\n    url = {url}\n"
    (repository / ".dvc/config.local").write_text(text)


def without_data(repository: Path, cache: bool = True) -> None:
    shutil.rmtree(repository / "made")
    (repository / "last.txt").unlink()
    if cache:
        shutil.rmtree(repository / ".dvc/cache/files")


def test_after_a_run_dvc_lock_is_current(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lock.stale(repository) == []
    assert cli.main(["current"]) == 0
    assert capsys.readouterr().out == "dvc.lock is current\n"


@pytest.mark.parametrize(
    ("file", "old", "new", "reasons"),
    [
        ("params.yaml", "rank: 16", "rank: 32", ["first: param deep.rank is 32, and 16 in dvc.lock"]),
        ("params.yaml", "[a, b]", "[a]", ['first: param deep.names is ["a"], and ["a", "b"] in dvc.lock']),
        ("params.yaml", "{rank: 16, ", "{", ["first: param deep.rank is absent, and 16 in dvc.lock"]),
        ("params.yaml", "{rank", "{new: x, rank", ['first: param deep.new is "x", and absent in dvc.lock']),
        ("source.txt", "a source", "another", ["first: dep source.txt is not that of dvc.lock"]),
        ("last.txt", "a source", "another", ["second: out last.txt is not that of dvc.lock"]),
        ("made/a", "a source", "another", ["first: out made is not that of dvc.lock"]),
        ("score.json", "1", "2", ["first: out score.json is not that of dvc.lock"]),
        ("dvc.yaml", "cat made/a", "cat  made/a", ["second: cmd is not that of dvc.lock"]),
        ("dvc.yaml", "deps: [made]", "deps: [made, params.yaml]", ["second: dep params.yaml is not in dvc.lock"]),
        ("dvc.yaml", "  second:", "  another:", ["another: not in dvc.lock"]),
        ("dvc.lock", "  second:", "  another:", ["second: not in dvc.lock"]),
    ],
)
def test_each_difference_is_a_reason_that_names_it(
    file: str, old: str, new: str, reasons: list[str], repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced(repository / file, old, new)
    assert lock.stale(repository) == reasons
    assert cli.main(["current"]) == 1
    assert capsys.readouterr().out.splitlines() == ["dvc.lock is not current:", *(f"  {line}" for line in reasons)]


def test_a_file_that_is_absent_is_a_reason(repository: Path) -> None:
    (repository / "source.txt").unlink()
    (repository / "score.json").unlink()
    assert lock.stale(repository) == [
        "first: dep source.txt is absent",
        "first: out score.json is absent, and git keeps it, not DVC",
    ]


def test_without_a_lock_no_stage_is_in_it(repository: Path) -> None:
    (repository / "dvc.lock").unlink()
    assert lock.stale(repository) == ["first: not in dvc.lock", "second: not in dvc.lock"]


def test_another_pipeline_of_the_repository_makes_nothing_stale(repository: Path) -> None:
    (repository / "rounds").mkdir()
    (repository / "rounds/dvc.yaml").write_text("stages:\n  first: {cmd: echo, wdir: .., deps: [last.txt]}\n")
    assert lock.stale(repository) == []


def test_in_the_folder_of_another_pipeline_it_is_of_that_one(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "other").mkdir()
    (repository / "other/dvc.yaml").write_text("stages:\n  own: {cmd: echo, deps: [../source.txt]}\n")
    monkeypatch.chdir(repository / "other")
    assert cli.main(["current"]) == 1
    assert capsys.readouterr().out.splitlines() == ["dvc.lock is not current:", "  own: not in dvc.lock"]


def test_a_pipeline_in_a_folder_of_its_own_is_beside_its_own_lock(repository: Path) -> None:
    (repository / "other").mkdir()
    (repository / "other/dvc.yaml").write_text("stages:\n  third: {cmd: cp ../source.txt b, deps: [../source.txt]}\n")
    assert lock.stale(repository / "other") == ["third: not in dvc.lock"]
    run(repository, "dvc", "repro", "--quiet", "other/dvc.yaml")
    assert lock.stale(repository / "other") == []
    (repository / "source.txt").write_text("another\n")
    assert lock.stale(repository / "other") == ["third: dep ../source.txt is not that of dvc.lock"]


def test_a_comment_makes_nothing_stale(repository: Path) -> None:
    replaced(repository / "params.yaml", "count", "# a remark\ncount")
    assert lock.stale(repository) == []


def test_outs_that_the_cache_has_make_nothing_stale(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_data(repository, cache=False)
    assert lock.stale(repository) == []
    assert cli.main(["current"]) == 0
    assert capsys.readouterr().out == "dvc.lock is current; outs not in the workspace, 2 in the cache: dvc checkout\n"
    run(repository, "dvc", "checkout")
    assert (repository / "last.txt").read_text() == "a source\n3\n"


def test_outs_that_nobody_has_are_lost(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_data(repository)
    reasons = [
        "first: out made is in neither workspace nor cache, and there is no remote",
        "second: out last.txt is in neither workspace nor cache, and there is no remote",
    ]
    assert lock.stale(repository) == reasons
    assert cli.main(["current"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "dvc.lock agrees with the files here, and data that it names are nowhere to be had:",
        *(f"  {line}" for line in reasons),
    ]


def test_without_its_data_a_commit_is_current_until_a_param_changes(repository: Path) -> None:
    without_data(repository)
    assert cli.main(["current", "--without-data"]) == 0
    replaced(repository / "params.yaml", "rank: 16", "rank: 32")
    assert cli.main(["current", "--without-data"]) == 1


def test_a_folder_of_which_one_file_is_gone_is_lost(repository: Path) -> None:
    without_data(repository, cache=False)
    run(repository, "dvc", "checkout", "made")
    (content,) = [
        path for path in (repository / ".dvc/cache").rglob("*") if path.is_file() and path.read_bytes() == b"3\n"
    ]
    content.unlink()
    assert lock.stale(repository) == []  # the workspace has it
    shutil.rmtree(repository / "made")
    assert lock.stale(repository) == ["first: out made is in neither workspace nor cache, and there is no remote"]


def test_outs_that_the_remote_has_make_nothing_stale(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remote(repository, repository.parent / "store")
    run(repository, "dvc", "push")
    without_data(repository)
    assert cli.main(["current"]) == 0
    told = "dvc.lock is current; outs not in the workspace, 2 in the remote: dvc pull dvc.yaml\n"
    assert capsys.readouterr().out == told
    assert not (repository / ".dvc/cache/files").exists()  # looked for, not fetched
    run(repository, "dvc", "pull")
    assert "Data and pipelines are up to date." in run(repository, "dvc", "repro")


def test_a_remote_that_lacks_an_out_is_named(repository: Path) -> None:
    remote(repository, repository.parent / "store")
    run(repository, "dvc", "push", "made")
    without_data(repository)
    assert lock.stale(repository) == [
        "second: out last.txt is in neither workspace nor cache, and not in the remote store"
    ]


def test_a_remote_that_does_not_answer_is_a_reason(repository: Path) -> None:
    remote(repository, "gs://nobody/there")  # its package is not installed
    without_data(repository)
    reasons = lock.stale(repository)
    assert len(reasons) == 2
    assert all("the remote store did not answer: " in reason for reason in reasons)


def test_a_fresh_clone_tells_lost_data_from_a_stale_lock(repository: Path, tmp_path: Path) -> None:
    """There `dvc status` calls both stages changed, and `dvc repro --pull --allow-missing` says all is up to date."""
    run(tmp_path, "git", "clone", "--quiet", str(repository), "clone")
    clone = tmp_path / "clone"
    found = lock.compared(clone)
    assert found.differs == []
    assert [line.split(" is in ")[0] for line in found.lost] == ["first: out made", "second: out last.txt"]
    replaced(clone / "params.yaml", "rank: 16", "rank: 32")
    assert lock.compared(clone).differs == ["first: param deep.rank is 32, and 16 in dvc.lock"]


def test_a_stage_that_read_what_no_stage_left_is_stale_though_its_data_are_absent(repository: Path) -> None:
    replaced(repository / "params.yaml", "count: 3", "count: 4")
    run(repository, "dvc", "repro", "first")
    without_data(repository, cache=False)
    assert lock.stale(repository) == ["second: dep made is not what first left there"]


def test_a_folder_without_dvc_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="DVC says: "):
        lock.stale(tmp_path)


def test_a_lock_that_is_no_yaml_is_refused_by_name(repository: Path) -> None:
    (repository / "dvc.lock").write_text("stages: [")
    with pytest.raises(InputError, match=r"dvc\.lock"):
        lock.stale(repository)
