"""dvc.yaml tells the truth about the code, and real DVC reruns what a change affects and nothing else."""

from __future__ import annotations

import ast
import configparser
import csv
import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "emotune"
PIPELINE = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text("utf-8"))
STAGES = PIPELINE["stages"]
# A stage's plots are of one file each, those below the stages of columns of any.
PLOTS = [plot for named in PIPELINE["plots"] for plot in named.values()] + [
    plot | {"y": {path: plot["y"]}}
    for stage in STAGES.values()
    for named in stage.get("plots", [])
    for path, plot in named.items()
]
# No stage writes it: `emotune study` does, of experiments.
LEARNING_CURVE = "metrics/studies/learning-curve.csv"
# Sections that no stage depends on, because a face alone reads them.
FACES = {"publish": "release.py"}


def imported(module: Path) -> set[Path]:
    """The files of the package that a module imports, anywhere in it, and what these import in turn."""
    seen: set[Path] = set()
    waiting = [module]
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text("utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "emotune":
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.startswith("emotune.")]
            for name in names:
                file = ROOT / "src" / Path(*name.split(".")).with_suffix(".py")
                if file.exists() and file not in seen:
                    seen.add(file)
                    waiting.append(file)
    return seen


def loaded(module: Path) -> list[str]:
    """The dotted names a stage hands to params.load."""
    return [
        argument.value
        for node in ast.walk(ast.parse(module.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "params.load"
        for argument in node.args
        if isinstance(argument, ast.Constant)
    ]


def read_from(module: Path) -> set[str]:
    """The dotted names a stage reads off `p`, the params it loaded."""
    dotted = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(module.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and re.fullmatch(r"p(\.\w+)+", ast.unparse(node))
    }
    return {name.removeprefix("p.") for name in dotted}


def paths_in(stage: dict) -> set[str]:
    return {word for word in stage["cmd"].split() if "/" in word}


def names_of(entries: list) -> set[str]:
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}


def outs_of(stage: dict) -> set[str]:
    return names_of([*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])])


@pytest.fixture(params=sorted(STAGES))
def stage(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_stage_runs_the_file_of_its_name(stage: str) -> None:
    assert STAGES[stage]["cmd"].startswith(f"python -m emotune.stages.{stage} ")
    assert (PACKAGE / "stages" / f"{stage}.py").exists()


def test_every_stage_file_is_a_stage() -> None:
    assert {path.stem for path in (PACKAGE / "stages").glob("*.py")} - {"__init__"} == set(STAGES)


def test_the_code_a_stage_depends_on_is_the_code_it_imports(stage: str) -> None:
    own = PACKAGE / "stages" / f"{stage}.py"
    code = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    assert code == {path.relative_to(ROOT).as_posix() for path in {own, *imported(own)}}


def test_the_params_a_stage_depends_on_are_those_it_loads(stage: str) -> None:
    own = PACKAGE / "stages" / f"{stage}.py"
    assert sorted(STAGES[stage]["params"]) == sorted(loaded(own))


def test_the_params_a_stage_loads_are_those_it_reads(stage: str) -> None:
    own = PACKAGE / "stages" / f"{stage}.py"
    read = {name for name in read_from(own) if not name.startswith("model_dump")}
    for name in loaded(own):
        assert any(found == name or found.startswith(f"{name}.") for found in read), f"{name} is loaded and not read"


def test_every_section_is_used() -> None:
    content = YAML(typ="safe").load((ROOT / "params.yaml").read_text("utf-8"))
    by_stages = {name.split(".")[0] for stage in STAGES.values() for name in stage["params"]}
    assert by_stages == set(content) - FACES.keys()
    for section, face in FACES.items():
        assert any(name.split(".")[0] == section for name in read_from(PACKAGE / face)), f"{face} reads no {section}"


def test_every_path_in_a_command_is_a_dep_or_an_out(stage: str) -> None:
    data = {dep for dep in STAGES[stage]["deps"] if not dep.startswith("src/")}
    assert paths_in(STAGES[stage]) == data | outs_of(STAGES[stage])


def test_a_stage_depends_on_the_templates_it_renders(stage: str) -> None:
    found = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".jinja")}
    expected = {
        "base_model": {"_prelude", "native"},
        "baseline": {"_prelude", "native"},
        "sft": {"_prelude", "${template}"},
    }
    assert found == {f"src/emotune/templates/{name}.jinja" for name in expected.get(stage, set())}


