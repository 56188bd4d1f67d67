"""Human replies of the train split as chosen ones, where the model's own replies make too few pairs of an emotion."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from emotune.core import seeds
from emotune.core.dialogue import ASSISTANT, Dialogue, bare, swapped
from emotune.generation.engine import Reply
from emotune.preferences.attempts import prompts_for
from emotune.preferences.candidates import JudgeReplies, Prompt
from emotune.preferences.learned import Learned
from emotune.preferences.outcomes import Candidates, Outcome
from emotune.preferences.params import Prefs, Reward
from emotune.preferences.reward import candidate
from emotune.preferences.selection import Candidate, Pair, contrast, is_finished
from emotune.prompts.prompter import Prompter

Place = tuple[Dialogue, int, str]


def fill(
    pairs: Counter[str],
    taken: Iterable[str],
    dialogues: Sequence[Dialogue],
    prompter: Prompter,
    p: Prefs,
    r: Reward,
    search: Callable[[Sequence[Prompt], Prefs], list[Outcome]],
    judge: JudgeReplies,
    learned: Learned | None = None,
) -> tuple[list[Prompt], list[Outcome]]:
    """Prompts that a human replied to, with the pairs that this reply and the model's own of one attempt make.

    With so many `pairs` of each emotion, and prompts of ids `taken` that have one. The judges score the human reply,
    and it may score low: it is chosen for the label that people gave it (self-play, Chen et al. 2024).
    """
    wanted = places(dialogues, pairs, frozenset(taken), p)
    said = {f"{d.id}/{i}/{emotion}": d.turns[i].content for d, i, emotion in wanted}
    # Their roles exchanged or not, they are of one dialogue: none of its pairs may be held out and another trained on.
    originals = {swapped(d).id: d.id for d in dialogues}
    prompts = [
        replace(prompt, dialogue=originals.get(prompt.dialogue, prompt.dialogue))
        for prompt in prompts_for(wanted, prompter, p)
    ]
    if not prompts:
        return [], []
    outcomes = search(prompts, p.model_copy(update={"attempts": 1}))
    replies = [Reply(said[prompt.id], len(prompter.encoded(said[prompt.id])), True) for prompt in prompts]
    # A human's is no attempt: they are counted from 1.
    said_by = [(prompt, 0) for prompt in prompts]
    scores: Sequence[Sequence[float | None]] = [[None] for _ in prompts]
    if learned:
        scores = learned(said_by, [[reply.text] for reply in replies])
    filled = []
    each = zip(prompts, outcomes, judge([[reply] for reply in replies]), scores, strict=True)
    for prompt, outcome, judged, [score] in each:
        chosen = candidate(judged[0], prompt.emotion, r, score)
        filled.append(replace(outcome, pair=against_own(chosen, outcome.candidates[0], prompt.emotion, p), failures=()))
    return prompts, filled


def places(dialogues: Sequence[Dialogue], pairs: Counter[str], taken: frozenset[str], p: Prefs) -> list[Place]:
    """Places whose human reply is a finished one, drawn without repetition: so many as each emotion lacks pairs.

    Where the assistant's replies are too few the user's follow, as dialogues whose roles are exchanged.
    """
    every = []
    for speakers in (dialogues, [swapped(dialogue) for dialogue in dialogues]):
        said = [(d, i, turn.emotion) for d in speakers for i, turn in enumerate(d.turns) if turn.role == ASSISTANT]
        random.Random(seeds.key(p.seed, "human")).shuffle(said)
        every += said
    counts, drawn = pairs.copy(), []
    for d, i, emotion in every:
        is_free = f"{d.id}/{i}/{emotion}" not in taken and is_finished(d.turns[i].content)
        if counts[emotion] < p.human_fill and is_free:
            counts[emotion] += 1
            drawn.append((d, i, emotion))
    return drawn


def against_own(chosen: Candidate, own: Candidates, emotion: str, p: Prefs) -> Pair | None:
    """A human's reply and the model's own that is its contrast, whatever both score, or else its worst."""
    worst = min(own, key=lambda reply: reply.reward)
    rejected = contrast(chosen, own, emotion, -float("inf"), p.min_clean_confidence) or worst
    return None if bare(rejected.text) == bare(chosen.text) else Pair(chosen, rejected)
