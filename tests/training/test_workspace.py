"""Laws of workspace.py: checkpoints lie in a folder for all that they depend on, held by one run."""

from pathlib import Path

import pytest

from emotune.training import workspace

VALUES, INPUTS = {"sft": {"rank": 4}}, {"dialogues": "abc"}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def test_a_work_folder_goes_after_success_and_stays_after_a_failure(repository: Path) -> None:
    def fails_on_the_way(folder: Path) -> None:
        (folder / "checkpoint-3").mkdir()
        raise RuntimeError

    with pytest.raises(RuntimeError), workspace.workspace("sft", VALUES, INPUTS) as folder:
        fails_on_the_way(folder)
    assert folder.parent == repository / ".work" / "sft"
    with workspace.workspace("sft", VALUES, INPUTS) as again:
        assert again == folder
        assert (again / "checkpoint-3").is_dir()
    assert not folder.exists()


def test_other_params_inputs_or_stages_have_other_work_folders(repository: Path) -> None:
    folders = set()
    for stage, values, inputs in (
        ("sft", VALUES, INPUTS),
        ("dpo", VALUES, INPUTS),
        ("sft", {"sft": {"rank": 8}}, INPUTS),
        ("sft", VALUES, {"dialogues": "abd"}),
    ):
        with workspace.workspace(stage, values, inputs) as folder:
            folders.add(folder)
    assert len(folders) == 4


def test_code_that_changed_does_not_go_on_from_what_it_did_not_write(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with workspace.workspace("sft", VALUES, INPUTS) as folder:
        pass
    monkeypatch.setattr(workspace, "ROOMS", ("core",))
    with workspace.workspace("sft", VALUES, INPUTS) as other:
        assert other != folder


def test_two_runs_that_train_the_same_have_a_work_folder_each(repository: Path) -> None:
    with workspace.workspace("sft", VALUES, INPUTS) as folder:
        with workspace.workspace("sft", VALUES, INPUTS) as other:
            assert other == folder.with_name(f"{folder.name}-2")
            assert other.is_dir()
        assert folder.is_dir()
        assert not other.exists()
    with workspace.workspace("sft", VALUES, INPUTS) as again:
        assert again == folder
