"""Questions and answers out of raw text, by rule: each says by which rule it was made, and from which line.

    faq         `Q: ...` and `A: ...`, or a heading or a bold term that is a question, and what follows it
    heading     an order, a gerund or a noun as heading ("Install X" -> "How do I install X?"), and its first paragraph
    definition  "An attempt is a ...", "**attempt**: a ...", a term of an HTML list
    purpose     "`dvc repro` runs what ..." -> "What does `dvc repro` do?"
    table       a row of two columns: what the second is for the first
    chat        "Ann: ..." and "Bob: ..." in turns: what one says, and the other's answer

What is no answer by itself, as one that begins with "It" or ends before a block of code, makes no row.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

from emotune.core.dialogue import normal_form
from emotune.data import corpus
from emotune.data.passages import HEAD, HEADING, ITEM, ROW, TERM, TEXT, Block

TABLES = corpus.read_tables(Path(__file__).with_name("questions.txt").read_text("utf-8"))
BEGINS, POINTERS = ({*TABLES["anaphora"][key]} for key in ("begins", "pointers"))
VERBS = {*TABLES["orders"]["verbs"]}
GERUNDS = dict(entry.split("/") for entry in TABLES["orders"]["gerunds"])
QUESTION_WORDS = {"what", "how", "why", "when", "where", "who", "which", "is", "does", "if", "whether"}
OF, VAGUE, COMMON = {*TABLES["nouns"]["of"]}, {*TABLES["nouns"]["vague"]}, {*TABLES["common"]["words"]}
# Words of an answer, of a turn of a chat, and of a table's cell; characters of an answer.
SHORTEST, SHORTEST_TURN, SHORTEST_CELL, LONGEST = 5, 3, 3, 600
NO_SPEAKERS = {"note", "example", "warning", "tip", "todo", "q", "a", "question", "answer"}


# What only a neighbour of the passage explains.
POINTING = re.compile(
    r"\b(?:below|above|following|as follows|as here|these|this|those|all of them|see|instead|the latter|the former)\b",
    re.I,
)


class Question(NamedTuple):
    """A question, its answer, the rule that made them, the line where its passage begins, and what was said before."""

    rule: str
    question: str
    answer: str
    line: int
    before: str = ""


def questions(blocks: Sequence[Block]) -> list[Question]:
    """What the rules make of a file's blocks, in the order of the lines; the first of equal questions."""
    made = [question for rule in (_faq, _headings, _sentences, _tables, _chats) for question in rule(blocks)]
    first: dict[str, Question] = {}
    for question in made:
        first.setdefault(normal_form(question.question), question)
    return sorted(first.values(), key=lambda question: (question.line, question.question))


