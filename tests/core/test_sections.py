"""Laws of sections: a stage sees what it declares and nothing else, and dvc.yaml can name it."""

import pytest

from emotune.core.errors import InputError
from emotune.core.sections import Section, check, names, part


class Lora(Section):
    rank: int
    alpha: float


class Sft(Section):
    epochs: float
    lora: Lora


class Judge(Section):
    name: str
    labels: dict[str, str] | None


class Whole(Section):
    template: str
    sft: Sft
    judge: Judge | None


class Rank(Section):
    rank: int


class OneOfSft(Section):
    lora: Rank


class Narrow(Section):
    """A stage that reads the template, the judge, and of sft the rank alone."""

    template: str
    sft: OneOfSft
    judge: Judge | None


WHOLE = {
    "template": "in_inst",
    "sft": {"epochs": 1.0, "lora": {"rank": 8, "alpha": 16.0}},
    "judge": {"name": "embedded", "labels": {"LABEL_0": "clean"}},
}


def test_a_stage_reads_what_it_declares_and_nothing_else() -> None:
    p = part(Narrow, check(Whole, WHOLE, "params.yaml"))
    assert (p.template, p.sft.lora.rank) == ("in_inst", 8)
    assert p.judge == Judge(name="embedded", labels={"LABEL_0": "clean"})
    with pytest.raises(AttributeError, match="epochs"):
        _ = p.sft.epochs  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="alpha"):
        _ = p.sft.lora.alpha  # type: ignore[attr-defined]


def test_the_dump_has_the_declared_parts_only() -> None:
    assert part(Narrow, check(Whole, WHOLE, "params.yaml")).model_dump(mode="json") == {
        "template": "in_inst",
        "sft": {"lora": {"rank": 8}},
        "judge": {"name": "embedded", "labels": {"LABEL_0": "clean"}},
    }


def test_a_section_that_is_null_stays_null() -> None:
    assert part(Narrow, check(Whole, WHOLE | {"judge": None}, "params.yaml")).judge is None


def test_what_is_declared_has_dotted_names_and_a_section_that_is_declared_whole_has_one() -> None:
    assert names(Narrow, Whole) == ["template", "sft.lora.rank", "judge"]
    assert names(Whole, Whole) == ["template", "sft", "judge"]


def test_a_key_that_params_yaml_has_not_cannot_be_declared() -> None:
    class Unknown(Section):
        templates: str

    with pytest.raises(KeyError, match="templates"):
        names(Unknown, Whole)
    with pytest.raises(KeyError, match="templates"):
        part(Unknown, check(Whole, WHOLE, "params.yaml"))


def test_all_that_is_wrong_is_told_at_once_each_with_its_key_and_the_nearest() -> None:
    wrong = {"template": 3, "sft": {"epochs": 1, "lora": {"rnak": 8, "alpha": "16"}}, "judge": None}
    with pytest.raises(InputError) as caught:
        check(Whole, wrong, "params.yaml")
    assert str(caught.value).splitlines() == [
        "params.yaml: template: input should be a valid string, got 3",
        "params.yaml: sft.lora.rank is missing",
        'params.yaml: sft.lora.alpha: input should be a valid number, got "16"',
        "params.yaml: unknown key sft.lora.rnak; the nearest is sft.lora.rank",
    ]
