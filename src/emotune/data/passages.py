"""Raw text -> blocks: the headings, paragraphs, list items, table rows and terms of Markdown, plain text and HTML."""

import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from emotune.core.errors import InputError
from emotune.data import sources

SUFFIXES = (".md", ".txt", ".html", ".htm")
HEADING, TEXT, ITEM, TERM, HEAD, ROW = "heading", "text", "item", "term", "table head", "table row"


class Block(NamedTuple):
    """A piece of a file: its kind, its text without marks of emphasis and links, and the line where it begins.

    Lines stay lines, `cells` are those of a table's row.
    """

    kind: str
    text: str
    line: int
    cells: tuple[str, ...] = ()


def blocks(name: str, file: Path) -> list[Block]:
    """The blocks of a file, in order; InputError where it is no UTF-8, no text, or HTML with no text in it."""
    content = file.read_bytes()
    if (place := content.find(b"\0")) >= 0:
        line = content.count(b"\n", 0, place) + 1
        raise InputError(f"{name}:{line}: expected text, found a zero byte: it is a binary file, or not UTF-8")
    text = sources.decoded(content, name).replace("\r\n", "\n")
    if file.suffix.lower() not in (".html", ".htm"):
        return list(_marked(text))
    page = _Page()
    page.feed(text)
    page.close()
    page.end()
    if not page.blocks:
        raise InputError(f"{name}: expected a page with text, found none outside of scripts and styles")
    return page.blocks


def _marked(text: str) -> Iterator[Block]:
    """The blocks of Markdown, which plain text is too. Code, comments and rulers are none."""
    lines: list[str] = []
    kind, first, columns, end = TEXT, 0, 0, ""
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        bare = line.strip()
        if end:
            end = "" if end in bare else end
            continue
        fence = re.match(r"```+|~~~+|<!--", bare)
        heading = re.match(r"#{1,6}\s+(.+?)\s*#*$", bare)
        item = re.match(r"(?:[-*+]|\d+[.)])\s+(?=\S)", bare)
        underlined = len(lines) == 1 and kind == TEXT and re.fullmatch(r"=+|-{3,}", bare)
        if underlined:
            kind = HEADING
        if lines and (not bare or fence or heading or item or underlined or bare.startswith("|")):
            yield Block(kind, _plain("\n".join(lines)), first)
            lines = []
        columns = columns if bare.startswith("|") else 0
        if fence:
            end = "" if "-->" in bare else {"<": "-->"}.get(bare[0], fence[0])
        elif heading:
            yield Block(HEADING, _plain(heading[1]), number)
        elif bare.startswith("|"):
            cells = tuple(_plain(cell.strip()) for cell in re.split(r"(?<!\\)\|", bare.strip("|")))
            if not re.fullmatch(r"[\s|:-]+", bare):
                yield Block(ROW if columns else HEAD, " | ".join(cells), number, cells)
            columns = len(cells)
        elif bare and not underlined and not re.fullmatch(r"[-*_=]{3,}|<[^>]+>", bare):
            if not lines:
                kind, first = (ITEM if item else TEXT), number
            lines.append(bare[item.end() :] if item else bare.lstrip("> "))


def _plain(text: str) -> str:
    """Without marks of links, emphasis and rulers; what is in backticks, and bold terms, stay as they are."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)\s]*\)", r"\1", text)
    return re.sub(r"(?<![\w*`])[*_](?=[^\s*_`])([^*_`\n]+)(?<=\S)[*_](?![\w*])", r"\1", text).replace("\\|", "|")


# What an HTML tag begins; other tags stand inside.
KINDS = {
    **{f"h{level}": HEADING for level in range(1, 7)},
    **dict.fromkeys(("p", "dd", "div", "section", "article", "blockquote", "td", "th", "body", "tr", "table"), TEXT),
    **{"li": ITEM, "dt": TERM, "summary": HEADING},
}
UNSEEN = {"script", "style", "noscript", "template", "pre", "svg", "head", "nav", "footer", "title"}


class _Page(HTMLParser):
    """The blocks of an HTML page; a table's row is one block, the cells of its own."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self._kind, self._line, self._text = TEXT, 1, ""
        self._hidden: list[str] = []
        self._cells: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if tag in UNSEEN:
            self._hidden.append(tag)
        elif tag in KINDS:
            self.end()
            self._kind, self._line = KINDS[tag], self.getpos()[0]
            self._cells = [] if tag == "tr" else self._cells
        elif tag == "br" and self._cells is None:
            kind = self._kind
            self.end()
            self._kind = kind
        elif tag in ("b", "strong"):
            self._text += "**"

    def handle_endtag(self, tag: str) -> None:
        if self._hidden and tag == self._hidden[-1]:
            self._hidden.pop()
        elif tag in ("b", "strong"):
            self._text += "**"
        elif tag in KINDS:
            self.end()
            self._kind = TEXT
            if tag == "tr" and self._cells:
                is_head = not self.blocks or self.blocks[-1].kind not in (HEAD, ROW)
                cells = tuple(self._cells)
                self.blocks.append(Block(HEAD if is_head else ROW, " | ".join(cells), self.getpos()[0], cells))
            self._cells = None if tag == "tr" else self._cells

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            if not self._text.strip():
                self._line = self.getpos()[0] + data[: len(data) - len(data.lstrip())].count("\n")
            self._text += re.sub(r"\s+", " ", data)

    def end(self) -> None:
        """What was read since the last block is one, or a cell."""
        text, self._text = self._text.strip(), ""
        if self._cells is not None:
            self._cells += [text] if text else []
        elif re.search(r"\w", text):
            self.blocks.append(Block(self._kind, text, self._line))
