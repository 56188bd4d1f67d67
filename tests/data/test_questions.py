"""Laws of questions out of raw text: what each rule makes of Markdown, text and HTML, and what makes none."""

from pathlib import Path

import pytest

from emotune.core.errors import InputError
from emotune.data.passages import Block, blocks
from emotune.data.questions import Question, asking, in_reply, is_answer, is_found, questions


def made(tmp_path: Path, text: str | bytes, name: str = "a.md") -> list[Question]:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return questions(blocks(name, path))


def test_markdown_is_headings_paragraphs_items_and_tables_each_at_its_line(tmp_path: Path) -> None:
    text = """# One [link](x) and *more*

A paragraph
of two lines.
- first
- second,
  which goes on

```
# no heading
```
<!-- | no | table |
-->
| a | b |
|---|:-:|
| `c` | **d** |

Two
---
"""
    (tmp_path / "a.md").write_text(text)
    assert blocks("a.md", tmp_path / "a.md") == [
        Block("heading", "One link and more", 1),
        Block("text", "A paragraph\nof two lines.", 3),
        Block("item", "first", 5),
        Block("item", "second,\nwhich goes on", 6),
        Block("table head", "a | b", 14, ("a", "b")),
        Block("table row", "`c` | **d**", 16, ("`c`", "**d**")),
        Block("heading", "Two", 18),
    ]


PAGE = """<!DOCTYPE html>
<html><head><title>Shop</title><style>p {color: red}</style></head>
<body><h1>Help</h1>
<h2>How do I return a parcel?</h2>
<p>Print the label &amp; bring
the parcel to <a href="x">any shop</a> within 30 days.</p>
<dl><dt>Voucher</dt><dd>A voucher is worth <b>ten</b> euros and no money.</dd></dl>
<table><tr><th>Country</th><th>Delivery time</th></tr>
<tr><td>Norway</td><td>five to seven working days</td></tr></table>
<script>var x = "no text";</script>
<p>Ann: My order has not come.<br>Bob: Which number has it?<br>Ann: It is number 42.<br>Bob: It left our store.</p>
</body></html>
"""


def test_a_page_gives_what_people_see_of_it_and_the_chat_s_answers_know_what_was_said_before(tmp_path: Path) -> None:
    assert made(tmp_path, PAGE, "a.html") == [
        Question(
            "faq",
            "How do I return a parcel?",
            "Print the label & bring the parcel to any shop within 30 days.",
            5,
        ),
        Question("definition", "What is voucher?", "A voucher is worth ten euros and no money.", 7),
        Question("table", "What is the delivery time for the country Norway?", "five to seven working days", 9),
        Question(
            "chat",
            "It is number 42.",
            "It left our store.",
            11,
            "Ann: My order has not come.\nBob: Which number has it?",
        ),
        Question("chat", "My order has not come.", "Which number has it?", 11),
    ]


