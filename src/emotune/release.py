"""What is published: under which licence, whether it may be, and each part as a folder that the Hub will hold."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emotune import cards, git, hub, lock, params, records, report
from emotune.errors import InputError

# The licences that are known without being stated: emotune's own corpus, and DailyDialog.
DATA_LICENSES = {"embedded": "apache-2.0", "folder": "cc-by-nc-sa-4.0"}
# Those that let what is made of the work have any licence.
PERMISSIVE = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "unlicense")
# Published columns first.
FIRST = ("prompt", "chosen", "rejected", "chosen_score", "rejected_score")
SPLITS = ("train", "validation")
# Of repositories that a dry run names, which asks nobody whose the token is.
OWNER = "OWNER"
SIGNIFICANT = 0.05
# Where the base_model stage notes what it did: nobody else needs it.
NOT_SENT = ("base.json",)
# Of a greedy reply, when two models are compared.
TOKENS = 16
# In steps of bfloat16, of which a logit near 10 has 16 to the unit.
ROUNDING = 4
# Token ids, and the logits that each was chosen from.
Spoken = tuple[list[int], list[Any]]


def publish(
    root: Path,
    metrics: Path,
    notes: Path,
    *,
    into: Path | None,
    check: bool,
    reason: str | None,
    merged: bool,
    tag: str | None,
    public: bool,
) -> int:
    """Send all parts, or write them to the folder `into`, or compare them with what the Hub has; 1 where refused.

    `notes` gets a line of JSON for what was sent: `repo`, `revision`, and the `commit` that it was made of.
    A broken gate refuses to send, unless a `reason` overrides it; a licence that the data forbids refuses everything.
    """
    facts = gathered(root, metrics, reason)
    names = [name for name in facts.repositories if wanted(name, facts, merged)]
    if facts.objections and not check:
        print("Not to be published:", *facts.objections, sep="\n  ")
        if not reason and not into:
            print('Nothing was sent. `--force "reason"` publishes all the same, and the cards carry the reason.')
            return 1
    if into:
        built(root, facts, names, into)
        for name in names:
            print(_listed(facts.repositories[name], into / name, public, tag))
        return int(bool(facts.objections and not reason))
    if facts.p.publish.owner is None:
        facts = dataclasses.replace(facts, repositories=repositories(facts.p, hub.account()))
    with tempfile.TemporaryDirectory() as folder:
        built(root, facts, names, Path(folder))
        if check:
            return checked(root, facts, names, Path(folder), tag)
        plans = [hub.compared(facts.repositories[name], Path(folder, name), tag, public) for name in names]
        for plan in plans:
            revision = plan.head
            if plan.done:
                print(f"{plan.repository.url}: nothing to send")
            else:
                print(f"{plan.repository.url}: {len(plan.send)} files, {plan.bytes:,} bytes", flush=True)
                revision = hub.push(plan, public, f"emotune {facts.commit[:12]}")
                print(
                    f"{plan.repository.url}: at {revision[:12]}" + (f", tag {plan.repository.tag(tag)}" if tag else "")
                )
            _note(notes, {"repo": plan.repository.id, "revision": revision, "commit": facts.commit})
    return 0


def _note(notes: Path, line: Mapping[str, Any]) -> None:
    """Add a line, unless it is there: a call that was killed after it had sent something finds nothing to send."""
    known = list(records.read_jsonl(notes)) if notes.exists() else []
    if line not in known:
        records.write_jsonl(notes, [*known, line])


def gathered(root: Path, metrics: Path, reason: str | None) -> cards.Facts:
    """All that cards say of a run, and what speaks against publishing it; nobody is asked whose the token is.

    InputError where the run is not complete, where a licence is not stated, and where the data's forbids the other.
    """
    content, locked = params.read_yaml(root / "params.yaml"), params.read_yaml(root / "dvc.lock")
    if absent := [name for name in cards.RUN if name not in (locked.get("stages") or {})]:
        raise InputError(f"{root / 'dvc.lock'}: has no {', '.join(absent)}; `dvc repro` runs what is missing")
    p = as_run(content, locked)
    data_license, license, base_license = licenses(p)
    commit, dirty = _commit(root)
    return cards.Facts(
        p=p,
        metrics=metrics,
        lock=locked,
        lock_sha256=_sha256(root / "dvc.lock"),
        commit=commit,
        dirty=dirty,
        repositories=repositories(p, p.publish.owner or OWNER),
        license=license,
        data_license=data_license,
        base_license=base_license,
        objections=objections(p, metrics, dirty, lock.stale(root)),
        reason=reason,
    )


def repositories(p: params.Params, owner: str) -> dict[str, hub.Repository]:
    """Where each part lies under an owner's name, in the order in which they are sent."""
    places = {name: getattr(p.publish, name).partition("@") for name in ("base", "sft", "dpo", "merged", "prefs")}
    return {
        name: hub.Repository(f"{owner}/{place}", branch or hub.MAIN, "dataset" if name == "prefs" else "model")
        for name, (place, _, branch) in places.items()
    }


