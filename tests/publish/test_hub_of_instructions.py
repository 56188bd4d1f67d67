"""Laws of `emotune publish` in instruct/: adapter and rows with their cards, on the Hub on loopback."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from hub_server import Hub
from peft import LoraConfig, get_peft_model
from test_hub import ADAPTER, BASE, Teller, changed, code_of, commit, emotune, fresh, run, server  # noqa: F401

from conftest import write_params
from emotune.core import records
from emotune.core.dialogue import SPLITS
from emotune.core.errors import InputError
from emotune.faces import cli
from emotune.models import loading
from emotune.models.params import Model
from emotune.publish import gate
from emotune.runs.params import PARAMS, Instructions, whole

pytestmark = pytest.mark.usefixtures("warm_module")

DVC_YAML = """\
stages:
  rows: {cmd: "true", params: [rows], outs: [data/rows], metrics: [metrics/rows.json: {cache: false}]}
  base_model: {cmd: "true", params: [model.base], outs: [models/base]}
  sft: {cmd: "true", params: [format, model, sft], outs: [models/sft]}
  compare: {cmd: "true", params: [evaluate], metrics: [metrics/compare.json: {cache: false}]}
"""
BETTER = {"difference": -1.5, "low": -2.0, "high": -1.0, "p": 0.002}
ROWS = {"README.md", *(f"data/{split}-00000-of-00001.parquet" for split in SPLITS)}


def row(split: str, number: int) -> dict[str, Any]:
    words = {"id": f"{split}/{number}", "source": split, "task": "say", "instruction": f"Say {number}.", "input": ""}
    return words | {"output": f"{number}!", "exact": True}


def compared(**steps: Any) -> dict[str, Any]:
    value = {"perplexity": {"value": 3.5, "low": 3.0, "high": 4.0}}
    measured = {"overall": value, "tasks": {"say": value | {"rows": 7}}}
    models = dict.fromkeys(("zero_shot", "few_shot", "sft"), measured)
    better = {f"{way}_to_sft": {"perplexity": BETTER} for way in ("few_shot", "zero_shot")}
    published = {"zero_shot": 5.45, "few_shot": 4.74, "sft": 4.81}
    return {**models, "paired": better | steps, "published": published}


@pytest.fixture(scope="module")
def made(base: Path, model_choice: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """instruct/ as a run leaves it, all of it in git or in DVC: look, do not touch."""
    repository = tmp_path_factory.mktemp("hub") / "repository"
    folder = repository / "instruct"
    shutil.copytree(base, folder / "models/base")
    torch.manual_seed(1)
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(loading.load_base(base, model_choice), lora)
    loading.save_adapter(adapted, loading.load_tokenizer(base, "alpaca"), base, folder / "models/sft")
    for split in SPLITS:
        records.write_jsonl(folder / f"data/rows/{split}.jsonl", [row(split, number) for number in range(3)])
    records.write_metrics(folder / "metrics/rows.json", {split: {"rows": 3} for split in SPLITS})
    records.write_metrics(folder / "metrics/compare.json", compared())
    (folder / "metrics/sft_history.csv").write_text("step,loss,eval_loss\n1,3,\n9,2,1.5\n")
    write_params(folder, {}, "instruct")
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (repository / ".gitignore").write_text("/instruct/models\n/instruct/data\n.work/\n")
    run(repository, "git", "init", "--quiet", "--initial-branch", "main")
    run(repository, "dvc", "init", "--quiet")
    run(folder, "dvc", "commit", "--quiet", "--force")
    commit(repository)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, ours to spoil, as the working directory."""
    shutil.copytree(made.parent, tmp_path / "repository")
    monkeypatch.chdir(tmp_path / "repository/instruct")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path / "repository/instruct"


