"""Laws of a stage's contract: what its signature, its Params and what it returns mean to whoever starts it."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import LABELS, ROOT, STAGES, TINY, flags, write_params
from emotune.core import records
from emotune.runs import stage

HEAVY = ("torch", "trl", "mlflow", "transformers", "peft", "datasets", "sklearn", "skops", "dvc", "numpy", "pandas")
# Ends as it would, and says what it has imported of what takes seconds; of several commands, after each.
PROBE = f"""
import sys
from emotune.runs import stage
code = 0
for command in " ".join(sys.argv[1:]).split(" ; "):
    try:
        stage.start(command.split())
    except SystemExit as end:
        code = end.code
    finally:
        there = {{name.split(".")[0] for name, module in sys.modules.items() if module}}
        print("imported", *sorted(there & set({HEAVY})), flush=True)
sys.exit(code)
"""
PREPARE = ("prepare", "--out", "data/dialogues", "--metrics", "metrics/prepare.json")
TOYS = """
from emotune.core.contract import Dep, Inputs, Log, Metrics, Out
from emotune.core.errors import Refusal
from emotune.core.sections import Section

class Data(Section):
    labels: tuple[str, ...]

class Params(Section):
    data: Data
    system_prompt: str | None
"""
TWO_WORDS = '''
def main(p: Params, log: Log, inputs: Inputs, first_dep: Dep, second: Dep, out: Out) -> Metrics:
    """Write what it was given."""
    out.write_text(f"{sorted(inputs)} {sorted(p.model_dump())} {sorted(p.data.model_dump())}")
    return {"third": 1 / 3}
'''
REFUSING = '''
def main(p: Params, log: Log, out: Out) -> Metrics:
    """Measure, and refuse."""
    raise Refusal("pairs: 1 of 9\\nyield: 0.1", {"pairs": 1})
'''
MAYBE = '''
from emotune.core.contract import MaybeDep

def main(p: Params, log: Log, inputs: Inputs, out: Out, before: MaybeDep = None) -> Metrics:
    """Write what it was given."""
    out.write_text(f"{before} {sorted(inputs)}")
    return {}
'''
SEARCHING = '''
from importlib.util import find_spec

def main(p: Params, log: Log, out: Out) -> Metrics:
    """Write whether a library would find bitsandbytes."""
    out.write_text(str(find_spec("bitsandbytes") is not None))
    return {}
'''
LASTING = '''
import gc

def main(p: Params, log: Log, out: Out) -> Metrics:
    """Import nothing more, and make a lot."""
    rows = [[] for _ in range(100_000)]
    out.write_text(str(gc.get_threshold()))
    return {"rows": len(rows)}
'''


def start(folder: Path, *words: str, package: Path = ROOT / "src") -> subprocess.CompletedProcess[str]:
    if not (folder / "params.yaml").exists():
        write_params(folder, TINY)
    # From a file: what is started again, as in a workspace of DVC, is a module.
    (folder / "probe.py").write_text(f"import sys\nsys.path.insert(0, {str(package)!r})\n{PROBE}")
    return subprocess.run([sys.executable, "probe.py", *words], cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is, with some stages more."""
    source, package = tmp_path_factory.mktemp("toys"), ROOT / "src" / "emotune"
    stages = source / "emotune" / "stages"
    stages.mkdir(parents=True)
    for path in [*package.iterdir(), *(package / "stages").iterdir()]:
        if path.name not in ("stages", "__pycache__"):
            (source / "emotune" / path.relative_to(package)).symlink_to(path)
    (stages / "two_words.py").write_text(TOYS + TWO_WORDS)
    (stages / "maybe.py").write_text(TOYS + MAYBE)
    (stages / "lasting.py").write_text(TOYS + LASTING)
    (stages / "refusing.py").write_text(TOYS + REFUSING)
    (stages / "searching.py").write_text(TOYS + SEARCHING)
    return source


@pytest.mark.parametrize("name", STAGES)
def test_the_flags_of_a_stage_are_its_deps_its_outs_and_its_metrics(name: str) -> None:
    main = importlib.import_module(f"emotune.stages.{name}").main
    named = [word[2:].replace("-", "_") for word in STAGES[name]["cmd"].split() if word.startswith("--")]
    of_another_round = {"generate_prefs": ["before"], "dpo": ["reference"]}.get(name, [])
    assert sorted(stage.flags(main)) == sorted(named + of_another_round)


def test_help_imports_nothing_heavy_and_names_each_flag(tmp_path: Path) -> None:
    done = start(tmp_path, " ; ".join(f"{name} --help" for name in STAGES))
    assert (done.returncode, done.stderr) == (0, "")
    *told, rest = done.stdout.split("imported\n")
    assert rest == ""
    for name, text in zip(STAGES, told, strict=True):
        assert text.startswith(f"usage: python -m emotune.runs.stage {name} ")
        assert all(word in text for word in STAGES[name]["cmd"].split() if word.startswith("--"))


@pytest.mark.parametrize("given", [False, True])
def test_a_dep_that_a_command_need_not_name_is_none_or_a_path_and_one_of_the_inputs(
    given: bool, toys: Path, tmp_path: Path
) -> None:
    (tmp_path / "dep.txt").write_text("x")
    more = ("--before", "dep.txt") if given else ()
    done = start(tmp_path, "maybe", "--out", "out.txt", "--metrics", "metrics/m.json", *more, package=toys)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out.txt").read_text() == ("dep.txt ['before']" if given else "None []")


