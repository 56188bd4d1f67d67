"""dpo: the sft adapter, moved towards the replies it was found to prefer by Direct Preference Optimization."""

from __future__ import annotations

import math
from functools import partial

from emotune.core import processes, records
from emotune.core.contract import Dep, Inputs, Log, Metrics, Out
from emotune.core.sections import Count, Section
from emotune.core.seeds import order
from emotune.generation.params import Sampling
from emotune.judges.params import JudgeChoice
from emotune.models.params import Model
from emotune.training.params import Dpo

PARALLEL = True
# What a history row shows, under the trainer's own names.
CURVE = [
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
]


class Judged(Section):
    """Which judge, of all that a section says."""

    emotion_judge: JudgeChoice


class Sampled(Section):
    """How replies are sampled, of all that `prefs` says."""

    sampling: Sampling


class Params(Section):
    """How the adapter is aligned, and what shows on the way whether a judge is being gamed."""

    dpo: Dpo
    evaluate: Judged
    history_turns: Count
    model: Model
    prefs: Sampled
    reward: Judged
    system_prompt: str | None


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
) -> Metrics:
    """Align the sft adapter on the pairs, against a frozen copy of itself; write adapter and tokenizer, and the curves.

    Loss (Rafailov et al. 2023): -ln sigmoid(beta (margin of the policy - margin of the reference)), where a margin is
    ln p(chosen) - ln p(rejected); with `sft_weight` times the chosen reply's own negative log-likelihood. Before the
    first step policy and reference are equal, and this asserts it. At some steps both judges say of a few contexts how
    often the reply has the emotion asked for: a row of the curve has the means.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from emotune.evaluation.control import control_by, judge_gap
    from emotune.evaluation.questions import control
    from emotune.judges import files
    from emotune.models import loading
    from emotune.prompts.prompter import Prompter
    from emotune.training import distributed, reference, trainer
    from emotune.training.arguments import arguments
    from emotune.training.heads import score_labelled
    from emotune.training.rows import dpo_row
    from emotune.training.workspace import workspace

    train = list(records.read_jsonl(prefs / "train.jsonl"))
    validation = list(records.read_jsonl(prefs / "validation.jsonl"))
    tokenizer = loading.load_tokenizer(sft, None)
    model = loading.load_adapter(loading.load_base(base, p.model), sft, trainable=True)
    # Where the base really lies: PEFT would look for it on the Hub under the name that the adapter was saved with.
    model.peft_config["default"].base_model_name_or_path = model.get_base_model().config._name_or_path
    questions = control(
        records.read_dialogues(dialogues / "validation.jsonl"),
        p.history_turns,
        p.dpo.control_contexts,
        records.read_json(dialogues / "labels.json")["labels"],
        p.dpo.seed,
    )
    both = {
        "control_reward_judge": files.open_judge(judges / "reward.skops", p.reward.emotion_judge),
        "control_evaluate_judge": files.open_judge(judges / "evaluate.skops", p.evaluate.emotion_judge),
    }

    lengths = [len(row["prompt"]) + len(row["chosen"]) + len(row["rejected"]) for row in train]
    in_order = order(lengths, p.dpo.epochs, p.dpo.batch_size, p.dpo.seed)
    held_out = [dpo_row(row, p.system_prompt) for row in validation[: trainer.VALIDATION_ROWS]]
    weight = p.dpo.sft_weight
    with_sft = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, weight]} if weight else {}
    unvalidated = {} if validation else {"eval_strategy": "no"}
    with workspace("dpo", p.model_dump(mode="json"), inputs) as folder:
        dpo = DPOTrainer(
            model=model,
            args=DPOConfig(
                **arguments(p.dpo, p.model.dtype, folder, len(in_order)) | with_sft | unvalidated,
                max_length=p.model.context,
                beta=p.dpo.beta,
            ),
            train_dataset=Dataset.from_list([dpo_row(train[i], p.system_prompt) for i in in_order]),
            eval_dataset=Dataset.from_list(held_out) if validation else None,
            processing_class=tokenizer,
        )
        score_labelled(dpo.model)
        nothing = {"prompt_ids": [tokenizer.pad_token_id], "chosen_ids": [], "rejected_ids": []}
        distributed.share_rows(dpo, p.dpo.batch_size, nothing)
        distributed.mean_over_all_pairs(dpo)
        reference.assert_reference_is_policy(dpo.model)
        dpo.add_callback(reference.FirstStep(None if weight else math.log(2)))
        if questions:
            by_both = partial(
                control_by,
                both,
                prompter=Prompter(tokenizer, p.system_prompt, p.model.context),
                questions=questions,
                sampling=p.prefs.sampling,
                seed=p.dpo.seed,
            )
            dpo.add_callback(reference.ControlCurve(by_both, log))
        curve = trainer.train(dpo, log)
        measured = {
            "pairs": len(train),
            "steps": dpo.state.global_step,
            "train_loss": trainer.last(curve, "loss"),
            "train_margin": trainer.last(curve, "rewards/margins"),
            "train_accuracy": trainer.last(curve, "rewards/accuracies"),
            "chosen_logps_first": trainer.first(curve, "logps/chosen"),
            "chosen_logps_last": trainer.last(curve, "logps/chosen"),
        }
        if validation:
            found = dpo.evaluate()
            measured |= {
                "validation_loss": found["eval_loss"],
                "validation_margin": found["eval_rewards/margins"],
                "validation_accuracy": found["eval_rewards/accuracies"],
            }
        if questions:
            points = [row["control"] for row in curve if "control" in row]
            measured |= judge_gap(points, "control_reward_judge", "control_evaluate_judge", p.dpo.seed)
        aligned = distributed.whole(dpo.model)
        if processes.first():
            loading.save_adapter(aligned, tokenizer, base, out)
            records.write_csv(history, CURVE, curve)
    return measured
