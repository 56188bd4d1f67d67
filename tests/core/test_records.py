"""Laws of the files: equal values are equal bytes, whole or not at all, and errors name file and line."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emotune.core import records
from emotune.core.dialogue import Dialogue, Turn, to_record
from emotune.core.errors import InputError


def test_json_has_sorted_keys_six_decimals_and_plain_letters(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "metrics.json"
    records.write_json(path, {"b": 1 / 3, "a": {"z": -0.0000001, "é": [2.0, None]}})
    lines = [
        "{",
        '  "a": {',
        '    "z": 0.0,',
        '    "é": [',
        "      2.0,",
        "      null",
        "    ]",
        "  },",
        '  "b": 0.333333',
        "}",
    ]
    assert path.read_text(encoding="utf-8").splitlines() == lines
    assert records.read_json(path) == {"a": {"z": 0.0, "é": [2.0, None]}, "b": 0.333333}


def test_dvc_shows_no_number_of_a_metrics_file(tmp_path: Path) -> None:
    measured = {"train": {"loss": 0.5, "rows": 7}, "labels": ["joy"]}
    records.write_metrics(tmp_path / "sft.json", measured)
    records.write_json(tmp_path / "headline.json", measured["train"])
    assert records.read_metrics(tmp_path / "sft.json") == measured
    assert records.read_metrics(tmp_path / "headline.json") == measured["train"]  # as they were before
    command = [Path(sys.executable).with_name("dvc"), "metrics", "show", "--json", "sft.json", "headline.json"]
    shown = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout)[""]["data"]
    assert {path: content["data"] for path, content in shown.items()} == {
        "sft.json": {},
        "headline.json": measured["train"],
    }


def test_jsonl_keeps_the_order_of_rows_and_sorts_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"b": 2.00000049, "a": "line\nbreak"}, {"a": 1}]
    assert records.write_jsonl(path, rows) == 2
    assert path.read_bytes() == b'{"a": "line\\nbreak", "b": 2.0}\n{"a": 1}\n'
    assert list(records.read_jsonl(path)) == [{"a": "line\nbreak", "b": 2.0}, {"a": 1}]


def test_csv_has_the_named_columns_and_empty_cells_for_what_is_absent(tmp_path: Path) -> None:
    path = tmp_path / "plot.csv"
    records.write_csv(path, ["step", "loss"], [{"step": 1, "loss": 2 / 3, "other": 9}, {"step": 2}])
    assert path.read_bytes() == b"step,loss\n1,0.666667\n2,\n"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_is_refused_and_the_old_file_stays(tmp_path: Path, number: float) -> None:
    path = tmp_path / "metrics.json"
    records.write_json(path, {"loss": 1.0})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        records.write_json(path, {"accuracy": 0.5, "loss": number})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_breaks_off_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    records.write_jsonl(path, [{"old": 1}])

    def rows() -> Iterator[dict[str, Any]]:
        yield {"new": 1}
        assert path.read_bytes() == b'{"old": 1}\n'
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_jsonl(path, rows())
    assert path.read_bytes() == b'{"old": 1}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_breaks_off_leaves_the_old_one_and_no_part_of_the_new(tmp_path: Path) -> None:
    out = tmp_path / "dialogues"
    out.mkdir()
    (out / "old").touch()

    def fill() -> None:
        with records.replacing_folder(out) as folder:
            (folder / "new").touch()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dialogues", "old"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"a": 1}\n\n{"a": 2\n', r"rows\.jsonl:3: not JSON: "),
        (b'{"a": 1}\n[1, 2]\n', r"rows\.jsonl:2: expected a JSON object, found list"),
    ],
)
def test_an_error_in_jsonl_names_file_and_line(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=found):
        list(records.read_jsonl(path))


def test_an_error_in_json_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    path.write_text('{\n  "name": embedded\n}\n')
    with pytest.raises(InputError, match=r"base\.json:2: not JSON: "):
        records.read_json(path)
    with pytest.raises(InputError, match=r"absent\.json: no such file"):
        records.read_json(tmp_path / "absent.json")
    with pytest.raises(InputError, match=r"absent\.jsonl: no such file"):
        list(records.read_jsonl(tmp_path / "absent.jsonl"))


def test_dialogues_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    talk = Dialogue("mine/1", (Turn("user", "Hi!", "happiness"), Turn("assistant", "Hello “you”…", "neutral")))
    records.write_jsonl(path, [to_record(talk)])
    assert records.read_dialogues(path) == [talk]


def test_a_digest_depends_on_names_and_contents_and_on_nothing_else(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> str:
        for file, content in files.items():
            path = tmp_path / name / file.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return records.digest(tmp_path / name)

    digest = folder("one", b="2", a__c="1")
    assert digest == folder("two", a__c="1", b="2")
    assert digest != folder("three", b="2", a__c="3")
    assert digest != folder("four", b="2", a__d="1")
    assert digest != folder("five", b="2", a__c="1", e="")
    assert records.digest(tmp_path / "one" / "b") == records.digest(tmp_path / "two" / "b")
    assert records.digests(base=tmp_path / "one") == {"base": digest}
