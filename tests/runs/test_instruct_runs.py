"""Laws of how the instruction pipeline is started, read and reported, in a folder of its own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, write_params
from emotune.core import records
from emotune.core.errors import InputError
from emotune.faces import cli, report
from emotune.runs import costs, instruction_tables, listener, lock, params, stage

DVC = (
    "stages:\n  sft:\n    cmd: echo 1 > out\n    deps: [../src/code.py]\n"
    "    params: [shots]\n    outs: [out: {cache: false}]\n"
)


def overall(value: float, exact: float) -> dict[str, dict[str, float]]:
    interval = {"low": value / 2, "high": value * 2}
    return {"perplexity": {"value": value, **interval}, "exact_match": {"value": exact, "low": 0.0, "high": 1.0}}


def ran(metrics: Path) -> None:
    """Metrics as compare and sft leave them."""
    test = {"difference": -1.5, "low": -2.0, "high": -1.0, "p": 0.002}
    measured = {"zero_shot": (8e6, 0.0), "few_shot": (5.0, 0.25), "sft": (3.5, 0.75)}
    compared: dict[str, Any] = {
        name: {"overall": overall(*values), "tasks": {"say": {"rows": 7, "perplexity": {"value": values[0]}}}}
        for name, values in measured.items()
    }
    compared["paired"] = {f"{name}_to_sft": {"perplexity": test} for name in ("few_shot", "zero_shot")}
    compared["published"] = {"zero_shot": 5.45, "few_shot": 4.74, "sft": 4.81}
    records.write_metrics(metrics / "compare.json", compared)
    (metrics / "learning_curve.csv").write_text("rows,validation_perplexity\n12,9.5\n24,4.25\n")
    (metrics / "sft_history.csv").write_text("step,loss,eval_perplexity\n1,2.5,\n6,1.5,4.25\n")


def test_their_sections_say_which_params_these_are(tmp_path: Path) -> None:
    assert type(params.whole(ROOT / "instruct/params.yaml")) is params.Instructions
    assert type(params.whole(ROOT / "params.yaml")) is params.Params
    text = (ROOT / "instruct/params.yaml").read_text("utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("\nshots: 4", "\nshot: 4").replace("\nrows:", "\nrow:"))
    with pytest.raises(InputError, match=r"shots is missing\n(.*\n)*.*unknown key shot; the nearest is shots"):
        params.whole(tmp_path / "params.yaml")


def test_an_instruction_is_guided_by_nothing(tmp_path: Path) -> None:
    write_params(tmp_path, {"evaluate.sampling.guidance": 2.0}, "instruct")
    with pytest.raises(InputError, match=r"evaluate\.sampling\.guidance must be 1: no instruction has a twin; got 2.0"):
        params.whole(tmp_path / "params.yaml")


def test_a_stage_of_another_pipeline_is_named_with_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["instruct.zero_shot", "--rows", "a", "--base", "b", "--replies", "c", "--metrics", "d"]
    module, paths = stage._parsed(words)
    assert module.__name__ == "emotune.stages.instruct.zero_shot"
    assert set(paths) == {"rows", "base", "replies", "metrics"}
    with pytest.raises(SystemExit):
        stage._parsed(["zero_shot"])
    assert "instruct.zero_shot" in capsys.readouterr().err


def test_what_a_stage_of_another_pipeline_cost_is_not_that_of_the_root_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "instruct").mkdir()
    shutil.copy(ROOT / "instruct/params.yaml", tmp_path / "instruct")
    command = [sys.executable, "-m", "emotune.runs.stage", "instruct.base_model"]
    environment = {"EMOTUNE_TRACKING": "off", "PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"}
    subprocess.run(
        [*command, "--out", "models/base", "--metrics", "metrics/base_model.json"],
        cwd=tmp_path / "instruct",
        env=environment,
        check=True,
    )
    [line] = costs.lines(tmp_path / ".work/costs.jsonl")
    assert (line["stage"], line["failed"]) == ("instruct/base_model", None)
    assert (tmp_path / "instruct/models/base/base.json").exists()


def test_dvc_s_name_of_a_stage_is_understood_where_the_stage_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (".dvc", "instruct", "src"):
        (tmp_path / folder).mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    (tmp_path / "src/code.py").write_text("1\n")
    (tmp_path / "instruct/params.yaml").write_text("shots: 4\n")
    (tmp_path / "instruct/dvc.yaml").write_text(DVC)
    (tmp_path / "instruct/out").write_text("1\n")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path / "instruct")
    entry = json.loads(json.dumps(listener._entry("instruct/dvc.yaml:sft")))
    assert entry == json.loads(json.dumps(listener._entry("sft")))
    assert [dep["path"] for dep in entry["deps"]] == ["../src/code.py"]
    assert entry["params"] == {"params.yaml": {"shots": 4}}
    # What lies outside of the folder is code too.
    records.write_json(tmp_path / "instruct/dvc.lock", {"schema": "2.0", "stages": {"sft": entry}})
    assert lock.doubts(Path()) == {}
    (tmp_path / "src/code.py").write_text("2\n")
    assert lock.doubts(Path()) == {"sft": "dep ../src/code.py is not that of dvc.lock"}


def test_the_published_profile_is_put_into_the_params_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "instruct"
    shutil.copytree(ROOT / "instruct/profiles", folder / "profiles")
    shutil.copy(ROOT / "instruct/params.yaml", folder)
    monkeypatch.chdir(folder)
    commit = "0123456789" * 4
    assert cli.main(["profile", "taiwan-llm-7b", "--model", f"yentinglin/Taiwan-LLM-7B-v2.1-chat@{commit}"]) == 0
    p = params.whole(folder / "params.yaml")
    assert isinstance(p, params.Instructions)
    assert p.quantizes
    assert (p.model.quantization, p.model.revision, p.rows.limit) == ("nf4", commit, 3000)
    lora = p.sft.lora
    assert (lora.rank, lora.alpha, lora.dropout, lora.target_modules) == (4, 16, 0.05, ("q_proj", "v_proj"))
    assert (p.sft.epochs, p.sft.batch_size, p.sft.accumulation, p.sft.learning_rate) == (2, 4, 4, 0.0002)
    assert not params.whole(ROOT / "instruct/params.yaml").quantizes
    write_params(tmp_path, {"questions.model.quantization": "nf4"}, "instruct")
    assert params.whole(tmp_path / "params.yaml").quantizes
    assert cli.main(["estimate"]) == 2
    assert "estimate: of the emotion pipeline, and params.yaml here is of instructions" in capsys.readouterr().err
    assert cli.main(["profile", "--data", "mine"]) == 2
    assert "rows of instructions are named in `rows` of params.yaml" in capsys.readouterr().err


def test_the_tables_say_what_compare_measured(tmp_path: Path) -> None:
    ran(tmp_path)
    assert instruction_tables.models(tmp_path) == [
        ["", "perplexity", "exact match", "published perplexity"],
        ["zero-shot", "8e+06 [4e+06, 1.6e+07]", "0.000 [0.000, 1.000]", "5.45"],
        ["few-shot", "5 [2.5, 10]", "0.250 [0.000, 1.000]", "4.74"],
        ["sft", "3.5 [1.75, 7]", "0.750 [0.000, 1.000]", "4.81"],
    ]
    assert instruction_tables.steps(tmp_path)[1] == ["few-shot → sft", "-1.5 [-2, -1]", "0.002"]
    assert instruction_tables.tasks(tmp_path)[1] == ["say", "7", "8e+06", "–", "5", "–", "3.5", "–"]
    assert instruction_tables.curve(tmp_path)[1:] == [["12", "9.5"], ["24", "4.25"]]
    assert instruction_tables.history(tmp_path)[1:] == [["6", "4.25"]]


def test_the_report_of_the_folder_is_that_of_its_pipeline(tmp_path: Path) -> None:
    ran(tmp_path)
    told = report.instructions(tmp_path, tmp_path / "costs.jsonl", ["sft"], {"sft": "dep x is not that of dvc.lock"})
    assert "sft: dep x is not that of dvc.lock" in told
    assert report.STALE in told
    assert all(len(line) <= 120 for line in told.splitlines())
    assert "train rows  validation perplexity" in told


def test_a_study_of_the_folder_is_started_from_above_and_its_table_is_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "instruct/experiments", tmp_path / "instruct/experiments")
    monkeypatch.chdir(tmp_path)
    page = {"docs/a.md": "<!-- begin:study-instruct/bases -->\n<!-- end:study-instruct/bases -->\n"}
    metrics = Path("metrics")
    assert (
        "Not measured yet: `emotune study instruct/bases` does." in report.filled(page, metrics, tmp_path)["docs/a.md"]
    )
    done = {"run": "large", "status": "done", "sft perplexity": 4.753, "sft perplexity low": 4.2}
    done |= {"sft perplexity high": 5.4, "sft perplexity verdict": "reference"}
    records.write_csv(Path("instruct/metrics/studies/bases.csv"), list(done), [done])
    table = report.filled(page, metrics, tmp_path)["docs/a.md"]
    assert "\n| large | sft | 4.75 [4.20, 5.40] | – | – | reference | – |\n" in table
    assert cli.main(["study", "elsewhere/bases"]) == 2
    assert "no study 'elsewhere/bases': elsewhere has no folder experiments" in capsys.readouterr().err
    shutil.copy(ROOT / "instruct/params.yaml", "instruct")
    Path("instruct/dvc.yaml").write_text("stages: {sft: {cmd: echo}}\n")
    assert cli.main(["study", "instruct/bases"]) == 2
    assert "study bases: target must be a stage of dvc.yaml, sft; got compare" in capsys.readouterr().err
    assert Path.cwd() == tmp_path / "instruct"


def test_a_page_shows_the_pipeline_s_tables_or_that_it_did_not_run(tmp_path: Path) -> None:
    page = {"docs/a.md": "<!-- begin:instruct-curve -->\n<!-- end:instruct-curve -->\n"}
    assert "Not run yet: `make instruct`." in report.filled(page, tmp_path / "metrics", tmp_path)["docs/a.md"]
    (tmp_path / "instruct/metrics").mkdir(parents=True)
    ran(tmp_path / "instruct/metrics")
    assert "| 24 | 4.25 |" in report.filled(page, tmp_path / "metrics", tmp_path)["docs/a.md"]
