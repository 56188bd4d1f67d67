"""Laws of the report, on metrics that the project's own measuring wrote of a few rows."""

import random
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from conftest import STAGES
from emotune.core import records
from emotune.core.dialogue import Turn
from emotune.core.errors import InputError
from emotune.evaluation import measures
from emotune.evaluation.answers import Answers
from emotune.faces import cli, report
from emotune.preferences.candidates import Prompt
from emotune.preferences.outcomes import Outcome
from emotune.preferences.pairs import measure, rows
from emotune.preferences.selection import Candidate, Pair
from emotune.runs import lock, tables
from emotune.runs.params import parse
from emotune.stages import judges

PROJECT = Path(__file__).parents[2]
LABELS = ["neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise"]


def answers(skill: float) -> Answers:
    """Rows of a model that meets the emotion it is asked for with probability `skill`."""
    rng = random.Random(3)
    rows = [
        {
            "dialogue": f"d{n % 10}",
            "emotion": LABELS[n % 7],
            "judged": (label := LABELS[n % 7] if rng.random() < skill else rng.choice(LABELS)),
            "judged_undivided": label,
            "reply": f"Well, that is number {n}.",
            "context": ["How are you?"],
            "trimmed": False,
            "ended": True,
            "gibberish": "clean",
            "reference": "I am fine.",
            "reference_nats": 6.0,
            "reference_tokens": 4,
        }
        for n in range(70)
    ]
    return Answers(rows, rows)


def prefs() -> dict[str, object]:
    """Two prompts: one made a pair at the second attempt, one was given up after 30."""
    chosen = Candidate("Oh, how lovely!", "happiness", 0.9, "clean", 1.0, 9.0, 2.0, 10.0, 9.5)
    rejected = Candidate("No.", "neutral", 0.9, "clean", 1.0, 0.0, 2.0, 10.0, 2.25)
    hello = (Turn("user", "Hi!", "neutral"),)
    asked = [Prompt(f"d{n}", f"d{n}", hello, "happiness", "Hi!", (1,)) for n in (0, 1)]
    outcomes = [
        Outcome(Pair(chosen, rejected), 2, ("emotion",)),
        Outcome(None, 30, ("emotion",) * 30),
    ]
    return measure(asked, outcomes, rows(asked, outcomes), LABELS, [], 5)


def write_metrics(folder: Path, prompts: Mapping[str, float] | None = None) -> None:
    """The files that a report reads, of models that meet an emotion more and more often, and of `prompts` by skill."""
    p = parse(PROJECT / "params.yaml").evaluate.model_copy(update={"resamples": 100})
    told = {way: answers(skill) for way, skill in (prompts or {}).items()}
    rows = {"baseline": answers(0.1), **told, "sft": answers(0.5), "dpo": answers(0.9)}
    by_human = answers(0.7).replies
    measured = measures.side_by_side(rows, by_human, LABELS, "neutral", p)
    for value, name in enumerate((*rows, "human"), start=1):
        figure = {"value": value / 10, "low": value / 10 - 0.05, "high": value / 10 + 0.05}
        measured[name]["replies"]["hits_at_1"] = figure
        if name != "human":
            measured[name]["control"]["joint"] = figure
    for test in measured["paired"].values():
        test["replies"]["hits_at_1"] = {"difference": 0.1, "low": 0.05, "high": 0.15, "p": 0.002}
    records.write_metrics(folder / "evaluate.json", measured)
    records.write_metrics(folder / "prefs.json", prefs())
    found = judges.measure(lambda texts: [("anger", 0.9) for _ in texts], ["No!", "Oh."], ["anger", "fear"], LABELS)
    matched = {"hits_at_1": 0.7, "mrr": 0.8, "chance": 0.1}
    records.write_metrics(folder / "judges.json", {"evaluate_emotion": found, "fit": matched})


