"""Laws of the matcher: it finds the context of a reply, and nothing else about a reply helps it."""

import random
import string
from collections.abc import Sequence
from pathlib import Path

import pytest

from emotune.core.dialogue import Dialogue, alternate
from emotune.core.errors import InputError
from emotune.judges import files
from emotune.judges.matcher import Matcher, found, tens, train_matcher

EMOTIONS = ("neutral", "anger", "fear")
ANSWERS = [
    ("It rains outside.", "Take your umbrella."),
    ("I am hungry.", "Let us cook soup."),
    ("My tooth hurts.", "Call a dentist."),
    ("The car broke down.", "Ask the mechanic."),
    ("I cannot sleep.", "Drink warm milk."),
    ("My shoes are old.", "Buy new boots."),
    ("The cat is missing.", "Look under beds."),
    ("I lost my money.", "Visit your bank."),
    ("We missed the train.", "Wait for another."),
    ("The lamp is dark.", "Change that bulb."),
]


def talk(number: int, question: str, reply: str, emotion: str = "neutral") -> Dialogue:
    return Dialogue(f"talk-{number}", alternate((question, reply), ("neutral", emotion)))


# Each answer is heard often, in every emotion, and shares no word with its question.
HEARD = [talk(n, *ANSWERS[n % 10], EMOTIONS[n % 3]) for n in range(300)]


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> Matcher:
    path = tmp_path_factory.mktemp("matcher") / "fit.skops"
    files.save(train_matcher(HEARD, 7), path)
    return files.load_matcher(path)


def mean(matcher: Matcher, contexts: Sequence[Sequence[str]], replies: Sequence[str], emotions: Sequence[str]) -> tuple:
    dealt = tens([f"d{n}" for n in range(len(contexts))], emotions, 7)
    ranked = found(matcher, contexts, replies, dealt)
    return tuple(sum(column) / len(ranked) for column in zip(*ranked, strict=True))


# --- what it finds


def test_what_people_answer_to_what_is_learned_though_no_word_is_shared(matcher: Matcher) -> None:
    hits, _ = mean(matcher, [[question] for question, _ in ANSWERS], [reply for _, reply in ANSWERS], ["neutral"] * 10)
    assert hits >= 0.9


def test_a_word_that_was_never_heard_is_found_again(matcher: Matcher) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=9)) for _ in range(20)]
    contexts = [["Hello.", "Hello!", f"Is it a {word}?"] for word in words]
    assert mean(matcher, contexts, [f"A {word}, yes." for word in words], ["neutral"] * 20) == (1.0, 1.0)


@pytest.mark.parametrize("reply", ["Really? That is great.", "Take your umbrella.", ""])
def test_a_canned_reply_scores_chance_to_the_last_digit(matcher: Matcher, reply: str) -> None:
    # Some of these contexts the matcher likes better than others, whatever the reply.
    contexts = [[question, "Well.", f"A {n}"] for n, (question, _) in enumerate(ANSWERS * 6)]
    emotions = ["neutral"] * 30 + ["anger"] * 20 + ["fear"] * 10
    hits, ranks = mean(matcher, contexts, [reply] * 60, emotions)
    assert hits == pytest.approx(0.1)
    assert ranks == pytest.approx(sum(1 / rank for rank in range(1, 11)) / 10)


def test_equal_contexts_share_their_ranks(matcher: Matcher) -> None:
    contexts = [["It rains outside."]] * 2 + [[question] for question, _ in ANSWERS[1:9]]
    ranked = found(matcher, contexts, ["Take your umbrella."] * 10, [list(range(10))] * 10)
    assert ranked[0] == ranked[1] == (0.5, 0.75)
    assert ranked[5][0] == 0


def test_a_score_is_the_same_whatever_else_is_asked(matcher: Matcher) -> None:
    contexts, replies = [[question] for question, _ in ANSWERS], [reply for _, reply in ANSWERS]
    every = matcher.scores(contexts, replies, [(c, r) for c in range(10) for r in range(10)])
    for c, r in ((0, 0), (3, 7), (9, 2)):
        assert matcher.scores([contexts[c]], [replies[r]], [(0, 0)]) == every[10 * c + r]


def test_training_again_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        files.save(train_matcher(HEARD[:40], 7), tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_less_than_two_replies_are_too_few() -> None:
    with pytest.raises(InputError, match="at least 2 of them, found 1"):
        train_matcher(HEARD[:1], 7)


# --- among what it looks


def test_a_ten_is_of_one_emotion_and_of_ten_dialogues() -> None:
    emotions = [EMOTIONS[n % 3] for n in range(90)]
    # Neighbours are of one dialogue.
    dialogues = [f"d{n // 6}" for n in range(90)]
    dealt = tens(dialogues, emotions, 7)
    for row, ten in enumerate(dealt):
        assert row in ten
        assert len({dialogues[at] for at in ten}) == len(ten) == 10
        assert {emotions[at] for at in ten} == {emotions[row]}
    assert tens(dialogues, emotions, 7) == dealt != tens(dialogues, emotions, 8)


def test_rows_of_a_full_ten_look_in_the_same_contexts() -> None:
    dealt = tens(range(40), ["neutral"] * 40, 7)
    assert all(dealt[at] == ten for ten in dealt for at in ten)


def test_a_ten_of_a_rare_emotion_is_filled_up_with_others() -> None:
    emotions = ["fear"] * 3 + ["neutral"] * 20
    dealt = tens(range(23), emotions, 7)
    for row in range(3):
        assert {0, 1, 2} < set(dealt[row])
        assert len(set(dealt[row])) == 10
    assert all(not {0, 1, 2} & set(ten) for ten in dealt[3:])


def test_a_few_dialogues_make_a_smaller_ten() -> None:
    assert [sorted(ten) for ten in tens(range(4), ["neutral"] * 4, 7)] == [[0, 1, 2, 3]] * 4
