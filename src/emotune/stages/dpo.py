"""dpo: the sft adapter, moved towards the replies it was found to prefer by Direct Preference Optimization.

In another round it goes on from what dpo made of it, and the reference stays where the first round began.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from emotune.core import processes, records
from emotune.core.contract import DataSets, Dep, Inputs, Log, MaybeDep, Metrics, Out
from emotune.core.dialogue import ASSISTANT, Turn
from emotune.core.sections import Count, NotNegative, Positive, Section
from emotune.core.seeds import order
from emotune.generation.params import Sampling
from emotune.judges.params import EmotionJudge
from emotune.judges.verdicts import Judge
from emotune.models.params import Model
from emotune.prompts.prompter import Prompter, messages
from emotune.training.params import Training

if TYPE_CHECKING:
    from emotune.training.trainer import Probe

PARALLEL = True
# The judge that rewards and the other, as control by each stands in the curve and the metrics.
BY_REWARD, BY_OTHER = "control_reward_judge", "control_evaluate_judge"
# What the metrics say of training and of validation, by TRL's names.
MEASURED = {"loss": "loss", "margin": "rewards/margins", "accuracy": "rewards/accuracies"}
LOGPS = ("logps/chosen", "logps/rejected")
# What a history row shows.
CURVE = [
    "step",
    *(f"{split}{name}" for name in MEASURED.values() for split in ("", "eval_")),
    *(f"{split}{name}" for split in ("", "eval_") for name in LOGPS),
    *(BY_REWARD, BY_OTHER, "learning_rate"),
]
# What TRL logs of a batch as a mean over its pairs.
OF_PAIRS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", *LOGPS)
Pairs = Sequence[Mapping[str, Any]]


class Dpo(Training):
    loss: Literal["sigmoid", "sigmoid_norm", "none"]
    beta: Positive
    sft_weight: NotNegative
    control_contexts: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if self.loss == "none" and not self.sft_weight:
            raise ValueError("sft_weight must be above 0 where loss is none: nothing else is learned then")
        return self


class Sampled(Section):
    """How replies are sampled, of all that `prefs` says."""

    sampling: Sampling


class Params(Section):
    """How the adapter is aligned, and what shows on the way whether a judge is being gamed."""

    dpo: Dpo
    evaluate: EmotionJudge
    history_turns: Count
    model: Model
    prefs: Sampled
    reward: EmotionJudge
    system_prompt: str | None


def data_sets(_: Params) -> DataSets:
    """What it trains on and watches."""
    return {"prefs": ("train", "validation")}


def main(
    p: Params,
    log: Log,
    inputs: Inputs,
    dialogues: Dep,
    base: Dep,
    sft: Dep,
    prefs: Dep,
    judges: Dep,
    out: Out,
    history: Out,
    reference: MaybeDep = None,
) -> Metrics:
    """Align the sft adapter on the pairs, against a frozen copy of itself; write adapter and tokenizer, and the curves.

    Where a `reference` is named, it is that adapter instead of the copy.
    At some steps both judges say of a few contexts how often the reply has the emotion asked for: a row of the curve
    has the means.
    """
    both = open_judges(judges, p)  # before torch is imported: skops searches every module that is loaded
    from emotune.models import loading
    from emotune.training.workspace import workspace

    train, validation = (list(records.read_jsonl(prefs / f"{split}.jsonl")) for split in ("train", "validation"))
    tokenizer = loading.load_tokenizer(sft, None)
    control = control_by(both, tokenizer, dialogues, p)
    model = loading.load_adapter(loading.load_base(base, p.model), sft, trainable=True)
    # Where the base really lies: PEFT would look for it on the Hub under the name that the adapter was saved with.
    model.peft_config["default"].base_model_name_or_path = model.get_base_model().config._name_or_path
    with workspace("dpo", p.model_dump(mode="json"), inputs) as folder:
        aligned, curve, metrics = align(model, tokenizer, train, validation, p, folder, log, control, reference)
        if processes.first():
            loading.save_adapter(aligned, tokenizer, base, out)
            records.write_csv(history, CURVE, curve)
    return metrics


def align(
    model: Any,
    tokenizer: Any,
    train: Pairs,
    validation: Pairs,
    p: Params,
    folder: Path,
    log: Log,
    control: Probe | None = None,
    reference: Path | None = None,
) -> tuple[Any, list[dict[str, Any]], Metrics]:
    """The given trainable adapter after DPO against a frozen copy of itself; returns it, its curve and its metrics.

    Loss (Rafailov et al. 2023): -ln sigmoid(beta (margin of the policy - margin of the reference)), where a margin is
    ln p(chosen) - ln p(rejected); with `sft_weight` times the chosen reply's own negative log-likelihood. Before the
    first step policy and reference are equal, and this asserts it. With a `reference` (iterative DPO: Xiong et al.
    2024) it is that adapter to the last number, which this asserts; rewards begin at beta ln(policy / reference).
    """
    from peft import get_peft_model_state_dict

    from emotune.evaluation.control import judge_gap
    from emotune.models import loading
    from emotune.training import distributed, heads, trainer

    dpo = _trainer(model, tokenizer, train, validation[: trainer.VALIDATION_ROWS], p, folder)
    fill_reference(dpo.model, get_peft_model_state_dict(dpo.model, save_embedding_layers=False))
    heads.score_labelled(dpo.model)
    nothing = {"prompt_ids": [tokenizer.pad_token_id], "chosen_ids": [], "rejected_ids": []}
    distributed.share_rows(dpo, nothing, partial(mean_over_all_pairs, p.dpo.loss, p.dpo.sft_weight))
    assert_reference_is_policy(dpo.model)
    first_step = partial(assert_first_step, None if p.dpo.sft_weight else math.log(2))
    if reference:
        loading.load_reference(dpo.model, reference)
    curve = trainer.train(dpo, log, control, None if reference else first_step)
    metrics = {
        "pairs": len(train),
        "steps": dpo.state.global_step,
        **{f"train_{name}": trainer.values(curve, logged)[-1] for name, logged in MEASURED.items()},
        "chosen_logps_first": trainer.values(curve, "logps/chosen")[0],
        "chosen_logps_last": trainer.values(curve, "logps/chosen")[-1],
    }
    if validation:
        held_out = dpo.evaluate()
        metrics |= {f"validation_{name}": held_out[f"eval_{logged}"] for name, logged in MEASURED.items()}
    if control:
        metrics |= judge_gap(trainer.values(curve, trainer.PROBED), BY_REWARD, BY_OTHER, p.dpo.seed)
    return distributed.whole(dpo.model), curve, metrics


def _trainer(model: Any, tokenizer: Any, train: Pairs, held_out: Pairs, p: Params, folder: Path) -> Any:
    """TRL's trainer of the adapter and its frozen copy, over the pairs in the order of training."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from emotune.training.trainer import adapter_in_float32, arguments

    lengths = [len(pair["prompt"]) + len(pair["chosen"]) + len(pair["rejected"]) for pair in train]
    in_order = order(lengths, p.dpo.epochs, p.dpo.batch_size, p.dpo.seed)
    settings = arguments(p.dpo, p.model.dtype, folder, len(in_order))
    weights = of_losses(p.dpo.loss, 1.0, p.dpo.sft_weight)
    settings |= {"loss_type": list(weights), "loss_weights": list(weights.values())}
    if not held_out:
        settings["eval_strategy"] = "no"
    with adapter_in_float32(model):
        return DPOTrainer(
            model=model,
            args=DPOConfig(**settings, max_length=p.model.context, beta=p.dpo.beta),
            train_dataset=Dataset.from_list([dpo_row(train[i], p.system_prompt) for i in in_order]),
            eval_dataset=Dataset.from_list([dpo_row(pair, p.system_prompt) for pair in held_out]) if held_out else None,
            processing_class=tokenizer,
        )


