"""Laws of dialogues: roles, records, history and trimming by whole turns."""

import pytest

from emotune.core.dialogue import (
    ASSISTANT,
    USER,
    Dialogue,
    Turn,
    alternate,
    from_record,
    history,
    swapped,
    to_record,
    trim,
)


def told(*texts: str, id: str = "a") -> Dialogue:
    return Dialogue(id, tuple(Turn((USER, ASSISTANT)[i % 2], text, "neutral") for i, text in enumerate(texts)))


def test_roles_alternate_from_the_user_and_the_last_odd_turn_goes() -> None:
    assert alternate(["a", "b", "c"], ["joy", "fear", "joy"]) == (
        Turn("user", "a", "joy"),
        Turn("assistant", "b", "fear"),
    )
    assert alternate(["a"], ["joy"]) == ()


def test_an_utterance_without_a_label_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        alternate(["a", "b"], ["joy"])


def test_a_record_survives_the_round_trip() -> None:
    whole = told("Hi.", "Hello!")
    assert from_record(to_record(whole)) == whole


def test_history_is_at_most_so_many_turns_and_starts_with_the_user() -> None:
    turns = told("u0", "a1", "u2", "a3", "u4", "a5").turns
    assert [turn.content for turn in history(turns, 5, 3)] == ["u2", "a3", "u4"]
    assert [turn.content for turn in history(turns, 5, 4)] == ["u2", "a3", "u4"]
    assert [turn.content for turn in history(turns, 1, 9)] == ["u0"]
    assert history(turns, 0, 3) == ()


def test_trimming_drops_the_fewest_whole_pairs_that_make_it_fit() -> None:
    turns = told("u0", "a1", "u2", "a3", "u4").turns
    assert trim(turns, lambda kept: len(kept) <= 5) == turns
    assert [turn.content for turn in trim(turns, lambda kept: len(kept) <= 4)] == ["u2", "a3", "u4"]


def test_trimming_never_goes_below_the_last_user_turn() -> None:
    turns = told("u0", "a1", "u2", "a3").turns
    assert [turn.content for turn in trim(turns, lambda kept: False)] == ["u2", "a3"]
    with pytest.raises(ValueError, match="no turn of the user"):
        trim(turns[1:2], lambda kept: True)


def test_with_roles_exchanged_a_dialogue_starts_with_what_was_the_first_reply() -> None:
    assert swapped(told("a", "b", "c", "d")) == Dialogue(
        "a~", (Turn(USER, "b", "neutral"), Turn(ASSISTANT, "c", "neutral"))
    )
    assert swapped(told("a", "b")).turns == ()
