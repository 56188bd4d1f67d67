"""Which dialogues what rewards learns from, and which what evaluates does."""

import random
from collections import Counter
from collections.abc import Sequence

from emotune.core.dialogue import Dialogue


def halves(dialogues: Sequence[Dialogue], seed: int) -> tuple[list[Dialogue], list[Dialogue]]:
    """All dialogues dealt to two judges, none to both, by the rarest emotion of each: both see half of every emotion's.

    A rare emotion is in few dialogues, and chance alone might give most of them to one judge.
    """
    counts = Counter(turn.emotion for dialogue in dialogues for turn in dialogue.turns)
    rng = random.Random(f"halves {seed}")
    rarest = [min((counts[turn.emotion], turn.emotion) for turn in dialogue.turns) for dialogue in dialogues]
    order = sorted(range(len(dialogues)), key=lambda at: (rarest[at], rng.random()))
    first, second = ([dialogues[at] for at in sorted(order[side::2])] for side in (0, 1))
    return first, second
