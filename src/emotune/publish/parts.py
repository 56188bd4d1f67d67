"""Each part of a release as a folder: just the files that its repository will hold."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emotune.core import records
from emotune.core.errors import InputError
from emotune.publish import cards

# Published columns first.
FIRST = ("prompt", "chosen", "rejected", "chosen_score", "rejected_score")
SPLITS = ("train", "validation")
# Where the base_model stage notes what it did: nobody else needs it.
NOT_SENT = ("base.json",)
# Of a greedy reply, when two models are compared.
TOKENS = 16
# In steps of bfloat16, of which a logit near 10 has 16 to the unit.
ROUNDING = 4
# Token ids, and the logits that each was chosen from.
Spoken = tuple[list[int], list[Any]]


def built(root: Path, facts: cards.Facts, names: Iterable[str], folder: Path) -> None:
    """Each part in a folder of its name: just the files that its repository will hold, the card among them."""
    for name in names:
        with records.replacing_folder(folder / name) as part:
            if name == "prefs":
                _write_prefs(pairs(root, facts), part, facts)
            elif name == "merged":
                _merge(root, facts, part)
            else:
                shutil.copytree(
                    out(root, facts, name), part, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOT_SENT)
                )
            if name in cards.ADAPTERS:
                _name_base(part / "adapter_config.json", facts)
            if name != "prefs":
                _write_card(part, cards.of_model(name, facts, _tokenizer(part)))
            if name not in ("base", "prefs"):
                (part / "history.csv").write_text(cards.history(name, facts), encoding="utf-8")


def out(root: Path, facts: cards.Facts, name: str) -> Path:
    """The folder that the stage of a part wrote; InputError where it is not here."""
    found = facts.lock["stages"][cards.STAGES[name]]["outs"]
    folder = root / next(entry["path"] for entry in found if entry["md5"].endswith(".dir"))
    if not folder.is_dir():
        raise InputError(f"{folder}: not here; `dvc checkout`, `dvc pull` or `dvc repro` brings it")
    return folder


def _write_card(part: Path, text: str) -> None:
    (part / "README.md").write_text(text, encoding="utf-8")


def _name_base(path: Path, facts: cards.Facts) -> None:
    """Let an adapter say where its base model is on the Hub, and at which commit."""
    base, model = cards.base_id(facts), facts.p.model
    config = records.read_json(path)
    config["base_model_name_or_path"] = base or Path(model.base).name
    config["revision"] = model.revision if base else None
    records.write_json(path, config)


def _write_prefs(rows: Mapping[str, Sequence[Mapping[str, Any]]], part: Path, facts: cards.Facts) -> None:
    """The pairs as Parquet, a file a split, the published columns first, and the card."""
    import pyarrow
    from pyarrow import parquet

    columns = [*FIRST, *sorted(rows["train"][0].keys() - set(FIRST))]
    # One schema for both: a split without rows has none of its own.
    schema = pyarrow.Table.from_pylist(list(rows["train"])).select(columns).schema
    (part / "data").mkdir()
    for split, found in rows.items():
        table = pyarrow.Table.from_pylist(list(found), schema=schema)
        parquet.write_table(table, part / "data" / f"{split}-00000-of-00001.parquet")
    _write_card(part, cards.of_prefs(facts, columns, {split: len(found) for split, found in rows.items()}))


def _merge(root: Path, facts: cards.Facts, part: Path) -> None:
    """The dpo adapter added to its base model in bfloat16; InputError where what was saved answers otherwise.

    Both are asked for a greedy reply in every emotion. A merged weight is rounded once more, so a reply may part from
    the other where its two tokens are within a few steps of bfloat16, and nowhere else.
    """
    from transformers import AutoModelForCausalLM

    from emotune.models import loading

    choice = facts.p.model.model_copy(update={"dtype": "bfloat16", "quantization": "none"})
    tokenizer = _tokenizer(out(root, facts, "dpo"))
    model = loading.load_adapter(loading.load_base(out(root, facts, "base"), choice), out(root, facts, "dpo"))
    asked = cards.prompts(facts.p, tokenizer)
    before = [greedy(model, tokenizer, prompt) for prompt in asked]
    model.merge_and_unload(safe_merge=True).save_pretrained(part)
    tokenizer.save_pretrained(part)
    again = AutoModelForCausalLM.from_pretrained(part, dtype="bfloat16", device_map={"": loading.device()}).eval()
    after = [greedy(again, tokenizer, prompt) for prompt in asked]
    if (furthest := max(map(parting, before, after))) > ROUNDING:
        raise InputError(
            f"--merged: what was saved answers otherwise than base and adapter: {furthest:.1f} steps of bfloat16 "
            f"apart, accepted {ROUNDING}"
        )
    equal = sum(one[0] == other[0] for one, other in zip(before, after, strict=True))
    print(f"merged: {equal} of {len(asked)} greedy replies equal those of base and adapter in bfloat16")


def greedy(model: Any, tokenizer: Any, prompt: str) -> Spoken:
    """The token ids of the likeliest reply, at most 16 of them, and the logits that each was chosen from."""
    import torch

    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
    with torch.inference_mode():
        said = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return said.sequences[0, ids.shape[1] :].tolist(), [logits[0].float() for logits in said.logits]


def parting(reply: Spoken, other: Spoken) -> float:
    """By how many steps of bfloat16 the first logits differ where a reply goes on otherwise; 0 where none does."""
    (ids, logits), (others, _) = reply, other
    for at, (own, its) in enumerate(zip(ids, others, strict=False)):
        if own != its:
            # Eight significant bits: 2 ** -7 of the power of two below.
            first, second = logits[at][own].item(), logits[at][its].item()
            return (first - second) / 2 ** (math.frexp(first)[1] - 1 - 7)
    return 0.0


def speaking(base: Path, adapter: Path, facts: cards.Facts) -> list[list[int]]:
    from emotune.models import loading

    tokenizer, model = _tokenizer(adapter), loading.load_tuned(base, facts.p.model, adapter)
    return [greedy(model, tokenizer, prompt)[0] for prompt in cards.prompts(facts.p, tokenizer)]


def _tokenizer(folder: Path) -> Any:
    from emotune.models import loading

    return loading.load_tokenizer(folder, None)


def pairs(root: Path, facts: cards.Facts) -> dict[str, list[dict[str, Any]]]:
    """The preference pairs of each split."""
    source = out(root, facts, "prefs")
    return {split: list(records.read_jsonl(source / f"{split}.jsonl")) for split in SPLITS}