def write_lock(folder: Path, **params: object) -> None:
    """A dvc.lock that vouches for the metrics in a folder, of stages that had these params, each after the last."""
    files = {"evaluate": "evaluate", "generate_prefs": "prefs", "judges": "judges"}
    entries, deps = {}, []
    for stage in STAGES:
        outs = [{"path": f"models/{stage}", "md5": stage}]
        if stage in files:
            path = f"metrics/{files[stage]}.json"
            outs.append({"path": path, "md5": lock.md5({"": (folder / path).read_bytes()})})
        entries[stage] = {"cmd": "python", "deps": deps, "params": {"params.yaml": params}, "outs": outs}
        deps = [{"path": f"models/{stage}", "md5": stage}]
    # JSON is YAML.
    records.write_json(folder / "dvc.lock", {"schema": "2.0", "stages": entries})


@pytest.fixture
def metrics(tmp_path, monkeypatch):
    """A metrics folder in a folder that looks like the repository to the command line."""
    write_metrics(tmp_path / "metrics")
    (tmp_path / "dvc.yaml").write_bytes((PROJECT / "dvc.yaml").read_bytes())
    write_lock(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path / "metrics"


def filled(page: str, metrics: Path, results: Path) -> str:
    """A page whose tables are written, alone."""
    return report.filled({"README.md": page}, metrics, results)["README.md"]


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert tables.markdown([["run", "why"], ["a", "x | y"]]) == "| run | why |\n| --- | ---: |\n| a | x \\| y |"


def test_the_table_shows_each_model_with_the_interval_behind_its_value(metrics, capsys):
    assert cli.main(["report"]) == 0
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert lines[0].split() == ["majority", "baseline", "sft", "dpo", "human"]
    assert lines[-1].split()[0] == "words"
    sft = records.read_metrics(metrics / "evaluate.json")["sft"]["control"]["macro_accuracy"]
    [control] = (re.split("  +", line) for line in lines if line.startswith("control  "))
    assert control[3] == f"{sft['value']:.3f} [{sft['low']:.3f}, {sft['high']:.3f}]"
    # The majority's answer is a label without a text: no control, no likelihood, no words. The human's is the ceiling.
    assert [re.split("  +", line)[1] for line in lines[-6:]] == ["–"] * 6
    assert (control[1], control[5]) == ("–", "–")


def test_likelihood_stands_in_bits_per_character_too_where_it_was_measured(metrics):
    evaluated = records.read_metrics(metrics / "evaluate.json")
    del evaluated["sft"]["reference"]["bits_per_character"]
    head, *rows = tables.comparison(evaluated, " [{}, {}]")
    # 6 nats over the 10 characters of "I am fine.", the same in every row.
    bits = [row[head.index("bits/char")] for row in rows]
    assert bits == ["–", "0.87 [0.87, 0.87]", "–", "0.87 [0.87, 0.87]", "–"]


def test_a_run_from_before_human_replies_were_judged_has_no_row_of_them(metrics):
    evaluated = records.read_metrics(metrics / "evaluate.json")
    _, *rows = tables.comparison({name: of for name, of in evaluated.items() if name != "human"}, "")
    assert [row[0] for row in rows] == ["majority", "baseline", "sft", "dpo"]


def test_fit_stands_beside_control_and_nowhere_in_a_run_from_before_it_was_measured(metrics):
    evaluated = records.read_metrics(metrics / "evaluate.json")
    head, _, *rows = tables.comparison(evaluated, " [{}, {}]")
    at = head.index("control") + 2
    assert head[at - 1 : at + 2] == ["control of human", "fit", "joint"]
    assert [row[at] for row in rows] == [f"0.{n}00 [0.{n - 1}50, 0.{n}50]" for n in (1, 2, 3, 4)]
    assert rows[-1][at + 1] == "–"
    assert tables.differences(evaluated)[2][5:] == ["+0.100 [+0.050, +0.150]", "0.002"]
    for name in ("baseline", "sft", "dpo", "human"):
        del evaluated[name]["replies"]["hits_at_1"]
        evaluated[name].get("control", {}).pop("joint", None)
    del evaluated["paired"]["sft_to_dpo"]["replies"]["hits_at_1"]
    older, *_ = tables.comparison(evaluated, "")
    assert older == [name for name in head if name not in ("fit", "joint")]
    assert tables.differences(evaluated)[0] == ["", "macro F1", "p", "control", "p"]


@pytest.mark.parametrize(
    ("few", "step", "words"),
    [
        (0.3, "few-shot → sft", "Prompting is not enough here: sft is better in control than few-shot: +0.257 ["),
        (0.45, "few-shot → sft", "Prompting is enough here: sft is not better in control than few-shot: +0.0"),
        (0.02, "zero-shot → sft", "Prompting is not enough here: sft is better in control than zero-shot: +0.271 ["),
    ],
)
def test_prompts_stand_beside_the_models_and_the_report_says_whether_they_are_enough(
    metrics, capsys, few, step, words
) -> None:
    write_metrics(metrics, {"zero-shot": 0.05, "few-shot": few})
    write_lock(metrics.parent)
    cli.main(["report"])
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[0].split() == ["majority", "baseline", "zero-shot", "few-shot", "sft", "dpo", "human"]
    assert max(map(len, lines)) <= 120
    assert words in " ".join(shown.split())
    steps = [row[0] for row in tables.differences(records.read_metrics(metrics / "evaluate.json"))]
    assert steps == ["", step, "baseline → sft", "sft → dpo"]


def test_the_report_fits_in_120_columns(metrics, capsys):
    cli.main(["report"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 120


def test_the_report_shows_what_a_step_changed_and_what_the_pairs_are(metrics, capsys):
    cli.main(["report"])
    shown = capsys.readouterr().out
    test = records.read_metrics(metrics / "evaluate.json")["paired"]["sft_to_dpo"]["control"]["macro_accuracy"]
    assert test["difference"] > 0
    assert f"{test['difference']:+.3f} [{test['low']:+.3f}, {test['high']:+.3f}]" in shown
    assert shown.split("longer one chosen\n")[1].split()[:6] == ["1", "2", "50%", "16.0", "7.25", "100%"]


def test_the_cost_of_each_stage_that_ran_here_stands_in_the_order_of_the_pipeline(metrics, capsys):
    cli.main(["report"])
    assert "Last run of each stage" not in capsys.readouterr().out
    ran = [
        ("sft", 80.0, None),
        ("sft", 61.5, None),
        ("prepare", 2.0, None),
        ("forgotten", 9.0, None),
        ("sft", 3.0, "!"),
    ]
    lines = [
        {"stage": stage, "seconds": seconds, "peak_memory_bytes": 500_000_000, "failed": failed}
        for stage, seconds, failed in ran
    ]
    records.write_jsonl(Path(".work/costs.jsonl"), lines)
    cli.main(["report"])
    shown = capsys.readouterr().out.split("Last run of each stage, and its peak memory\n")[1].splitlines()[:3]
    assert [line.split() for line in shown] == [
        ["prepare", "2.0", "s", "0.50", "GB"],
        ["sft", "61.5", "s", "0.50", "GB"],
        ["all", "63.5", "s"],
    ]


def test_before_the_pipeline_ran_the_report_says_what_is_missing(metrics, capsys):
    (metrics / "evaluate.json").unlink()
    assert cli.main(["report"]) == 2
    assert "metrics/evaluate.json: no such file" in capsys.readouterr().err


def test_what_dvc_lock_vouches_for_is_marked_by_nothing(metrics, capsys):
    cli.main(["report"])
    assert "STALE" not in capsys.readouterr().out
    assert lock.doubts(Path()) == {}


def test_after_a_run_that_stopped_the_tables_of_the_one_before_it_are_marked(metrics, capsys):
    # It wrote its metrics, and refused them: dvc.lock still has those of the run before.
    records.write_json(metrics / "prefs.json", prefs() | {"pairs": 2})
    assert lock.doubts(Path()) == {
        "generate_prefs": "metrics/prefs.json is not that of dvc.lock",
        "dpo": "follows generate_prefs",
        "evaluate": "follows dpo",
    }
    cli.main(["report"])
    shown = capsys.readouterr().out
    assert shown.startswith(
        "dvc.lock does not vouch for what is here of\n"
        "  generate_prefs: metrics/prefs.json is not that of dvc.lock\n"
        "  dpo: follows generate_prefs\n"
        "  evaluate: follows dpo\n\n"
        "(STALE: it may be of another run)\n"
    )
    assert "\nPreference pairs (STALE: it may be of another run)\n" in shown
    assert "same questions (STALE: it may be of another run)\n" in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_stages_that_read_another_model_than_the_one_that_is_here_are_marked(metrics):
    content = records.read_json(Path("dvc.lock"))
    content["stages"]["sft"]["outs"][0]["md5"] = "another"
    records.write_json(Path("dvc.lock"), content)
    assert lock.doubts(Path()) == {
        # In this lock each stage reads what the one before it left.
        "reward_model": "dep models/sft is not what sft left there",
        "generate_prefs": "follows reward_model",
        "dpo": "follows generate_prefs",
        "evaluate": "follows dpo",
    }


def test_params_and_code_that_no_stage_had_are_named(metrics):
    write_lock(Path(), template="in_inst")
    Path("params.yaml").write_text("template: out_inst\n")
    assert lock.doubts(Path())["prepare"] == 'param template is "out_inst", and "in_inst" in dvc.lock'
    write_lock(Path())
    content = records.read_json(Path("dvc.lock"))
    code = {"path": "src/emotune/core", "md5": lock.md5({"deep/a.py": b"1", "b.py": b"2"})}
    content["stages"]["dpo"]["deps"] += [code]
    records.write_json(Path("dvc.lock"), content)
    assert lock.doubts(Path()) == {"dpo": "dep src/emotune/core is not that of dvc.lock", "evaluate": "follows dpo"}
    for path, text in (("deep/a.py", "1"), ("b.py", "2"), ("__pycache__/b.pyc", "3")):
        (Path("src/emotune/core") / path).parent.mkdir(parents=True, exist_ok=True)
        (Path("src/emotune/core") / path).write_text(text)
    assert lock.doubts(Path()) == {}
    del content["stages"]["evaluate"]
    records.write_json(Path("dvc.lock"), content)
    assert lock.doubts(Path()) == {"evaluate": "not in dvc.lock"}


README = """# emotune

<!-- begin:embedded -->
<!-- end:embedded -->

Between the tables.

<!-- begin:embedded-pairs -->
stale
<!-- end:embedded-pairs -->
<!-- begin:embedded-prefs -->
<!-- end:embedded-prefs -->
<!-- begin:embedded-judges -->
<!-- end:embedded-judges -->
"""


def test_readme_blocks_are_filled_and_the_text_around_them_stays(metrics):
    Path("README.md").write_text(README)
    assert cli.main(["report", "--readme", "README.md", "--check"]) == 1
    assert Path("README.md").read_text() == README
    assert cli.main(["report", "--readme", "README.md"]) == 0
    text = Path("README.md").read_text()
    assert text.startswith("# emotune\n\n<!-- begin:embedded -->\n|  | accuracy | weighted F1 | ")
    assert "<!-- end:embedded -->\n\nBetween the tables.\n\n<!-- begin:embedded-pairs -->\n|  | macro F1 | p |" in text
    assert "\n| evaluate emotion | 0.500 | " in text
    assert "stale" not in text
    assert cli.main(["report", "--readme", "README.md", "--check"]) == 0


def test_a_changed_figure_makes_the_readme_stale(metrics, capsys):
    Path("README.md").write_text(README)
    cli.main(["report", "--readme", "README.md"])
    found = records.read_metrics(metrics / "evaluate.json")
    found["dpo"]["replies"]["accuracy"]["value"] -= 0.01
    records.write_metrics(metrics / "evaluate.json", found)
    assert cli.main(["report", "--readme", "README.md", "--check"]) == 1
    assert "README.md is stale" in capsys.readouterr().out


def test_several_pages_are_filled_at_once_and_one_without_a_block_stays(metrics):
    pages = {"README.md": README, "tables.md": README.replace("# emotune", "# Tables"), "prose.md": "No table.\n"}
    for name, page in pages.items():
        Path(name).write_text(page)
    assert cli.main(["report", "--readme", *pages]) == 0
    assert Path("tables.md").read_text() == Path("README.md").read_text().replace("# emotune", "# Tables")
    assert Path("prose.md").read_text() == "No table.\n"
    assert cli.main(["report", "--readme", *pages, "--check"]) == 0


def test_check_names_each_stale_page_of_several_and_no_other(metrics, capsys):
    for name in ("README.md", "stale.md", "stale too.md"):
        Path(name).write_text(README)
    assert cli.main(["report", "--readme", "README.md"]) == 0
    assert cli.main(["report", "--readme", "stale.md", "README.md", "stale too.md", "--check"]) == 1
    told = capsys.readouterr().out
    assert [line.split(" is stale")[0] for line in told.splitlines() if " is stale; " in line] == [
        "stale.md",
        "stale too.md",
    ]
    assert Path("stale.md").read_text() == README


def test_where_one_page_cannot_be_filled_none_is_written(metrics, capsys):
    Path("README.md").write_text(README)
    Path("tiny.md").write_text("<!-- begin:tiny -->\n<!-- end:tiny -->\n")
    assert cli.main(["report", "--readme", "README.md", "tiny.md"]) == 2
    assert "tiny.md: <!-- begin:tiny --> belongs to no run" in capsys.readouterr().err
    assert cli.main(["report", "--readme", "README.md", "absent.md"]) == 2
    assert "--readme absent.md: no such file" in capsys.readouterr().err
    assert Path("README.md").read_text() == README


def test_a_run_on_real_data_has_its_own_blocks(metrics):
    real = metrics / "real/daily-dialog-cpu"
    real.mkdir(parents=True)
    (real / "evaluate.json").write_bytes((metrics / "evaluate.json").read_bytes())
    block = "<!-- begin:{0} -->\n<!-- end:{0} -->\n"
    own, embedded = (
        filled(block.format(name), metrics, Path("benchmarks")) for name in ("daily-dialog-cpu", "embedded")
    )
    assert own == embedded.replace("embedded", "daily-dialog-cpu")


@pytest.mark.parametrize(
    ("readme", "message"),
    [
        ("no block", "no block to fill; one begins with <!-- begin:embedded -->"),
        ("<!-- begin:embedded -->\n", "<!-- begin:embedded --> has no <!-- end:embedded -->"),
        ("<!-- begin:tiny -->\n<!-- end:tiny -->\n", "<!-- begin:tiny --> belongs to no run; there are embedded"),
    ],
)
def test_a_readme_that_cannot_be_filled_is_refused(metrics, readme, message):
    with pytest.raises(InputError, match=message):
        filled(readme, metrics, Path("benchmarks"))


def test_benchmarks_have_blocks_of_their_own(metrics, tmp_path):
    records.write_json(tmp_path / "sft_throughput.json", {"benchmark": "sft_throughput", "ratio": 1.834})
    run = {"weights": [0.6, 0.0, 0.4], "new_attempts": 0.125, "seconds": 9.04}
    swept = {"benchmark": "reward_sweep", "ratio": 21.0, "first_seconds": 161.4, "again_seconds": 7.68}
    records.write_json(tmp_path / "reward_sweep.json", swept | {"weightings": [run]})
    shape = {"pairs": 9, "chosen_median": 37.5, "chosen_30_to_39": 0.8, "chosen_40_or_more": 0, "rejected_median": 51}
    records.write_json(tmp_path / "length_shapes.json", {"ratio": 2.0, "shapes": {"published": shape}})
    records.write_json(tmp_path / "stage_start.json", {"benchmark": "stage_start", "ratio": 1.26})
    names = ("benchmarks", "benchmarks-sweep", "benchmarks-shapes")
    blocks = "".join(f"<!-- begin:{name} -->\n<!-- end:{name} -->\n" for name in names)
    text = filled(blocks, metrics, tmp_path)
    assert "\n| `sft_throughput.py` | 1.8 | trained tokens per second, over `trl sft` |\n" in text
    assert "\n| `stage_start.py` | 1.3 | seconds from process start to first work, over the stages, " in text
    assert "`scaling.py`" not in text  # a claim without a result is not shown
    assert "\n| first run | 100% | 161 |\n| the same again | 0% | 7.7 |\n| [0.6, 0.0, 0.4] | 12.5% | 9.0 |\n" in text
    assert "\n| published | 9 | 38 | 80% | 0% | 51 |\n" in text


def test_what_was_estimated_stands_beside_what_was_measured(metrics, tmp_path):
    said = {"stage": "sft", "ratio": 0.958, "measured": 2.5e9}
    records.write_json(tmp_path / "estimate.json", {"cases": {"110m": [said], "embedded": [said | {"stage": "dpo"}]}})
    load = {"seconds": 61.7, "peak_bytes": 5.25e9}
    shape = {"bytes_per_layer": {"load": 1.16e8}, "estimated_peak_bytes": {"load": 5.1e9}}
    shape |= {"emotune_estimate_bytes": {"sft": 6e9}, "layers": {"2": {}, "4": {}}}
    shapes = {"full": shape | {"all": {"load": load}}, "few": shape}
    records.write_json(tmp_path / "seven_b_shapes.json", {"shapes": shapes})
    names = ("benchmarks-estimate", "benchmarks-7b")
    text = filled("".join(f"<!-- begin:{name} -->\n<!-- end:{name} -->\n" for name in names), metrics, tmp_path)
    assert "\n| 110m | 0.96 of 2.50 GB | – |\n| embedded | – | 0.96 of 2.50 GB |\n" in text
    assert "\n| full | load | 0.116 GB | 5.10 GB | – | 5.25 GB | 62 |\n" in text
    assert "\n| few | load | 0.116 GB | 5.10 GB | – | – | – |\n" in text


def test_check_without_a_readme_is_refused(metrics, capsys):
    assert cli.main(["report", "--check"]) == 2
    assert "--readme FILE" in capsys.readouterr().err


def test_the_reward_model_stands_beside_its_dummies(tmp_path: Path) -> None:
    def share(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    measured = {
        "accuracy": share(0.8),
        "tokens_alone": share(0.6),
        "dummies": {"length": share(0.5), "emotion": share(0.4)},
        "best_of_4": None,
        "accuracy_per_emotion": {"fear": share(0.7) | {"pairs": 9}},
        "calibration_error": 0.05,
    }
    records.write_metrics(tmp_path / "reward_model.json", measured)
    assert tables.reward_model(tmp_path) == [
        ["by", "accuracy"],
        ["reward model", "0.800 [0.700, 0.900]"],
        ["tokens alone", "0.600 [0.500, 0.700]"],
        ["emotion alone", "0.400 [0.300, 0.500]"],
        ["length alone", "0.500 [0.400, 0.600]"],
        ["fear", "0.700 [0.600, 0.800]"],
        ["calibration error", "0.050"],
    ]


def test_the_page_says_where_the_curves_of_best_of_n_part() -> None:
    def measure(gain: float, at: int | None) -> dict[str, object]:
        return {"gain": {"value": gain, "low": gain - 1, "high": gain + 1}, "parts_at": at}

    chosen = {"reward": measure(2, None), "control": measure(0.5, None), "learned_score": measure(-1, 3)}
    assert tables.over_optimised({"best_of_n": chosen})[1:] == [
        ["reward", "+2.000 [+1.000, +3.000]", "nowhere"],
        ["control", "+0.500 [-0.500, +1.500]", "nowhere"],
        ["learned score", "-1.000 [-2.000, +0.000]", "3"],
    ]


def test_examples_are_the_first_contexts_replies_as_they_came() -> None:
    rows = [
        {
            "dialogue": f"d{n}",
            "context": ["Hi!", f"Number {n}?"],
            "emotion": label,
            "reply": f"{label} {n}",
            "judged": judged,
        }
        for n in range(22)
        for label, judged in (("neutral", "neutral"), ("anger", "fear"))
    ]
    evaluated = {"examples": measures.examples(rows)}
    assert tables.replies(evaluated)[:4] == [
        ["said", "asked for", "reply"],
        ["Number 0?", "neutral", "neutral 0"],
        ["Number 1?", "anger", "anger 1"],
        ["Number 2?", "neutral", "neutral 2"],
    ]
    table = tables.all_replies(evaluated)
    assert table[:2] == [["said", "neutral", "anger"], ["Number 0?", "neutral 0", "~~anger 0~~"]]
    assert len(table) == 1 + 20
