"""dvc.yaml tells the truth about the code, and real DVC reruns what a change affects and nothing else."""

from __future__ import annotations

import configparser
import csv
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from ruamel.yaml import YAML
from test_rooms import FLOORS, PACKAGE, imported

from conftest import ROOT
from emotune.core.contract import Dep, MaybeDep
from emotune.core.sections import Section, names
from emotune.runs.params import Instructions, Params
from emotune.runs.stage import flags
from emotune.stages import dpo, generate_prefs, reward_model, sft
from emotune.stages.instruct import compare
from emotune.stages.instruct import sft as instruct_sft

PIPELINE = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text("utf-8"))
# Another round has a pipeline of its own, of the same stage files: its stages are rounds/NAME here.
ROUNDS = YAML(typ="safe").load((ROOT / "rounds/stages.yaml").read_text("utf-8"))["stages"]
# The instruction pipeline has a folder, params and stage files of its own; what lies outside of it is `../` there.
INSTRUCT = YAML(typ="safe").load((ROOT / "instruct/dvc.yaml").read_text("utf-8"))["stages"]
STAGES = (
    PIPELINE["stages"]
    | {f"rounds/{name}": stage for name, stage in ROUNDS.items()}
    | {
        f"instruct/{name}": stage | {"deps": [dep.removeprefix("../") for dep in stage["deps"]]}
        for name, stage in INSTRUCT.items()
    }
)
# A stage's plots are of one file each, those below the stages of columns of any.
PLOTS = [plot for named in PIPELINE["plots"] for plot in named.values()] + [
    plot | {"y": {f"instruct/{path}" if name.startswith("instruct/") else path: plot["y"]}}
    for name, stage in STAGES.items()
    for named in stage.get("plots", [])
    for path, plot in named.items()
]
# No stage writes it: `emotune study` does, of experiments.
LEARNING_CURVE = "metrics/studies/learning-curve.csv"
# Sections that no stage depends on, and the room that reads them.
FACES = {"publish": "publish"}


def closure(module: Path) -> set[Path]:
    """A module's file and the files of the package that it imports, anywhere in it, and what these import in turn."""
    seen = {module}
    waiting = [module]
    while waiting:
        for name in imported(waiting.pop()):
            parts = name.split(".")
            for file in (PACKAGE.joinpath(*parts).with_suffix(".py"), PACKAGE.joinpath(*parts[:-1]).with_suffix(".py")):
                if file.is_file() and file not in seen:
                    seen.add(file)
                    waiting.append(file)
    return seen


def file_of(stage: str) -> Path:
    own = PACKAGE / "stages" / f"{stage}.py"
    return own if own.exists() else own.parents[1] / own.name


def module_of(stage: str) -> str:
    return ".".join(file_of(stage).relative_to(PACKAGE / "stages").with_suffix("").parts)


def main_of(stage: str) -> Any:
    return importlib.import_module(f"emotune.stages.{module_of(stage)}").main


def params_of(stage: str) -> type[Section]:
    kind: type[Section] = importlib.import_module(f"emotune.stages.{module_of(stage)}").Params
    return kind


def whole_of(stage: str) -> type[Section]:
    return Instructions if stage.startswith("instruct/") else Params


def code_of(stage: str) -> list[Path]:
    """What a stage depends on of the package, files and rooms, less the prompt formats."""
    return [ROOT / dep for dep in STAGES[stage]["deps"] if dep.startswith("src/") and not dep.endswith(".jinja")]


def flags_of(stage: str) -> dict[str, str]:
    """The flags of a stage's command, and their values."""
    words = STAGES[stage]["cmd"].split()[3:]
    return {flag.removeprefix("--").replace("-", "_"): path for flag, path in zip(words[::2], words[1::2], strict=True)}


def paths_in(stage: dict) -> set[str]:
    return {word for word in stage["cmd"].split()[2:] if "/" in word}


def names_of(entries: list) -> set[str]:
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}


def outs_of(stage: dict) -> set[str]:
    return names_of([*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])])


