"""Laws of generate_prefs: how its candidates are guided, and which of them the train split has said."""

import json
import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from conftest import LABELS, TINY, run_stage, write_params
from emotune.core import records
from emotune.core.dialogue import Dialogue
from emotune.core.errors import Refusal

# What is kept of a candidate: its text first, and last whether it is a copy.
Candidates = dict[str, list[list[Any]]]


@pytest.fixture
def folder(tuned: Path, dialogues: list[Dialogue], tmp_path: Path) -> Path:
    """A folder with all that generate_prefs reads but params.yaml."""
    shutil.copytree(tuned, tmp_path / "models")
    for judge in ("reward", "reward_gibberish"):
        # What they say of the candidates is no matter here, and so is whether these make pairs.
        shutil.copy(tuned / "judges/evaluate.skops", tmp_path / f"models/judges/{judge}.skops")
    for split in ("train", "test"):
        write_split(tmp_path, split, dialogues)
    records.write_json(tmp_path / "data/dialogues/labels.json", {"labels": LABELS, "neutral": "neutral"})
    return tmp_path


def write_split(folder: Path, split: str, dialogues: Iterable[Dialogue]) -> None:
    records.write_jsonl(folder / f"data/dialogues/{split}.jsonl", map(asdict, dialogues))


def first_attempts(folder: Path, **changes: Any) -> Candidates:
    """The candidates of each prompt's first attempt, by its name in the journal, which is a new one."""
    prefs = {name: value for name, value in TINY.items() if name.startswith("prefs")}
    write_params(folder, prefs | {"prefs.emotions": "balanced"} | changes)
    with suppress(Refusal):
        run_stage("generate_prefs", folder)
    with closing(sqlite3.connect(folder / ".work/journal.sqlite")) as journal:
        rows = journal.execute("SELECT prompt, value FROM attempts WHERE attempt = 1").fetchall()
    return {prompt: json.loads(value) for prompt, value in rows}


def test_all_candidates_are_guided_but_those_that_are_to_be_neutral(folder: Path) -> None:
    plain = first_attempts(folder)
    (folder / ".work/journal.sqlite").unlink()
    guided = first_attempts(folder, **{"prefs.sampling.guidance": 4.0})
    # Ten places for a reply, each asked for in one of seven emotions; a prompt's name says what guides it.
    assert len(plain) == len(guided) == 10
    assert {name: plain[name] for name in plain.keys() & guided.keys()} == {
        name: guided[name] for name in plain.keys() & guided.keys()
    }
    assert len(plain.keys() & guided.keys()) == 2


def test_a_candidate_that_the_train_split_has_said_is_a_copy_whatever_the_journal_held(
    folder: Path, dialogues: list[Dialogue]
) -> None:
    before = first_attempts(folder)
    candidates = [candidate for own in before.values() for candidate in own]
    assert not any(candidate[-1] for candidate in candidates)
    long = next(text for text, *_ in candidates if len(text.split()) >= 4)
    # The last reply of a dialogue is in no prompt: the same is sampled again.
    first, *others = dialogues
    said = replace(first, turns=(*first.turns[:-1], replace(first.turns[-1], content=long)))
    write_split(folder, "train", [said, *others])
    after = first_attempts(folder)
    assert {name: [reply[:-1] for reply in own] for name, own in after.items()} == {
        name: [reply[:-1] for reply in own] for name, own in before.items()
    }
    assert {text for own in after.values() for text, *_, copy in own if copy} == {long}
