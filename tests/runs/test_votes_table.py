"""Laws of the tables of votes: a model is called by its name alone only where that names one that is here."""

from conftest import voted
from emotune.runs import tables

HEADS = ("How often people preferred", "Strengths", "Is the judge right?", "Do people agree?")


def test_the_stronger_stands_first_and_each_question_has_its_table() -> None:
    preferred, strengths, judge, agreement = tables.votes(voted()).values()
    assert [head.startswith(told) for head, told in zip(tables.votes(voted()), HEADS, strict=True)] == [True] * 4
    assert preferred[1] == ["dpo to sft", "10", "0.750 [0.400, 0.900]", "6", "2", "1", "1"]
    assert strengths[1:] == [["dpo", "0.50 [-0.10, 1.00]"], ["sft", "-0.50 [-1.00, 0.10]"]]
    assert judge[1] == ["evaluating judge", "0.750 [0.400, 0.900]", "7", "1"]
    assert agreement[1] == ["voters (Krippendorff)", "0.600 [0.200, 1.000]"]
    assert len(tables.votes(voted(agreement=None))) == 3


def test_a_model_that_is_not_here_or_one_of_two_of_a_name_goes_by_its_adapter_too() -> None:
    gone = voted()
    gone["models"][1]["here"] = False
    assert tables.votes(gone)["Strengths (Bradley–Terry, ln)"][2][0] == "sft eeeeeeee"
    twice = voted()
    twice["models"][1]["model"] = "dpo"
    [(_, preferred), *_] = tables.votes(twice).items()
    assert preferred[1][0] == "dpo dddddddd to dpo eeeeeeee"


def test_groups_are_told_where_there_are_several() -> None:
    apart = voted()
    apart["strengths"][0]["group"] = 1
    assert tables.votes(apart)["Strengths (Bradley–Terry, ln)"] == [
        ["model", "strength", "group"],
        ["dpo", "0.50 [-0.10, 1.00]", "1"],
        ["sft", "-0.50 [-1.00, 0.10]", "2"],
    ]
