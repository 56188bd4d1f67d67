"""Laws of the page of `emotune report --html` in instruct/, by its text and in a real browser."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from emotune.core import records
from emotune.faces import charts, cli

EVIL = "<script>document.title='taken'</script></style>&amp;"
MODELS = {"zero_shot": (1000.0, 0.0), "few_shot": (100.0, 0.25), "sft": (10.0, 0.75)}


def measured(perplexity: float, exact: float) -> dict[str, Any]:
    values = {
        "perplexity": {"value": perplexity, "low": perplexity / 2, "high": perplexity * 2},
        "exact_match": {"value": exact, "low": 0.0, "high": 1.0},
    }
    return {"overall": values, "tasks": {"say": values | {"rows": 7}}, "rows": 1234, "shots_mean": 2.5}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like instruct/ after a run, as the working directory."""
    test = {"difference": -90.5, "low": -120.0, "high": -60.0, "p": 0.002}
    compared = {name: measured(*values) for name, values in MODELS.items()}
    compared["paired"] = {f"{name}_to_sft": {"perplexity": test} for name in ("few_shot", "zero_shot")}
    compared["published"] = {"zero_shot": 5.45, "few_shot": 4.74, "sft": 10.0}
    records.write_metrics(tmp_path / "metrics/compare.json", compared)
    split = {"rows": 40, "with_input": 20, "exact": 10, "tasks": {"say": 40}}
    rows = dict.fromkeys(("train", "validation", "test"), split)
    records.write_metrics(tmp_path / "metrics/rows.json", rows | {"dropped": {"too_long": 3}})
    (tmp_path / "metrics/learning_curve.csv").write_text("rows,validation_perplexity\n12,9.5\n24,4.25\n")
    (tmp_path / "metrics/sft_history.csv").write_text("step,loss,eval_loss,eval_perplexity\n1,3,,\n9,2,1.5,4.48\n")
    asked = {"task": "say", "input": "A: Hi.\nB: Ho.", "zero_shot": EVIL, "few_shot": ""}
    right = {2: "i say 2"}
    own = [{"instruction": f"Say {n}. {EVIL}", "output": f"I say {n}!"} for n in range(31)]
    answers = [asked | row | {"sft": right.get(n, "W" * 200)} for n, row in enumerate(own)]
    records.write_jsonl(tmp_path / "data/replies/side_by_side.jsonl", answers)
    spent = {"stage": "instruct/sft", "seconds": 61.5, "peak_memory_bytes": 1e9, "tokens_per_second": None}
    records.write_jsonl(tmp_path / ".work/costs.jsonl", [spent | {"failed": None}])
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / "instruct" / name, tmp_path)
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def written() -> str:
    assert cli.main(["report", "--html", "report.html"]) == 0
    return Path("report.html").read_text("utf-8")


def section(html: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', html, re.DOTALL)
    assert found, name
    return found[0]


def cells(html: str, head: str) -> list[str]:
    """The text of the cells in the first row of this head."""
    row = re.search(rf'<tr><th scope="row">{head}</th>.*?</tr>', html)
    assert row, head
    return [re.sub(r"<[^>]*>", " ", cell).strip() for cell in re.findall(r"<td.*?</td>", row[0])]


def test_models_steps_and_tasks_stand_there_with_intervals_and_what_was_published(here: Path) -> None:
    html = written()
    models = section(html, "models")
    assert cells(models, "few-shot") == ["100  [50, 200]", "0.250  [0.000, 1.000]", "4.74"]
    assert cells(models, "zero-shot → sft") == ["-90.5  [-120, -60]", "0.002"]
    assert "2.5 on the mean" in models
    assert "same 1,234 held-out rows" in models
    assert cells(section(html, "tasks"), "say") == ["7", "1000", "0.000", "100", "0.250", "10", "0.750"]
    rows = section(html, "rows")
    assert cells(rows, "with an input") == ["20", "20", "20"]
    assert "Dropped: too_long 3." in rows
    assert cells(section(html, "cost"), "sft")[2:4] == ["61.5", "1.00"]


def test_a_bar_is_as_long_as_the_logarithm_of_its_value(here: Path) -> None:
    bars = re.findall(r'class="bar( published)?".*?width="([\d.]+)".*?<title>(.*?):', section(written(), "models"))
    assert [name for _, _, name in bars] == [
        name for model in ("zero-shot", "few-shot", "sft") for name in (model, f"{model}, published")
    ]
    widths = {name: float(width) for _, width, name in bars}
    assert widths["zero-shot"] == pytest.approx(3 * widths["sft"], abs=0.2)
    assert widths["few-shot"] == pytest.approx(2 * widths["sft"], abs=0.2)
    assert widths["sft, published"] == widths["sft"] > widths["zero-shot, published"] > widths["few-shot, published"]


def test_the_axis_of_bars_has_powers_of_ten_or_what_is_between(here: Path) -> None:
    assert charts.powers(5.5) == [1, 2, 5, 10]
    assert charts.powers(10.5) == [1, 2, 5, 10, 20, 50, 100]
    assert charts.powers(1000) == [1, 10, 100, 1000]
    assert charts.powers(2e7) == [1, 100, 1e4, 1e6, 1e8]
    place = charts.log_scale(1, 100, 0, 10)
    assert [place(1), place(10), place(100)] == pytest.approx([0, 5, 10])


def test_the_learning_curve_has_a_point_for_each_model_of_it(here: Path) -> None:
    html = section(written(), "curve")
    assert re.findall(r"<title>(validation, .*?)</title>", html) == [
        "validation, rows 12: 9.5",
        "validation, rows 24: 4.25",
        "validation, step 9: 4.48",
        "validation, step 9: 1.5",
    ]
    assert "perplexity against train rows: validation 9.5 at rows 12, 4.25 at rows 24" in html


def test_thirty_rows_stand_with_the_replies_of_all_models_and_a_right_one_is_marked(here: Path) -> None:
    html = section(written(), "replies")
    assert "The first 30 of 31 held-out rows" in html
    assert html.count("<details") == 30
    assert EVIL not in html
    assert html.count("A: Hi.\nB: Ho.") == 30
    third = html.split("<details")[3]
    said = re.findall(r'data-label="(.*?)"><span>(.*?)</span>', third)
    assert said[1:] == [("few-shot", "(empty)"), ("sft", "i say 2")]
    assert (html.count("✓</span>"), third.count("✓</span>")) == (1, 1)


def test_what_is_absent_or_of_another_run_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Stale" in section(written(), "models")
    shutil.rmtree("data")
    for name in ("compare.json", "learning_curve.csv", "sft_history.csv"):
        (here / "metrics" / name).unlink()
    html = written()
    for name, path in (
        ("models", "metrics/compare.json"),
        ("tasks", "metrics/compare.json"),
        ("curve", "metrics/sft_history.csv"),
        ("replies", "data/replies/side_by_side.jsonl"),
    ):
        assert f"<code>{path}</code> is absent." in section(html, name)
    shutil.rmtree("metrics")
    assert cli.main(["report", "--html", "report.html"]) == 2
    assert "metrics holds no metrics; `make instruct` writes them" in capsys.readouterr().err


def test_the_page_loads_nothing_runs_no_script_and_fits_a_phone(here: Path, page: Any) -> None:
    written()
    page.goto((here / "report.html").as_uri())
    assert page.title().startswith("emotune · instructions from")
    assert page.locator("script, img, main a").count() == 0
    assert page.locator("details").first.get_by_text("W" * 200).is_visible()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