def is_answer(text: str) -> bool:
    """Whether a text says something by itself: not too short or long, no part of something else, nothing to follow."""
    words = text.lower().replace("*", "").split()
    begins = {words[0].strip(",.:;"), " ".join(words[:2]).strip(",.:;")} if words else BEGINS
    return (
        len(words) >= SHORTEST
        and len(text) <= LONGEST
        and not begins & BEGINS
        and re.search(r"[.!?)`\"]$", text) is not None
        and not re.match(r"\w:", text)
        and text.count("`") % 2 == 0
        and text.count("(") == text.count(")")
        and not POINTING.search(text)
    )


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph."""
    joined = " ".join(text.split())
    return re.split(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!al\.)\s+(?=[A-Z`\"*(])", joined)


def _sections(blocks: Sequence[Block]) -> Iterator[tuple[Block, list[Block]]]:
    """Each heading, and the blocks up to the next one."""
    starts = [place for place, block in enumerate(blocks) if block.kind == HEADING]
    for start, end in pairwise([*starts, len(blocks)]):
        yield blocks[start], list(blocks[start + 1 : end])


def _opening(body: Sequence[Block]) -> str:
    """The first paragraph below a heading, with the list that it ends before; "" where there is none."""
    first, *rest = [*body, Block(HEADING, "", 0)]
    if first.kind == ITEM:
        first, rest = Block(TEXT, ":", first.line), list(body)
    if first.kind != TEXT:
        return ""
    items: list[Block] = []
    while first.text.endswith(":") and rest and rest[0].kind == ITEM:
        items.append(rest.pop(0))
    listed = [f"- {' '.join(item.text.split())}" for item in items]
    return "\n".join([" ".join(first.text.split()), *listed]).lstrip(":\n")


def _answered(rule: str, question: str, answer: str, line: int) -> Iterator[Question]:
    """The question where its answer is one."""
    if is_answer(answer):
        yield Question(rule, _sentence(question), answer.replace("**", ""), line)


def _sentence(question: str) -> str:
    question = " ".join(question.replace("**", "").split())
    return question[:1].upper() + question[1:]


def _lines(blocks: Sequence[Block]) -> Iterator[list[tuple[int, str]]]:
    """The numbered lines of text that no heading, table or term comes between."""
    for is_text, run in groupby(blocks, lambda block: block.kind in (TEXT, ITEM)):
        if is_text:
            yield [(block.line + n, line) for block in run for n, line in enumerate(block.text.split("\n"))]


def _faq(blocks: Sequence[Block]) -> Iterator[Question]:
    for heading, body in _sections(blocks):
        if heading.text.endswith("?") and body:
            yield from _answered("faq", heading.text, _opening(body), body[0].line)
    for block, following in pairwise([*blocks, Block(HEADING, "", 0)]):
        if block.kind in (TEXT, ITEM) and (lead := re.match(r"\*\*([^*]+\?)\*\*\s*", block.text)):
            rest = block.text[lead.end() :]
            yield from _answered("faq", lead[1], rest or following.text, block.line if rest else following.line)
    for lines in _lines(blocks):
        question, answer, first = "", "", 0
        for line, text in [*lines, (0, "Q: ?")]:
            mark = re.match(r"\**(Q|A)(?:uestion|nswer)?\s?\d*[.:)]\**\s*", text)
            if mark and mark[1] == "Q":
                if question and answer:
                    yield Question("faq", _sentence(question), answer, first)
                question, answer, first = text[mark.end() :], "", line
            elif mark or answer:
                answer = f"{answer} {text[mark.end() if mark else 0 :]}".strip()
            elif question:
                question = f"{question} {text}"


def _headings(blocks: Sequence[Block]) -> Iterator[Question]:
    for heading, body in _sections(blocks):
        answer = _opening(body)
        if (
            body
            and (question := asking(heading.text))
            and (question.startswith("How") or _shares(heading.text, answer))
        ):
            yield from _answered("heading", question, answer, body[0].line)


def asking(heading: str) -> str | None:
    """The question that a heading answers; None where it is no order and no name of something."""
    heading = re.sub(r"^(?:[Ss]tep )?\d[\d.]*[.):]?\s+(?=\w)", "", heading.replace("**", "")).strip(" .:")
    words = heading.split()
    if not words or len(words) > 8 or heading.endswith("?") or {word.lower().strip(",") for word in words} & POINTERS:
        return None
    first, rest = words[0].lower(), " ".join(words[1:])
    if passive := re.fullmatch(r"(How|Why|When|Where) (.+?) (is|are) (\w+(?:ed|en|de|un|lt|nt))", heading):
        return f"{passive[1]} {passive[3]} {_small(passive[2])} {passive[4]}?"
    if first == "how" and words[1:2] == ["to"]:
        return _mine(f"How do I {' '.join(words[2:])}?")
    if (first in VERBS or first in GERUNDS) and rest:
        return _mine(f"How do I {GERUNDS.get(first, first)} {rest}?")
    if not _is_name(heading) or heading != _mine(heading):
        return None
    return f"What should I know about {_small(heading)}?"


def _is_name(text: str) -> bool:
    """Whether a heading or a bold term names something, and is no sentence and no list."""
    says = [word for word in text.lower().split()[1:] if word.endswith("s") and word.removesuffix("s") in VERBS]
    first = text.lower().split()[0] if text.strip() else "what"
    joins = r"[,;:()/=]|\b(?:is|are|was|were|and|or|as|by|beside|before|than|works|does|not|no|without|with)\b"
    return not says and first not in QUESTION_WORDS and not re.search(joins, text, re.IGNORECASE)


def _small(name: str) -> str:
    """A name inside a question: without its capital where that is all that it has, and so begins a heading."""
    return name[:1].lower() + name[1:] if re.match(r"[A-Z][a-z]*(?:\s+(?:[a-z`]|[A-Z]{2})|$)", name) else name


def _mine(question: str) -> str:
    """What an asker calls the reader's own."""
    return re.sub(r"\byour\b", "my", question, flags=re.IGNORECASE)


