"""The house: rooms stand on floors, and imports run down, never up and never sideways."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT

PACKAGE = ROOT / "src" / "emotune"
FLOORS = (
    ("core",),
    ("data", "prompts"),
    ("models",),
    ("judges", "generation"),
    ("preferences", "training", "evaluation"),
    ("stages",),
    ("runs",),
    ("studies", "publish"),
    ("faces",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imported(file: Path) -> Iterator[str]:
    """The dotted names below the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "emotune":
            yield from (f"{node.module}.{alias.name}".removeprefix("emotune.") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("emotune.") for a in node.names if a.name.startswith("emotune."))


def test_every_file_stands_in_a_room() -> None:
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == FLOOR.keys()
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("room", FLOOR)
def test_imports_run_down_and_never_sideways(room: str) -> None:
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    for file in files:
        for name in imported(file):
            other = name.split(".")[0]
            assert other == room or FLOOR[other] < FLOOR[room], f"{file.relative_to(PACKAGE)} imports {name}"


def test_no_file_imports_itself_through_others() -> None:
    files = {
        path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")
    }
    arrows = {
        own: {name if name in files else name.rpartition(".")[0] for name in imported(path)} & files.keys()
        for own, path in files.items()
    }
    while leaves := [file for file, others in arrows.items() if not others & arrows.keys()]:
        for leaf in leaves:
            del arrows[leaf]
    assert not arrows
