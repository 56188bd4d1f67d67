"""LoRA training with TRL that survives being killed: one order of rows, checkpoints beside the outs, equal bytes."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import random
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from filelock import FileLock, Timeout
from peft import LoraConfig
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

from emotune import launch, params, prompts, records
from emotune.dialogue import ASSISTANT, Dialogue, Turn
from emotune.errors import InputError
from emotune.seeds import key, order

Log = Callable[[Mapping[str, float], int], None]
Control = Callable[[Any], Mapping[str, Sequence[float]]]
Trained = tuple[Any, list[dict[str, Any]], dict[str, Any]]

disable_progress_bars()

# What a history row shows, under the trainer's own names.
SFT_CURVE = ("step", "loss", "eval_loss", "learning_rate", "grad_norm")
DPO_CURVE = (
    "step",
    "loss",
    "eval_loss",
    "rewards/margins",
    "eval_rewards/margins",
    "rewards/accuracies",
    "eval_rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "eval_logps/chosen",
    "eval_logps/rejected",
    "control_reward_judge",
    "control_evaluate_judge",
    "learning_rate",
)
# With params, inputs and libraries, what decides what a checkpoint holds: files and folders beside this one.
CODE = (
    *("evaluation.py", "finetuning.py", "judges.py", "models.py", "prompts.py", "sampling.py", "seeds.py"),
    "templates",
)
LIBRARIES = ("torch", "transformers", "trl", "peft")
COMPLETE = "complete"
POINTS = 20
# Control is asked for before the first step and at so many more points, the last step among them.
CONTROL_POINTS = 4
# The validation loss is that of so many rows: enough for a curve, and little beside the training.
VALIDATION_ROWS = 200


def sft(
    model: Any,
    tokenizer: Any,
    train: Sequence[Dialogue],
    validation: Sequence[Dialogue],
    neutral: str,
    p: params.Sft,
    system_prompt: str | None,
    choice: params.Model,
    folder: Path,
    log: Log,
) -> Trained:
    """A new LoRA adapter on the base model, trained on whole dialogues; returns model, curve and metrics.

    The loss is that of every reply and its end token (`loss_on: replies`), or of every token (`all`). With
    `neutral_replies` only so many neutral replies are trained on, and rows without any reply to train on are left
    out. A dialogue longer than the context is cut between turns.
    """
    rows, left_out = _sft_rows(tokenizer, train, neutral, p.neutral_replies, p, system_prompt, choice.context)
    held_out, _ = _sft_rows(tokenizer, validation, neutral, None, p, system_prompt, choice.context)
    rows_in_order = [rows[i] for i in order([len(row["input_ids"]) for row in rows], p.epochs, p.batch_size, p.seed)]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **arguments(p, choice.dtype, folder, len(rows_in_order)), max_length=choice.context, packing=False
        ),
        train_dataset=Dataset.from_list(rows_in_order),
        eval_dataset=Dataset.from_list(held_out[:VALIDATION_ROWS]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=p.lora.rank,
            lora_alpha=p.lora.alpha,
            lora_dropout=p.lora.dropout,
            use_rslora=p.lora.rslora,
            target_modules=p.lora.target_modules
            if isinstance(p.lora.target_modules, str)
            else list(p.lora.target_modules),
            task_type="CAUSAL_LM",
        ),
    )
    score_labelled(trainer.model)
    _share_rows(trainer, p.batch_size, {"input_ids": [tokenizer.pad_token_id], "labels": [-100]})
    _mean_over_all_tokens(trainer)
    curve = _train(trainer, log)
    measured = {
        "rows": len(rows),
        "steps": trainer.state.global_step,
        "trained_tokens": sum(label != -100 for row in rows for label in row["labels"]),
        "turns_left_out_too_long": left_out,
        "trainable_parameters": sum(q.numel() for q in trainer.model.parameters() if q.requires_grad),
        "train_loss": _last(curve, "loss"),
        "validation_loss": trainer.evaluate()["eval_loss"],
    }
    return _whole(trainer.model), curve, measured


def dpo(
    model: Any,
    tokenizer: Any,
    train: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    p: params.Dpo,
    system_prompt: str | None,
    choice: params.Model,
    folder: Path,
    log: Log,
    control: Control | None = None,
) -> Trained:
    """The given trainable adapter after DPO (Rafailov et al. 2023) against a frozen copy of itself.

    Loss: -ln sigmoid(beta (margin of the policy - margin of the reference)) + sft_weight x the chosen reply's own
    negative log-likelihood. Before the first step policy and reference are equal, and the stage asserts it.
    `control` says of the model, at some steps, what judges find in each of a few contexts: a row of the curve has
    the means, and in `control` the whole.
    """
    lengths = [len(row["prompt"]) + len(row["chosen"]) + len(row["rejected"]) for row in train]
    rows = [_dpo_row(train[i], system_prompt) for i in order(lengths, p.epochs, p.batch_size, p.seed)]
    with_sft = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, p.sft_weight]} if p.sft_weight else {}
    unvalidated = {} if validation else {"eval_strategy": "no"}
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            **arguments(p, choice.dtype, folder, len(rows)) | with_sft | unvalidated,
            max_length=choice.context,
            beta=p.beta,
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list([_dpo_row(row, system_prompt) for row in validation[:VALIDATION_ROWS]])
        if validation
        else None,
        processing_class=tokenizer,
    )
    score_labelled(trainer.model)
    nothing = {"prompt_ids": [tokenizer.pad_token_id], "chosen_ids": [], "rejected_ids": []}
    _share_rows(trainer, p.batch_size, nothing)
    _mean_over_all_pairs(trainer)
    assert_reference_is_policy(trainer.model)
    trainer.add_callback(_FirstStep(None if p.sft_weight else math.log(2)))
    if control is not None:
        trainer.add_callback(_Control(control, log))
    curve = _train(trainer, log)
    measured = {
        "pairs": len(train),
        "steps": trainer.state.global_step,
        "train_loss": _last(curve, "loss"),
        "train_margin": _last(curve, "rewards/margins"),
        "train_accuracy": _last(curve, "rewards/accuracies"),
        "chosen_logps_first": _first(curve, "logps/chosen"),
        "chosen_logps_last": _last(curve, "logps/chosen"),
    }
    if validation:
        found = trainer.evaluate()
        measured |= {
            "validation_loss": found["eval_loss"],
            "validation_margin": found["eval_rewards/margins"],
            "validation_accuracy": found["eval_rewards/accuracies"],
        }
    return _whole(trainer.model), curve, measured


def _share_rows(trainer: Any, batch: int, nothing: Mapping[str, list[int]]) -> None:
    """Let several processes share the rows of each batch, so that a step sees the rows that it sees in one process.

    Each process must have as many as any other: a batch that does not divide is filled up with `nothing`, a row that
    no token is learned from.
    """
    if launch.processes() == 1:
        return

    def loader(dataset: Any, size: int) -> DataLoader[Any]:
        rows = [*dataset, *[nothing] * (-len(dataset) % launch.processes())]
        batches = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
        return DataLoader(rows, batch_sampler=[launch.share(own) for own in batches], collate_fn=trainer.data_collator)

    train = loader(trainer.train_dataset, batch)
    held_out = loader(trainer.eval_dataset, 2 * batch) if trainer.eval_dataset is not None else None
    trainer.get_train_dataloader = lambda: train
    trainer.get_eval_dataloader = lambda dataset=None: held_out


def _mean_over_all_tokens(trainer: Any) -> None:
    """Make the validation loss of SFT the mean over the tokens of all processes, as TRL makes that of training."""
    if launch.processes() == 1:
        return
    of_trl = trainer.compute_loss

    def compute_loss(model: Any, inputs: Any, **more: Any) -> Any:
        if model.training:
            return of_trl(model, inputs, **more)
        learned = inputs["labels"][:, 1:] != -100
        rows, tokens = _sums(trainer, learned)
        return of_trl(model, inputs, num_items_in_batch=tokens) * _validation_weight(trainer, rows)

    trainer.compute_loss = compute_loss


# What TRL logs of a batch as a mean over its pairs.
OF_PAIRS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


def _mean_over_all_pairs(trainer: Any) -> None:
    """Make the losses of DPO means over the pairs, and over the chosen replies' tokens, of all processes.

    TRL takes each process's own means. A token would weigh more where a process has few, and a row that only fills a
    batch up would count: its sigmoid loss is ln 2, and what is logged of it is 0.
    """
    if launch.processes() == 1:
        return
    of_trl, weights = trainer.compute_loss, dict(zip(trainer.loss_types, trainer.loss_weights, strict=True))

    def compute_loss(model: Any, inputs: Any, **more: Any) -> Any:
        learned = inputs["completion_mask"].chunk(2)[0][:, 1:] != 0
        pairs, tokens = _sums(trainer, learned)
        own_pairs, own_tokens = int(learned.any(1).sum()), int(learned.sum())
        # TRL divides by the rows of this process, DDP by the processes: back to one part in all pairs.
        stretch = launch.processes() * len(learned) / pairs
        own = {"sigmoid": weights["sigmoid"] * stretch}
        if "sft" in weights and own_tokens:
            own["sft"] = weights["sft"] * launch.processes() * own_tokens / tokens
        trainer.loss_types, trainer.loss_weights = list(own), list(own.values())
        loss = of_trl(model, inputs, **more) - own["sigmoid"] * (1 - own_pairs / len(learned)) * math.log(2)
        logged = trainer._metrics["train" if model.training else "eval"]
        for name in OF_PAIRS:
            logged[name][-1] *= stretch
        return loss if model.training else loss * _validation_weight(trainer, pairs)

    trainer.compute_loss = compute_loss


def _sums(trainer: Any, learned: torch.Tensor) -> tuple[int, int]:
    """How many rows and tokens of a batch all processes learn from; `learned` [rows, positions] marks this one's."""
    own = torch.stack([learned.any(1).sum(), learned.sum()])
    rows, tokens = trainer.accelerator.reduce(own, reduction="sum").tolist()
    return rows, tokens


