"""Laws of params.yaml: strict, typed, and every error names the key, what it got and what is accepted."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from emotune.core.errors import InputError
from emotune.core.sections import check, read_yaml
from emotune.runs.params import Params, parse

FILE = Path(__file__).resolve().parents[2] / "params.yaml"


def parsed(*changes: tuple[str, Any], without: str = "") -> Params:
    """The repository's params.yaml with dotted keys set, and one left out."""
    content = read_yaml(FILE)
    for key, value in changes:
        *above, last = key.split(".")
        section: Any = content
        for name in above:
            section = section[name]
        section[last] = value
    if without:
        *above, last = without.split(".")
        section = content
        for name in above:
            section = section[name]
        del section[last]
    return check(Params, content, "params.yaml")


def error(*changes: tuple[str, Any], without: str = "") -> str:
    with pytest.raises(InputError) as caught:
        parsed(*changes, without=without)
    return str(caught.value)


def test_the_repositorys_params_are_valid() -> None:
    # Their values are the user's: no test of ours may fail because one was turned.
    assert isinstance(parse(FILE), Params)


def test_reward_weights_is_the_last_key_of_the_file() -> None:
    # `dvc exp run -S` rewrites the list as a block; as the last key it moves nothing below it.
    whole = YAML().load(FILE.read_text(encoding="utf-8"))
    assert list(whole)[-1] == "reward"
    assert list(whole["reward"])[-1] == "weights"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sft.learning_rat", 1e-4, "params.yaml: unknown key sft.learning_rat; the nearest is sft.learning_rate"),
        ("sft.lora.rnak", 8, "params.yaml: unknown key sft.lora.rnak; the nearest is sft.lora.rank"),
        ("rewards", {}, "params.yaml: unknown key rewards; the nearest is reward"),
        ("reward.length.lo", 5, "params.yaml: unknown key reward.length.lo; the nearest is reward.length.low"),
        (
            "reward.weights",
            [1.0],
            "params.yaml: reward.weights must be three numbers >= 0 (emotion, length, gibberish), not all 0; got [1.0]",
        ),
        (
            "reward.weights",
            [0.5, -0.1, 0.6],
            "params.yaml: reward.weights must be three numbers >= 0 (emotion, length, gibberish), not all 0; "
            "got [0.5, -0.1, 0.6]",
        ),
        (
            "reward.weights",
            [0, 0, 0],
            "params.yaml: reward.weights must be three numbers >= 0 (emotion, length, gibberish), not all 0; "
            "got [0.0, 0.0, 0.0]",
        ),
        (
            "reward.weights",
            [0.5, float("nan"), 0.5],
            "params.yaml: reward.weights.1: input should be a finite number, got NaN",
        ),
        (
            "template",
            "out_inst_unii",
            "params.yaml: template: input should be 'in_inst', 'out_inst', 'in_inst_uni' or 'out_inst_uni', "
            'got "out_inst_unii"',
        ),
        (
            "generation.engine",
            "server",
            "params.yaml: generation.model must name what the server serves where engine is",
        ),
        ("prefs.audit.min_yield", 1.5, "params.yaml: prefs.audit.min_yield: input should be less than or equal to 1"),
        ("sft.lora.rank", 0, "params.yaml: sft.lora.rank: input should be greater than or equal to 1, got 0"),
        ("sft.lora.rank", 1.5, "params.yaml: sft.lora.rank: input should be a valid integer, got 1.5"),
        ("sft.lora.rank", "8", 'params.yaml: sft.lora.rank: input should be a valid integer, got "8"'),
        ("sft.lora.rank", True, "params.yaml: sft.lora.rank: input should be a valid integer, got true"),
        ("sft.lora.rslora", 1, "params.yaml: sft.lora.rslora: input should be a valid boolean, got 1"),
        ("sft.lora.dropout", 1.0, "params.yaml: sft.lora.dropout: input should be less than 1, got 1.0"),
        ("sft.learning_rate", "2e-5", 'params.yaml: sft.learning_rate: input should be a valid number, got "2e-5"'),
        ("sft.learning_rate", 0, "params.yaml: sft.learning_rate: input should be greater than 0, got 0"),
        ("sft", None, "params.yaml: sft: input should be an object, got null"),
        (
            "sft.lora.target_modules",
            ["q_proj", "lm_head"],
            "params.yaml: sft.lora.target_modules must be all-linear or names of linear layers such as q_proj, v_proj; "
            "got ['q_proj', 'lm_head']",
        ),
        ("baseline.ways", ["few-shot"], "params.yaml: baseline.ways must name plain, which every table begins with, "),
        ("baseline.ways", ["plain", "plain"], "params.yaml: baseline.ways must name plain, "),
        ("baseline.ways", ["plain", "two-shot"], "params.yaml: baseline.ways.1: input should be 'plain', 'zero-shot' "),
        (
            "baseline.instruction",
            "Be kind.",
            "params.yaml: baseline.instruction must hold {emotion}, of others {emotion} alone, and a brace twice; ",
        ),
        ("baseline.instruction", "{emotion} {reply}", "params.yaml: baseline.instruction must hold {emotion}, "),
        ("baseline.instruction", "{emotion} {", "params.yaml: baseline.instruction must hold {emotion}, "),
        ("baseline.instruction", "{emotion.x} {emotion}", "params.yaml: baseline.instruction must hold {emotion}, "),
        ("baseline.example", "{said}", "params.yaml: baseline.example must hold {said} and {reply}, "),
        ("data.source", "folder", "params.yaml: data.path must be set where source is folder, got null"),
        ("data.source", "hub", "params.yaml: data.name must be set where source is hub, got null"),
        ("data.neutral", "none", "params.yaml: data.neutral must be one of labels ['neutral', 'anger', "),
        ("data.labels", ["neutral", "joy", "joy"], "params.yaml: data.labels must name each emotion once, got "),
        (
            "pretrain.hidden_size",
            100,
            "params.yaml: pretrain.hidden_size must be a multiple of 2 x heads = 8, got 100",
        ),
        (
            "prefs.sampling.min_new_tokens",
            21,
            "params.yaml: prefs.sampling.min_new_tokens must be at most max_new_tokens = 20, got 21",
        ),
        (
            "prefs.sampling.guidance",
            -0.5,
            "params.yaml: prefs.sampling.guidance: input should be greater than or equal to 0, got -0.5",
        ),
        ("reward.length.low", 90, "params.yaml: reward.length.low must be below high = 90.0, got 90.0"),
    ],
)
def test_a_wrong_value_is_one_line_with_key_and_value(key: str, value: Any, message: str) -> None:
    found = error((key, value))
    assert found.startswith(message)
    assert "\n" not in found


