"""Laws of cards that need no run: whose votes they tell."""

from pathlib import Path

from conftest import voted
from emotune.core import records
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
