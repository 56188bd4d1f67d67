"""README and docs say what is there: pages, files, targets, subcommands and their flags."""

import re

import pytest

from conftest import ROOT
from emotune.faces import cli

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in (README, *PAGES)}
LINK = r"\]\(([^)#]*)(?:#([^)]*))?\)"
# What lies in git: of what stages write, and of what a reader may call his own, the pages speak too.
FOLDERS = "src|tests|docs|benchmarks|experiments|launch|profiles|metrics|.ci|.dvc"
PLACEHOLDER = re.compile(r"[A-Z]{3,}")


@pytest.fixture(params=TEXTS)
def page(request: pytest.FixtureRequest) -> str:
    return request.param


def anchors(text: str) -> set[str]:
    """The headings of a page, as a link to them names them."""
    heads = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def commands(text: str) -> list[str]:
    """What a reader would type: each line of a block of code, and each piece of code in a sentence."""
    block = re.compile(r"^```\w*\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
    lines = [line for inside in block.findall(text) for line in inside.splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", block.sub("", text))


def test_a_newcomer_finishes_the_readme() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 250


def test_every_page_is_reached_from_a_line_of_the_readme_that_asks_what_it_answers() -> None:
    asked = re.findall(r"^\| .*\? \| \[\w+\]\((docs/\w+\.md)\) \|$", TEXTS["README.md"], flags=re.MULTILINE)
    assert sorted(asked) == [path.relative_to(ROOT).as_posix() for path in PAGES]


def test_every_link_leads_somewhere(page: str) -> None:
    for target, anchor in re.findall(LINK, TEXTS[page]):
        if target.startswith("https://"):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text("utf-8")), f"{target}#{anchor}"


def test_every_file_that_a_page_names_is_there(page: str) -> None:
    for path in re.findall(rf"(?<![\w./-])(?:{FOLDERS.replace('.', '[.]')})/[\w./*-]*", TEXTS[page]):
        if not PLACEHOLDER.search(path):
            assert list(ROOT.glob(path.rstrip("./"))), path


def test_every_target_of_make_that_a_page_names_is_one(page: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)
    for command in commands(TEXTS[page]):
        assert {*re.findall(r"\bmake ([a-z-]+)", command)} <= {*targets}, command


def test_every_subcommand_and_flag_that_a_page_names_is_one(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands(TEXTS[page]):
        for name, rest in re.findall(r"\bemotune ([a-z]+)((?: [^;|&]*)?)", command):
            with pytest.raises(SystemExit) as end:
                cli.main([name, "--help"])
            known = capsys.readouterr().out
            assert end.value.code == 0, command
            assert all(flag in known for flag in re.findall(r"--[a-z-]+", rest)), command
