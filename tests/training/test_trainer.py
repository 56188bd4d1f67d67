"""Laws of trainer.py: which steps are taken and kept, what is heard and held, where training goes on from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from emotune.core.dialogue import Dialogue
from emotune.core.errors import InputError
from emotune.models import loading
from emotune.training import trainer
from emotune.training.trainer import arguments
from tiny import CHOICE, DPO, SFT, changed, ignore, rows_of, save_adapter


@pytest.fixture
def sft(base: Path, tokenizer: Any, dialogues: list[Dialogue], tmp_path: Path) -> Any:
    """TRL's trainer of a saved adapter: five rows, two a step, four times over make ten steps."""
    adapter = save_adapter(base, tokenizer, tmp_path / "adapter")
    rows = 4 * rows_of(tokenizer, dialogues, SFT)
    made = arguments(changed(SFT, checkpoints=4), "float32", tmp_path / "work", len(rows)) | {"eval_strategy": "no"}
    model = loading.load_adapter(loading.load_base(base, CHOICE), adapter, trainable=True)
    model.peft_config["default"].base_model_name_or_path = str(base)
    return SFTTrainer(
        model=model,
        args=SFTConfig(**made),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def test_the_first_steps_log_is_heard_once(sft: Any) -> None:
    heard: list[tuple[Mapping[str, float], bool]] = []
    curve = trainer.train(
        sft, ignore, first_log=lambda logs, half_precision: heard.append((dict(logs), half_precision))
    )
    [(logs, half_precision)] = heard
    assert logs["loss"] == curve[0]["loss"]
    assert not half_precision


def test_what_the_first_steps_log_may_not_be_ends_the_training(sft: Any) -> None:
    def refuse(logs: Mapping[str, float], half_precision: bool) -> None:
        raise AssertionError("no such step")

    with pytest.raises(AssertionError, match="no such step"):
        trainer.train(sft, ignore, first_log=refuse)
    assert sft.state.global_step == 1


def test_a_probe_is_asked_at_five_steps_and_its_means_are_logged(sft: Any) -> None:
    logged: list[tuple[int, float]] = []

    def log(metrics: Mapping[str, float], step: int) -> None:
        logged.extend((step, value) for name, value in metrics.items() if name == "worth")

    steps = iter([0.0, 1.0, 2.0, 3.0, 4.0])
    curve = trainer.train(sft, log, probe=lambda model: {"worth": [next(steps), 0.0]})
    assert logged == [(0, 0.0), (2, 0.5), (5, 1.0), (8, 1.5), (10, 2.0)]
    assert [(row["step"], row["control"]) for row in curve if "control" in row] == [
        (0, {"worth": [0.0, 0.0]}),
        (2, {"worth": [1.0, 0.0]}),
        (5, {"worth": [2.0, 0.0]}),
        (8, {"worth": [3.0, 0.0]}),
        (10, {"worth": [4.0, 0.0]}),
    ]
    assert [row["step"] for row in curve] == list(range(11))


def test_training_goes_on_from_the_last_checkpoint_that_was_written_whole(
    sft: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = trainer.train(sft, ignore)
    work = tmp_path / "work"
    # The last two are kept.
    assert sorted(path.name for path in work.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-8"]
    (work / "checkpoint-10" / trainer.COMPLETE).unlink()
    (work / "checkpoint-9999").mkdir()
    again = trainer.train(sft, ignore)
    assert f"going on from checkpoint-8 in {work}" in capsys.readouterr().out
    assert [row["loss"] for row in again] == [row["loss"] for row in curve]
    assert not (work / "checkpoint-9999").exists()


def test_the_values_of_a_curve_are_of_the_rows_that_have_them() -> None:
    curve = [{"step": 0, "control": 1}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 3, "eval_loss": 1}]
    assert trainer.values(curve, "loss") == [3.0, 2.0]


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


def test_mixed_precision_is_what_was_asked_for_or_refused(tmp_path: Path) -> None:
    found = arguments(SFT, "bfloat16", tmp_path, 100)
    assert (found["bf16"], found["fp16"]) == (True, False)
    if torch.cuda.is_available():
        assert arguments(SFT, "float16", tmp_path, 100)["fp16"]
    else:
        with pytest.raises(InputError, match=r"^model\.dtype: float16 .* GPU alone; accepted here: float32, bfloat16$"):
            arguments(SFT, "float16", tmp_path, 100)


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
