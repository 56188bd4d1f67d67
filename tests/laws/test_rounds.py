"""Laws of another round, its stages run after the tiny pipeline: fresh prompts, its own outs, an honest verdict."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from conftest import ROOT, Pipeline, contents, run_stage
from emotune.core import records

pytestmark = pytest.mark.pipeline

ROUNDS = YAML(typ="safe").load((ROOT / "rounds/stages.yaml").read_text("utf-8"))["stages"]
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "tokenizer.json")


def rows(split: Path) -> list[dict[str, Any]]:
    return list(records.read_jsonl(split.with_suffix(".jsonl")))


def test_another_round_asks_afresh_leaves_the_first_alone_and_pays_only_where_control_rose(
    pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(pipeline.folder, folder)
    before = contents(folder)
    for stage in ROUNDS:
        run_stage(stage, folder, ROUNDS)
    after = contents(folder)
    changed = {path for path in after if after[path] != before.get(path) and not path.startswith(".work/")}
    assert changed == {
        "data/rounds/prefs/train.jsonl",
        "data/rounds/prefs/validation.jsonl",
        *(f"models/rounds/dpo/{name}" for name in (*ADAPTER, "tokenizer_config.json")),
        *(
            f"metrics/rounds/{name}"
            for name in ("prefs.json", "best_of_n.csv", "dpo.json", "dpo_history.csv", "rounds.json")
        ),
    }
    places = [
        {row["id"].rpartition("/")[0] for split in ("train", "validation") for row in rows(folder / prefs / split)}
        for prefs in ("data/prefs", "data/rounds/prefs")
    ]
    assert all(places)
    assert not places[0] & places[1]
    measured = records.read_metrics(folder / "metrics/rounds/rounds.json")
    step = measured["paired"]["dpo_to_dpo_2"]["control"]["macro_accuracy"]
    values = [measured[name]["control"]["macro_accuracy"]["value"] for name in ("dpo", "dpo_2")]
    assert step["difference"] == pytest.approx(values[1] - values[0], abs=2e-6)
    assert measured["another_round"] == (step["low"] > 0)
    assert ("it pays" in capsys.readouterr().out) == measured["another_round"]
