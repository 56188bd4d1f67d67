"""Trained tokens per second of the sft stage against `trl sft`, side by side, with equal losses.

Both train the same LoRA on the same base model with the same trained tokens, batch size, precision, optimizer and
schedule. The contender is TRL's own command, run in this process: it is given the rows as they are rendered, while
the stage cuts, sorts and scores them as it always does. Timed is `trainer.train()` alone, without any evaluation, in
rounds A B B A; the ratio is the median of the rounds'. Prints one JSON object last.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
# Validation rows and the batch on which losses are compared; rows in another order end this near (nats per token).
HELD_OUT, BATCH, NEAR = 200, 16, 0.05


class Task(NamedTuple):
    """What both train on."""

    base: Path
    tokenizer: Any
    train: list[Any]
    validation: list[Any]
    neutral: str
    p: Any


class Run(NamedTuple):
    """A trainer at its end, and the seconds its training took, of the clock and of the processor."""

    trainer: Any
    seconds: float
    processor: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each (default %(default)s)")
    parser.add_argument("--dialogues", type=int, default=600, help="of the embedded corpus (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default %(default)s)")
    chosen = parser.parse_args()
    if min(chosen.rounds, chosen.threads) < 1 or chosen.dialogues < 100:
        parser.error("--rounds and --threads must be at least 1, --dialogues at least 100")
    os.environ |= {"OMP_NUM_THREADS": str(chosen.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        # Before anything imports it: TRL's command reads its rows through a cache.
        os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache"
        import torch

        torch.set_num_threads(chosen.threads)
        shapes = {
            name: compare(prepared(name, chosen.dialogues, Path(folder, name)), chosen.rounds, Path(folder, name))
            for name in ("embedded", "daily-dialog-cpu")
        }
    report = {
        "benchmark": "sft_throughput",
        "ratio": min(shape["ratio"] for shape in shapes.values()),
        "shapes": shapes,
        "rounds": chosen.rounds,
        "dialogues": chosen.dialogues,
        "threads": chosen.threads,
        "losses_equal_within": {"one_batch": 1e-5, "validation": NEAR},
        "precision": "float32",
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
    }
    print(json.dumps(report, indent=2, sort_keys=True))


def prepared(name: str, dialogues: int, folder: Path) -> Task:
    """The embedded corpus and a base model made of it, of params.yaml's shape or of a profile's."""
    from emotune.core import records
    from emotune.core.sections import read_yaml
    from emotune.data import sources
    from emotune.data.splits import usable
    from emotune.models import loading, pins, pretraining
    from emotune.prompts.prompter import Prompter
    from emotune.runs.params import parse
    from emotune.stages.sft import Params

    p = parse(ROOT / "params.yaml")
    turned = {} if name == "embedded" else read_yaml(ROOT / "profiles" / f"{name}.yaml")
    pretrain = overlaid(p.pretrain, turned["pretrain"] if turned else {}, epochs=1.0)
    sft = overlaid(p.sft, turned["sft"] if turned else {}, epochs=1.0, checkpoints=0)
    splits = sources.embedded(dialogues, p.data.seed).splits
    train, validation = (usable(splits[split])[0] for split in ("train", "validation"))
    tokenizer = pretraining.make_tokenizer(pretraining.contents(train), p.data.labels, pretrain.vocabulary)
    prompter = Prompter(tokenizer, None, p.model.context)
    rows, held_out = (pretraining.dialogue_rows(prompter, split) for split in (train, validation))
    model, _ = pretraining.pretrain(tokenizer, rows, held_out, pretrain, p.model.context, lambda logs, step: None)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    records.write_json(folder / "base" / pins.BASE_FILE, {"name": pins.EMBEDDED})
    tokenizer = loading.load_tokenizer(folder / "base", p.template)
    tuned = Params(model=p.model, sft=sft, system_prompt=p.system_prompt, template=p.template)
    return Task(folder / "base", tokenizer, train, validation, p.data.neutral, tuned)


def overlaid(section: Any, turned: Mapping[str, Any], **fixed: Any) -> Any:
    """A section of params with a profile's values over it, and those this benchmark fixes."""
    values = section.model_dump()
    inner = {key: values[key] | value for key, value in turned.items() if isinstance(value, dict)}
    return type(section).model_validate(values | turned | inner | fixed)


