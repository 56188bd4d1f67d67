"""Laws of lexical.py: which tokens answer which is learned of people, saved, and the same in any company."""

from pathlib import Path
from typing import Any

import pytest
import torch

from emotune.core.dialogue import ASSISTANT, USER, Dialogue, Turn, alternate
from emotune.models import lexical
from emotune.models.lexical import Lexical
from emotune.training.lexical import fit, loss

ANSWERS = [
    ("It rains outside.", "Take your umbrella."),
    ("I am hungry.", "Let us cook soup."),
    ("My tooth hurts.", "Call a dentist."),
    ("The car broke down.", "Ask the mechanic."),
]
# Each answer is heard often, in two emotions, and tells by no word that it shares with its question.
HEARD = [
    Dialogue(str(n), alternate(ANSWERS[n // 2 % 4], ("neutral", ("anger", "fear")[n // 8 % 2]))) for n in range(480)
]


def said(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn((USER, ASSISTANT)[n % 2], text, "neutral") for n, text in enumerate(texts))


@pytest.fixture
def learned(tokenizer: Any) -> Lexical:
    return fit(HEARD, tokenizer, 3, 7)


def test_the_reply_that_people_gave_is_worth_most_behind_what_was_said(learned: Lexical, tokenizer: Any) -> None:
    for number, (question, answer) in enumerate(ANSWERS):
        others = [reply for n, (_, reply) in enumerate(ANSWERS) if n != number]
        own, *rest = learned.scores(tokenizer, [(said(question), reply) for reply in (answer, *others)])
        assert own > max(rest) + 0.5


def test_what_was_said_before_the_last_turn_is_read_and_counts_for_less(tokenizer: Any) -> None:
    untrained = Lexical(torch.ones(400))
    replies = [
        (said("Zebra?", "Hm.", "Umbrella."), "Umbrella!"),
        (said("Umbrella?", "Hm.", "Zebra."), "Umbrella!"),
        (said("Zebra?", "Hm.", "Zebra."), "Umbrella!"),
    ]
    last, earlier, nowhere = untrained.scores(tokenizer, replies)
    assert last > earlier > nowhere


def test_what_is_saved_says_the_same_and_company_changes_nothing(
    learned: Lexical, tokenizer: Any, tmp_path: Path
) -> None:
    answers = [(said(question), reply) for question, reply in ANSWERS]
    lexical.save(learned, tmp_path / lexical.FILE)
    again = lexical.load(tmp_path / lexical.FILE)
    assert again.scores(tokenizer, answers) == learned.scores(tokenizer, answers)
    alone = [learned.scores(tokenizer, [answer])[0] for answer in answers]
    assert learned.scores(tokenizer, answers * 70)[-4:] == pytest.approx(alone, abs=1e-4)
    assert learned.scores(tokenizer, []) == []


def test_the_same_dialogues_and_seed_make_the_same_bytes(learned: Lexical, tokenizer: Any) -> None:
    again = fit(HEARD, tokenizer, 3, 7)
    assert all(torch.equal(one, other) for one, other in zip(learned.parameters(), again.parameters(), strict=True))


def test_the_loss_is_bradley_and_terry_s_over_the_others_of_a_batch() -> None:
    # -ln sigmoid(2), -ln sigmoid(-1): of each row its own reply against the other one.
    assert loss(torch.tensor([[3.0, 1.0], [1.0, 0.0]])).item() == pytest.approx((0.126928 + 1.313262) / 2, abs=1e-5)
    assert loss(torch.tensor([[3.0]])).item() == 0.0


def test_a_mean_says_what_both_do_on_average(tokenizer: Any) -> None:
    two = [fit(HEARD[:40], tokenizer, 3, seed) for seed in (1, 2)]
    answers = [(said(question), reply) for question, reply in ANSWERS]
    one, other, both = (own.scores(tokenizer, answers) for own in (*two, lexical.mean(two)))
    assert one != other
    assert both == pytest.approx([(a + b) / 2 for a, b in zip(one, other, strict=True)], abs=1e-5)


def test_ids_beyond_the_buckets_share_them(tokenizer: Any) -> None:
    for [own] in lexical.read(tokenizer, [(said("Take it.", "No.", "Umbrella?"), "Take your umbrella, take it.")], 7):
        assert own == sorted(set(own))
        assert max(own) < 7