def test_a_missing_key_is_named() -> None:
    assert error(without="dpo.beta") == "params.yaml: dpo.beta is missing"


def test_every_error_of_the_file_is_told_at_once() -> None:
    assert error(("sft.epochs", 0), ("sft.epoch", 3), without="dpo.beta").splitlines() == [
        "params.yaml: sft.epochs: input should be greater than 0, got 0",
        "params.yaml: unknown key sft.epoch; the nearest is sft.epochs",
        "params.yaml: dpo.beta is missing",
    ]


@pytest.mark.parametrize("kind", ["emotion_judge", "gibberish_judge"])
def test_the_judge_that_rewards_cannot_evaluate(kind: str) -> None:
    judge = {"name": "someone/texts", "revision": "0" * 40, "labels": None}
    found = error(*((f"{part}.{kind}.{key}", judge[key]) for part in ("reward", "evaluate") for key in judge))
    assert found.startswith(f"params.yaml: reward.{kind} and evaluate.{kind} must differ: ")
    assert found.endswith("got 'someone/texts' for both")
    # Two embedded judges have the same name and are not the same judge.
    assert getattr(parsed().reward, kind).name == getattr(parsed().evaluate, kind).name


def test_a_judge_of_emotions_has_a_tau_of_0_or_more_and_one_of_gibberish_has_none() -> None:
    assert parsed(("evaluate.emotion_judge.tau", None)).evaluate.emotion_judge.tau is None
    assert parsed(("reward.emotion_judge.tau", 1)).reward.emotion_judge.tau == 1.0
    found = error(("reward.emotion_judge.tau", -0.5), ("evaluate.gibberish_judge.tau", 1))
    assert "reward.emotion_judge.tau: input should be greater than or equal to 0, got -0.5" in found
    assert "unknown key evaluate.gibberish_judge.tau" in found


