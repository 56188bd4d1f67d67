"""Each part of a release as a folder: just the files that its repository will hold."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emotune.core import records
from emotune.core.dialogue import SPLITS as ALL_SPLITS
from emotune.core.errors import InputError
from emotune.data.instructions import Row
from emotune.models import pins
from emotune.publish import cards, example
from emotune.publish.facts import ADAPTERS, Facts, InstructionFacts, Run
from emotune.publish.gate import forbidden
from emotune.publish.hub import CARD

# Published columns first.
FIRST = ("prompt", "chosen", "rejected", "chosen_score", "rejected_score")
SPLITS = ("train", "validation")
# Where the base_model stage notes what it did: nobody else needs it.
NOT_SENT = ("base.json",)
# How far a merged model may be from what it was merged of, in steps of bfloat16: a logit near 10 has 16 to the unit.
ROUNDING = 4


def names(facts: Facts | InstructionFacts, merged: bool) -> list[str]:
    """The parts that are published: a base model only if it was trained here, merged weights only if asked for.

    InputError where the base model's licence forbids that of merged weights.
    """
    base, own = facts.licenses.base, facts.licenses.own
    if merged and not isinstance(facts, Facts):
        raise InputError("--merged adds the dpo adapter to its base model, and of instructions there is none")
    if merged and (why := forbidden(base, own)):
        raise InputError(f"--merged: the base model is under {base}, {why}; this would be {own}")
    absent = {"base": facts.p.model.base not in pins.OWN, "merged": not merged}
    return [part for part in facts.stages if not absent.get(part)]


def build(facts: Facts | InstructionFacts, parts: Iterable[str], folder: Path) -> None:
    """Each part in a folder of its name, the card among its files."""
    for part in parts:
        with records.replacing_folder(folder / part) as place:
            if part == "prefs" and isinstance(facts, Facts):
                card = _write_pairs(facts, place)
            elif part == "rows" and isinstance(facts, InstructionFacts):
                card = _write_rows(facts, place)
            else:
                card = _write_model(part, facts, place)
            (place / CARD).write_text(card, encoding="utf-8")


def out(facts: Run, part: str) -> Path:
    """The folder that the stage of a part wrote; InputError where it is not here."""
    outs = facts.lock["stages"][facts.stages[part]]["outs"]
    folder = facts.root / next(out["path"] for out in outs if out["md5"].endswith(".dir"))
    if not folder.is_dir():
        raise InputError(f"{folder}: not here; `dvc checkout`, `dvc pull` or `dvc repro` brings it")
    return folder


def pairs(facts: Facts) -> dict[str, list[dict[str, Any]]]:
    """The preference pairs of each split."""
    return _rows(out(facts, "prefs"), SPLITS)


def rows(facts: Facts | InstructionFacts, part: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of each split of a data set that is published."""
    return pairs(facts) if isinstance(facts, Facts) else _rows(out(facts, part), ALL_SPLITS)


def _rows(folder: Path, splits: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    return {split: list(records.read_jsonl(folder / f"{split}.jsonl")) for split in splits}


def _write_pairs(facts: Facts, place: Path) -> str:
    """The pairs as Parquet, the published columns first; returns their card."""
    splits = pairs(facts)
    columns = [*FIRST, *sorted(splits["train"][0].keys() - set(FIRST))]
    _write_parquet(splits, columns, place)
    return cards.of_prefs(facts, columns, {split: len(rows) for split, rows in splits.items()})


def _write_rows(facts: InstructionFacts, place: Path) -> str:
    """The rows of instructions as Parquet; returns their card."""
    splits = rows(facts, "rows")
    _write_parquet(splits, list(Row._fields), place)
    return cards.of_rows(facts, {split: len(own) for split, own in splits.items()})


def _write_parquet(splits: Mapping[str, list[dict[str, Any]]], columns: Sequence[str], place: Path) -> None:
    """A file a split, with these columns in this order."""
    import pyarrow
    from pyarrow import parquet

    # One schema for all: a split without rows has none of its own.
    schema = pyarrow.Table.from_pylist(splits["train"]).select(columns).schema
    (place / "data").mkdir()
    for split, rows in splits.items():
        table = pyarrow.Table.from_pylist(rows, schema=schema)
        parquet.write_table(table, place / "data" / f"{split}-00000-of-00001.parquet")


def _write_model(part: str, facts: Facts | InstructionFacts, place: Path) -> str:
    """Weights, tokenizer and curves; returns their card."""
    from emotune.models import loading

    if part == "merged" and isinstance(facts, Facts):
        _merge(facts, place)
    else:
        shutil.copytree(out(facts, part), place, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOT_SENT))
    if part in ADAPTERS:
        # Where the base model is on the Hub, and at which commit.
        there = facts.pinned_base
        config = records.read_json(place / "adapter_config.json")
        config["base_model_name_or_path"] = there.id if there else Path(facts.p.model.base).name
        config["revision"] = there.branch if there else None
        records.write_json(place / "adapter_config.json", config)
    if part != "base":
        (place / "history.csv").write_text(cards.history(part, facts), encoding="utf-8")
    if isinstance(facts, InstructionFacts):
        return cards.of_instructed(part, facts)
    return cards.of_model(part, facts, loading.load_tokenizer(place, None), out(facts, part))


def _merge(facts: Facts, place: Path) -> None:
    """The dpo adapter added to its base model in bfloat16; InputError where what was saved answers otherwise.

    Both are asked for a greedy reply in every emotion. A merged weight is rounded once more, so a reply may part from
    the other where its two tokens are within a few steps of bfloat16, and nowhere else.
    """
    from transformers import AutoModelForCausalLM

    from emotune.models import loading

    choice = facts.p.model.model_copy(update={"dtype": "bfloat16", "quantization": "none"})
    adapter = out(facts, "dpo")
    tokenizer = loading.load_tokenizer(adapter, None)
    prompts = example.prompts(facts.p, tokenizer)
    model = loading.load_adapter(loading.load_base(out(facts, "base"), choice), adapter)
    before = [example.greedy(model, tokenizer, prompt) for prompt in prompts]
    model.merge_and_unload(safe_merge=True).save_pretrained(place)
    tokenizer.save_pretrained(place)
    again = AutoModelForCausalLM.from_pretrained(place, dtype="bfloat16", device_map={"": loading.device()}).eval()
    after = [example.greedy(again, tokenizer, prompt) for prompt in prompts]
    if (furthest := max(map(example.parting, before, after))) > ROUNDING:
        raise InputError(
            f"--merged: what was saved answers otherwise than base and adapter: {furthest:.1f} steps of bfloat16 "
            f"apart, accepted {ROUNDING}"
        )
    equal = sum(one.ids == other.ids for one, other in zip(before, after, strict=True))
    print(f"merged: {equal} of {len(before)} greedy replies equal those of base and adapter in bfloat16")
