"""DPO's frozen reference: equal to the policy before the first step, and what control does from there."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from emotune.core.contract import Log

Control = Callable[[Any], Mapping[str, Sequence[float]]]
# Control is asked for before the first step and at so many more points, the last step among them.
CONTROL_POINTS = 4


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


class ControlCurve(TrainerCallback):
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


class FirstStep(TrainerCallback):
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