def test_a_stage_of_another_pipeline_leaves_the_headline_and_notes_its_cost_under_a_name_of_its_own(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [(headline, _)] = STAGES["evaluate"]["metrics"][1].items()
    monkeypatch.setenv("DVC_STAGE", "rounds/dvc.yaml:maybe")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for metrics, stays in (("metrics/rounds/m.json", True), ("metrics/m.json", False)):
        records.write_json(tmp_path / headline, {"dpo": {"f1": 0.5}})
        start(tmp_path, "maybe", "--out", "out.txt", "--metrics", metrics, package=toys)
        assert (tmp_path / headline).exists() == stays
    costs = records.read_jsonl(tmp_path / ".work/costs.jsonl")
    assert [line["stage"] for line in costs] == ["rounds/maybe", "maybe"]


def test_a_stage_that_is_none_lists_those_there_are(tmp_path: Path) -> None:
    done = start(tmp_path, "prepares", *PREPARE[1:])
    assert done.returncode == 2
    assert all(name in done.stderr.splitlines()[-1] for name in ("prepares", *STAGES))
    assert done.stdout == "imported\n"


def test_a_wrong_key_of_any_section_is_one_message_before_anything_heavy(tmp_path: Path) -> None:
    write_params(tmp_path, {"dpo.beta": -1.0})  # which most stages do not read
    done = start(tmp_path, " ; ".join(" ".join([name, *flags(name)]) for name in STAGES))
    assert (done.returncode, done.stdout) == (2, "imported\n" * len(STAGES))
    assert done.stderr.splitlines() == [
        f"emotune {name}: params.yaml: dpo.beta: input should be greater than 0, got -1.0" for name in STAGES
    ]


def test_a_stage_that_computes_nothing_heavy_imports_nothing_heavy(tmp_path: Path) -> None:
    done = start(tmp_path, *PREPARE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "imported"
    assert json.loads((tmp_path / "data/dialogues/labels.json").read_text())["labels"] == list(LABELS)
    assert records.read_metrics(tmp_path / "metrics/prepare.json")["train"]["dialogues"] > 0


def test_a_main_is_given_what_it_names_and_no_param_that_it_does_not_declare(toys: Path, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).touch()
    paths = ("--first-dep", "a.txt", "--second", "b.txt", "--out", "out.txt", "--metrics", "metrics/m.json")
    done = start(tmp_path, "two_words", *paths, package=toys)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out.txt").read_text() == "['first_dep', 'second'] ['data', 'system_prompt'] ['labels']"
    assert (tmp_path / "metrics/m.json").read_text() == '[\n  {\n    "third": 0.333333\n  }\n]\n'


def test_a_dep_that_is_not_there_is_one_message(toys: Path, tmp_path: Path) -> None:
    paths = ("--first-dep", "a.txt", "--second", "b.txt", "--out", "out.txt", "--metrics", "metrics/m.json")
    done = start(tmp_path, "two_words", *paths, package=toys)
    assert (done.returncode, done.stderr) == (2, "emotune two_words: a.txt: no such file or folder\n")


def test_a_refusal_writes_the_metrics_that_say_why(toys: Path, tmp_path: Path) -> None:
    done = start(tmp_path, "refusing", "--out", "out.txt", "--metrics", "metrics/m.json", package=toys)
    assert (done.returncode, done.stderr) == (2, "emotune refusing: pairs: 1 of 9\nyield: 0.1\n")
    assert (tmp_path / "metrics/m.json").read_text() == '[\n  {\n    "pairs": 1\n  }\n]\n'
    assert not (tmp_path / "out.txt").exists()
    [line] = (tmp_path / ".work/costs.jsonl").read_text().splitlines()
    assert json.loads(line)["failed"] == "pairs: 1 of 9 yield: 0.1"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, "False"),
        ({"model.quantization": "nf4"}, "True"),
        ({"model.base": "somebody/prequantised"}, "True"),
        ({"dpo.optimizer": "paged_adamw_8bit"}, "True"),
    ],
)
def test_bitsandbytes_is_there_for_those_that_may_need_it_alone(
    changes: dict[str, str], found: str, toys: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="asks who imports bitsandbytes")
    write_params(tmp_path, changes)
    done = start(tmp_path, "searching", "--out", "out.txt", "--metrics", "metrics/m.json", package=toys)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out.txt").read_text() == found


def test_garbage_is_looked_for_as_ever_once_all_is_imported(toys: Path, tmp_path: Path) -> None:
    done = start(tmp_path, "lasting", "--out", "out.txt", "--metrics", "metrics/m.json", package=toys)
    assert (done.returncode, done.stderr) == (0, "")
    usual = subprocess.run(
        [sys.executable, "-c", "import gc; print(gc.get_threshold())"], capture_output=True, text=True
    )
    assert (tmp_path / "out.txt").read_text() == usual.stdout.strip()


def test_a_stage_that_dvc_starts_leaves_no_headline_of_what_was_before_it(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [(headline, _)] = STAGES["evaluate"]["metrics"][1].items()
    for under_dvc in (False, True):
        if under_dvc:
            monkeypatch.setenv("DVC_STAGE", "refusing")
        records.write_json(tmp_path / headline, {"dpo": {"f1": 0.5}})
        start(tmp_path, "refusing", "--out", "out.txt", "--metrics", "metrics/m.json", package=toys)
        assert (tmp_path / headline).exists() != under_dvc