def compare(task: Task, rounds: int, folder: Path) -> dict[str, Any]:
    """Both in turn, `rounds` times after a short one of each: speeds, paddings, losses, and what makes the ratio."""
    cut, whole = rows_of(task)
    contender = trl_sft(task, whole, folder / "whole")
    stage = ours(task, folder)
    warm = task._replace(train=task.train[: 4 * task.p.sft.batch_size])
    ours(warm, folder)(), trl_sft(warm, whole[: 4 * task.p.sft.batch_size], folder / "warm")()
    pairs = []
    for number in range(rounds):
        first, second = (stage, contender) if number % 2 == 0 else (contender, stage)
        runs = first(), second()
        pairs.append(runs if number % 2 == 0 else runs[::-1])
    mine, theirs = (run.trainer for run in pairs[-1])
    trained = trained_tokens(mine.train_dataset)
    assert trained == trained_tokens(theirs.train_dataset) == trained_tokens(whole)
    assert mine.state.global_step == theirs.state.global_step
    validation = {
        "emotune": validation_loss(task, mine.model),
        "trl": validation_loss(task, theirs.model),
        "untrained": validation_loss(task, None),
    }
    assert abs(validation["emotune"] - validation["trl"]) < NEAR, validation
    medians = [statistics.median(run.seconds for run in runs) for runs in zip(*pairs, strict=True)]
    ratios = [theirs.seconds / mine.seconds for mine, theirs in pairs]
    return {
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "ratio_of_processor_time": round(statistics.median(b.processor / a.processor for a, b in pairs), 2),
        "parameters": mine.model.get_base_model().num_parameters(),
        "rows": len(whole),
        "steps": mine.state.global_step,
        "trained_tokens": trained,
        "trained_share_of_tokens": round(trained / sum(len(row["input_ids"]) for row in whole), 3),
        "emotune": figures(mine, trained / medians[0]),
        "trl": figures(theirs, trained / medians[1]),
        "loss_of_one_batch": one_batch(mine, theirs, cut[:BATCH], whole[:BATCH]),
        "validation_loss": validation,
        "trl_with": parts(task, cut, whole, folder, statistics.median(run.processor for _, run in pairs)),
    }


def parts(
    task: Task, cut: Sequence[Mapping[str, Any]], whole: Sequence[Mapping[str, Any]], folder: Path, plain: float
) -> dict[str, float]:
    """How many times less processor time `trl sft` takes with each of the stage's parts added to those before it.

    Of one run each; of processor time, because what else the machine does disturbs it less than the clock's.
    And how fast it is with TRL's own default of gradient checkpointing, which the comparison leaves out as a choice
    of memory over time.
    """
    from emotune.core import seeds
    from emotune.training.heads import score_labelled

    p = task.p.sft
    like = [cut[i] for i in seeds.order([len(row["input_ids"]) for row in cut], p.epochs, p.batch_size, p.seed)]
    in_order = ("--train_sampling_strategy", "sequential")
    ways = {
        "gradient_checkpointing": trl_sft(task, whole, folder / "whole", "--gradient_checkpointing", "true"),
        "rows_cut": trl_sft(task, cut, folder / "cut"),
        "and_like_lengths": trl_sft(task, like, folder / "like", *in_order),
        "and_labelled_positions": trl_sft(task, like, folder / "like", *in_order, change=score_labelled),
    }
    return {name: round(plain / run().processor, 2) for name, run in ways.items()}


def rows_of(task: Task) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The stage's rows, and the same rows as they are before it cuts them behind their last trained token."""
    from emotune.prompts.prompter import Prompter
    from emotune.stages.sft import sft_rows

    p, prompter = task.p.sft, Prompter(task.tokenizer, task.p.system_prompt, task.p.model.context)
    cut, _, _ = sft_rows(prompter, task.train, task.neutral, p)
    rendered = (prompter.training_row(piece)[0] for dialogue in task.train for piece in prompter.pieces(dialogue.turns))
    whole = []
    for row in cut:
        length = len(row["input_ids"])
        ids = next(ids for ids in rendered if ids[:length] == row["input_ids"])
        whole.append({"input_ids": ids, "labels": row["labels"] + [-100] * (len(ids) - length)})
    return cut, whole


def ours(task: Task, folder: Path) -> Callable[[], Run]:
    """The stage's own training, from a fresh base model."""
    from emotune.models import loading
    from emotune.stages.sft import tune

    def run() -> None:
        tune(
            loading.load_base(task.base, task.p.model),
            task.tokenizer,
            task.train,
            task.validation,
            task.neutral,
            task.p,
            folder / "ours",
            lambda logs, step: None,
        )

    return lambda: timed(run)