@pytest.fixture(params=sorted(STAGES))
def stage(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_stage_runs_the_file_of_its_name(stage: str) -> None:
    starter = "../stage" if stage.startswith("instruct/") else "stage"
    assert STAGES[stage]["cmd"].startswith(f"sh {starter} {module_of(stage)} ")
    assert file_of(stage).exists()


def test_every_stage_file_is_a_stage() -> None:
    assert set((PACKAGE / "stages").rglob("[!_]*.py")) == {file_of(stage) for stage in STAGES}


def test_a_command_has_a_flag_for_each_path_that_the_stage_reads_or_writes(stage: str) -> None:
    kinds = get_type_hints(main_of(stage), include_extras=True)
    paths = flags_of(stage)
    assert {flag for flag in flags(main_of(stage)) if kinds.get(flag) != MaybeDep} <= set(paths)
    assert set(paths) <= set(flags(main_of(stage)))
    for flag, path in paths.items():
        is_dep = kinds.get(flag) in (Dep, MaybeDep)
        assert (path in STAGES[stage].get("deps", []), path in outs_of(STAGES[stage])) == (is_dep, not is_dep), flag


def test_the_code_a_stage_depends_on_holds_all_that_it_imports(stage: str) -> None:
    imports = closure(file_of(stage))
    assert [file for file in sorted(imports) if not any(file.is_relative_to(dep) for dep in code_of(stage))] == []


def test_every_room_that_a_stage_depends_on_is_reached(stage: str) -> None:
    imports = closure(file_of(stage))
    assert [dep for dep in code_of(stage) if not any(file.is_relative_to(dep) for file in imports)] == []


def test_no_stage_depends_on_what_knows_of_dvc_git_or_mlflow(stage: str) -> None:
    rooms = {path.relative_to(PACKAGE).parts[0] for path in closure(file_of(stage))}
    assert not rooms & {"runs", "studies", "publish", "faces"}


def test_the_params_a_stage_depends_on_are_those_it_declares(stage: str) -> None:
    assert sorted(STAGES[stage]["params"]) == sorted(names(params_of(stage), whole_of(stage)))


def test_the_params_a_stage_declares_are_read(stage: str) -> None:
    text = file_of(stage).read_text("utf-8")
    for name in names(params_of(stage), whole_of(stage)):
        assert re.search(rf"\bp\.{re.escape(name)}\b", text), f"{name} is declared and not read"


def test_every_section_is_used() -> None:
    content = YAML(typ="safe").load((ROOT / "params.yaml").read_text("utf-8"))
    by_stages = {name.split(".")[0] for stage in PIPELINE["stages"].values() for name in stage["params"]}
    assert by_stages == set(content) - FACES.keys()
    of_instructions = YAML(typ="safe").load((ROOT / "instruct/params.yaml").read_text("utf-8"))
    assert {name.split(".")[0] for stage in INSTRUCT.values() for name in stage["params"]} == set(
        of_instructions
    ) - FACES.keys()
    for section, room in FACES.items():
        text = "".join(path.read_text("utf-8") for path in (PACKAGE / room).glob("*.py"))
        assert re.search(rf"\bp\.{section}\b", text), f"{room} reads no {section}"


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
    assert found == {f"src/emotune/prompts/formats/{name}.jinja" for name in expected.get(stage, set())}


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
    columns = {
        "metrics/sft_history.csv": tuple(sft.CURVE),
        "metrics/reward_model_history.csv": tuple(reward_model.CURVE),
        "metrics/reward_model_calibration.csv": tuple(reward_model.CALIBRATION),
        "metrics/best_of_n.csv": tuple(generate_prefs.BEST_OF_N),
        "metrics/rounds/best_of_n.csv": tuple(generate_prefs.BEST_OF_N),
        "metrics/dpo_history.csv": tuple(dpo.CURVE),
        "metrics/rounds/dpo_history.csv": tuple(dpo.CURVE),
        "metrics/comparison.csv": ("model", "metric", "value", "low", "high"),
        "instruct/metrics/sft_history.csv": tuple(instruct_sft.HISTORY),
        "instruct/metrics/learning_curve.csv": tuple(instruct_sft.CURVE),
        "instruct/metrics/comparison.csv": tuple(compare.TABLE),
    } | {f"metrics/confusion/{model}.csv": ("emotion", "judged") for model in ("baseline", "sft", "dpo")}
    outs = {path for stage in STAGES.values() for path in outs_of(stage)}
    assert {path.removeprefix("instruct/") for path in columns} <= outs
    with (ROOT / LEARNING_CURVE).open(encoding="utf-8", newline="") as file:
        columns[LEARNING_CURVE] = tuple(csv.DictReader(file).fieldnames or ())
    shown = []
    for plot in PLOTS:
        for path, column in plot["y"].items():
            drawn = [column] if isinstance(column, str) else column
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


def test_the_readme_s_tree_names_every_room_and_no_other() -> None:
    tree = (ROOT / "README.md").read_text("utf-8").split("\nsrc/emotune/\n")[1].split("```")[0]
    assert re.findall(r"^  (\w+)/ ", tree, flags=re.MULTILINE) == [room for floor in FLOORS for room in floor]


def test_core_data_and_the_rules_of_preference_import_nothing_heavy() -> None:
    modules = [path.relative_to(PACKAGE.parent) for room in ("core", "data") for path in (PACKAGE / room).glob("*.py")]
    modules += [path.relative_to(PACKAGE.parent) for path in PACKAGE.glob("*/params.py")]
    names = [".".join(path.with_suffix("").parts) for path in modules]
    names += [f"emotune.preferences.{name}" for name in ("reward", "selection")]
    names += [f"emotune.stages.{module_of(stage)}" for stage in STAGES]
    code = f"import sys; [__import__(name) for name in {names}]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    heavy = {"torch", "transformers", "trl", "peft", "mlflow", "dvc", "datasets", "sklearn", "pandas", "numpy"}
    assert not heavy & set(loaded)


def test_a_stage_never_imports_a_stage(stage: str) -> None:
    own = file_of(stage)
    assert {path for path in closure(own) if path.is_relative_to(PACKAGE / "stages")} == {own}


def test_another_round_has_the_paths_and_the_params_of_the_root_by_dvc_s_own_reading(tmp_path: Path) -> None:
    from dvc.repo import Repo

    (tmp_path / "rounds").mkdir()
    for path, copy in (("params.yaml", "params.yaml"), ("rounds/stages.yaml", "rounds/dvc.yaml")):
        shutil.copy(ROOT / path, tmp_path / copy)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    with Repo(str(tmp_path)) as repo:
        stages = repo.stage.load_all(str(tmp_path / "rounds/dvc.yaml"))
        assert [stage.name for stage in stages] == list(ROUNDS)
        assert {stage.wdir for stage in stages} == {str(tmp_path)}
        params = {dep.fs_path for stage in stages for dep in stage.deps if dep.hash_name == "params"}
        assert params == {str(tmp_path / "params.yaml")}


def test_another_round_writes_nothing_that_the_first_writes() -> None:
    outs = {name: outs_of(stage) for name, stage in STAGES.items()}
    first = set().union(*(outs[name] for name in outs if name not in {f"rounds/{own}" for own in ROUNDS}))
    assert not first & set().union(*(outs[f"rounds/{own}"] for own in ROUNDS))
