"""Laws of base_model: ours, one from nothing, or a pin."""

from pathlib import Path

import pytest

from conftest import ROOT
from emotune.core import records
from emotune.core.errors import InputError
from emotune.core.sections import part
from emotune.models import loading, pins
from emotune.runs.params import parse
from emotune.stages import base_model
from tiny import CHOICE, ignore


def test_the_embedded_model_is_what_comes_with_the_package(tmp_path: Path) -> None:
    p = part(base_model.Params, parse(ROOT / "params.yaml"))
    metrics = base_model.main(p, ignore, tmp_path / "no dialogues", tmp_path / "base")
    assert records.read_json(tmp_path / "base/base.json") == {"name": "embedded"}
    for file in pins.WEIGHTS.iterdir():
        assert (tmp_path / "base" / file.name).read_bytes() == file.read_bytes()
    model = loading.load_base(tmp_path / "base", CHOICE)
    assert model.num_parameters() == metrics["parameters"]
    assert len(loading.load_tokenizer(tmp_path / "base", "out_inst_uni")) == metrics["vocabulary"]


@pytest.fixture
def extra(tmp_path: Path) -> Path:
    folder = tmp_path / "extra"
    (folder / "tales").mkdir(parents=True)
    (folder / "b.txt").write_text("One\nline.\n\n \nAnother.\n", "utf-8")
    (folder / "tales/a.txt").write_text("A tale.", "utf-8")
    (folder / "notes.md").write_text("not read", "utf-8")
    return folder


def test_extra_text_is_read_by_paragraphs_where_its_content_is_pinned(extra: Path) -> None:
    with pytest.raises(InputError, match=r"extra_revision must pin .* found sha256 (\w{64}), .* has None") as refused:
        base_model.paragraphs(str(extra), None)
    revision = str(refused.value).split("sha256 ")[1][:64]
    assert base_model.paragraphs(str(extra), revision) == ["One line.", "Another.", "A tale."]
    (extra / "tales/a.txt").write_text("A tail.", "utf-8")
    with pytest.raises(InputError, match=f"params.yaml has {revision}"):
        base_model.paragraphs(str(extra), revision)


def test_a_folder_without_text_is_no_extra(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n", "utf-8")
    with pytest.raises(InputError, match=r"pretrain\.extra must be a folder with text .*; found none"):
        base_model.paragraphs(str(tmp_path), None)
