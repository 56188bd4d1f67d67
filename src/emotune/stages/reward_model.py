"""reward_model: LoRA and a score head on the base model, so that the better of two replies has the higher number.

Where the reward has no other term for it, this is what knows whether a reply answers what was said.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from emotune.core import processes, records
from emotune.core.contract import DataSets, Dep, Inputs, Log, Metrics, Out
from emotune.core.dialogue import Dialogue
from emotune.core.errors import InputError
from emotune.core.sections import Count, NotNegative, Section
from emotune.core.seeds import order
from emotune.judges.halves import halves
from emotune.judges.params import EmotionJudge, Judges
from emotune.judges.verdicts import Judge
from emotune.models.params import Model
from emotune.preferences.votes import VotesAt, pinned, preferences, read
from emotune.prompts.prompter import Prompter
from emotune.training.pairs import ACCEPTED, CONTRAST, VOTES, WORDS, Pair, contrast, foreign, once, split
from emotune.training.params import Training

if TYPE_CHECKING:
    from emotune.models.bradley_terry import RewardModel
    from emotune.models.lexical import Lexical

PARALLEL = True
# What a history row shows, under the trainer's own names.
CURVE = ["step", *(f"{of}{name}" for name in ("loss", "accuracy", "margin") for of in ("", "eval_")), "grad_norm"]
CALIBRATION = ["confidence", "accuracy", "pairs"]
# At so many places of the validation split the human reply is held against so many others.
HELD_OUT, WRONG = 500, 3
RESAMPLES = 1000
Rows = Sequence[Mapping[str, Any]]
# Pairs of one chosen reply each.
Groups = Sequence[Sequence[Pair]]


class Learned(Training):
    pairs: str | tuple[str, ...]
    contrast_pairs: Count
    history_turns: Count
    margin: NotNegative
    center_rewards_coefficient: NotNegative
    rank: Count

    @field_validator("pairs")
    @classmethod
    def _pinned(cls, pairs: str | tuple[str, ...]) -> str | tuple[str, ...]:
        sources = (pairs,) if isinstance(pairs, str) else pairs
        if not sources or any(source not in WORDS and not ("@" in source or ".jsonl" in source) for source in sources):
            raise ValueError(f"must be one or a list, {ACCEPTED}; got {list(sources)}")
        return pairs

    @property
    def section(self) -> str:
        return "reward_model"

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.pairs,) if isinstance(self.pairs, str) else self.pairs


class Data(Section):
    """By it dialogues are dealt to what rewards and what evaluates."""

    seed: int


class Params(Section):
    """The base model, the pairs and where votes lie, how it learns, and the judge that it is held against."""

    data: Data
    judges: Judges
    model: Model
    prefs: VotesAt
    reward: EmotionJudge
    reward_model: Learned
    system_prompt: str | None


def data_sets(_: Params) -> DataSets:
    """What the contrast is made of."""
    return {"dialogues": ("train", "validation")}


def main(
    p: Params,
    log: Log,
    inputs: Inputs,
    dialogues: Dep,
    base: Dep,
    judges: Dep,
    out: Out,
    history: Out,
    calibration: Out,
) -> Metrics:
    """Train a reward model on pairs; write adapter, head, tokenizer and scale, the loss curve and the calibration."""
    from emotune.judges import files  # isort: skip  (skops searches every module that is loaded: before torch)

    from emotune.models import bradley_terry, lexical, loading
    from emotune.training.workspace import workspace

    judge = files.open_judge(judges / "reward.skops", p.reward.emotion_judge)
    talks = own_dialogues(dialogues, p)
    train, held_out = pairs_of(dialogues, talks, p.reward_model, p.prefs.votes)
    prompter = bradley_terry.prompter(base, p.system_prompt, p.model.context, p.reward_model.history_turns)
    with workspace("reward_model", p.model_dump(mode="json"), inputs) as folder:
        model = bradley_terry.untrained(base, p.model, prompter)
        tokens = by_tokens(talks, held_out, prompter, p.reward_model)
        learned, curve, metrics = learn(model, prompter, train, list(chain(*held_out)), p, folder, log)
        adapter = folder / "adapter"
        if processes.first():
            loading.save_adapter(learned, prompter.tokenizer, base, adapter)
            if tokens:
                lexical.save(tokens, adapter / lexical.FILE)
        processes.wait()
        # What was saved is what is measured: the head with it, and nothing spread over processes.
        del model, learned
        trained, _ = bradley_terry.opened(base, p.model, adapter, p.system_prompt, p.reward_model.history_turns)
        measured, trust, zero = measure(trained, held_out, train, judge)
        if processes.first():
            records.write_json(adapter / bradley_terry.SCALE, asdict(bradley_terry.Scale(zero, prompter.history_turns)))
            with records.replacing_folder(out) as part:
                shutil.copytree(adapter, part, dirs_exist_ok=True)
            records.write_csv(history, CURVE, curve)
            records.write_csv(calibration, CALIBRATION, trust)
    return {**metrics, **measured}


def own_dialogues(dialogues: Path, p: Params) -> list[Dialogue]:
    """Of the train split those that contrast is made of: no judge that evaluates learns from any, if judges share none.

    The matcher among these judges would else like what it has read with the reward model.
    """
    train = records.read_dialogues(dialogues / "train.jsonl")
    return train if p.judges.share_dialogues else halves(train, p.data.seed)[0]


def pairs_of(dialogues: Path, talks: Sequence[Dialogue], p: Learned, votes: str) -> tuple[Sequence[Pair], Groups]:
    """The pairs to train on, and those held out, which share no dialogue with them, in groups of one chosen reply.

    Contrast is made of `talks`, and held out is that of the validation split, but for dialogues of which other
    pairs are on the other side: people vote on those of validation, and an earlier run's pairs are of train.
    """
    others = (pairs_at(source, votes, dialogues) for source in p.sources if source != CONTRAST)
    train, to_hold = split(once(chain(*others), p.history_turns), p.seed)
    held_out = [[pair] for pair in to_hold]
    if CONTRAST in p.sources:
        other = records.read_dialogues(dialogues / "validation.jsonl")
        trained, held = {pair.dialogue for pair in train}, {group[0].dialogue for group in held_out}
        more = contrast([d for d in talks if d.id not in held], p.history_turns, p.contrast_pairs, p.seed)
        train += chain(*more)
        other = [d for d in other if d.id not in trained]
        held_out += contrast(other, p.history_turns, HELD_OUT, p.seed, WRONG)
    if not train or not held_out:
        raise InputError(
            f"reward_model.pairs: {len(train)} pairs to train on and {len(held_out)} to hold out; it needs some of both"
        )
    return train, held_out


def by_tokens(talks: Sequence[Dialogue], held_out: Groups, prompter: Prompter, p: Learned) -> Lexical | None:
    """The lexical part, learned of what contrast is made of, where that is among the pairs.

    The model does not build on it: a model that begins where tokens alone are sure already learns little, and of words
    that no dialogue has taught it knows more than they.
    """
    from emotune.training.lexical import fit

    held = {group[0].dialogue for group in held_out}
    own = [talk for talk in talks if CONTRAST in p.sources and talk.id not in held]
    return fit(own, prompter.tokenizer, p.history_turns, p.seed) if own else None


def pairs_at(source: str, votes: str, dialogues: Path) -> list[Pair]:
    """The pairs of a source; of votes, of two replies, neither of them empty, the one that more of them preferred."""
    name, _, pin = source.partition("@")
    if name != VOTES:
        return foreign(source)
    path = pinned(votes, pin, "reward_model.pairs: votes@sha256")
    return [
        Pair(VOTES, one.vote.origin, one.vote.turns, one.vote.emotion, one.chosen, one.rejected)
        for one in preferences(read(path, records.read_json(dialogues / "labels.json")["labels"]))
        if one.chosen.strip() and one.rejected.strip()
    ]


def learn(
    model: Any, prompter: Prompter, train: Sequence[Pair], held_out: Sequence[Pair], p: Params, folder: Path, log: Log
) -> tuple[Any, list[dict[str, Any]], Metrics]:
    """The model under a new adapter and head after Bradley-Terry training; returns it, its curve and its metrics.

    Loss (Bradley & Terry 1952; Ouyang et al. 2022): -ln sigmoid(r_chosen - r_rejected - margin), with
    `center_rewards_coefficient` times (r_chosen + r_rejected)^2, which keeps rewards around 0 (Eisenstein et al. 2023).
    A pair whose last turn leaves a reply no room is left out, and counted.
    """
    from emotune.training import distributed, trainer

    rows, validation = (reward_rows(prompter, pairs, p.reward_model.margin) for pairs in (train, held_out))
    if not rows:
        raise InputError(f"reward_model.pairs: none of {len(train)} fits in model.context, {prompter.context} tokens")
    size = p.reward_model.batch_size
    # Whole batches: several processes share each alike, so that the mean of their means is the mean over its pairs.
    room = max(min(len(validation), 2 * size), trainer.VALIDATION_ROWS // (2 * size) * 2 * size)
    reward = _trainer(model, prompter.tokenizer, rows, validation[:room], p, folder)
    distributed.share_rows(reward, rows[0], lambda trainer, of_trl, *inputs, **more: of_trl(*inputs, **more))
    curve = trainer.train(reward, log)
    metrics = {
        "pairs": dict(Counter(pair.source for pair in train)),
        "pairs_left_out_too_long": len(train) - len(rows),
        "steps": reward.state.global_step,
        "trainable_parameters": sum(q.numel() for q in reward.model.parameters() if q.requires_grad),
        "train_loss": trainer.values(curve, "loss")[-1],
    }
    return distributed.whole(reward.model), curve, metrics


def _trainer(model: Any, tokenizer: Any, rows: Rows, held_out: Rows, p: Params, folder: Path) -> Any:
    """TRL's trainer of a new adapter and the score head, over rows in training order."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import RewardConfig, RewardTrainer

    from emotune.training.trainer import adapter_in_float32, arguments

    own = p.reward_model
    in_order = order([len(row["chosen_ids"]) for row in rows], own.epochs, own.batch_size, own.seed)
    in_order = in_order[: max(own.batch_size, len(in_order) // own.batch_size * own.batch_size)]
    settings = arguments(own, p.model.dtype, folder, len(in_order))
    if not held_out:
        settings["eval_strategy"] = "no"
    with adapter_in_float32(model):
        return RewardTrainer(
            model=model,
            # Rows fit already: what is longer TRL would leave out without a word.
            args=RewardConfig(
                **settings, max_length=None, center_rewards_coefficient=own.center_rewards_coefficient or None
            ),
            train_dataset=Dataset.from_list([rows[i] for i in in_order]),
            eval_dataset=Dataset.from_list(held_out) if held_out else None,
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=own.rank,
                lora_alpha=own.rank,
                use_rslora=True,
                target_modules="all-linear",
                modules_to_save=["score"],
                task_type="SEQ_CLS",
            ),
        )


def reward_rows(prompter: Prompter, pairs: Sequence[Pair], margin: float) -> list[dict[str, Any]]:
    """Pairs as TRL takes them: the ids of both replies behind the same turns, and the margin where there is one.

    Turns that leave a reply no room go whole, the oldest first; a pair of which the last one would is left out.
    """
    from emotune.models import bradley_terry

    both = (bradley_terry.rows(prompter, pair.history, (pair.chosen, pair.rejected)) for pair in pairs)
    return [
        {"chosen_ids": chosen, "rejected_ids": rejected} | ({"margin": margin} if margin else {})
        for chosen, rejected in both
        if max(len(chosen), len(rejected)) <= prompter.context
    ]


def measure(
    trained: RewardModel, held_out: Groups, train: Sequence[Pair], judge: Judge
) -> tuple[dict[str, Any], list[dict[str, Any]], float]:
    """How the model orders held-out replies, its calibration curve, and the mean of all the rewards that it gave.

    `accuracy` is over the first pair of each group, `best_of_4` over whole groups of one right reply and WRONG others.
    Beside it stand what its lexical part finds (`tokens_alone`) and two dummies: length alone (longer or shorter, as
    the better ones in `train` are), and the judge alone that rewards emotion.
    """
    from emotune.evaluation import ranking

    chosen, rejected = rewards_of(trained, held_out)
    margins = [[better - worse for worse in others] for better, others in zip(chosen, rejected, strict=True)]
    first, pairs = [own[0] for own in margins], [group[0] for group in held_out]
    error, curve = ranking.calibration(first)
    longer = sum(len(pair.chosen) - len(pair.rejected) for pair in train) >= 0
    by_length = [(len(pair.chosen) - len(pair.rejected)) * (1 if longer else -1) for pair in pairs]
    fours = [n for n, own in enumerate(margins) if len(own) == WRONG]
    found = ranking.best_of([margins[n] for n in fours])
    measured = {
        "held_out": len(pairs),
        "accuracy": share(pairs, first),
        "accuracy_per_source": grouped(pairs, first, lambda pair: pair.source),
        "accuracy_per_emotion": grouped(pairs, first, lambda pair: pair.emotion or "none"),
        "tokens_alone": share(pairs, tokens_margins(pairs, trained.lexical, trained.prompter))
        if trained.lexical
        else None,
        "dummies": {"length": share(pairs, by_length), "emotion": share(pairs, emotion_margins(pairs, judge))},
        "best_of_4": ranking.mean([pairs[n].dialogue for n in fours], found, RESAMPLES, 0) if fours else None,
        "calibration_error": error,
        "margin": sum(first) / len(first),
    }
    everything = [*chosen, *chain(*rejected)]
    return measured, curve, sum(chosen) / len(chosen) / 2 + sum(chain(*rejected)) / (len(everything) - len(chosen)) / 2


def rewards_of(trained: RewardModel, groups: Groups) -> tuple[list[float], list[list[float]]]:
    """Of each group the reward of its chosen reply and those of the others; several processes share the work."""
    answers = [[(g[0].history, g[0].chosen), *((pair.history, pair.rejected) for pair in g)] for g in groups]
    own = processes.share(answers)
    values = iter(trained.rewards(list(chain(*own))))
    rewards = processes.gather([[next(values) for _ in group] for group in own])
    return [group[0] for group in rewards], [group[1:] for group in rewards]


def share(pairs: Sequence[Pair], margins: Sequence[float]) -> dict[str, float]:
    """The share of pairs that the margins order right, with its interval over dialogues."""
    from emotune.evaluation import ranking

    return ranking.mean([pair.dialogue for pair in pairs], ranking.wins(margins), RESAMPLES, 0)


def grouped(pairs: Sequence[Pair], margins: Sequence[float], of: Callable[[Pair], str]) -> dict[str, dict[str, float]]:
    """`share` of the pairs of each group."""
    groups: dict[str, list[int]] = {}
    for number, pair in enumerate(pairs):
        groups.setdefault(of(pair), []).append(number)
    return {
        name: share([pairs[n] for n in numbers], [margins[n] for n in numbers]) | {"pairs": len(numbers)}
        for name, numbers in sorted(groups.items())
    }


def tokens_margins(pairs: Sequence[Pair], lexical: Lexical, prompter: Prompter) -> list[float]:
    """How much higher the lexical part alone rates the chosen reply."""
    answers = [(pair.history, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    scores = lexical.scores(prompter.tokenizer, answers)
    return [better - worse for better, worse in zip(scores[::2], scores[1::2], strict=True)]


def emotion_margins(pairs: Sequence[Pair], judge: Judge) -> list[float]:
    """How much surer the judge is that the chosen reply has the emotion asked for; 0 where none was."""
    verdicts = judge([text for pair in pairs for text in (pair.chosen, pair.rejected)])
    has = [
        sure if emotion == pair.emotion else 0.0
        for pair, both in zip(pairs, zip(verdicts[::2], verdicts[1::2], strict=True), strict=True)
        for emotion, sure in both
    ]
    return [better - worse for better, worse in zip(has[::2], has[1::2], strict=True)]
