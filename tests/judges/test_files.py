"""Laws of the files: equal judges are equal bytes, in any process, and nothing else is ever loaded."""

import subprocess
import sys
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


def trained(kind: str) -> Any:
    return train_gibberish(TEXTS, 0) if kind == "gibberish" else train_emotion(TEXTS, LABELS, kind, 0)


@pytest.mark.parametrize("kind", [*RECIPES, "gibberish"])
def test_a_saved_judge_says_the_same_and_training_again_writes_the_same_bytes(kind: str, tmp_path: Path) -> None:
    estimator = trained(kind)
    files.save(estimator, tmp_path / "first.skops")
    files.save(trained(kind), tmp_path / "second.skops")
    assert (tmp_path / "first.skops").read_bytes() == (tmp_path / "second.skops").read_bytes()
    assert files.load(tmp_path / "first.skops")(NEW) == files.verdicts_of(estimator)(NEW)


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