@pytest.mark.parametrize(
    ("text", "rule", "question", "answer"),
    [
        ("Q: Is it free?\nA: Yes, for all\nwho come.\nQ: Why?", "faq", "Is it free?", "Yes, for all who come."),
        ("**Q:** Is it free?\n\n**A:** Yes.", "faq", "Is it free?", "Yes."),
        ("## Who may come?\n\nAll people above 12 years.", None, "", ""),
        ("## Who may come?\n\nAll who are 12 may come.", None, "", ""),
        (
            "## Who may come?\n\nPeople of 12 and more may come.",
            "faq",
            "Who may come?",
            "People of 12 and more may come.",
        ),
        ("**Is it far?** Ten minutes on foot, not more.", "faq", "Is it far?", "Ten minutes on foot, not more."),
        (
            "# Install the package\n\nRun one of:\n- `make`\n- `make install`",
            "heading",
            "How do I install the package?",
            "Run one of:\n- `make`\n- `make install`",
        ),
        (
            "# Running tests\n\nType `make test` in a shell.",
            "heading",
            "How do I run tests?",
            "Type `make test` in a shell.",
        ),
        ("# The reward\n\nRewards are given by judges.", "heading", "What should I know about the reward?", None),
        ("# The reward\n\nSomebody counts words and letters.", None, "", ""),
        ("An attempt is a draw of eight.", "definition", "What is an attempt?", "An attempt is a draw of eight."),
        ("- **Attempt**: a draw of eight replies.", "definition", "What is attempt?", "a draw of eight replies."),
        ("`top_k`: the number of tokens kept.", "definition", "What is `top_k`?", "the number of tokens kept."),
        ("It is a draw of eight.", None, "", ""),
        ("What we lack is a draw of eight.", None, "", ""),
        ("`dvc repro` runs what a change affects.", "purpose", "What does `dvc repro` do?", None),
        ("`make base` makes it again by hand.", None, "", ""),
        (
            "|change|runs again|\n|-|-|\n|`sft`|sft and all after it|",
            "table",
            "What runs again for the change `sft`?",
            None,
        ),
        ("|why|where|\n|-|-|\n|Is it slow?|see page four|", "table", "Is it slow?", "see page four"),
        ("|name|count|\n|-|-|\n|`a`|12|", None, "", ""),
        ("|a|b|c|\n|-|-|-|\n|`a`|of some words|and more words|", None, "", ""),
        ("# Install it now", None, "", ""),
        ("**Why:** the judge is a model of words.", None, "", ""),
        ("Price: ten euros\nColour: dark red", None, "", ""),
    ],
)
def test_a_rule_makes_a_question_that_a_person_would_ask_or_none(
    tmp_path: Path, text: str, rule: str | None, question: str, answer: str | None
) -> None:
    found = made(tmp_path, text)
    assert [(q.rule, q.question) for q in found] == ([(rule, question)] if rule else [])
    if answer is not None and rule:
        assert found[0].answer == answer


@pytest.mark.parametrize(
    ("heading", "question"),
    [
        ("How a pair is made", "How is a pair made?"),
        ("How to pay", "How do I pay?"),
        ("2.1 Change your address", "How do I change my address?"),
        ("Your own model", None),
        ("What it says", None),
        ("Deps are rooms", None),
        ("A, b and c", None),
    ],
)
def test_a_heading_asks_what_it_answers(heading: str, question: str | None) -> None:
    assert asking(heading) == question


def test_an_answer_stands_by_itself() -> None:
    assert is_answer("The journal is a memo of what was sampled.")
    for text in (
        "It is a memo of what was sampled.",
        "For example, a memo of what was sampled.",
        "A memo.",
        "The journal is made of the following: one, two.",
        "The journal is a memo of what was sampled:",
        "The journal is a `memo of what was sampled.",
        "word " * 200 + ".",
    ):
        assert not is_answer(text), text


def test_equal_questions_are_made_once(tmp_path: Path) -> None:
    assert len(made(tmp_path, "An attempt is a draw of eight.\n\nAn attempt is a try of some kind.")) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.html", b"<html><script>1</script></html>", "a.html: expected a page with text, found none"),
        ("a.html", b"\x89PNG\r\n\x1a\n\0\0", "a.html:3: expected text, found a zero byte"),
        ("a.txt", "\n\nCafé".encode("latin-1"), "a.txt:3: not UTF-8"),
        ("a.md", "text".encode("utf-16"), "a.md:1: expected text, found a zero byte"),
    ],
)
def test_what_is_no_text_is_told_with_its_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(tmp_path, content, name)


def test_a_model_s_answer_is_found_in_the_passage_word_by_word_but_for_endings_and_common_words() -> None:
    passage = "The journal keeps each sampled reply for 30 days."
    assert is_found("It would keep sampled replies for 30 days", passage)
    assert not is_found("It keeps replies for 31 days", passage)
    assert not is_found("It keeps rewards", passage)
    assert not is_found("It would", passage)


def test_questions_and_answers_are_read_out_of_a_reply_on_one_line() -> None:
    assert in_reply("Who? A: I. Q: What is it? A: It. Q: Cut", "Ask.\nQ: ") == [("Who?", "I."), ("What is it?", "It.")]
    assert in_reply("Question: Who? Answer: I.", "Ask.") == [("Who?", "I.")]
    assert in_reply("Who? A: I.", "Ask.") == []
    assert in_reply("Q: No question. A: I.", "Ask.") == []


def test_this_repository_s_own_pages_give_rows_of_several_rules() -> None:
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    found = [question for page in pages for question in questions(blocks(page.name, page))]
    assert {question.rule for question in found} >= {"definition", "heading", "purpose"}
    assert len(found) >= 20
