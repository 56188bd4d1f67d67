"""The preference dataset: a row a pair, how good the pairs are, and which bounds they break."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from emotune.core.dialogue import ASSISTANT, Dialogue, history, normal_form
from emotune.preferences.candidates import Prompt
from emotune.preferences.outcomes import Outcome
from emotune.preferences.params import Audit
from emotune.preferences.what_if import remedy

Rows = list[dict[str, Any]]
# Whose a pair is: the model's own replies, of which judges chose; a human's over the model's; those people voted on.
MODEL, HUMAN, VOTES = "model", "human", "votes"
# What to turn where there are too few pairs.
SOONER = "train sft for longer, raise prefs.attempts, or lower prefs.min_chosen_score or prefs.target_score_range"
MORE_VOTES = "gather more votes (`emotune compare --blind`), or set prefs.source: both"


def rows(prompts: Iterable[Prompt], outcomes: Iterable[Outcome], source: str = MODEL) -> Rows:
    """The preference dataset: the five published columns, then all that led to them; whose the chosen replies are."""
    table = []
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        if outcome.pair is None:
            continue
        row: dict[str, Any] = {
            "id": prompt.id,
            "dialogue": prompt.dialogue,
            "prompt": prompt.text,
            "history": [asdict(turn) for turn in prompt.history],
            "emotion": prompt.emotion,
            "attempts": outcome.attempts,
            "source": source,
        }
        for side, reply in (("chosen", outcome.pair.chosen), ("rejected", outcome.pair.rejected)):
            row |= {
                side: reply.text,
                f"{side}_score": reply.reward,
                f"{side}_judged": reply.emotion,
                f"{side}_judged_confidence": reply.emotion_confidence,
                f"{side}_gibberish": reply.gibberish,
                f"{side}_gibberish_confidence": reply.gibberish_confidence,
                f"{side}_emotion_score": reply.emotion_score,
                f"{side}_length_score": reply.length_score,
                f"{side}_gibberish_score": reply.gibberish_score,
                f"{side}_copy": reply.copy,
            }
            if reply.learned_score is not None:
                row[f"{side}_learned_score"] = reply.learned_score
        table.append(row)
    return table


def split(pairs: Rows, share: float) -> tuple[Rows, Rows]:
    """The pairs to train on, and a `share` of them to validate with: a dialogue's pairs are all in one of the two.

    The first dialogues that fit are held out; where there is a pair at all, one is left to train on.
    """
    held_out: set[str] = set()
    room = min(round(share * len(pairs)), len(pairs) - 1)
    for dialogue, count in Counter(pair["dialogue"] for pair in pairs).items():
        if count <= room:
            held_out.add(dialogue)
            room -= count
    parts: tuple[Rows, Rows] = ([], [])
    for pair in pairs:
        parts[pair["dialogue"] in held_out].append(pair)
    return parts


def measure(
    prompts: Sequence[Prompt],
    outcomes: Sequence[Outcome],
    pairs: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    test: Iterable[Dialogue],
    history_turns: int,
    source: str = MODEL,
) -> dict[str, Any]:
    """metrics/prefs.json: yield, attempts, reasons, how chosen and rejected differ, and what the audit looks at.

    The yield is of the pairs that are of `source`.
    """
    gaps = [pair["chosen_score"] - pair["rejected_score"] for pair in pairs]
    chosen, rejected = ([len(pair[side]) for pair in pairs] for side in ("chosen", "rejected"))
    wanted = Counter(prompt.emotion for prompt in prompts)
    own = [pair for pair in pairs if pair["source"] == source]
    accepted, human = (Counter(pair["emotion"] for pair in pairs if pair["source"] == s) for s in (source, HUMAN))
    every = Counter(pair["emotion"] for pair in pairs)
    # What is said before each place for a reply.
    in_test = {
        _said(turn.content for turn in history(dialogue.turns, i, history_turns))
        for dialogue in test
        for i, turn in enumerate(dialogue.turns)
        if turn.role == ASSISTANT
    }
    return {
        "prompts": len(prompts),
        "pairs": len(pairs),
        "prompts_per_emotion": {label: wanted[label] for label in labels},
        "given_up": len(prompts) - len(own),
        "attempts": {str(n): count for n, count in sorted(Counter(pair["attempts"] for pair in own).items())},
        "attempts_total": sum(outcome.attempts for outcome in outcomes),
        "failures": dict(sorted(Counter(reason for o in outcomes for reason in o.failures).items())),
        "yield": {label: accepted[label] / wanted[label] for label in labels if wanted[label]},
        "yield_total": len(own) / len(prompts),
        "pairs_per_emotion": {label: every[label] for label in labels},
        "human_pairs_per_emotion": {label: human[label] for label in labels},
        "gap": {
            "median": statistics.median(gaps or [0.0]),
            "mean": _mean(gaps),
            "sd": statistics.pstdev(gaps or [0.0]),
        },
        "chosen_characters": _mean(chosen),
        "rejected_characters": _mean(rejected),
        "chosen_is_longer": _mean([a > b for a, b in zip(chosen, rejected, strict=True)]),
        "duplicate_prompts": _duplicates([pair["prompt"] for pair in pairs]),
        "duplicate_chosen": _duplicates([normal_form(pair["chosen"]) for pair in pairs]),
        "prompts_in_test": _mean([_said(turn["content"] for turn in pair["history"]) in in_test for pair in pairs]),
    }


def audit(measured: Mapping[str, Any], bounds: Audit) -> list[str]:
    """Every bound of `prefs.audit` that the pairs break: the number, the bound, and what to turn."""
    # Of votes alone nothing is sampled, and no threshold makes or unmakes a pair.
    sooner, more = SOONER, f"raise prefs.prompts, {SOONER}"
    if "votes" in measured and "what_if" not in measured:
        sooner = more = MORE_VOTES
    total = remedy(measured, lambda pairs: sum(pairs.values()) >= max(1, bounds.min_yield * measured["prompts"]))
    if not measured["pairs"]:
        return [f"prefs.audit: of {measured['prompts']} prompts none made a pair, and dpo needs some; {sooner}{total}"]
    least, fewest = min(measured["pairs_per_emotion"].items(), key=lambda pairs: pairs[1])
    each = remedy(measured, lambda pairs: min(pairs.values()) >= bounds.min_pairs_per_emotion)
    longer = "is the share of pairs whose chosen reply is the longer one"
    bounded = {
        "min_yield": (measured["yield_total"], "pairs per prompt", sooner + total),
        "min_pairs_per_emotion": (fewest, f"pairs for {least}", more + each),
        "min_chosen_longer": (
            measured["chosen_is_longer"],
            longer,
            "set reward.length.shape: plateau with a higher reward.length.low, and raise the second of reward.weights",
        ),
        "max_chosen_longer": (
            measured["chosen_is_longer"],
            longer,
            "lower the second of reward.weights, or set reward.length.shape: plateau",
        ),
        "max_duplicate_prompts": (
            measured["duplicate_prompts"],
            "is the share of pairs whose prompt another pair has too",
            "lower prefs.prompts",
        ),
        "max_duplicate_chosen": (
            measured["duplicate_chosen"],
            "is the share of pairs whose chosen reply another pair has too",
            "raise prefs.sampling.temperature or prefs.sampling.top_k",
        ),
        "max_prompts_in_test": (
            measured["prompts_in_test"],
            "is the share of pairs whose history is one of the test split",
            "raise history_turns, or clean the data",
        ),
    }
    broken = []
    for name, (value, what, turn) in bounded.items():
        bound = getattr(bounds, name)
        is_least = name.startswith("min_")
        if value < bound if is_least else value > bound:
            wanted = f"wanted at {'least' if is_least else 'most'} {bound}"
            broken.append(f"prefs.audit.{name}: {round(value, 3)} {what}, {wanted}; {turn}")
    return broken


def _said(contents: Iterable[str]) -> tuple[str, ...]:
    return tuple(normal_form(content) for content in contents)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values or [0])


def _duplicates(texts: Sequence[str]) -> float:
    """The share of texts that another one, before or after it, is equal to."""
    counts = Counter(texts)
    return _mean([counts[text] > 1 for text in texts])