def test_no_server_guides() -> None:
    served = [("generation.engine", "server"), ("generation.model", "sft")]
    found = error(*served, ("prefs.sampling.guidance", 1.5))
    assert found.startswith("params.yaml: prefs.sampling.guidance must be 1 where generation.engine is server: ")
    assert found.endswith("; got 1.5")
    # Evaluation samples here, whoever samples the candidates.
    assert parsed(*served, ("evaluate.sampling.guidance", 1.5)).evaluate.sampling.guidance == 1.5


def test_a_whole_number_is_accepted_for_a_float() -> None:
    alpha = parsed(("sft.lora.alpha", 32)).sft.lora.alpha
    assert alpha == 32.0
    assert isinstance(alpha, float)


@pytest.mark.parametrize("written", ["2e-05", "2e-5", "0.00002", "2.0E-5"])
def test_a_number_with_an_exponent_arrives_as_a_float(written: str, tmp_path: Path) -> None:
    # `dvc exp run -S sft.learning_rate=2e-5` writes 2e-05, which YAML 1.1 reads as a string.
    text = FILE.read_text(encoding="utf-8")
    changed = tmp_path / "params.yaml"
    changed.write_text(
        re.sub(r"(?m)(^sft:\n(?:  .*\n)*?  learning_rate: ).*", rf"\g<1>{written}", text), encoding="utf-8"
    )
    assert parse(changed).sft.learning_rate == 2e-5


@pytest.mark.parametrize("value", ["yes", "off"])
def test_yes_and_off_are_words(value: str) -> None:
    # YAML 1.1 reads them as booleans.
    assert YAML(typ="safe", pure=True).load(io.StringIO(f"a: {value}")) == {"a": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"params\.yaml:3: not YAML: found duplicate key \"a\""),
        ("a: 1\nb: [1, 2\n", r"params\.yaml:3: not YAML: "),
        ("a: 1\n\tb: 2\n", r"params\.yaml:2: not YAML: "),
        ("a: 1\n\x00b: 2\n", r"params\.yaml: not YAML: "),
        ("- 1\n", r"params\.yaml: expected a mapping of sections, found CommentedSeq|list"),
        ("", r"params\.yaml: expected a mapping of sections, found NoneType"),
    ],
)
def test_broken_yaml_names_file_and_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        parse(path)


def test_a_file_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.yaml: no such file"):
        parse(tmp_path / "gone.yaml")


def test_a_date_is_refused_under_its_key(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(FILE.read_text(encoding="utf-8").replace("beta: 0.1", "beta: 2026-01-01"), encoding="utf-8")
    with pytest.raises(InputError, match=r'dpo\.beta: input should be a valid number, got "2026-01-01"'):
        parse(path)


def test_what_was_loaded_cannot_be_changed() -> None:
    whole = parse(FILE)
    with pytest.raises(ValidationError, match="frozen"):
        whole.sft.learning_rate = 1.0  # type: ignore[misc]


def test_who_learns_from_votes_on_validation_contexts_is_not_measured_on_these() -> None:
    told = "evaluate.split must be test where prefs.source is votes or both"
    assert told in error(("evaluate.split", "validation"), ("prefs.source", "both"))
    assert told in error(("evaluate.split", "validation"), ("reward_model.pairs", ["contrast", "votes@1"]))
    assert parsed(("evaluate.split", "test"), ("prefs.source", "both")).prefs.source == "both"
