"""The pairs that people's votes make: prompts and outcomes as a search gives its own."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emotune.core.errors import InputError
from emotune.generation.engine import Reply
from emotune.preferences.candidates import JudgeReplies, Prompt
from emotune.preferences.learned import Learned
from emotune.preferences.outcomes import Outcome
from emotune.preferences.params import Prefs, Reward
from emotune.preferences.reward import candidate
from emotune.preferences.selection import Pair
from emotune.preferences.votes import Preference, counted, pinned, preferences, read
from emotune.prompts.prompter import Prompter


def questions(preferences: Sequence[Preference], prompter: Prompter) -> list[tuple[Preference, Prompt]]:
    """Each preference with the prompt that asks for its replies, where it leaves them room and neither is empty."""
    fitting = []
    for preferred in preferences:
        vote = preferred.vote
        room = 1 + max(len(prompter.encoded(side.reply)) for side in (vote.left, vote.right))
        history = prompter.fitting_history(vote.turns, vote.emotion, room)
        text = prompter.text(history, vote.emotion)
        ids = tuple(prompter.encoded(text))
        is_empty = not (vote.left.reply.strip() and vote.right.reply.strip())
        if len(ids) + room <= prompter.context and not is_empty:
            id = f"{vote.origin}/{vote.question}/{vote.emotion}"
            fitting.append((preferred, Prompt(id, vote.origin, history, vote.emotion, text, ids)))
    return fitting


def rows(preferences: Sequence[Preference], prompter: Prompter) -> list[dict[str, Any]]:
    """The pairs that people made, as the first columns of data/prefs have them."""
    return [
        {
            "id": prompt.id,
            "dialogue": prompt.dialogue,
            "prompt": prompt.text,
            "history": [asdict(turn) for turn in prompt.history],
            "emotion": prompt.emotion,
            "chosen": preferred.chosen,
            "rejected": preferred.rejected,
        }
        for preferred, prompt in questions(preferences, prompter)
    ]


@dataclass(frozen=True, slots=True)
class Voted:
    """The pairs that people made, as a search gives its own, and in `counts` of how many votes and questions."""

    prompts: list[Prompt]
    outcomes: list[Outcome]
    counts: dict[str, dict[str, int]]


def voted(
    p: Prefs,
    labels: Sequence[str],
    prompter: Prompter,
    judge: JudgeReplies,
    r: Reward,
    learned: Learned | None = None,
    earlier: Mapping[str, int] | None = None,
) -> Voted:
    """The pairs of the votes that `prefs` pins, where its `source` wants them; InputError where it wants no others.

    The judges score both replies, and so does `learned` where it is given; they decide nothing. A round takes no vote
    that one before it took: `earlier` is what its `counts` said of votes, and stays said.
    """
    if p.source == "generated":
        return Voted([], [], {})
    if earlier and p.source == "votes":
        raise InputError("prefs.source: votes: the round before learned from all of them; another one takes both")
    if earlier:
        return Voted([], [], {"votes": {**earlier, "pairs": 0}})
    votes = counted(read(pinned(p.votes, p.votes_revision, "prefs.votes_revision"), labels))
    preferred = preferences(votes)
    fitting = questions(preferred, prompter)
    if p.source == "votes" and not fitting:
        raise InputError(f"prefs.source: votes: of {len(votes)} votes in {p.votes} none prefers a reply that fits")
    texts = [(one.chosen, one.rejected) for one, _ in fitting]
    judged = judge([[Reply(text, len(prompter.encoded(text)), True) for text in both] for both in texts])
    prompts = [prompt for _, prompt in fitting]
    scores: list[dict[str, float | None]] = [dict.fromkeys(both) for both in texts]
    if learned:
        # In an order that no later vote changes; no attempt made them, and attempts are counted from 1.
        sides = [sorted(both) for both in texts]
        values = learned([(prompt, 0) for prompt in prompts], sides)
        scores = [dict(zip(*own, strict=True)) for own in zip(sides, values, strict=True)]
    outcomes = [
        Outcome(Pair(*(candidate(reply, prompt.emotion, r, own[reply.text]) for reply in both)), 0, ())
        for prompt, both, own in zip(prompts, judged, scores, strict=True)
    ]
    counts = {
        "votes": len(votes),
        "questions": len({vote.question for vote in votes}),
        "preferred": len(preferred),
        "unfit": len(preferred) - len(fitting),
        "pairs": len(fitting),
    }
    return Voted(prompts, outcomes, {"votes": counts})
