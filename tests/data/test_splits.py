"""Laws of the splits: blemishes are closed up, what cannot be learned from goes, and no dialogue is in two splits."""

import random
import re
import time

import pytest

from emotune.core.dialogue import ASSISTANT, USER, Dialogue, Turn
from emotune.data import splits
from emotune.data.splits import clean, deduplicate, usable


def told(*texts: str, id: str = "a") -> Dialogue:
    return Dialogue(id, tuple(Turn((USER, ASSISTANT)[i % 2], text, "neutral") for i, text in enumerate(texts)))


BLEMISHES = [
    ("Yes , I know . Really ?  Wow !", "Yes, I know. Really? Wow!"),
    ("Well . . . let me see ; one : two .", "Well... let me see; one: two."),
    ("Let ' s go , I don ’ t mind", "Let's go, I don't mind"),
    ("I ’ Ve seen it , you ’ re right , it 's LET ' S", "I've seen it, you're right, it's LET'S"),
    ("nine o ' clock , ma ’ am , says O ' Hara", "nine o'clock, ma'am, says O'Hara"),
    ("She said “ never mind ” and ‘ so what ’ .", "She said \"never mind\" and 'so what'."),
    ('He sang " Hey , you " twice .', 'He sang "Hey, you" twice.'),
    ("a ten minutes ' walk , no more", "a ten minutes' walk, no more"),
    ("back in the ' 20s", "back in the '20s"),
    ("You are right.But wait.please hurry.OK", "You are right. But wait. please hurry. OK"),
    ("Built in 1932.People came at 8 p.m.Any more", "Built in 1932. People came at 8 p.m. Any more"),
    ("See you next time 。", "See you next time."),
    ("( It is $ 5 , or 10 % off . )", "(It is $5, or 10% off.)"),
    ("meet me at 4 p . m . sharp", "meet me at 4 p.m. sharp"),
    ("  \t ", ""),
]


SOUND = [
    "It is 3.5 km, at 8 a.m., in the U.S., e.g. near Mr. Lee's.",
    "Look at www.Example.Test.org, yahoo.com, main.py or me.too@mail.example :)",
    "I'd use .NET; they're boys' toys. \"Really?\" 'Yes.'",
    "Ça va? Où est-il? 你好",
]


@pytest.mark.parametrize(("blemished", "cleaned"), BLEMISHES)
def test_a_blemish_is_closed_up(blemished: str, cleaned: str) -> None:
    assert clean(blemished) == cleaned


@pytest.mark.parametrize("text", SOUND)
def test_sound_text_stays_as_it_is(text: str) -> None:
    assert clean(text) == text


def test_cleaning_twice_is_cleaning_once() -> None:
    parts = [*"It'\"’”.,?!()%$5Os", "...", "don", "He", ":)", "word.But", "a.m.", "www.x.com", "minutes"]
    rng = random.Random(3)
    for _ in range(5000):
        once = clean(" ".join(rng.choices(parts, k=rng.randint(1, 9))))
        assert clean(once) == once


# The last rule as it was, which looks for an address at every letter.
EVERYWHERE = re.compile(
    rf"({splits._ADDRESS})|(?<=[a-z']{{2}})\.(?=[A-Z]|[a-z]{{2}})|(?<=[^\W_])\.(?=[A-Z][a-z])",
)


def test_an_address_looked_for_where_words_begin_is_found_as_at_every_letter() -> None:
    rule, instead = splits._BLEMISHES[-1]
    parts = [" ", "www.", "@", "://", ".com", ".py", ".html", "www", "com", "ab", "A", "Bc", ".", ".", "'", "_", "3"]
    rng = random.Random(5)
    for _ in range(20_000):
        text = "".join(rng.choices(parts, k=rng.randint(1, 12)))
        assert rule.sub(instead, text) == EVERYWHERE.sub(instead, text), text


@pytest.mark.parametrize("unit", ["a.", "ab.", "'", "' ", '"', "s ' ", "a . ", ". ", ".,", "( ", "www", ":/", "a"])
def test_a_long_message_costs_its_length(unit: str) -> None:
    began = time.process_time()
    clean(unit * (100_000 // len(unit)))
    assert time.process_time() - began < 2


def test_test_wins_over_validation_over_train() -> None:
    same = [told("Hi.", "Yes!", id=split) for split in ("train", "validation", "test")]
    other = told("Hi.", "No!", id="other")
    splits, dropped = deduplicate({"train": [same[0], other], "validation": [same[1]], "test": [same[2]]})
    assert splits == {"train": [other], "validation": [], "test": [same[2]]}
    assert dropped == {"train": {"test": 1}, "validation": {"test": 1}, "test": {}}


def test_within_a_split_the_first_wins() -> None:
    first, again = told("Hi.", "Yes!", id="1"), told("Hi.", "Yes!", id="2")
    assert deduplicate({"train": [first, again]}) == ({"train": [first]}, {"train": {"train": 1}})


@pytest.mark.parametrize("again", [("HI", "it’s   me"), ("Hi.", "It 's me !", "An odd turn."), ("Hi. It's", "me")])
def test_case_punctuation_breaks_and_an_odd_turn_do_not_make_another_dialogue(again: tuple[str, ...]) -> None:
    splits, _ = deduplicate({"train": [told(*again)], "test": [told("Hi!", "It's me.")]})
    assert splits["train"] == []


def test_another_word_or_another_symbol_makes_another_dialogue() -> None:
    splits, _ = deduplicate(
        {"train": [told("Hi", "it is me"), told("?", "!")], "test": [told("Hi", "it is I"), told("!", "!")]}
    )
    assert len(splits["train"]) == 2


def test_what_cannot_be_learned_from_is_dropped_with_its_reason() -> None:
    kept, dropped = usable([told("Hi .", "Yes .", "odd"), told("alone"), told("Hi", "\x7f"), told()])
    assert kept == [told("Hi.", "Yes.")]
    assert dropped == {"too_short": 2, "empty_turn": 1}