def _validation_weight(trainer: Any, rows: int) -> float:
    """What a batch of so many rows weighs where the trainer takes the plain mean over batches."""
    return rows * len(trainer.get_eval_dataloader()) / len(trainer.eval_dataset)


def _whole(model: Any) -> Any:
    """The model with the adapter that FSDP spread over the processes put together again, in every process."""
    for name, weight in list(model.named_parameters()):
        if weight.requires_grad and isinstance(weight, DTensor):
            module, _, own = name.rpartition(".")
            setattr(model.get_submodule(module), own, torch.nn.Parameter(weight.full_tensor()))
    return model


# Causal models whose logits are the head's product with the last hidden state, and nothing more.
PLAIN_HEADS = ("llama", "mistral", "gemma", "qwen2", "qwen3")


def score_labelled(model: Any) -> None:
    """On a CPU, let the head of a TRL trainer's model score the labelled positions alone; the loss is the same.

    TRL's own does that on a GPU, and elsewhere scores every position twice, forward and backward: with the vocabulary
    of a small model that is half of a step, where few tokens are trained on.
    """
    base = model.get_base_model()
    if base.device.type != "cpu" or base.config.model_type not in PLAIN_HEADS:
        return
    of_trl = base.forward

    # The signature stays: generate() looks at it.
    @functools.wraps(of_trl)
    def forward(*args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return of_trl(*args, labels=labels, **kwargs) if labels is not None else of_trl(*args, **kwargs)
        hidden = base.base_model(*args, **kwargs | {"use_cache": False}).last_hidden_state[:, :-1]
        mask = labels[:, 1:] != -100
        targets = labels[:, 1:][mask]
        logits = base.get_output_embeddings()(hidden[mask]).float()
        shares = logits.log_softmax(-1)
        picked = shares.gather(-1, targets[:, None])[:, 0]
        with torch.no_grad():
            entropy = -(shares.exp() * shares).sum(-1)
            best = picked >= shares.max(-1).values

        def placed(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        return FusedCausalLMOutput(
            loss=-picked.sum() / mask.sum().clamp(min=1),
            log_probs=placed(picked),
            entropy=placed(entropy),
            mean_logits=placed(logits.detach().mean(-1)),
            is_top1=placed(best),
            label_mask=mask,
        )

    base.forward = forward


def assert_reference_is_policy(model: Any) -> None:
    """Every adapter weight of the policy equals its twin in the reference, exactly (TRL does not copy all kinds)."""
    weights = dict(model.named_parameters())
    twins = [(name, ".".join("ref" if part == "default" else part for part in name.split("."))) for name in weights]
    pairs = [(name, twin) for name, twin in twins if name != twin]
    if not pairs or not any(weights[name].requires_grad for name, _ in pairs):
        raise AssertionError("the policy has no trainable adapter weights")
    for name, twin in pairs:
        if twin not in weights or not torch.equal(weights[name], weights[twin]):
            raise AssertionError(f"the reference lacks what the policy learned in sft: {name} differs from {twin}")


class _Control(TrainerCallback):
    """Adds what `control` says of the model to the trainer's history: at step 0, and at CONTROL_POINTS more steps.

    There it is part of every later checkpoint. Answering draws nothing and changes no weight, so that training is the
    same with it and without it.
    """

    def __init__(self, control: Control, log: Log) -> None:
        self._control, self._log = control, log

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 0:
            # FSDP keeps the buffers of its first pass; made under inference mode, no later pass could be trained.
            with torch.no_grad():
                model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device))
            self._measure(model, state)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        points = range(1, CONTROL_POINTS + 1)
        if state.global_step in {round(state.max_steps * point / CONTROL_POINTS) for point in points}:
            self._measure(model, state)

    def _measure(self, model: Any, state: Any) -> None:
        base = model.get_base_model()
        attention = base.config._attn_implementation
        model.eval()
        found = self._control(model)
        model.train()
        # Sampling cannot use every kind that training can.
        if base.config._attn_implementation != attention:
            base.set_attn_implementation(attention)
        means = {name: statistics.fmean(shares) for name, shares in found.items()}
        state.log_history.append({"step": state.global_step, "control": found, **means})
        self._log(means, state.global_step)


