"""Laws of cards that need no run: whose votes they tell, and that no column goes without a word."""

import re
from importlib.resources import files
from pathlib import Path

from jinja2 import Template

from conftest import voted
from emotune.core import records
from emotune.preferences.candidates import Prompt
from emotune.preferences.outcomes import Outcome
from emotune.preferences.pairs import rows
from emotune.preferences.selection import Candidate, Pair
from emotune.publish import cards


def test_a_card_tells_the_votes_of_its_very_adapter_and_of_no_other(tmp_path: Path) -> None:
    (tmp_path / "dpo").mkdir()
    (tmp_path / "dpo/weights").write_text("one")
    counted = tmp_path / "votes.json"
    assert cards.votes_on(tmp_path / "dpo", counted) == ""
    records.write_metrics(counted, voted(records.digest(tmp_path / "dpo")))
    assert "| dpo to sft | 10 | 0.750 [0.400, 0.900] | 6 | 2 | 1 | 1 |" in cards.votes_on(tmp_path / "dpo", counted)
    (tmp_path / "dpo/weights").write_text("another")
    assert cards.votes_on(tmp_path / "dpo", counted) == ""


def test_each_column_of_a_pair_is_described_that_of_the_learned_score_too() -> None:
    reply = Candidate("Oh.", "fear", 1.0, "clean", 1.0, 9.0, 1.0, 9.0, 8.0, learned_score=5.0)
    [row] = rows([Prompt("d/1/fear", "d", (), "fear", "Boo!", (1,))], [Outcome(Pair(reply, reply), 1, ())])
    card = (files("emotune.publish") / "templates/prefs.md.jinja").read_text("utf-8")
    columns = Template(card[card.index("{% set pair") : card.index("## Pairs")], trim_blocks=True)
    told = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", columns.render(columns=list(row)), flags=re.MULTILINE))
    assert told.keys() == row.keys() >= {"chosen_learned_score"}
    assert [column for column, words in told.items() if not words] == []
