"""rows: instructions of any source, and those of `questions`, in splits that share no prompt and no source."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from emotune.core import records, seeds
from emotune.core.contract import Dep, Log, Metrics, Out
from emotune.core.dialogue import SPLITS
from emotune.core.errors import InputError
from emotune.core.sections import Section
from emotune.data import instruction_sources, instructions
from emotune.data.instruction_params import Rows
from emotune.data.instruction_sources import Entry
from emotune.data.instructions import Row
from emotune.data.splits import once

TOO_LONG, BEYOND_LIMIT = "too_long", "beyond_limit"
# Places that an error or the log names of each reason.
SHOWN = 3


class Params(Section):
    """All of `rows`."""

    rows: Rows


def main(p: Params, log: Log, questions: Dep, out: Out) -> Metrics:
    """Write train, validation and test rows, and what was kept and dropped on the way."""
    asked = [_question(row) for row in records.read_jsonl(questions)] if p.rows.questions else []
    sources = [[bounded(entry, p.rows.longest) for entry in entries] for entries in (read(p.rows), asked)]
    dropped = check_dropped([entry for entries in sources for entry in entries], p.rows.max_dropped)
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for entries in sources:
        for split, rows in divided(entries, p.rows.held_out, p.rows.seed).items():
            splits[split] += rows
    splits, duplicates = once(splits, lambda row: row.prompt)
    if p.rows.limit and len(splits["train"]) > p.rows.limit:
        dropped[BEYOND_LIMIT] = len(splits["train"]) - p.rows.limit
        random.Random(p.rows.seed).shuffle(splits["train"])
        del splits["train"][p.rows.limit :]
    for split in SPLITS:
        if not splits[split]:
            raise InputError(f"rows: no row is left in the split {split}; dropped: {reasons(dropped)}")
    with records.replacing_folder(out) as folder:
        for split in SPLITS:
            records.write_jsonl(folder / f"{split}.jsonl", (row._asdict() for row in splits[split]))
    return {
        **{split: measure(splits[split]) for split in SPLITS},
        "dropped": dropped,
        "duplicates": {f"{split}_in_{owner}": n for split in SPLITS for owner, n in duplicates[split].items()},
    }


def read(p: Rows) -> Iterable[Entry]:
    """What the source gives that `rows.source` names."""
    if p.source == "folder":
        return instruction_sources.folder(str(p.path), p.revision)
    if p.source == "hub":
        return instruction_sources.hub(str(p.name), p.revision)
    return (Entry(row.source, split, [row]) for split, row in instructions.embedded(p.dialogues, p.each, p.seed))


def _question(record: Mapping[str, Any]) -> Entry:
    """A row that the stage `questions` wrote."""
    return Entry(record["source"], None, [Row(**{key: record[key] for key in Row._fields})])


def bounded(entry: Entry, longest: int | None) -> Entry:
    """The entry, dropped where one of its rows has more characters than the `longest` may have."""
    sizes = [len(row.instruction) + len(row.input) + len(row.output) for row in entry.rows]
    is_longer = longest is not None and max(sizes, default=0) > longest
    return Entry(entry.where, entry.split, dropped=TOO_LONG) if is_longer else entry


def check_dropped(entries: Sequence[Entry], most: float) -> Counter[str]:
    """How many entries give no row, by reason, and in the log where; InputError where their share is above `most`."""
    dropped = Counter(entry.dropped for entry in entries if entry.dropped)
    places = {reason: [entry.where for entry in entries if entry.dropped == reason] for reason in dropped}
    shown = "; ".join(f"{why}: {', '.join(at[:SHOWN])}{' ...' * (len(at) > SHOWN)}" for why, at in places.items())
    if dropped.total() > most * len(entries):
        raise InputError(
            f"rows: {dropped.total()} of {len(entries)} rows are unusable ({reasons(dropped)}), a larger share than "
            f"rows.max_dropped = {most}. Mend the source or raise rows.max_dropped. They stand at {shown}"
        )
    if dropped:
        print(f"rows: dropped {reasons(dropped)}; {shown}", flush=True)
    return dropped


def reasons(dropped: Counter[str]) -> str:
    """`no_output 2, too_long 1`: the counts as an error shows them."""
    return ", ".join(f"{reason} {count}" for reason, count in dropped.most_common()) or "none"


def divided(entries: Sequence[Entry], held_out: float, seed: int) -> dict[str, list[Row]]:
    """The rows by split: as their source has it, else drawn by seed; what a source lacks is cut from what is left.

    Rows of one source, as those of one chat or passage, stay together. `held_out` is the share of the rows without a
    split of validation or test that each of these gets where the source has none.
    """
    splits = {split: [row for entry in entries if entry.split == split for row in entry.rows] for split in SPLITS}
    lacking = [split for split in ("test", "validation") if not splits[split]]
    splits["train"] = []
    pool: dict[str, list[Row]] = {}
    for row in (row for entry in entries if entry.split in (None, "train") for row in entry.rows):
        pool.setdefault(row.source, []).append(row)
    drawn, owner = list(pool), dict.fromkeys(pool, "train")
    random.Random(seeds.key(seed, "splits")).shuffle(drawn)
    for split in lacking:
        wanted = round(held_out * sum(map(len, pool.values())))
        # Where all rows are of few sources, some split may stay empty, which is told.
        while wanted > 0 and drawn:
            source = drawn.pop()
            owner[source] = split
            wanted -= len(pool[source])
    for source, rows in pool.items():
        splits[owner[source]] += rows
    return splits


def measure(rows: Sequence[Row]) -> Metrics:
    """How many rows there are, of each task, and with an input; and their characters on the mean."""
    return {
        "rows": len(rows),
        "tasks": dict(sorted(Counter(row.task for row in rows).items())),
        "with_input": sum(bool(row.input) for row in rows),
        "exact": sum(row.exact for row in rows),
        "instruction_characters": sum(len(row.instruction) + len(row.input) for row in rows) / len(rows),
        "output_characters": sum(len(row.output) for row in rows) / len(rows),
    }