def trl_sft(
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    *flags: str,
    change: Callable[[Any], None] = lambda model: None,
) -> Callable[[], Run]:
    """`trl sft` on these rows with the stage's settings and else its defaults; `change` is done to its model."""
    from trl.scripts import sft as command

    p = task.p.sft
    settings = {
        "model_name_or_path": task.base,
        "dataset_name": folder,
        "output_dir": folder / "out",
        "use_peft": "true",
        "lora_r": p.lora.rank,
        "lora_alpha": round(p.lora.alpha),
        "lora_dropout": p.lora.dropout,
        "use_rslora": p.lora.rslora,
        "lora_target_modules": p.lora.target_modules,
        "max_length": task.p.model.context,
        "num_train_epochs": p.epochs,
        "per_device_train_batch_size": p.batch_size,
        "gradient_accumulation_steps": p.accumulation,
        "learning_rate": p.learning_rate,
        "lr_scheduler_type": p.schedule,
        "warmup_steps": round(p.warmup * -(-len(rows) // (p.batch_size * p.accumulation))),
        "optim": p.optimizer,
        "seed": p.seed,
        "bf16": "false",
        "use_cpu": "true",
        "gradient_checkpointing": p.gradient_checkpointing,
        "save_strategy": "no",
        "disable_tqdm": "true",
    }
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run() -> None:
        parsed = command.make_parser().parse_args_and_config([*words, *flags], fail_with_unknown_args=False)
        command.main(*parsed)

    return lambda: timed(run, change)


def timed(run: Callable[[], None], change: Callable[[Any], None] = lambda model: None) -> Run:
    """What `run` trains, and the seconds of that without the evaluations within."""
    from trl import SFTTrainer

    train, evaluate = SFTTrainer.train, SFTTrainer.evaluate
    evaluating, done = [(0.0, 0.0)], []

    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def since(began: tuple[float, float]) -> tuple[float, float]:
        return time.perf_counter() - began[0], time.process_time() - began[1]

    def timed_evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = now()
        found = evaluate(self, *args, **kwargs)
        evaluating.append(since(began))
        return found

    def timed_train(self: Any, *args: Any, **kwargs: Any) -> Any:
        change(self.model)
        began = now()
        found = train(self, *args, **kwargs)
        within = [sum(kind) for kind in zip(*evaluating, strict=True)]
        done.append(Run(self, *(total - part for total, part in zip(since(began), within, strict=True))))
        return found

    with mock.patch.multiple(SFTTrainer, train=timed_train, evaluate=timed_evaluate):
        run()
    return done[0]


def trained_tokens(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(label != -100 for row in rows for label in row["labels"])


def figures(trainer: Any, speed: float) -> dict[str, float]:
    """Speed, what went through the model and the share of it that was padding, and the mean training loss."""
    masks = [batch["attention_mask"] for batch in trainer.get_train_dataloader()]
    positions = sum(mask.numel() for mask in masks)
    return {
        "trained_tokens_per_second": round(speed),
        "positions": positions,
        "padding": round(1 - sum(int(mask.sum()) for mask in masks) / positions, 3),
        "train_loss": round(next(row["train_loss"] for row in trainer.state.log_history if "train_loss" in row), 4),
    }


def one_batch(mine: Any, theirs: Any, cut: Sequence[Any], whole: Sequence[Any]) -> dict[str, float]:
    """The loss that each trainer computes for the same weights and dialogues, each in its own way; equal to 1e-5."""
    import torch

    theirs_now = {name: weight.clone() for name, weight in theirs.model.state_dict().items()}
    theirs.model.load_state_dict(mine.model.state_dict())
    losses = {}
    for name, trainer, rows in (("emotune", mine, cut), ("trl", theirs, whole)):
        trainer.model.eval()
        with torch.no_grad():
            losses[name] = trainer.compute_loss(trainer.model, trainer.data_collator([*rows])).item()
    theirs.model.load_state_dict(theirs_now)
    assert abs(losses["emotune"] - losses["trl"]) < 1e-5, losses
    return losses


def validation_loss(task: Task, model: Any) -> float:
    """Nats per token of the validation replies, by the function that the evaluation uses."""
    from emotune.models import likelihood, loading
    from emotune.prompts.prompter import Prompter

    model = (model or loading.load_base(task.base, task.p.model)).eval()
    prompter = Prompter(task.tokenizer, task.p.system_prompt, task.p.model.context)
    pieces = itertools.chain.from_iterable(prompter.pieces(dialogue.turns) for dialogue in task.validation)
    rows = [prompter.training_row(piece) for piece in pieces][:HELD_OUT]
    sums, counts = zip(*likelihood.negative_log_likelihoods(model, task.tokenizer.pad_token_id, rows), strict=True)
    return round(sum(sums) / sum(counts), 4)


if __name__ == "__main__":
    main()
