"""Laws of the files: equal judges are equal bytes, in any process, and nothing else is ever loaded."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import skops.io
from sklearn.linear_model import LinearRegression
from test_emotion import LABELS, NEW, TEXTS

from emotune.core.errors import InputError
from emotune.judges import files
from emotune.judges.emotion import RECIPES, train_emotion
from emotune.judges.gibberish import train_gibberish
from emotune.judges.params import EmotionChoice, JudgeChoice


def trained(kind: str) -> Any:
    return train_gibberish(TEXTS, 0) if kind == "gibberish" else train_emotion(TEXTS, LABELS, kind, 0)


@pytest.mark.parametrize("kind", [*RECIPES, "gibberish"])
def test_a_saved_judge_says_the_same_and_training_again_writes_the_same_bytes(kind: str, tmp_path: Path) -> None:
    estimator = trained(kind)
    files.save(estimator, tmp_path / "first.skops")
    files.save(trained(kind), tmp_path / "second.skops")
    assert (tmp_path / "first.skops").read_bytes() == (tmp_path / "second.skops").read_bytes()
    assert files.load(tmp_path / "first.skops")(NEW) == files.verdicts_of(estimator)(NEW)


def test_a_judge_of_emotions_is_divided_as_far_as_its_section_says_or_else_the_judges_stage(tmp_path: Path) -> None:
    path = tmp_path / "evaluate.skops"
    files.save(trained("words"), path)
    plain = files.load(path)
    choice = JudgeChoice(name="embedded", revision=None, labels=None)
    # What needs no prior asks for none; a prior is not made up.
    assert files.open_judge(path, choice)(NEW) == plain(NEW)
    assert files.open_judge(path, EmotionChoice(**dict(choice), tau=0))(NEW) == plain(NEW)
    with pytest.raises(InputError, match=r"evaluate\.prior\.json: no such file"):
        files.open_judge(path, EmotionChoice(**dict(choice), tau=None))
    prior = {"happiness": 0.01, "sadness": 0.495, "neutral": 0.495}
    files.save_prior(replace(plain, prior=prior, tau=0.7), path)
    for asked, tau in ((None, 0.7), (1.3, 1.3)):
        assert files.open_judge(path, EmotionChoice(**dict(choice), tau=asked)).tau == tau
    divided = files.open_judge(path, EmotionChoice(**dict(choice), tau=1.5))
    assert {label for label, _ in divided(NEW)} == {"happiness"} != {label for label, _ in plain(NEW)}
    assert divided.undivided(NEW) == plain(NEW)


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    files.save(trained("gibberish"), tmp_path / "here.skops")
    code = (
        "from pathlib import Path; from emotune.judges import files, gibberish; "
        f"files.save(gibberish.train_gibberish({TEXTS!r}, 0), Path({str(tmp_path / 'there.skops')!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "here.skops").read_bytes() == (tmp_path / "there.skops").read_bytes()


def test_a_file_of_anything_else_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.skops: no such file"):
        files.load(tmp_path / "absent.skops")
    skops.io.dump({"model": LinearRegression(), "open": Path.unlink}, tmp_path / "bad.skops")
    with pytest.raises(InputError, match=r"bad\.skops: holds .*unlink.*accepted: emotune"):
        files.load(tmp_path / "bad.skops")


def test_no_judge_waits_for_pandas_which_can_be_had_afterwards() -> None:
    code = "import sys; from emotune.judges import files; assert 'pandas' not in sys.modules; import pandas"
    subprocess.run([sys.executable, "-c", code], check=True)
