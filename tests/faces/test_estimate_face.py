"""Laws of `emotune estimate`: all stages, with nothing prepared; like params cost alike; when it exits with 1."""

import json
from pathlib import Path

import pytest

from conftest import ROOT, STAGES, write_params
from emotune.core import records
from emotune.core.dialogue import Dialogue, to_record
from emotune.core.sections import part
from emotune.faces import cli, estimate
from emotune.runs import costs
from emotune.runs.estimate import Machine
from emotune.runs.params import parse
from emotune.stages import prepare, sft


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_params(tmp_path, {"data.dialogues": 200})
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def test_every_stage_is_estimated_before_anything_is_prepared(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["estimate", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said["stages"]) == list(STAGES)
    assert said["parameters"] == 974_336
    assert said["tokens_by"] == "the embedded grammar, its tokenizer"
    own = said["stages"]["sft"]
    assert own["peak"] == sum(own["terms"].values()) > own["checkpointed"]
    assert min(own["seconds"], own["tokens"], own["disk"]) > 0
    table = estimate.table(said)
    assert "every stage fits" in table
    assert max(map(len, table.splitlines())) <= 120
    assert not list(repository.glob(".work/*"))


def test_a_run_with_the_same_params_is_believed_and_no_other(repository: Path) -> None:
    p = parse(repository / "params.yaml")
    own, other = (costs.Cost(name) for name in ("sft", "prepare"))
    own.params = costs.digest(part(sft.Params, p).model_dump(mode="json"))
    changed = p.model_copy(update={"data": p.data.model_copy(update={"seed": 8})})
    other.params = costs.digest(part(prepare.Params, changed).model_dump(mode="json"))
    for cost in (own, other, costs.Cost("instruct/sft"), costs.Cost("rounds/dpo")):
        cost.note(None)
    assert list(estimate.ran_before(repository, p)) == ["sft"]
    own.note("killed")
    assert list(estimate.ran_before(repository, p)) == ["sft"]


def test_rows_are_counted_in_the_dialogues_that_are_prepared(repository: Path, dialogues: list[Dialogue]) -> None:
    records.write_jsonl(repository / "data/dialogues/train.jsonl", map(to_record, dialogues))
    text, counts = estimate.text_of(parse(repository / "params.yaml"), repository)
    assert counts.dialogues == len(dialogues)
    assert counts.said == "data/dialogues, its tokenizer"
    assert counts.tokens >= text.longest >= counts.reply > 1


def test_of_data_that_are_nowhere_yet_there_are_as_many_as_daily_dialog_has_to_train_on(repository: Path) -> None:
    p = parse(repository / "params.yaml")
    of_hub = p.model_copy(update={"data": p.data.model_copy(update={"source": "hub", "name": "owner/name"})})
    _, count, size, where = estimate.dialogues_of(of_hub, repository)
    assert (count, size, where) == (11_118, 0, "the size of DailyDialog")


def test_what_does_not_fit_exits_with_1_and_names_a_knob(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate.estimate, "here", lambda: Machine(5 * 10**8, False))
    monkeypatch.setattr(estimate, "calibrated", lambda p, text: estimate.Speed(1e-3, 1e-4, 1e-3))
    assert cli.main(["estimate"]) == 1
    printed = capsys.readouterr().out
    assert "sft does not fit: " in printed
    assert " saves most, " in printed


def test_a_model_that_no_folder_holds_and_no_hub_could_name_is_one_message(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(repository, {"model.base": "./models/nowhere"})
    assert cli.main(["estimate"]) == 2
    assert "model.base: no config.json of ./models/nowhere is here" in capsys.readouterr().err
