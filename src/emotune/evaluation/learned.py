"""What the reward model says of every model's replies to the natural questions, and how often one beats another."""

from collections.abc import Mapping, Sequence
from typing import Any

from emotune.core import processes
from emotune.evaluation import ranking
from emotune.evaluation.answers import Rows
from emotune.evaluation.fit import Asked
from emotune.evaluation.params import Evaluate
from emotune.models.bradley_terry import RewardModel, Scale


def rewards_of(replies: Mapping[str, Rows], natural: Asked, model: RewardModel) -> dict[str, list[float]]:
    """The reward of every reply to the natural questions, by whose it is; several processes share the work."""
    said = [q.history for q in natural.questions]
    every = [(turns, row["reply"]) for own in replies.values() for turns, row in zip(said, own, strict=True)]
    values = iter(processes.gather(model.rewards(processes.share(every))))
    return {name: [next(values) for _ in own] for name, own in replies.items()}


def side_by_side(rewards: Mapping[str, Sequence[float]], natural: Asked, scale: Scale, p: Evaluate) -> dict[str, Any]:
    """What to lay over measures.side_by_side: each one's mean learned score, and of dpo and sft which is preferred.

    `learned_wins` is the share of questions where dpo's reply has the higher reward, a tie half, with its interval over
    dialogues. Where `reward.model` is trained, dpo learned to please it: then this is no measure of what it is worth.
    """
    dialogues = [q.dialogue for q in natural.questions]
    measured: dict[str, Any] = {
        name: {"replies": {"learned_score": ranking.mean(dialogues, list(map(scale.score, own)), p.resamples, p.seed)}}
        for name, own in rewards.items()
    }
    margins = [after - before for before, after in zip(rewards["sft"], rewards["dpo"], strict=True)]
    wins = ranking.mean(dialogues, ranking.wins(margins), p.resamples, p.seed)
    return measured | {"paired": {"sft_to_dpo": {"replies": {"learned_wins": wins}}}}
