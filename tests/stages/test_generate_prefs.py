"""Laws of generate_prefs: how its candidates are guided."""

import shutil
import sqlite3
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path

from conftest import LABELS, TINY, run_stage, write_params
from emotune.core import records
from emotune.core.dialogue import Dialogue
from emotune.core.errors import Refusal


def test_all_candidates_are_guided_but_those_that_are_to_be_neutral(
    tuned: Path, dialogues: list[Dialogue], tmp_path: Path
) -> None:
    shutil.copytree(tuned, tmp_path / "models")
    for judge in ("reward", "reward_gibberish"):
        # What they say of the candidates is no matter here, and so is whether these make pairs.
        shutil.copy(tuned / "judges/evaluate.skops", tmp_path / f"models/judges/{judge}.skops")
    for split in ("train", "test"):
        records.write_jsonl(tmp_path / f"data/dialogues/{split}.jsonl", map(asdict, dialogues))
    records.write_json(tmp_path / "data/dialogues/labels.json", {"labels": LABELS, "neutral": "neutral"})
    candidates: list[dict[str, str]] = []
    for guidance in (1.0, 4.0):
        changes = {name: value for name, value in TINY.items() if name.startswith("prefs")}
        write_params(tmp_path, changes | {"prefs.emotions": "balanced", "prefs.sampling.guidance": guidance})
        with suppress(Refusal):
            run_stage("generate_prefs", tmp_path)
        path = tmp_path / ".work/journal.sqlite"
        with closing(sqlite3.connect(path)) as journal:
            candidates.append(dict(journal.execute("SELECT prompt, value FROM attempts WHERE attempt = 1")))
        path.unlink()
    plain, guided = candidates
    # Ten places for a reply, each asked for in one of seven emotions; a prompt's name says what guides it.
    assert len(plain) == len(guided) == 10
    assert {name: plain[name] for name in plain.keys() & guided.keys()} == {
        name: guided[name] for name in plain.keys() & guided.keys()
    }
    assert len(plain.keys() & guided.keys()) == 2
