"""How good the pairs are, and which bounds they break."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from emotune.core.dialogue import ASSISTANT, Dialogue, history, normal_form
from emotune.preferences.attempts import Outcome
from emotune.preferences.candidates import Prompt
from emotune.preferences.params import Audit

# What to turn where there are too few pairs.
SOONER = "train sft for longer, raise prefs.attempts, or lower prefs.min_chosen_score or prefs.target_score_range"


def measure(
    prompts: Sequence[Prompt],
    outcomes: Sequence[Outcome],
    pairs: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    test: Iterable[Dialogue],
    history_turns: int,
) -> dict[str, Any]:
    """metrics/prefs.json: yield, attempts, reasons, how chosen and rejected differ, and what the audit looks at."""
    gaps = [pair["chosen_score"] - pair["rejected_score"] for pair in pairs] or [0.0]
    chosen, rejected = ([len(pair[side]) for pair in pairs] for side in ("chosen", "rejected"))
    asked = Counter(prompt.emotion for prompt in prompts)
    accepted = Counter(pair["emotion"] for pair in pairs)
    test_histories = _histories(test, history_turns)
    return {
        "prompts": len(prompts),
        "pairs": len(pairs),
        "given_up": len(prompts) - len(pairs),
        "attempts": {str(n): count for n, count in sorted(Counter(pair["attempts"] for pair in pairs).items())},
        "attempts_total": sum(outcome.attempts for outcome in outcomes),
        "failures": dict(sorted(Counter(reason for o in outcomes for reason in o.failures).items())),
        "yield": {label: accepted[label] / asked[label] for label in labels if asked[label]},
        "yield_total": len(pairs) / len(prompts),
        "pairs_per_emotion": {label: accepted[label] for label in labels},
        "gap": {"median": statistics.median(gaps), "mean": statistics.fmean(gaps), "sd": statistics.pstdev(gaps)},
        "chosen_characters": statistics.fmean(chosen or [0]),
        "rejected_characters": statistics.fmean(rejected or [0]),
        "chosen_is_longer": _share([a > b for a, b in zip(chosen, rejected, strict=True)]),
        "duplicate_prompts": _duplicates([pair["prompt"] for pair in pairs]),
        "duplicate_chosen": _duplicates([normal_form(pair["chosen"]) for pair in pairs]),
        "prompts_in_test": _share(
            [_said(turn["content"] for turn in pair["history"]) in test_histories for pair in pairs]
        ),
    }


def audit(measured: Mapping[str, Any], bounds: Audit) -> list[str]:
    """Every bound of `prefs.audit` that the pairs break: the number, the bound, and what to turn."""
    if not measured["pairs"]:
        return [f"prefs.audit: of {measured['prompts']} prompts none made a pair, and dpo needs some; {SOONER}"]
    least, fewest = min(measured["pairs_per_emotion"].items(), key=lambda found: found[1])
    too_few = {
        "min_yield": (measured["yield_total"], "pairs per prompt", SOONER),
        "min_pairs_per_emotion": (fewest, f"pairs for {least}", f"raise prefs.prompts, {SOONER}"),
    }
    too_many = {
        "max_chosen_longer": (
            "chosen_is_longer",
            "whose chosen reply is the longer one",
            "lower the second of reward.weights, or set reward.length.shape: plateau",
        ),
        "max_duplicate_prompts": ("duplicate_prompts", "whose prompt another pair has too", "lower prefs.prompts"),
        "max_duplicate_chosen": (
            "duplicate_chosen",
            "whose chosen reply another pair has too",
            "raise prefs.sampling.temperature or prefs.sampling.top_k",
        ),
        "max_prompts_in_test": (
            "prompts_in_test",
            "whose history is one of the test split",
            "raise history_turns, or clean the data",
        ),
    }
    broken = [
        f"prefs.audit.{bound}: {round(found, 3)} {what}, wanted at least {getattr(bounds, bound)}; {turn}"
        for bound, (found, what, turn) in too_few.items()
        if found < getattr(bounds, bound)
    ]
    return broken + [
        f"prefs.audit.{bound}: {measured[name]:.3f} is the share of pairs {what}, wanted at most "
        f"{getattr(bounds, bound)}; {turn}"
        for bound, (name, what, turn) in too_many.items()
        if measured[name] > getattr(bounds, bound)
    ]


def _histories(dialogues: Iterable[Dialogue], history_turns: int) -> set[tuple[str, ...]]:
    """What is said before each place for a reply."""
    return {
        _said(turn.content for turn in history(dialogue.turns, i, history_turns))
        for dialogue in dialogues
        for i, turn in enumerate(dialogue.turns)
        if turn.role == ASSISTANT
    }


def _said(contents: Iterable[str]) -> tuple[str, ...]:
    return tuple(normal_form(content) for content in contents)


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else 0.0


def _duplicates(texts: Sequence[str]) -> float:
    """The share of texts that another one, before or after it, is equal to."""
    counts = Counter(texts)
    return _share([counts[text] > 1 for text in texts])