def test_no_model_or_data_is_in_git_and_every_metric_is(stage: str) -> None:
    of = STAGES[stage]
    # DVC's run cache keeps no run of a stage with an out in git that is neither a metric nor a plot.
    assert not [path for path in names_of(of.get("outs", [])) if path.startswith("metrics/")]
    assert all(isinstance(out, str) for out in of.get("outs", []))
    for entry in [*of["metrics"], *of.get("plots", [])]:
        [(path, how)] = entry.items()
        assert how["cache"] is False
        assert path.startswith("metrics/")


def test_what_is_plotted_is_a_column_of_what_a_stage_or_a_study_writes() -> None:
    from emotune.training.dpo import DPO_CURVE
    from emotune.training.sft import SFT_CURVE

    columns = {
        "metrics/sft_history.csv": SFT_CURVE,
        "metrics/dpo_history.csv": DPO_CURVE,
        "metrics/comparison.csv": ("model", "metric", "value", "low", "high"),
    } | {f"metrics/confusion/{model}.csv": ("emotion", "judged") for model in ("baseline", "sft", "dpo")}
    assert set(columns) <= {path for stage in STAGES.values() for path in outs_of(stage)}
    with (ROOT / LEARNING_CURVE).open(encoding="utf-8", newline="") as file:
        columns[LEARNING_CURVE] = tuple(csv.DictReader(file).fieldnames or ())
    shown = []
    for plot in PLOTS:
        for path, names in plot["y"].items():
            drawn = [names] if isinstance(names, str) else names
            assert {plot["x"], *drawn} <= set(columns[path]), path
            shown += [(path, name) for name in drawn]
    assert len(set(shown)) == len(shown), "nothing is drawn twice"
    assert {path for path, _ in shown} == set(columns)


def test_every_plot_has_one_of_our_templates_and_each_is_used() -> None:
    templates = {path.stem: json.loads(path.read_text("utf-8")) for path in (ROOT / ".dvc/plots").iterdir()}
    assert {plot["template"] for plot in PLOTS} == set(templates)
    assert all(content["data"] == {"values": "<DVC_METRIC_DATA>"} for content in templates.values())


def test_the_page_of_plots_loads_nothing() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / ".dvc/config")
    page = (ROOT / ".dvc" / config["plots"]["html_template"]).read_text("utf-8")
    assert page.count("{plot_divs}") == 1
    # Where DVC would put the addresses of a CDN.
    assert "{scripts}" not in page
    assert re.findall(r"<(?:script|link)\b[^>]*>", page) == ["<script>"] * 3
    assert "@import" not in page


def test_the_readme_s_tree_names_every_module_and_no_other() -> None:
    tree = (ROOT / "README.md").read_text("utf-8").split("## The tree")[1].split("## ")[0]
    named = set(re.findall(r"^  (\w+\.py) ", tree, flags=re.MULTILINE))
    assert named == {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}


def test_pure_modules_import_nothing_heavy() -> None:
    for name in ("params", "errors", "dialogue", "corpus", "seeds", "reward", "selection", "scores"):
        for file in {PACKAGE / f"{name}.py", *imported(PACKAGE / f"{name}.py")}:
            roots = {
                (node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
                for node in ast.walk(ast.parse(file.read_text("utf-8")))
                if isinstance(node, ast.Import | ast.ImportFrom)
            }
            assert not roots & {"torch", "transformers", "trl", "peft", "mlflow", "dvc", "datasets"}, file


def test_a_stage_never_imports_a_stage(stage: str) -> None:
    assert not {path for path in imported(PACKAGE / "stages" / f"{stage}.py") if path.parent.name == "stages"}