class _FirstStep(TrainerCallback):
    """At the first step the policy is the reference: rewards 0, and loss ln 2 where nothing is added to it."""

    def __init__(self, loss: float | None) -> None:
        self._loss = loss

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        if state.global_step != 1 or not logs or "rewards/chosen" not in logs:
            return
        # Two passes over the same weights in bfloat16 may round apart; in float32 on a CPU they do not.
        tolerance = 1e-4 if not (args.bf16 or args.fp16) else 0.05
        rewards = (logs["rewards/chosen"], logs["rewards/rejected"])
        if max(map(abs, rewards)) > tolerance or (self._loss and abs(logs["loss"] - self._loss) > tolerance):
            raise AssertionError(f"step 1 must have rewards 0 and loss ln 2, got {rewards} and {logs['loss']}")


def _sft_rows(
    tokenizer: Any,
    dialogues: Sequence[Dialogue],
    neutral: str,
    neutral_replies: float | None,
    p: params.Sft,
    system_prompt: str | None,
    context: int,
) -> tuple[list[dict[str, list[int]]], int]:
    """Rows of ids and labels, and the number of turns that fit in no row.

    83 % of DailyDialog is neutral, so a batch's loss says little about any other emotion: of the neutral replies only
    `neutral_replies` times as many are trained on as there are others.
    """
    counts = Counter(turn.emotion == neutral for d in dialogues for turn in d.turns if turn.role == ASSISTANT)
    share = 1.0 if neutral_replies is None or not counts[True] else neutral_replies * counts[False] / counts[True]
    rows, left_out = [], 0
    for dialogue in dialogues:
        rng = random.Random(key(p.seed, "neutral replies", dialogue.id))
        pieces = prompts.fitting_rows(tokenizer, dialogue.turns, system_prompt, context)
        left_out += len(dialogue.turns) - sum(map(len, pieces))
        for piece in pieces:
            ids, of_reply = prompts.training_row(tokenizer, piece, system_prompt)
            learned = [turn.emotion != neutral or rng.random() < share for turn in piece if turn.role == ASSISTANT]
            labels, number, inside = [], -1, False
            for token, on in zip(ids, of_reply, strict=True):
                number += on and not inside
                inside = on
                labels.append(token if (learned[number] if on else p.loss_on == "all") else -100)
            if any(learned):
                # No token behind the last trained one can change the loss: each sees only what stands before it.
                end = max(at for at, label in enumerate(labels) if label != -100) + 1
                rows.append({"input_ids": ids[:end], "labels": labels[:end]})
    if not rows:
        raise InputError(f"model.context: no exchange of two turns fits in {context} tokens")
    return rows, left_out


