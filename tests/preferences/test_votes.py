"""Laws of the files of votes: nothing that was told to count is lost, nothing counts twice, and bad lines are named."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from ballots import DPO, SFT, vote
from conftest import LABELS
from emotune.core.errors import InputError
from emotune.preferences import voted
from emotune.preferences.votes import Vote, append, counted, preferences, read


def swapped(of: Vote) -> Vote:
    return of.model_copy(update={"left": of.right, "right": of.left})


def test_what_was_appended_is_read_again_also_of_many_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ann.jsonl"
    given = [[vote("left", n, voter=name, draw=n) for n in range(50)] for name in ("ann", "bob")]
    threads = [threading.Thread(target=lambda own=own: [append(path, one) for one in own]) for own in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = read(path, LABELS)
    assert [[one for one in written if one.voter == name] for name in ("ann", "bob")] == given


def test_half_a_line_of_a_killed_writer_is_no_vote_and_in_nobody_s_way(tmp_path: Path) -> None:
    path = tmp_path / "ann.jsonl"
    append(path, vote("left"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    assert read(path, LABELS) == [vote("left")]
    append(path, vote("right", 1))
    assert read(path, LABELS) == [vote("left"), vote("right", 1)]
    # What a person's editor left without its last new line is whole.
    path.write_bytes(path.read_bytes().rstrip())
    append(path, vote("left", 2))
    assert [one.choice for one in read(path, LABELS)] == ["left", "right", "left"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "ann.jsonl:2: not JSON"),
        ("[]", "ann.jsonl:2: expected a JSON object, found list"),
        ({"choice": "middle"}, "ann.jsonl:2: choice: input should be 'left', 'right'"),
        ({"emotion": "joy"}, "ann.jsonl:2: emotion must be one of neutral, .*, got joy"),
        ({"voter": "../ann"}, "ann.jsonl:2: voter: string should match pattern"),
        ({"left": {"model": "sft", "adapter": "main", "reply": ""}}, "ann.jsonl:2: left.adapter: string should match"),
        ({"chosen": "left"}, "ann.jsonl:2: unknown key chosen; the nearest is choice"),
        ({"context": [{"role": "assistant", "content": "Hm.", "emotion": "fear"}]}, "ann.jsonl:2: context must end"),
    ],
)
def test_a_line_that_is_no_vote_is_named_by_file_and_line(tmp_path: Path, line: Any, told: str) -> None:
    bad = line if isinstance(line, str) else json.dumps(vote("left").model_dump(mode="json") | line)
    (tmp_path / "ann.jsonl").write_text(f"{vote('left').model_dump_json()}\n{bad}\n{vote('left').model_dump_json()}\n")
    with pytest.raises(InputError, match=told):
        read(tmp_path, LABELS)
    with pytest.raises(InputError, match="no such file or folder; `emotune compare --blind` writes"):
        read(tmp_path / "none", LABELS)


def test_a_voter_s_last_word_on_a_question_counts_once_whatever_the_side_and_the_order_of_the_lines() -> None:
    first, last = vote("left", 1), swapped(vote("left", 2))
    assert first.question == last.question
    # Files put together twice, in either order.
    assert counted([first, last, first, last]) == counted([last, first]) == [last]
    assert counted([first, vote("withdrawn", 3)]) == []
    assert counted([vote("withdrawn", 3), vote("right", 4)]) == [vote("right", 4)]
    other = {"left": {"model": "sft", "adapter": DPO, "reply": "Oh no."}}
    apart = [vote("left", 1), vote("left", 1, voter="bob"), vote("left", 1, emotion="anger"), vote("left", 1, **other)]
    assert counted(apart) == apart


def test_a_pair_is_what_most_voters_prefer_and_none_where_they_are_as_many() -> None:
    ann, bob, eve = (vote(choice, voter=name) for name, choice in (("ann", "right"), ("bob", "right"), ("eve", "left")))
    [one] = preferences([eve, ann, swapped(bob).model_copy(update={"choice": "left"})])
    assert (one.chosen, one.rejected) == ("I am afraid.", "Oh no.")
    assert preferences([ann, eve]) == []
    assert preferences([vote("both good"), vote("both bad", voter="bob")]) == []
    assert len(preferences([ann, eve, bob, vote("both bad", voter="zoe")])) == 1
    # The model of another round says the same.
    again = {"right": {"model": "dpo", "adapter": "c" * 64, "reply": "I am afraid."}}
    assert len(preferences([ann, vote("right", **again)])) == 1
    assert preferences([ann, vote("left", **again)]) == []


def test_a_prompt_is_what_a_model_is_asked_and_no_room_or_nothing_said_is_passed_over(tokenizer: Any) -> None:
    from emotune.prompts.prompter import Prompter

    [row] = voted.rows(preferences([vote("right")]), Prompter(tokenizer, None, 256))
    asked = "<s>[INST] [EMOTION] happiness [/EMOTION] We won! [/INST] [EMOTION] fear [/EMOTION]"
    assert row["prompt"] == asked
    assert row["history"] == [{"role": "user", "content": "We won!", "emotion": "happiness"}]
    assert (row["dialogue"], row["emotion"], row["chosen"], row["rejected"]) == ("d1", "fear", "I am afraid.", "Oh no.")
    assert voted.rows(preferences([vote("right")]), Prompter(tokenizer, None, 16)) == []
    empty = {"left": {"model": "sft", "adapter": SFT, "reply": ""}}
    assert voted.rows(preferences([vote("right", **empty)]), Prompter(tokenizer, None, 256)) == []
