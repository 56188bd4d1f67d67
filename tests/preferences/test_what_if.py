"""Laws of what other thresholds would give: exact where they are looser, told by the audit, and nothing is sampled."""

from dataclasses import replace
from typing import Any

import pytest
from test_attempts import MEASURED, PREFS
from test_outcomes import EMOTIONS, R, outcome, p, prompts, said

from emotune.preferences.outcomes import Outcome
from emotune.preferences.pairs import audit
from emotune.preferences.params import Prefs
from emotune.preferences.what_if import Row, remedy, what_if

GLAD, SAD, SCARED = ("I am so glad!", "happiness"), ("I am so sad!", "sadness"), ("I am afraid!", "fear")


def alone(**changes: Any) -> Prefs:
    return p(rejected="worst", emotions="balanced", **changes)


def rows(p: Prefs, *outcomes: Outcome) -> list[Row]:
    return what_if(prompts(), outcomes, EMOTIONS, p, R)


def pairs(table: list[Row], *thresholds: float) -> list[int]:
    [row] = [row for row in table if tuple(row.values())[:3] == thresholds]
    return list(row["pairs"].values())


def test_the_first_row_is_the_run_itself() -> None:
    settings = alone()
    outcomes = [outcome(e, [GLAD, SAD], [SCARED, SAD], settings=settings) for e in ("happiness", "fear", "sadness")]
    table = what_if(prompts(), outcomes, EMOTIONS, settings, R)
    assert table[0] == {
        "min_chosen_score": 8.0,
        "target_score_range": 4.0,
        "attempts": 2,
        "pairs": {"happiness": 1, "sadness": 0, "fear": 0},
    }


def test_fewer_attempts_give_the_pairs_of_the_first() -> None:
    settings = alone(attempts=5)
    late = outcome("sadness", [GLAD], [GLAD], [SAD, GLAD], settings=settings)
    table = rows(settings, outcome("happiness", [GLAD, SAD], settings=settings), late, Outcome(None, 5, ()))
    assert pairs(table, 8.0, 4.0, 5) == [1, 1, 0]
    assert pairs(table, 8.0, 4.0, 3) == [1, 1, 0]
    assert pairs(table, 8.0, 4.0, 2) == [1, 0, 0]


def test_lower_thresholds_are_deciles_of_what_is_judged_as_asked() -> None:
    """A reply that scores 9.351 is not enough for 9.5; 9.3, its decile rounded down, lets it in."""
    settings = alone(min_chosen_score=9.5)
    outcomes = [outcome(emotion, [GLAD, SAD], settings=settings) for emotion in EMOTIONS]
    table = rows(settings, *outcomes)
    assert pairs(table, 9.5, 4.0, 2) == [0, 0, 0]
    assert pairs(table, 9.3, 4.0, 2) == [1, 1, 0]


def test_a_threshold_of_zero_is_lowered_too() -> None:
    """A reply may score below 0, by a bias or as a copy."""
    settings = alone(min_chosen_score=0.0)
    replies = tuple(replace(said(*reply, "happiness"), reward=score) for reply, score in ((GLAD, -1.0), (SAD, -5.0)))
    table = rows(settings, *[Outcome(None, 1, (), (replies,)) for _ in EMOTIONS])
    assert pairs(table, -1.0, 0.0, 2) == [1, 0, 0]


def test_pairs_of_one_context_count_as_they_are_made_together() -> None:
    table = rows(p(), outcome("happiness", [GLAD]), outcome("sadness", [SAD]), outcome("fear", [GLAD], [GLAD]))
    assert pairs(table, 8.0, 4.0, 2) == [1, 1, 0]
    # Two chosen replies are 5.85 apart.
    wide = p(target_score_range=6.0)
    table = rows(wide, outcome("happiness", [GLAD]), outcome("sadness", [SAD]), outcome("fear", [GLAD]))
    assert (pairs(table, 8.0, 6.0, 2), pairs(table, 8.0, 4.5, 2)) == ([0, 0, 0], [1, 1, 0])


AS_SET = {"min_chosen_score": 8.0, "target_score_range": 4.0, "attempts": 3, "pairs": {"neutral": 0, "fear": 0}}
TABLE = [
    AS_SET,
    AS_SET | {"min_chosen_score": 9.0},
    AS_SET | {"min_chosen_score": 6.5, "pairs": {"neutral": 3, "fear": 1}},
    AS_SET | {"min_chosen_score": 6.0, "pairs": {"neutral": 4, "fear": 1}},
    AS_SET | {"min_chosen_score": 6.0, "target_score_range": 3.0, "pairs": {"neutral": 5, "fear": 2}},
    AS_SET | {"attempts": 1, "pairs": {"neutral": 9, "fear": 9}},
]


def test_the_remedy_is_the_first_lower_threshold_that_gives_enough() -> None:
    measured = {"prompts": 14, "what_if": TABLE}
    assert remedy(measured, lambda pairs: sum(pairs.values()) >= 4) == (
        "; with prefs.min_chosen_score: 6.5, 4 of 14 prompts would make a pair, 1 or more for each emotion"
    )
    assert remedy(measured, lambda pairs: min(pairs.values()) >= 2) == (
        "; with prefs.min_chosen_score: 6 and prefs.target_score_range: 3, 7 of 14 prompts would make a pair, "
        "2 or more for each emotion"
    )
    assert remedy(measured, lambda pairs: sum(pairs.values()) >= 8).startswith(
        "; no lower threshold is enough: even with prefs.min_chosen_score: 6 and prefs.target_score_range: 3, 7 of 14"
    )
    assert remedy({"prompts": 14}, lambda pairs: True) == ""


@pytest.mark.parametrize("count", [0, 1])
def test_the_audit_names_the_threshold_that_would_do(count: int) -> None:
    measured = MEASURED | {"prompts": 14, "pairs": count, "yield_total": count / 14, "what_if": TABLE}
    [reason] = audit(measured, PREFS.audit.model_copy(update={"min_yield": 0.35}))
    assert reason.endswith(
        "; with prefs.min_chosen_score: 6, 5 of 14 prompts would make a pair, 1 or more for each emotion"
    )
