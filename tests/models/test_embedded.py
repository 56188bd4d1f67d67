"""Laws of the base model that comes with the package: what it has read, what pins it, and that it can be made again."""

import shutil
from pathlib import Path

import pytest

from conftest import ROOT
from emotune.core import records
from emotune.core.errors import InputError
from emotune.core.sections import check, read_yaml
from emotune.models import embedded, pins
from emotune.runs.params import parse

RECIPE = pins.WEIGHTS.with_name("embedded.yaml")
TINY = {
    "dialogues": 60,
    "seed": 7,
    "context": 128,
    "unread": {"dialogues": 100, "seed": 7},
    "pretrain": {
        "vocabulary": 500,
        "hidden_size": 16,
        "layers": 1,
        "heads": 2,
        "epochs": 1,
        "learning_rate": 0.01,
        "muon": None,
        "batch_size": 8,
        "seed": 7,
    },
}


def test_a_recipe_makes_the_same_bytes_again(tmp_path: Path) -> None:
    recipe = check(embedded.Recipe, TINY, "recipe")
    for name in ("one", "other"):
        embedded.make(recipe, tmp_path / name, tmp_path / f"{name}.json")
    assert records.digest(tmp_path / "one") == records.digest(tmp_path / "other")
    made = records.read_json(tmp_path / "one.json")
    assert made == records.read_json(tmp_path / "other.json")
    assert made["sha256"] == pins.folder_revision(tmp_path / "one")
    assert made["vocabulary"] == 500


def test_what_it_does_not_read_is_what_the_default_validates_and_tests_with() -> None:
    data = parse(ROOT / "params.yaml").data
    recipe = check(embedded.Recipe, read_yaml(RECIPE), "recipe")
    assert recipe.unread == embedded.Splits(dialogues=data.dialogues, seed=data.seed)


def test_its_weights_are_those_that_are_pinned_and_at_most_8_mb() -> None:
    assert pins.embedded()["vocabulary"] == check(embedded.Recipe, read_yaml(RECIPE), "recipe").pretrain.vocabulary
    assert sum(file.stat().st_size for file in pins.WEIGHTS.iterdir()) <= 8_000_000


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = shutil.copytree(pins.WEIGHTS, tmp_path / "weights")
    monkeypatch.setattr(pins, "WEIGHTS", weights)
    pins.embedded()
    (weights / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match=r"weights should have sha256 \w{64}, found \w{64}; `git checkout` brings"):
        pins.embedded()
    shutil.rmtree(weights)
    with pytest.raises(InputError, match=r"found None; `git checkout` brings"):
        pins.embedded()