def _shares(heading: str, answer: str) -> bool:
    """Whether an answer has a word of the heading, of four letters and more, or its beginning."""
    stems = {word[:5] for word in re.findall(r"\w{4,}", heading.lower())}
    return bool(stems & {word[:5] for word in re.findall(r"\w{4,}", answer.lower())})


DEFINED = re.compile(
    r"(?P<article>(?:An?|The) )?(?P<term>`[^`]+`|[\w'-]+(?: (?!that\b|which\b|of\b)[\w'-]+){0,3}) (?P<verb>is|are) "
    r"(?:an? |the (?!same|truth)|what |how |where |whether |one of |those )"
)
PURPOSE = re.compile(
    r"(`[^`-][^`]*`) (?!(?:is|as|was|has|does|says|its|this|plus|minus|works|fails)\b)([a-z]+[^su\W]s) "
    r"(?!(?:it|them|one)\b)\w+"
)
NAMED = re.compile(r"(?:\*\*(?P<bold>[^*?]+?)[.:]?\*\*|(?P<code>`[^`]+`))\s*(?P<mark>[:–—-]?)\s+(?P<rest>.+)")


def _sentences(blocks: Sequence[Block]) -> Iterator[Question]:
    for block, following in pairwise([*blocks, Block(HEADING, "", 0)]):
        if block.kind == TERM and following.kind == TEXT:
            question = block.text if block.text.endswith("?") else f"What is {_small(block.text)}?"
            yield from _answered("definition", question, following.text, following.line)
        if block.kind not in (TEXT, ITEM):
            continue
        if named := NAMED.fullmatch(" ".join(block.text.split())):
            yield from _of_name(named, block.line)
        parts = sentences(block.text)
        for place, sentence in enumerate(parts):
            more = [part for part in parts[place + 1 : place + 2] if part.startswith(("It ", "They "))]
            for rule, asked in _of_sentence(sentence):
                yield from _answered(rule, asked, " ".join([sentence, *more]), block.line)


def _of_name(named: re.Match[str], line: int) -> Iterator[Question]:
    """What follows a bold term, or a term of code and a colon."""
    name, rest = named["bold"] or named["code"], named["rest"]
    if {word.lower() for word in name.split()} & (POINTERS | QUESTION_WORDS) or len(name.split()) > 6:
        return
    has_mark = bool(named["mark"]) or named[0].startswith(f"**{name}:")
    if has_mark and (named["code"] or re.match(r"(?:an?|the)\s", rest, re.IGNORECASE)):
        yield from _answered("definition", f"What is {_small(name)}?", rest, line)
    elif named["bold"] and _is_name(name) and rest[0].isupper() and (has_mark or _shares(name, rest)):
        yield from _answered("definition", f"What should I know about {_small(name)}?", rest, line)


def _of_sentence(sentence: str) -> Iterator[tuple[str, str]]:
    """The rule and the question of a sentence that defines something, or says what it is for."""
    if defined := DEFINED.match(sentence):
        term, article = defined["term"], defined["article"] or ""
        is_term = term.split()[0].lower() not in BEGINS | POINTERS | QUESTION_WORDS
        if is_term and not re.search(r"\b(?:if|when|than)\b", term):
            yield "definition", f"What {defined['verb']} {article.lower()}{term if article else _small(term)}?"
    elif purpose := PURPOSE.match(sentence):
        verb = purpose[2].removesuffix("s")
        yield "purpose", f"What does {purpose[1]} {verb if verb in ('mean', 'need', 'take', 'hold') else 'do'}?"