def test_base_adapter_and_rows_are_sent_once_and_load_as_their_cards_say(
    here: Path,
    fresh: Hub,  # noqa: F811
    emotune: Teller,  # noqa: F811
) -> None:
    code, told = emotune(here, "publish", "--tag", "v1")
    assert code == 0, told
    assert {key: repo.private for key, repo in fresh.repositories.items()} == {
        ("models", "me/emotune-instruct-base"): True,
        ("models", "me/emotune-instruct-sft"): True,
        ("datasets", "me/emotune-instruct-rows"): True,
    }
    assert set(fresh.files("models", "me/emotune-instruct-base", "v1")) == BASE
    assert set(fresh.files("models", "me/emotune-instruct-sft", "v1")) == ADAPTER
    assert set(fresh.files("datasets", "me/emotune-instruct-rows", "v1")) == ROWS
    assert emotune(here, "publish", "--tag", "v1")[1].count("nothing to send") == 3
    code, told = emotune(here, "publish", "--check", "--tag", "v1")
    assert (code, told.count("no differences")) == (0, 3), told
    for kind, name in (("models", "sft"), ("datasets", "rows")):
        code, told = emotune(here, code=code_of(fresh.files(kind, f"me/emotune-instruct-{name}")["README.md"]))
        assert code == 0, told
    notes = records.read_jsonl(here.parent / ".work/published.jsonl")
    assert [note["repo"] for note in notes] == [f"me/emotune-instruct-{name}" for name in ("base", "sft", "rows")]


def test_a_dry_run_has_rows_as_they_were_learned_and_cards_with_the_figures(here: Path, tmp_path: Path) -> None:
    assert cli.main(["publish", "--dry-run", str(tmp_path / "out")]) == 0
    for split in SPLITS:
        table = pyarrow.parquet.read_table(tmp_path / f"out/rows/data/{split}-00000-of-00001.parquet")
        assert table.to_pylist() == [row(split, number) for number in range(3)]
    card = (tmp_path / "out/sft/README.md").read_text("utf-8")
    assert "| sft | 3.5 [3, 4] | 4.81 |" in card
    assert '"input": "We won the match!"' in card
    assert "make instruct\n" in card
    assert "licensed under `apache-2.0`" in card
    assert "| train | 3 |" in (tmp_path / "out/rows/README.md").read_text("utf-8")
    config = records.read_json(tmp_path / "out/sft/adapter_config.json")
    assert config["base_model_name_or_path"] == "OWNER/emotune-instruct-base"


def test_a_prompt_that_does_as_well_a_dirty_tree_and_a_stale_lock_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(here / "params.yaml", "learning_rate: 0.002", "learning_rate: 0.006")
    records.write_metrics(here / "metrics/compare.json", compared(few_shot_to_sft={"perplexity": BETTER | {"p": 0.2}}))
    assert cli.main(["publish"]) == 1
    told = capsys.readouterr().out
    assert "sft is not better than few-shot in perplexity: -1.500 [-2.000, -1.000], p 0.200" in told
    assert "zero-shot" not in told
    assert "the working tree has changes" in told
    assert "dvc.lock is not current: sft: param sft.learning_rate is 0.006, and 0.002 in dvc.lock" in told
    assert cli.main(["publish", "--merged"]) == 2
    assert "of instructions there is none" in capsys.readouterr().err


def test_rows_of_one_s_own_have_to_state_their_licence(tmp_path: Path) -> None:
    def licensed(**changes: Any) -> Any:
        write_params(tmp_path, {key.replace("__", "."): value for key, value in changes.items()}, "instruct")
        p = whole(tmp_path / PARAMS)
        assert isinstance(p, Instructions)
        return tuple(gate.licenses(p))

    own = {"rows__source": "folder", "rows__path": "mine"}
    assert licensed() == ("apache-2.0",) * 3
    with pytest.raises(InputError, match=r"publish\.data_license must state the licence of rows"):
        licensed(**own)
    with pytest.raises(InputError, match=r"publish\.data_license must state the licence of rows"):
        licensed(questions__path="docs")
    assert licensed(**own, publish__data_license="mit") == ("mit", "mit", "apache-2.0")
    with pytest.raises(InputError, match=r"publish.license: mit is not possible: the data is under cc-by-sa-4.0"):
        licensed(**own, publish__data_license="cc-by-sa-4.0", publish__license="mit")
    with pytest.raises(InputError, match=r"base, sft and rows must be 3 repositories"):
        licensed(publish__rows="emotune-instruct-sft")