def _dpo_row(pair: Mapping[str, Any], system_prompt: str | None) -> dict[str, Any]:
    history = [Turn(turn["role"], turn["content"], turn["emotion"]) for turn in pair["history"]]
    replies = {
        side: prompts.messages([Turn(ASSISTANT, pair[side], pair["emotion"])], None) for side in ("chosen", "rejected")
    }
    return {
        "prompt": prompts.messages(history, system_prompt),
        **replies,
        "chat_template_kwargs": {"emotion": pair["emotion"]},
    }


def _first(curve: Sequence[Mapping[str, Any]], name: str) -> float:
    return next(row[name] for row in curve if name in row)


def _last(curve: Sequence[Mapping[str, Any]], name: str) -> float:
    return next(row[name] for row in reversed(curve) if name in row)


def arguments(p: params.Training, dtype: str, folder: Path, rows: int) -> dict[str, Any]:
    """What SFTConfig and DPOConfig share, for rows that already stand in the order of training."""
    if p.batch_size % launch.processes():
        raise InputError(
            f"{type(p).__name__.lower()}.batch_size must be a multiple of the number of processes, "
            f"{launch.processes()}; got {p.batch_size}"
        )
    steps = max(1, math.ceil(rows / (p.batch_size * p.accumulation)))
    on_gpu = torch.cuda.is_available()
    every = max(1, steps // POINTS)
    return {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": p.batch_size // launch.processes(),
        "per_device_eval_batch_size": 2 * p.batch_size // launch.processes(),
        "gradient_accumulation_steps": p.accumulation,
        "gradient_checkpointing": p.gradient_checkpointing,
        "learning_rate": p.learning_rate,
        "lr_scheduler_type": p.schedule,
        "warmup_steps": round(p.warmup * steps),
        "optim": p.optimizer,
        "seed": p.seed,
        "use_cpu": not on_gpu,
        "bf16": on_gpu and dtype == "bfloat16",
        "fp16": on_gpu and dtype == "float16",
        "logging_strategy": "steps",
        "logging_steps": every,
        "logging_first_step": True,
        "eval_strategy": "steps",
        "eval_steps": max(1, steps // 5),
        "save_strategy": "steps" if p.checkpoints else "no",
        # On a logged step: what was summed up since the last one is in no checkpoint, and the curve would lack it.
        "save_steps": max(every, steps // (p.checkpoints + 1) // every * every),
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": on_gpu,
        # Each step uses the whole adapter, and DPO's frozen copy is no parameter to look for.
        "ddp_find_unused_parameters": False,
    }


class _Listener(TrainerCallback):
    """Marks a checkpoint as complete once all of it is written; passes on what is logged, and prints the progress."""

    def __init__(self, log: Callable[[Mapping[str, float], int], None]) -> None:
        self._log = log
        self._began = (0, time.monotonic())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = (state.global_step, time.monotonic())

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        launch.wait()
        if launch.first():
            Path(args.output_dir, f"checkpoint-{state.global_step}", COMPLETE).touch()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, float)}
        self._log(numbers, state.global_step)
        if "loss" in numbers and launch.first():
            step, began = self._began
            left = (time.monotonic() - began) / max(1, state.global_step - step) * (state.max_steps - state.global_step)
            place = f"step {state.global_step} of {state.max_steps}"
            print(f"{place}, loss {numbers['loss']:.4f}, {left:.0f} s left", flush=True)


@contextmanager
def workspace(stage: str, values: Mapping[str, Any], inputs: Mapping[str, str]) -> Iterator[Path]:
    """The folder for a stage's checkpoints, held by this run alone; it stays after a failure, goes after success.

    Its name is made of all that the result depends on (params, inputs, code, versions), so nothing else can go on from
    it. Where another run trains the same at this moment, this one has a folder of its own.
    """
    versions = {name: version(name) for name in LIBRARIES}
    code = {name: records.digest(Path(__file__).with_name(name)) for name in CODE}
    made_of = json.dumps([values, inputs, code, versions], sort_keys=True)
    name = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    with ExitStack() as held:
        own = held.enter_context(_free(stage, name)) if launch.first() else Path()
        folder = launch.gather([own])[0]
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        launch.wait()
        if launch.first():
            shutil.rmtree(folder)


@contextmanager
def _free(stage: str, name: str) -> Iterator[Path]:
    """The first of NAME, NAME-2, NAME-3 ... in the stage's work folder that no other run holds, held until the end."""
    launch.work(stage).mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = launch.work(stage, name if number == 1 else f"{name}-{number}")
        lock = FileLock(f"{folder}.lock")
        with suppress(Timeout):
            lock.acquire(timeout=0)
            break
    try:
        yield folder
    finally:
        lock.release()


def _train(trainer: Any, log: Log) -> list[dict[str, Any]]:
    """Train to the end, from the last complete checkpoint where there is one; returns the logged rows, one a step."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Listener(log))
    folder = Path(trainer.args.output_dir)
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    torn = [path for path in checkpoints if not (path / COMPLETE).exists()]
    checkpoints = [path for path in checkpoints if path not in torn]
    launch.wait()
    if launch.first():
        for path in torn:
            shutil.rmtree(path)
    launch.wait()
    if checkpoints and launch.first():
        print(f"going on from {checkpoints[-1].name} in {folder}", flush=True)
    trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
    rows: dict[int, dict[str, Any]] = {}
    for logged in trainer.state.log_history:
        rows.setdefault(logged["step"], {}).update(logged)
    return [row for row in rows.values() if row.keys() & {"loss", "eval_loss", "control"}]