def _tables(blocks: Sequence[Block]) -> Iterator[Question]:
    """Rows of tables of two columns; a first cell that is a question asks for the second."""
    heads: tuple[str, ...] = ()
    for block in blocks:
        heads = block.cells if block.kind == HEAD else heads
        if block.kind != ROW or not len(heads) == len(block.cells) == 2:
            continue
        name, value = (cell.replace("**", "") for cell in block.cells)
        if len(re.findall(r"[A-Za-z]{2,}", value)) < SHORTEST_CELL:
            continue
        if name.endswith("?"):
            yield Question("table", _sentence(name), value, block.line)
        what = heads[1].lower()
        is_short = name != "" and len(name.split()) <= 3 and _is_name(name)
        if what and not name.endswith("?") and (re.fullmatch(r"`[^`]+`", name) or (is_short and what not in VAGUE)):
            has_verb = what.split()[0].endswith("s") and what.split()[0].removesuffix("s") in VERBS
            named = f"the {heads[0].lower()} {name}" if re.fullmatch(r"\w+", heads[0]) else name
            asked = f"What {what} for" if has_verb else f"What is the {what} {'of' if what in OF else 'for'}"
            yield Question("table", f"{asked} {named}?", value, block.line)


def _chats(blocks: Sequence[Block]) -> Iterator[Question]:
    """What one says and another answers, where lines of at least two names follow each other and names come again."""
    said = re.compile(r"(?:[\[(]?[\d:., /-]+(?:[AP]M)?[\])]?\s*[-–]?\s*)?\**([A-Z][\w.' -]{0,24}?)\**:\**\s+(\S.*)")
    for lines in _lines(blocks):
        spoken = [(line, said.fullmatch(text)) for line, text in lines]
        for is_chat, run in groupby(spoken, lambda pair: pair[1] is not None):
            turns = [(line, match[1], match[2]) for line, match in run if match] if is_chat else []
            names = {name.lower() for _, name, _ in turns}
            if len(names) < 2 or len(turns) < 2 * len(names) or names & NO_SPEAKERS:
                continue
            joined = [(name, " ".join(text for *_, text in own)) for name, own in groupby(turns, lambda turn: turn[1])]
            for place, ((asker, asked), (_, answer)) in enumerate(pairwise(joined)):
                if asker == joined[0][0] and min(len(asked.split()), len(answer.split())) >= SHORTEST_TURN:
                    before = "\n".join(f"{name}: {text}" for name, text in joined[:place])
                    yield Question("chat", asked, answer, turns[0][0], before)


# A passage of fewer words holds little to ask for.
PASSAGE = 12


def passages(blocks: Sequence[Block]) -> list[Block]:
    """The paragraphs that a model can be asked about, each below its heading."""
    heading, paragraphs = "", []
    for block in blocks:
        heading = block.text if block.kind == HEADING else heading
        if block.kind == TEXT and len(block.text.split()) >= PASSAGE:
            paragraphs.append(block._replace(text=f"{heading}\n{block.text}".strip().replace("**", "")))
    return paragraphs


def in_reply(reply: str, template: str) -> list[tuple[str, str]]:
    """The questions and answers in a model's reply, `Q: ... A: ...`; the first Q may stand at the template's end."""
    text = f"Q: {reply}" if re.search(r"\bQ(?:uestion)?:\s*$", template) else reply
    pair = r"\bQ(?:uestion)?:\s*(.*?)\s*\bA(?:nswer)?:\s*(.*?)\s*(?=\bQ(?:uestion)?:|$)"
    return [(asked, answer) for asked, answer in re.findall(pair, text, re.DOTALL) if asked.endswith("?") and answer]


def is_found(answer: str, passage: str) -> bool:
    """Whether each word of an answer that says something is in the passage, but for its ending; one at least."""
    words = [word for word in re.findall(r"\w+", answer.lower()) if len(word) > 3 or word.isdigit()]
    telling = [word for word in words if word not in COMMON]
    there = re.findall(r"\w+", passage.lower())
    return bool(telling) and all(any(own.startswith(_stem(word)) for own in there) for word in telling)


def _stem(word: str) -> str:
    return word if word.isdigit() else word[: max(4, len(word) - 3)]
