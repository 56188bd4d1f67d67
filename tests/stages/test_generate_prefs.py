"""Laws of generate_prefs: how its candidates are guided, and which of them the train split has said."""

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from conftest import LABELS, ROOT, TINY, run_stage, write_params
from emotune.core import records
from emotune.core.dialogue import Dialogue
from emotune.core.errors import InputError, Refusal
from emotune.core.sections import read_yaml
from emotune.preferences import votes

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
    kept = [(prompt, json.loads(value)) for prompt, value in rows]
    # Learned scores, which are kept beside them, are numbers alone.
    return {prompt: value for prompt, value in kept if isinstance(value[0], list)}


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


def test_the_learned_term_needs_no_second_sampling_and_leaves_no_trace_without_its_weight(folder: Path) -> None:
    def run(**changes: Any) -> tuple[Candidates, list[int], bytes]:
        candidates = first_attempts(folder, **changes)
        with closing(sqlite3.connect(folder / ".work/journal.sqlite")) as journal:
            counts = [n for (n,) in journal.execute("SELECT count(*) FROM attempts GROUP BY context ORDER BY 1")]
        return candidates, counts, (folder / "metrics/prefs.json").read_bytes()

    candidates, counts, three = run()
    # Three weights: the reward model and the judge that evaluates hear first attempts alone, to measure.
    assert counts == [10, 10, 30]
    same, counts, four = run(**{"reward.model": "trained", "reward.weights": [0.4, 0.1, 0.3, 0.2]})
    assert same == candidates
    assert counts == [10, 30, 30]
    _, counts, again = run()
    assert counts == [10, 30, 30]
    assert again == three != four
    [measured] = json.loads(three)
    assert (measured["best_of_n"]["prompts"], measured["best_of_n"]["candidates"]) == (10, 4)
    assert measured["best_of_n"]["reward"]["gain"]["value"] > 0


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


def voted(folder: Path, source: str, **changes: Any) -> list[dict[str, Any]]:
    """The pairs after three votes, of which one prefers neither reply; their file is pinned as it is."""
    sides = (
        {"model": m, "adapter": a * 64, "reply": r} for m, a, r in (("sft", "a", "Oh no."), ("dpo", "b", "We won!"))
    )
    vote = dict(zip(("left", "right"), sides, strict=True)) | {"voter": "ann", "note": "", "seed": 7, "seconds": 1.0}
    for draw, choice in enumerate(("left", "right", "both bad")):
        said = [{"role": "user", "content": f"We won {draw} matches!", "emotion": "happiness"}]
        own = {"context": said, "dialogue": f"d{draw}/1", "emotion": LABELS[draw], "draw": draw, "choice": choice}
        line = votes.Vote.model_validate_json(json.dumps(vote | own | {"at": "2026-01-02T03:04:05.000000Z"}))
        votes.append(folder / "data/votes/ann.jsonl", line)
    pin = {"prefs.source": source, "prefs.votes_revision": records.digest(folder / "data/votes")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        first_attempts(folder, **{"prefs.validation": 0.0} | pin | changes)
    return list(records.read_jsonl(folder / "data/prefs/train.jsonl"))


def test_people_s_pairs_alone_are_rows_like_others_and_no_model_is_asked(folder: Path) -> None:
    rows = voted(folder, "votes", **{"prefs.spare": True})
    assert [(row["emotion"], row["chosen"], row["rejected"]) for row in rows] == [
        ("neutral", "Oh no.", "We won!"),
        ("anger", "We won!", "Oh no."),
    ]
    assert {row["source"] for row in rows} == {"votes"}
    measured = records.read_metrics(folder / "metrics/prefs.json")
    assert measured["votes"] == {"votes": 3, "questions": 3, "preferred": 2, "unfit": 0, "pairs": 2}
    assert (measured["pairs"], measured["prompts"], measured["attempts_total"]) == (2, 2, 0)
    assert measured["pairs_per_emotion"] == {label: int(label in LABELS[:2]) for label in LABELS}
    with closing(sqlite3.connect(folder / ".work/journal.sqlite")) as journal:
        assert journal.execute("SELECT count(*) FROM attempts").fetchone() == (0,)


def test_people_s_pairs_have_learned_scores_where_the_reward_has_that_term(folder: Path) -> None:
    rows = voted(folder, "votes", **{"reward.model": "trained", "reward.weights": [0.4, 0.1, 0.3, 0.2]})
    assert [row["emotion"] for row in rows] == ["neutral", "anger"]
    assert all(0 < row[f"{side}_learned_score"] < 10 for row in rows for side in ("chosen", "rejected"))


def test_people_s_pairs_come_beside_others_and_fill_up_an_emotion_before_people_s_replies_do(folder: Path) -> None:
    rows = voted(folder, "both", **{"prefs.human_fill": 2})
    # So small a model makes no pair; the replies of the train split are neutral, or surprise, the user's happiness.
    assert Counter((row["source"], row["emotion"]) for row in rows) == {
        ("votes", "neutral"): 1,
        ("votes", "anger"): 1,
        ("human", "neutral"): 1,
        ("human", "surprise"): 2,
        ("human", "happiness"): 2,
    }
    assert len({frozenset(row) for row in rows}) == 1
    measured = records.read_metrics(folder / "metrics/prefs.json")
    assert (measured["prompts"], measured["pairs"], measured["votes"]["pairs"]) == (10, 7, 2)
    first_attempts(folder)
    assert "votes" not in records.read_metrics(folder / "metrics/prefs.json")


def test_another_round_takes_no_vote_again_and_votes_alone_make_no_other_round(folder: Path) -> None:
    shutil.copytree(folder / "models/sft", folder / "models/dpo", dirs_exist_ok=True)
    voted(folder, "both")
    first = records.read_metrics(folder / "metrics/prefs.json")["votes"]
    rounds = read_yaml(ROOT / "rounds/stages.yaml")["stages"]
    # A second round, and a third one, which goes on from the second.
    for _ in range(2):
        # So small a train split has places for one round.
        before = records.read_metrics(folder / "metrics/prefs.json") | {"places": 0}
        records.write_metrics(folder / "metrics/prefs.json", before)
        with suppress(Refusal):
            run_stage("generate_prefs", folder, rounds)
        measured = records.read_metrics(folder / "metrics/rounds/prefs.json")
        assert (measured["pairs"], measured["votes"]) == (0, first | {"pairs": 0})
        records.write_metrics(folder / "metrics/prefs.json", measured)
    params = (folder / "params.yaml").read_text().replace("source: both", "source: votes")
    (folder / "params.yaml").write_text(params)
    with pytest.raises(InputError, match="the round before learned from all of them"):
        run_stage("generate_prefs", folder, rounds)


def test_votes_that_are_not_those_of_the_pin_stop_the_stage(folder: Path) -> None:
    with pytest.raises(InputError, match=r"prefs\.votes_revision must pin the content of data/votes.*found sha256"):
        voted(folder, "both", **{"prefs.votes_revision": "0" * 64})
    with pytest.raises(InputError, match=r"prefs\.votes: none: no such file or folder"):
        voted(folder, "both", **{"prefs.votes": "none"})
    (folder / "data/votes/ann.jsonl").write_text("")
    pin = records.digest(folder / "data/votes")
    write_params(folder, {"prefs.source": "votes", "prefs.votes_revision": pin})
    with pytest.raises(InputError, match="of 0 votes in data/votes none prefers a reply"):
        run_stage("generate_prefs", folder)
