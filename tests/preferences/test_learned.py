"""Laws of the learned term: a fourth weight, kept in the journal, and not a byte of anything without it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from test_attempts import PREFS, REWARD, clean, prefs

from ballots import vote
from conftest import LABELS
from emotune.core import records
from emotune.core.dialogue import Turn
from emotune.generation.engine import Reply
from emotune.preferences import attempts, voted, votes
from emotune.preferences.candidates import Prompt, Wanted, judging
from emotune.preferences.learned import Learned, memos
from emotune.preferences.outcomes import Outcome
from emotune.preferences.pairs import rows
from emotune.preferences.params import Reward
from emotune.preferences.reward import Judged, candidate, reconsidered
from emotune.prompts.prompter import Prompter

JUDGED = Judged("Where?", 2, "fear", 0.5, "clean", 1.0)
FOUR = Reward.model_validate(REWARD.model_dump() | {"model": "trained", "weights": (0.4, 0.0, 0.2, 0.4)})
PROMPTS = [
    Prompt(f"talk/{n}/fear", f"talk/{n}", (Turn("user", f"Look {n}!", "fear"),), "fear", f"Look {n}!", (1, 2, n))
    for n in range(3)
]


def test_the_fourth_weight_is_the_learned_score_s_and_three_take_none() -> None:
    three, four = candidate(JUDGED, "fear", REWARD), candidate(JUDGED, "fear", FOUR, 7.5)
    assert three.learned_score is None
    assert four.reward == pytest.approx(0.4 * 5.0 + 0.2 * 10.0 + 0.4 * 7.5 + 0.001)
    with pytest.raises(ValueError, match="zip"):
        candidate(JUDGED, "fear", FOUR)


def test_asked_for_another_emotion_a_reply_keeps_its_learned_score() -> None:
    four = candidate(JUDGED, "fear", FOUR, 7.5)
    assert reconsidered(four, "anger", FOUR).reward == pytest.approx(four.reward - 0.4 * 5.0)
    assert reconsidered(four, "anger", FOUR).learned_score == 7.5


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        (None, (0.4, 0.0, 0.2, 0.4), r"three numbers >= 0 \(emotion, .*reward.model: trained takes a fourth"),
        ("trained", (0.4, 0.3, 0.3), r"four numbers >= 0 \(emotion, length, gibberish, learned\)"),
        ("trained", (0.4, 0.3, 0.3, -1.0), "four numbers >= 0"),
    ],
)
def test_weights_are_as_many_as_terms(model: str | None, weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Reward.model_validate(REWARD.model_dump() | {"model": model, "weights": weights})


def sample(wanted: Sequence[Wanted]) -> list[list[Reply]]:
    return [
        [Reply(f"{'Nobody' if n % 2 else 'Oh'}{n}, look at {prompt.id}.", 3, True) for n in range(4)]
        for prompt, _ in wanted
    ]


def nobody(_: Any) -> Any:
    raise AssertionError("asked again")


def fear(texts: Sequence[str]) -> list[tuple[str, float]]:
    return [("fear", 1.0)] * len(texts)


class Model:
    """Prefers replies that begin with No, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, answers: Sequence[tuple[Sequence[Turn], str]]) -> list[float]:
        self.asked += [text for _, text in answers]
        assert all(turns[-1].content in ("Look 0!", "Look 1!", "Look 2!") for turns, _ in answers)
        return [9.0 if text.startswith("No") else 1.0 for _, text in answers]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    with memos(tmp_path / "journal.sqlite", {"of": 1}, "digest", 256, lambda: nobody(None)) as (
        memo,
        learned,
    ):
        yield memo, learned


def run(memo: Any, r: Reward, learned: Learned | None, sampler: Any = sample) -> list[Outcome]:
    judge = judging(lambda: (fear, clean))
    return attempts.generate(PROMPTS, PREFS, r, sampler, judge, memo, learned=learned)


def test_the_reply_that_the_reward_model_prefers_is_chosen_and_a_replay_asks_nobody(journal: tuple[Any, Any]) -> None:
    memo, kept = journal
    model = Model()
    first = run(memo, FOUR, Learned(kept._memo, model))
    assert len(model.asked) == 12
    assert all(outcome.pair and outcome.pair.chosen.text.startswith("No") for outcome in first)
    assert all(outcome.pair and outcome.pair.rejected.text.startswith("Oh") for outcome in first)
    # Now the reward model of the journal's own would fail, and so would whoever samples.
    assert run(memo, FOUR, kept, nobody) == first


def test_a_fourth_weight_samples_nothing_again_and_hears_all_at_once(journal: tuple[Any, Any]) -> None:
    memo, kept = journal
    run(memo, REWARD, None)
    model = Model()
    calls: list[int] = []

    def score(answers: Sequence[tuple[Sequence[Turn], str]]) -> list[float]:
        calls.append(len(answers))
        return model(answers)

    run(memo, FOUR, Learned(kept._memo, score), nobody)
    assert [call for call in calls if call] == [12]


def test_rows_have_the_learned_score_where_there_is_one(journal: tuple[Any, Any]) -> None:
    memo, kept = journal
    [three, *_] = rows(PROMPTS, run(memo, REWARD, None))
    [four, *_] = rows(PROMPTS, run(memo, FOUR, Learned(kept._memo, Model()), nobody))
    assert four.keys() - three.keys() == {"chosen_learned_score", "rejected_learned_score"}
    assert not three.keys() - four.keys()
    assert (four["chosen_learned_score"], four["rejected_learned_score"]) == (9.0, 1.0)


def test_people_s_replies_keep_their_scores_when_further_votes_turn_the_pair(
    journal: tuple[Any, Any], tokenizer: Any, tmp_path: Path
) -> None:
    _, kept = journal
    learned = Learned(kept._memo, lambda answers: [9.0 if text == "Oh no." else 1.0 for _, text in answers])
    judge, scores = judging(lambda: (fear, clean)), []
    for choice in ("left", "right"):
        votes.append(tmp_path / "votes.jsonl", vote(choice, at=len(scores)))
        pin = {"votes": str(tmp_path / "votes.jsonl"), "votes_revision": records.digest(tmp_path / "votes.jsonl")}
        p = prefs(source="votes", **pin)
        [outcome] = voted.voted(p, LABELS, Prompter(tokenizer, None, 256), judge, FOUR, learned).outcomes
        assert outcome.pair
        scores.append({reply.text: reply.learned_score for reply in (outcome.pair.chosen, outcome.pair.rejected)})
    assert list(scores[0]) != list(scores[1])
    assert scores[0] == scores[1] == {"Oh no.": 9.0, "I am afraid.": 1.0}
