"""Laws of `emotune doctor`: what it finds here, what a profile lacks, what it never prints, when it exits with 1."""

import http.server
import json
import shutil
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch  # noqa: F401  before a test sets OMP_NUM_THREADS, which torch reads once for all that follow
from huggingface_hub import constants

from clones import dvc_init
from conftest import ROOT, write_params
from emotune.core.errors import InputError
from emotune.faces import cli, doctor
from emotune.faces.doctor import GB, Finding, Gpu
from emotune.runs.estimate import Machine

MACHINE = [
    *("python", "packages", "git", "cpu", "memory", "gpu", "bf16", "flash-attn", "bitsandbytes", "disk"),
    *("dvc cache", "dvc remote", "dvc.lock", "tracker", "hub token"),
]
SECRET = "hf_aTokenThatNobodyMayRead"
LLAMA = "llama2-7b-12gb"
CARD = Gpu("A card", memory=int(12.6 * GB), free=int(12 * GB), bf16=True)
SMALL_CARD = Gpu("A small card", memory=int(8.2 * GB), free=int(8 * GB), bf16=True)
JUDGE = {"name": "embedded", "revision": None, "labels": None}
# Whatever params.yaml says.
EMBEDDED = {
    "data.source": "embedded",
    "data.path": None,
    "model.base": "embedded",
    "model.revision": None,
    "model.attention": "sdpa",
    "model.quantization": "none",
    "evaluate.emotion_judge": JUDGE | {"tau": None},
    "evaluate.gibberish_judge": JUDGE,
    "sft.optimizer": "adamw_torch",
    "generation.engine": "local",
    "generation.model": None,
    "dpo.optimizer": "adamw_torch",
    "reward.emotion_judge": JUDGE | {"tau": 0},
    "reward.gibberish_judge": JUDGE,
}
REMOTE = "[core]\n    no_scm = True\n    remote = store\n['remote \"store\"']\n    url = {url}\n"
FREE_PORT = 9  # "discard", which nobody serves


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What doctor reads of the project, under a DVC of its own."""
    folder = tmp_path_factory.mktemp("doctor")
    for name in ("dvc.yaml", "dvc.lock", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    write_params(folder, EMBEDDED)
    with dvc_init(folder, no_scm=True):
        return folder


@pytest.fixture
def repository(initialised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil, on a machine without settings."""
    settings = ("DVC_ROOT", "MLFLOW_TRACKING_URI", "EMOTUNE_TRACKING", "EMOTUNE_SERVER", "HF_TOKEN")
    for name in settings:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "dvc"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf/token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(initialised, tmp_path, dirs_exist_ok=True)
    return tmp_path


def line(subject: str, findings: list[Finding]) -> Finding:
    (found,) = [finding for finding in findings if finding.subject == subject]
    return found


def part(subject: str, root: Path, gpu: Gpu | None = None) -> Finding:
    """One line of the machine, without asking what the others take."""
    parts: dict[str, Callable[[], list[Finding]]] = {
        "packages": lambda: [doctor._packages(root)],
        "cpu": lambda: [doctor._processor()],
        "memory": lambda: [doctor._memory(root)],
        "gpu": lambda: doctor._graphics(gpu),
        "bf16": lambda: doctor._graphics(gpu),
        "tracker": lambda: [doctor._tracker(root)],
        "hub token": lambda: [doctor._token()],
    }
    return line(subject, parts.get(subject, lambda: doctor._dvc(root, root))())


def profile(name: str, root: Path, gpu: Gpu | None) -> Finding:
    return line(name, doctor.profiles(root, gpu))


# --- the report