def dpo_row(pair: Mapping[str, Any], system_prompt: str | None) -> dict[str, Any]:
    """A pair as TRL takes it: prompt, chosen and rejected reply as messages, and the emotion for the template."""
    emotion = pair["emotion"]
    return {
        "prompt": messages([Turn(**turn) for turn in pair["history"]], system_prompt),
        "chosen": messages([Turn(ASSISTANT, pair["chosen"], emotion)], None),
        "rejected": messages([Turn(ASSISTANT, pair["rejected"], emotion)], None),
        "chat_template_kwargs": {"emotion": emotion},
    }


def open_judges(trained: Path, p: Params) -> dict[str, Judge]:
    """The judge that rewards, and the one that evaluates, by the names of their columns."""
    from emotune.judges import files

    return {
        BY_REWARD: files.open_judge(trained / "reward.skops", p.reward.emotion_judge),
        BY_OTHER: files.open_judge(trained / "evaluate.skops", p.evaluate.emotion_judge),
    }


def control_by(judges: Mapping[str, Judge], tokenizer: Any, dialogues: Path, p: Params) -> Probe | None:
    """Asks a model a few validation contexts in every emotion, and the judges about its replies; None for none."""
    from emotune.evaluation import control
    from emotune.evaluation.answers import control as in_every_emotion

    names = records.read_json(dialogues / "labels.json")
    questions = in_every_emotion(
        records.read_dialogues(dialogues / "validation.jsonl"),
        p.history_turns,
        p.dpo.control_contexts,
        names["labels"],
        p.dpo.seed,
    )
    twin = p.prefs.sampling.twin(names["neutral"])
    prompter = Prompter(tokenizer, p.system_prompt, p.model.context, neutral=twin)
    probe = partial(
        control.control_by, judges, prompter=prompter, questions=questions, sampling=p.prefs.sampling, seed=p.dpo.seed
    )
    return probe if questions else None


