"""prepare: from any source to clean dialogues, in splits that share none, and a count of all that was dropped."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from emotune.core import dialogue, records
from emotune.core.contract import Log, Metrics, Out
from emotune.core.dialogue import ASSISTANT, SPLITS, Dialogue
from emotune.core.errors import InputError
from emotune.core.sections import Section
from emotune.data import sources
from emotune.data.params import Data
from emotune.data.speakers import Rules
from emotune.data.splits import deduplicate, usable

Splits = Mapping[str, Sequence[Dialogue]]


class Params(Section):
    """All of `data`."""

    data: Data


def main(p: Params, log: Log, out: Out) -> Metrics:
    """Write train, validation and test dialogues and their labels, and what was kept and dropped on the way."""
    raw, dropped, changed = read(p.data)
    check_labels(raw, p.data.labels)
    splits: dict[str, list[Dialogue]] = {}
    for split in SPLITS:
        splits[split], unusable = usable(raw[split])
        dropped[split] += unusable
        check_dropped(split, len(splits[split]), dropped[split], p.data.max_dropped)
    splits, duplicates = deduplicate(splits)
    for split in SPLITS:
        dropped[split].update({f"duplicate_of_{owner}": count for owner, count in duplicates[split].items()})
        if not splits[split]:
            raise InputError(f"data: no dialogue is left in the split {split}; dropped: {reasons(dropped[split])}")
    if p.data.limit and len(splits["train"]) > p.data.limit:
        dropped["train"]["beyond_limit"] = len(splits["train"]) - p.data.limit
        random.Random(p.data.seed).shuffle(splits["train"])
        del splits["train"][p.data.limit :]
    with records.replacing_folder(out) as folder:
        for split in SPLITS:
            records.write_jsonl(folder / f"{split}.jsonl", map(dialogue.to_record, splits[split]))
        records.write_json(folder / "labels.json", {"labels": p.data.labels, "neutral": p.data.neutral})
    return measure(raw, splits, dropped, changed, p.data.labels)


def read(data: Data) -> sources.Source:
    """The dialogues of the source that `data.source` names."""
    rules = Rules(data.labels, data.neutral, data.same_speaker, data.others)
    if data.source == "embedded":
        return sources.embedded(data.dialogues, data.seed)
    if data.source == "hub":
        return sources.hub(str(data.name), data.revision, rules)
    if data.source == "jsonl":
        return sources.jsonl(str(data.path), rules, data.revision)
    return sources.daily_dialog(str(data.path), data.revision)


def check_labels(splits: Splits, labels: Sequence[str]) -> None:
    """InputError names the first dialogue with an emotion that is not among the labels."""
    for talk in (talk for split in SPLITS for talk in splits[split]):
        for turn in talk.turns:
            if turn.emotion not in labels:
                place = f"the emotion of a turn of dialogue {talk.id}"
                raise InputError(f"data.labels has no {turn.emotion!r}, {place}; it has {', '.join(labels)}")


def check_dropped(split: str, remaining: int, dropped: Counter[str], most: float) -> None:
    """InputError where a larger share of a split than `most` was dropped as unusable, and nobody asked for that."""
    unusable = Counter({reason: count for reason, count in dropped.items() if reason != sources.CROWD})
    total = remaining + unusable.total()
    if unusable.total() > most * total:
        raise InputError(
            f"data: {unusable.total()} of {total} {split} dialogues are unusable ({reasons(unusable)}), a larger share "
            f"than data.max_dropped = {most}. Mend the source or raise data.max_dropped"
        )


def reasons(dropped: Counter[str]) -> str:
    """`too_short 2, empty_turn 1`: the counts as an error shows them."""
    return ", ".join(f"{reason} {count}" for reason, count in dropped.most_common()) or "none"


def measure(
    raw: Splits,
    splits: Splits,
    dropped: Mapping[str, Counter[str]],
    changed: Mapping[str, Counter[str]],
    labels: Sequence[str],
) -> Metrics:
    """Counts by split, and the share of the test replies' word n-grams that the train replies have too."""
    metrics: dict[str, object] = {}
    for split in SPLITS:
        emotions = Counter(turn.emotion for talk in splits[split] for turn in talk.turns)
        metrics[split] = {
            "dialogues": len(splits[split]),
            "turns": emotions.total(),
            "labels": {label: emotions[label] for label in labels},
            "dropped": dict(dropped[split]),
            "odd_last_turns": sum(len(talk.turns) % 2 for talk in raw[split]),
            **changed[split],
        }
    train, test = (
        [turn.content for talk in splits[split] for turn in talk.turns if turn.role == ASSISTANT]
        for split in ("train", "test")
    )
    metrics["test_replies_in_train"] = {f"{n}-grams": ngram_overlap(train, test, n) for n in (3, 4, 5)}
    return metrics


def ngram_overlap(train: Iterable[str], test: Iterable[str], n: int) -> float:
    """The share of the distinct word n-grams of `test` that are in `train` too; 0.0 where there are none."""

    def grams(texts: Iterable[str]) -> set[tuple[str, ...]]:
        words = (re.findall(r"[\w'-]+", text.lower()) for text in texts)
        return {tuple(w[i : i + n]) for w in words for i in range(len(w) - n + 1)}

    of_train, of_test = grams(train), grams(test)
    return len(of_train & of_test) / len(of_test) if of_test else 0.0