def test_one_aligned_screen_with_a_line_for_each_part_and_profile(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    machine, profiles = (block.splitlines() for block in shown.split("\n\n"))
    assert len(machine) + len(profiles) <= 40
    assert max(map(len, [*machine, *profiles])) <= 120
    for lines, subjects in (
        (machine, MACHINE),
        (profiles, ["params.yaml", *sorted(p.stem for p in Path("profiles").iterdir())]),
    ):
        begun = [line for line in lines if not line.startswith(" ")]
        assert {line[:6] for line in begun} <= {"ok    ", "warn  ", "fail  "}
        column = 6 + max(map(len, subjects))
        assert [line[6:column].rstrip() for line in begun] == subjects
        assert {line[column : column + 2] for line in begun} == {"  "}


def test_as_json_it_says_the_same_and_whatever_is_no_ok_says_what_to_do(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [finding["subject"] for finding in found["machine"]] == MACHINE
    assert found["profiles"][0] == {
        "state": "ok",
        "subject": "params.yaml",
        "found": "the model that comes with it",
        "to_do": "",
    }
    assert all((one["state"] == "ok") == (one["to_do"] == "") for part in found.values() for one in part)


def test_in_the_folder_of_another_pipeline_it_is_about_that_one(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / ".git").mkdir()
    shutil.copytree(ROOT / "instruct/profiles", repository / "instruct/profiles")
    write_params(repository / "instruct", {}, "instruct")
    shutil.copy(ROOT / "instruct/dvc.yaml", repository / "instruct")
    monkeypatch.chdir(repository / "instruct")
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["subject"] for one in found["profiles"]] == ["params.yaml", "taiwan-llm-7b"]
    assert found["profiles"][0]["found"] == "the model that comes with it"
    told = next(one["found"] for one in found["machine"] if one["subject"] == "dvc.lock")
    assert told == "not current: base_model, compare, few_shot, questions, rows, sft, zero_shot"
    changes = {"rows.source": "folder", "rows.path": "nowhere", "model.base": "./gone"}
    write_params(repository / "instruct", changes, "instruct")
    mine, _ = doctor.profiles(repository, None, repository / "instruct")
    assert mine.state == "fail"
    assert f"rows (no such path: {repository / 'nowhere'})" in mine.to_do
    assert f"no such folder: {repository / 'gone'}" in mine.to_do


def test_it_runs_in_the_repository_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no dvc\.yaml in"):
        doctor.examined(tmp_path)


# --- the machine


def test_a_dependency_that_is_absent_fails_the_default(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = repository / "pyproject.toml"
    path.write_text(path.read_text().replace('    "torch>=', '    "no-such-package>=1",\n    "torch>='))
    assert part("packages", repository).found == "absent: no-such-package"
    assert cli.main(["doctor"]) == 1
    assert "fail  packages" in capsys.readouterr().out


def test_a_version_that_is_not_pinned_is_a_warning(repository: Path) -> None:
    path = repository / "constraints.txt"
    pins = path.read_text().splitlines()
    path.write_text("\n".join("jinja2==0.0.1" if pin.startswith("Jinja2==") else pin for pin in pins))
    found = part("packages", repository)
    assert found.state == "warn"
    assert found.found.endswith("(not 0.0.1)")


def test_a_local_build_of_a_pinned_version_is_that_version(repository: Path) -> None:
    from importlib import metadata

    version = metadata.version("torch").split("+")[0]
    assert f"torch=={version}" in (repository / "constraints.txt").read_text().splitlines()
    assert "torch" not in part("packages", repository).found


def test_more_threads_than_cores_is_a_warning(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert part("cpu", repository).state == "ok"
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert part("cpu", repository).state == "warn"


def test_a_stage_that_does_not_fit_is_a_warning_with_its_knob(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert part("memory", repository).found.endswith("GB free, every stage fits")
    monkeypatch.setattr(doctor.estimate, "here", lambda: Machine(8 * 10**9, False))
    write_params(repository, EMBEDDED | {"model.base": "google/gemma-7b-it", "model.revision": 40 * "0"})
    found = part("memory", repository)
    assert found.state == "warn"
    assert found.to_do.startswith("baseline would take about 3")
    assert 'model.quantization: "nf4" saves most' in found.to_do
    write_params(repository, EMBEDDED | {"model.base": "nobody/knows-it", "model.revision": 40 * "0"})
    assert part("memory", repository).found.endswith("how much nobody/knows-it takes is not known")


def test_eight_bits_of_an_optimizer_s_state_need_their_package(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda package: False)
    write_params(repository, EMBEDDED | {"reward_model.optimizer": "adamw_8bit"})
    assert profile("params.yaml", repository, None).to_do == "lacks bitsandbytes"


def test_a_gpu_is_named_with_its_memory(repository: Path) -> None:
    assert part("gpu", repository, CARD) == Finding("ok", "gpu", "A card, 12.0 of 12.6 GB free")
    assert part("bf16", repository, CARD).found == "native"
    without = Gpu("An old card", memory=16 * int(GB), free=16 * int(GB), bf16=False)
    assert part("bf16", repository, without).state == "warn"


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("flags : fma avx512_bf16 amx_bf16", "native (amx_bf16, avx512_bf16), no GPU: model.dtype: bfloat16 is fast"),
        ("Features : asimd bf16", "native (bf16), no GPU: model.dtype: bfloat16 is fast"),
        ("flags : fma avx2", "in software, no GPU: model.dtype: float32 is faster"),
        (None, "in software, no GPU: model.dtype: float32 is faster"),
    ],
)
def test_a_processor_that_knows_bfloat16_is_told_apart(
    flags: str | None, found: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PROCESSOR", repository / "cpuinfo")
    if flags:
        (repository / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    assert part("bf16", repository) == Finding("ok", "bf16", found)


def test_a_repository_that_dvc_cannot_read_fails(repository: Path) -> None:
    shutil.rmtree(repository / ".dvc")
    assert part("dvc", repository).state == "fail"


def test_a_lock_that_is_not_current_is_a_warning(repository: Path) -> None:
    found = part("dvc.lock", repository)
    assert (found.state, found.to_do) == ("warn", "emotune current says why")


def test_the_remote_is_asked(repository: Path) -> None:
    assert part("dvc remote", repository).found == "none: data stay in this cache"
    (repository / ".dvc/config").write_text(REMOTE.format(url="../store"))
    found = part("dvc remote", repository)
    assert (found.state, found.found.split(": ")[1]) == ("ok", "nothing pushed to it yet")
    (repository / "store/files/md5").mkdir(parents=True)
    assert part("dvc remote", repository).found.endswith(": answers")
    (repository / ".dvc/config").write_text(REMOTE.format(url="gs://somebody@nobody/there"))  # without its package
    found = part("dvc remote", repository)
    assert (found.state, "somebody" in str(found)) == ("warn", False)


# --- tracker and token


@pytest.fixture
def server() -> Iterator[str]:
    """A tracking server's `/health`, which wants a password."""

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            own = self.headers.get("Authorization") == f"Basic {b64encode(f'me:{SECRET}/'.encode()).decode()}"
            self.send_response(401 if not own else 200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def tracker(root: Path) -> Finding:
    return part("tracker", root)


def test_the_tracker_is_asked(repository: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracker(repository).found == f"sqlite:///{repository}/mlflow.db: the first stage makes it"
    (repository / "mlflow.db").write_text("no database")
    assert tracker(repository).state == "warn"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert tracker(repository) == Finding("ok", "tracker", f"{server}: answers 401")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.replace("//", f"//me:{SECRET}%2F@"))
    assert tracker(repository) == Finding("ok", "tracker", f"{server}: answers")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{FREE_PORT}")
    assert tracker(repository).state == "warn"
    monkeypatch.setenv("EMOTUNE_TRACKING", "off")
    assert tracker(repository) == Finding("ok", "tracker", "off (EMOTUNE_TRACKING)")


def test_a_database_is_asked_for_its_port_and_its_password_is_not_shown(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as database:
        port = database.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql+psycopg2://me:{SECRET}@127.0.0.1:{port}/runs")
        found = tracker(repository)
    assert found == Finding("ok", "tracker", f"postgresql+psycopg2://127.0.0.1:{port}/runs: port {port} answers")


@pytest.mark.parametrize(
    "address", ["http://me:{}@localhost", "http://me:{}/x@localhost", "mysql://me:{}/@db.org/runs"]
)
def test_a_password_is_not_shown_in_the_reason_either(
    address: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(SECRET))
    found = tracker(repository)
    assert (found.state, SECRET in str(found)) == ("warn", False)


def test_the_token_is_found_and_never_printed(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert part("hub token", repository).state == "warn"
    monkeypatch.setenv("HF_TOKEN", SECRET)
    for arguments in (["doctor"], ["doctor", "--json"]):
        assert cli.main(arguments) == 0
        shown = capsys.readouterr()
        assert SECRET not in shown.out + shown.err
        assert "present" in shown.out


# --- profiles


def test_the_default_and_the_published_settings_lack_nothing(repository: Path) -> None:
    assert profile("params.yaml", repository, None).state == "ok"
    assert profile("published", repository, None).state == "ok"


def test_real_dialogues_have_to_be_brought(repository: Path) -> None:
    found = profile("daily-dialog-cpu", repository, None)
    assert (found.state, found.to_do) == ("warn", "lacks dialogues (DATA=path)")
    (repository / "dialogues").mkdir()
    write_params(repository, EMBEDDED | {"data.path": "dialogues"})
    assert profile("daily-dialog-cpu", repository, None).state == "ok"
    (repository / "dialogues").rmdir()
    found = profile("daily-dialog-cpu", repository, None)
    assert (found.state, found.to_do) == ("fail", f"lacks dialogues (no such path: {repository}/dialogues)")


def test_a_large_model_needs_a_gpu_with_memory_enough(repository: Path) -> None:
    assert "lacks a GPU, " in profile(LLAMA, repository, None).to_do
    assert "GPU memory: A small card has 8.2 GB" in profile(LLAMA, repository, SMALL_CARD).to_do
    found = profile(LLAMA, repository, CARD)
    # What its command names and what its first run downloads does not stop it.
    assert (found.state, "GPU" in found.to_do) == ("warn", False)


def test_a_model_of_the_hub_is_at_hand_where_all_its_files_are(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "(the first run downloads it" in profile(LLAMA, repository, CARD).to_do
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = profile(LLAMA, repository, CARD)
    assert (found.state, "HF_HUB_OFFLINE is set" in found.to_do) == ("fail", True)
    commit = "f5db02db724555f92da89c216ac04704f23d4590"
    held = repository / f"hf/hub/models--meta-llama--Llama-2-7b-chat-hf/snapshots/{commit}"
    held.mkdir(parents=True)
    files = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (held / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (held / "model-1.safetensors").touch()
    assert profile(LLAMA, repository, CARD).state == "fail"
    (held / "model-2.safetensors").touch()
    assert profile(LLAMA, repository, CARD).to_do == "lacks dialogues (DATA=path)"


def test_a_local_model_that_is_gone_fails(repository: Path) -> None:
    write_params(repository, EMBEDDED | {"model.base": "./gone"})
    assert profile("params.yaml", repository, None).to_do == f"lacks its model (no such folder: {repository}/gone)"


def test_a_server_has_to_be_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params(repository, EMBEDDED | {"generation.engine": "server", "generation.model": "sft"})
    assert profile("params.yaml", repository, None).to_do == "lacks EMOTUNE_SERVER"
    monkeypatch.setenv("EMOTUNE_SERVER", "http://localhost:8000/v1")
    assert profile("params.yaml", repository, None).state == "ok"