def fill_reference(model: Any, weights: Mapping[str, Any]) -> None:
    """Give the frozen reference all weights of an adapter, by the names that it is saved with.

    TRL copies the policy's LoRA alone and not its tags, which PEFT makes trainable where the base model is in 16 bits.
    """
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, dict(weights), adapter_name="ref")
    for name, weight in model.named_parameters():
        if "ref" in name.split("."):
            weight.requires_grad_(False)


def assert_reference_is_policy(model: Any) -> None:
    """Every adapter weight of the policy equals its twin in the reference, exactly."""
    weights = dict(model.named_parameters())
    twins = [(name, ".".join("ref" if part == "default" else part for part in name.split("."))) for name in weights]
    pairs = [(name, twin) for name, twin in twins if name != twin]
    if not pairs or not any(weights[name].requires_grad for name, _ in pairs):
        raise AssertionError("the policy has no trainable adapter weights")
    for name, twin in pairs:
        if twin not in weights or not weights[name].equal(weights[twin]):
            raise AssertionError(f"the reference lacks what the policy learned in sft: {name} differs from {twin}")


def assert_first_step(loss: float | None, logs: Mapping[str, float], half_precision: bool) -> None:
    """At the first step the policy is the reference: rewards 0, and the loss as given, ln 2 where nothing is added."""
    # Two passes over the same weights in bfloat16 may round apart; in float32 on a CPU they do not.
    tolerance = 0.05 if half_precision else 1e-4
    rewards = (logs["rewards/chosen"], logs["rewards/rejected"])
    if max(map(abs, rewards)) > tolerance or (loss and abs(logs["loss"] - loss) > tolerance):
        raise AssertionError(f"step 1 must have rewards 0 and loss ln 2, got {rewards} and {logs['loss']}")


def of_losses(loss_type: str, of_pairs: float, of_chosen: float) -> dict[str, float]:
    """TRL's names of the pairs' loss and, where it counts, of the chosen replies' own, and their weights."""
    pairs = {"sigmoid": 0.0} if loss_type == "none" else {loss_type: of_pairs}
    return pairs | ({"sft": of_chosen} if of_chosen else {})


def mean_over_all_pairs(
    loss_type: str, sft_weight: float, trainer: Any, of_trl: Any, model: Any, inputs: Any, **more: Any
) -> Any:
    """TRL's losses as means over the pairs, and over the chosen replies' tokens, of all processes.

    `sigmoid_norm` takes a reply's mean over its tokens instead of their sum (Lambert et al. 2024); of `none` the pairs'
    loss weighs nothing, and the chosen replies alone are learned (RAFT, Dong et al. 2023).

    TRL takes each process's own means. A token would weigh more where a process has few, and a row that only fills a
    batch up would count: its sigmoid loss is ln 2, and what is logged of it is 0.
    """
    from emotune.training import distributed

    # The chosen replies' tokens, [rows, positions]; a row that only fills up has none.
    learned = inputs["completion_mask"].chunk(2)[0][:, 1:] != 0
    own_tokens, (pairs, tokens) = int(learned.sum()), distributed.sums(trainer, learned)
    # TRL divides by the rows of this process, DDP by the processes: back to one part in all pairs.
    stretch = processes.processes() * len(learned) / pairs
    of_pairs = stretch * (loss_type != "none")
    weights = of_losses(loss_type, of_pairs, sft_weight * processes.processes() * own_tokens / tokens)
    trainer.loss_types, trainer.loss_weights = list(weights), list(weights.values())
    filling = 1 - int(learned.any(1).sum()) / len(learned)
    loss = of_trl(model, inputs, **more) - of_pairs * filling * math.log(2)
    logged = trainer._metrics["train" if model.training else "eval"]
    for name in OF_PAIRS:
        logged[name][-1] *= stretch
    return loss if model.training else loss * distributed.validation_weight(trainer, pairs)
