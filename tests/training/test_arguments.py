"""Laws of arguments.py: which steps are taken, logged and kept."""

from pathlib import Path

import pytest
import torch

from emotune.core.errors import InputError
from emotune.training.arguments import arguments
from tiny import DPO, SFT, changed


@pytest.mark.parametrize("checkpoints", [1, 2, 4, 7])
def test_a_checkpoint_falls_on_a_logged_step(checkpoints: int, tmp_path: Path) -> None:
    for rows in range(1, 600, 7):
        found = arguments(changed(SFT, checkpoints=checkpoints), "float32", tmp_path, rows)
        assert found["save_steps"] % found["logging_steps"] == 0
        assert found["save_steps"] >= 1


def test_a_run_is_one_pass_over_rows_that_stand_in_order(tmp_path: Path) -> None:
    found = arguments(changed(SFT, batch_size=8, accumulation=4), "float32", tmp_path, 1000)
    assert (found["num_train_epochs"], found["train_sampling_strategy"]) == (1, "sequential")
    # 1,000 rows of 8 x 4 a step are 32 steps; a tenth of them warm up.
    assert (found["warmup_steps"], found["logging_steps"], found["save_steps"]) == (3, 1, 10)
    assert (found["bf16"], found["fp16"], found["use_cpu"]) == (False, False, not torch.cuda.is_available())


def test_no_checkpoints_are_written_where_none_are_wanted(tmp_path: Path) -> None:
    assert arguments(changed(SFT, checkpoints=0), "float32", tmp_path, 100)["save_strategy"] == "no"


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sft, dpo = changed(SFT, batch_size=8), changed(DPO, batch_size=4)
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = arguments(sft, "float32", tmp_path, 77)
    assert (found["per_device_train_batch_size"], found["per_device_eval_batch_size"]) == (2, 4)
    monkeypatch.setenv("WORLD_SIZE", "3")
    message = r"dpo\.batch_size must be a multiple of the number of processes, 3; got 4"
    with pytest.raises(InputError, match=message):
        arguments(dpo, "float32", tmp_path, 29)