def as_run(content: Mapping[str, Any], locked: Mapping[str, Any]) -> params.Params:
    """The params that dvc.lock says the stages ran with, and those of params.yaml for what no stage had."""
    whole = dict(content)
    for stage in locked["stages"].values():
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            for name in reversed(key.split(".")):
                value = {name: value}
            whole = _over(whole, value)
    return params.check(whole, "dvc.lock")


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees as one, in which `above` has its way."""
    both = {
        key: _over(below[key], value) if isinstance(value, Mapping) and isinstance(below.get(key), Mapping) else value
        for key, value in above.items()
    }
    return {**below, **both}


def objections(p: params.Params, metrics: Path, dirty: bool, stale: Sequence[str]) -> list[str]:
    """The gate: what speaks against publishing, a line each, none where dpo is better and can be made again."""
    from emotune import preferences

    found = []
    paired = records.read_json(metrics / "evaluate.json")["paired"]["sft_to_dpo"]
    for name, (section, key) in report.TESTED.items():
        test = paired[section][key]
        if test["difference"] <= 0 or test["p"] >= SIGNIFICANT:
            found.append(
                f"dpo is not better than sft in {name}: {test['difference']:+.3f} [{test['low']:+.3f}, "
                f"{test['high']:+.3f}], p {test['p']:.3f}, wanted more than 0 with p below {SIGNIFICANT}"
            )
    found += preferences.audit(records.read_json(metrics / "prefs.json"), p.prefs.audit)
    if dirty:
        found.append("the working tree has changes that are in no commit (`git status` names them)")
    return found + [f"dvc.lock is not current: {line}" for line in stale]


def licenses(p: params.Params) -> tuple[str, str, str]:
    """The licences of the data, of what is published, and of the base model.

    InputError where one has to be stated, or where the data's forbids that of what is published.
    """
    known = DATA_LICENSES.get(p.data.source)
    if p.data.name and "dailydialog" in re.sub("[^a-z]", "", p.data.name.lower()):
        known = DATA_LICENSES["folder"]
    if known and p.publish.data_license not in (None, known):
        raise InputError(f"publish.data_license: the data is under {known}, got {p.publish.data_license}")
    data = known or p.publish.data_license
    if data is None:
        raise InputError(
            f"publish.data_license must state the licence of the data where data.source is {p.data.source}, got null; "
            "accepted: the Hub's names, such as cc-by-4.0"
        )
    own = p.publish.license or data
    if why := forbidden(data, own):
        raise InputError(f"publish.license: {own} is not possible: the data is under {data}, {why}")
    if p.model.base == "embedded":
        return data, own, own
    if p.publish.base_license is None:
        raise InputError(f"publish.base_license must state the licence of {p.model.base}, got null")
    return data, own, p.publish.base_license


def forbidden(source: str, wanted: str) -> str | None:
    """Why what is made of a work under one licence cannot be under another; None where it can."""
    terms = source.split("-")
    if "nd" in terms:
        return "which forbids to publish what is made of it"
    if source == wanted or source in PERMISSIVE:
        return None
    if "nc" in terms and "nc" not in wanted.split("-"):
        return "which forbids commercial use"
    if "nc" in terms and "sa" not in terms:
        return None
    return (
        "which asks for the same licence" if "sa" in terms else "of which only the same licence is known to be allowed"
    )


def wanted(name: str, facts: cards.Facts, merged: bool) -> bool:
    """Whether a part is published: a base model only if it was trained here, merged weights only if asked for."""
    if name == "merged" and merged and (why := forbidden(facts.base_license, facts.license)):
        raise InputError(
            f"--merged: the base model is under {facts.base_license}, {why}; this would be {facts.license}"
        )
    return {"base": facts.p.model.base == "embedded", "merged": merged}.get(name, True)


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

    from emotune import models

    choice = facts.p.model.model_copy(update={"dtype": "bfloat16", "quantization": "none"})
    tokenizer = _tokenizer(out(root, facts, "dpo"))
    model = models.load_adapter(models.load_base(out(root, facts, "base"), choice), out(root, facts, "dpo"))
    asked = cards.prompts(facts.p, tokenizer)
    before = [greedy(model, tokenizer, prompt) for prompt in asked]
    model.merge_and_unload(safe_merge=True).save_pretrained(part)
    tokenizer.save_pretrained(part)
    again = AutoModelForCausalLM.from_pretrained(part, dtype="bfloat16", device_map={"": models.device()}).eval()
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


def checked(root: Path, facts: cards.Facts, names: Sequence[str], folder: Path, tag: str | None) -> int:
    """Download every part, load what can be loaded, and say where it is not what would be sent now; 1 where it differs.

    The card is not compared: it tells of the commit at which it was written.
    """
    with tempfile.TemporaryDirectory() as cache:
        there = {name: hub.fetched(facts.repositories[name], tag, Path(cache)) for name in names}
        differing = []
        for name in names:
            files = {path.relative_to(folder / name) for path in (folder / name).rglob("*") if path.is_file()}
            found = [
                f"{name}: {path} is another there"
                for path in sorted(files - {Path("README.md")})
                if not hub.same(folder / name / path, there[name] / path)
            ]
            if name == "prefs":
                rows, own = hub.rows(facts.repositories[name], tag, Path(cache, "rows")), pairs(root, facts)
                found += [
                    f"{name}: load_dataset reads other rows in {split}"
                    for split in SPLITS
                    if _hash_of_rows(rows[split]) != _hash_of_rows(own[split])
                ]
            elif name in cards.ADAPTERS and not found:
                base = there.get("base", out(root, facts, "base"))
                here = _speaking(out(root, facts, "base"), out(root, facts, name), facts)
                found += [f"{name}: it replies otherwise"] if _speaking(base, there[name], facts) != here else []
            print(f"{facts.repositories[name].url}: {len(found) or 'no'} differences", *found, sep="\n  ")
            differing += found
    return int(bool(differing))


def _speaking(base: Path, adapter: Path, facts: cards.Facts) -> list[list[int]]:
    from emotune import models

    tokenizer, model = _tokenizer(adapter), models.load_tuned(base, facts.p.model, adapter)
    return [greedy(model, tokenizer, prompt)[0] for prompt in cards.prompts(facts.p, tokenizer)]


def _tokenizer(folder: Path) -> Any:
    from emotune import models

    return models.load_tokenizer(folder, None)


def pairs(root: Path, facts: cards.Facts) -> dict[str, list[dict[str, Any]]]:
    """The preference pairs of each split."""
    source = out(root, facts, "prefs")
    return {split: list(records.read_jsonl(source / f"{split}.jsonl")) for split in SPLITS}


def _hash_of_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    text = "\n".join(json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def _commit(root: Path) -> tuple[str, bool]:
    """The commit that the working tree is at, and whether anything in it is in no commit."""
    commit = git.ask("-C", str(root), "rev-parse", "HEAD")
    if commit is None:
        raise InputError(f"{root.resolve()}: git knows no commit here, and a card names the one it tells of")
    return commit, bool(git.told("-C", str(root), "status", "--porcelain"))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _listed(repository: hub.Repository, folder: Path, public: bool, tag: str | None) -> str:
    """What would be sent to a repository that holds nothing."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    about = f"{'public' if public else 'private'} {repository.kind}{f', tag {repository.tag(tag)}' if tag else ''}"
    lines = [f"{path.stat().st_size:>12,}  {path.relative_to(folder).as_posix()}" for path in files]
    return "\n".join([f"{repository.url} ({about}), from {folder}:", *lines])
