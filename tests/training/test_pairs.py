"""Laws of the pairs that a reward model learns from: what contrast differs in, what a foreign row may look like."""

import json
import subprocess
from itertools import chain
from pathlib import Path

import pytest

from clones import dvc_init
from emotune.core import records
from emotune.core.dialogue import Dialogue, alternate, normal_form
from emotune.core.errors import InputError
from emotune.training.pairs import contrast, foreign, once, split

# Sad and glad replies in turn, of two dialogues each the same text but for its case.
SAID = ("fear", "sadness", "fear", "joy")
TALKS = [
    Dialogue(f"talk/{n}", alternate(("Hm.", f"Sad {n // 2}{'!' * (n % 2)}", "So?", f"Glad {n}."), SAID))
    for n in range(12)
]


def test_the_wrong_reply_is_of_the_same_emotion_and_of_another_dialogue_and_text() -> None:
    groups = contrast(TALKS, 5, 100, 7, wrong=3)
    assert len(groups) == 24
    for group in groups:
        assert len({normal_form(pair.rejected) for pair in group}) == len(group) == 3
        for pair in group:
            kind = "Sad" if pair.emotion == "sadness" else "Glad"
            assert pair.chosen.startswith(kind)
            assert pair.rejected.startswith(kind)
            assert normal_form(pair.chosen) != normal_form(pair.rejected)
            assert pair.chosen in {turn.content for d in TALKS if d.id == pair.dialogue for turn in d.turns}
            assert pair.rejected not in {turn.content for d in TALKS if d.id == pair.dialogue for turn in d.turns}
            assert pair.history[-1].role == "user"


def test_every_dialogue_has_a_pair_before_one_has_two_and_the_seed_says_which() -> None:
    first = list(chain(*contrast(TALKS, 5, 12, 7)))
    assert {pair.dialogue for pair in first} == {d.id for d in TALKS}
    assert first == list(chain(*contrast(TALKS, 5, 24, 7)))[:12]
    assert first != list(chain(*contrast(TALKS, 5, 12, 8)))


def test_an_emotion_without_another_reply_makes_no_pair() -> None:
    assert contrast(TALKS[:2], 5, 100, 7)[0][0].emotion == "joy"
    assert {pair.emotion for [pair] in contrast(TALKS[:2], 5, 100, 7)} == {"joy"}


def pinned(folder: Path, *rows: object) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{path}@{records.sha256(path)}"


@pytest.mark.parametrize(
    "said",
    [
        {"prompt": "Hm."},
        {"context": ["Hm."]},
        {"context": ["Yes.", "Hm."]},  # a reply that nothing came before
        {"history": [{"role": "user", "content": "Hm.", "emotion": ""}]},
        {"prompt": [{"role": "system", "content": "Be glad."}, {"role": "user", "content": "Hm."}]},
    ],
)
def test_what_was_said_may_be_a_text_or_turns(tmp_path: Path, said: dict[str, object]) -> None:
    [pair] = foreign(pinned(tmp_path, said | {"chosen": "A.", "rejected": "B.", "emotion": "joy"}))
    assert ([(turn.role, turn.content) for turn in pair.history], pair.chosen, pair.rejected, pair.emotion) == (
        [("user", "Hm.")],
        "A.",
        "B.",
        "joy",
    )


def test_replies_may_be_messages_that_begin_with_what_was_said(tmp_path: Path) -> None:
    talks = ([{"role": "user", "content": "Hm."}, {"role": "assistant", "content": text}] for text in ("A.", "B."))
    [pair] = foreign(pinned(tmp_path, dict(zip(("chosen", "rejected"), talks, strict=True))))
    assert ([turn.content for turn in pair.history], pair.chosen, pair.rejected) == (["Hm."], "A.", "B.")


def test_two_replies_of_one_text_are_no_pair(tmp_path: Path) -> None:
    assert foreign(pinned(tmp_path, {"prompt": "Hm.", "chosen": "So what.", "rejected": "so  what."})) == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hm.", "chosen": "A."}, "pair 1: expected a reply as rejected; found None"),
        ({"prompt": "Hm.", "chosen": 1, "rejected": "B."}, "pair 1: expected a reply as chosen; found 1"),
        ({"chosen": "A.", "rejected": "B."}, "pair 1: expected history, context or prompt that ends with a turn of"),
        ({"context": ["Hm.", 3], "chosen": "A.", "rejected": "B."}, "pair 1: turn 2 has no text"),
    ],
)
def test_a_row_that_is_no_pair_is_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        foreign(pinned(tmp_path, row))


def test_a_file_is_read_at_its_pin_alone(tmp_path: Path) -> None:
    source = pinned(tmp_path, {"prompt": "Hm.", "chosen": "A.", "rejected": "B."})
    path, _, content = source.partition("@")
    for wrong in (path, f"{path}@{'0' * 64}"):
        with pytest.raises(InputError, match=f"must pin .*pairs.jsonl, whose sha256 is {content}; got"):
            foreign(wrong)
    with pytest.raises(InputError, match="no such file, and no data set at a commit: owner/name@main; accepted"):
        foreign("owner/name@main")


def test_a_dialogue_s_pairs_are_all_on_one_side(tmp_path: Path) -> None:
    rows = [{"prompt": f"Hm {number % 40}.", "chosen": "A.", "rejected": f"B {number}."} for number in range(200)]
    train, held_out = split(foreign(pinned(tmp_path, *rows)), 7)
    assert len(train) + len(held_out) == 200
    assert 0 < len(held_out) < 60
    assert not {pair.dialogue for pair in train} & {pair.dialogue for pair in held_out}


def test_a_pair_that_two_sources_have_counts_once(tmp_path: Path) -> None:
    said = [{"role": role, "content": text} for role, text in (("user", "Hm."), ("assistant", "So?"), ("user", "No."))]
    row = {"prompt": "No.", "chosen": "A.", "rejected": "B.", "dialogue": "d"}
    longer, other = row | {"prompt": said, "emotion": "joy"}, row | {"chosen": "B.", "rejected": "A."}
    elsewhere = row | {"dialogue": "e"}
    first, again, mirrored, another = foreign(pinned(tmp_path, row, longer, other, elsewhere))
    # What a model reads is the last turn alone, or more.
    assert once([first, again, mirrored, another], 1) == [first, mirrored, another]
    assert once([first, again, mirrored], 3) == [first, again, mirrored]


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The commit of a run whose pairs DVC has in its cache; other pairs have taken their place since."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    prefs = tmp_path / "data/prefs"
    for part in ("train", "validation"):
        row = {"history": [{"role": "user", "content": "Hm.", "emotion": "joy"}], "emotion": "joy", "dialogue": part}
        records.write_jsonl(prefs / f"{part}.jsonl", [row | {"chosen": f"A {part}.", "rejected": "B."}])

    def git(*words: str) -> str:
        own = ("git", "-C", str(tmp_path), "-c", "user.name=ann", "-c", "user.email=ann@example.org")
        return subprocess.run([*own, *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    with dvc_init(tmp_path) as repo:
        repo.add(str(prefs))
    git("add", ".")
    git("commit", "-qm", "A run")
    records.write_jsonl(prefs / "train.jsonl", [])
    return git("rev-parse", "HEAD")


def test_generated_pairs_are_those_of_an_earlier_run_s_commit_whatever_lies_there_now(earlier: str) -> None:
    pairs = foreign(f"generated@{earlier}")
    assert [(pair.source, pair.dialogue, pair.emotion, pair.chosen, pair.rejected) for pair in pairs] == [
        ("generated", part, "joy", f"A {part}.", "B.") for part in ("train", "validation")
    ]


def test_a_circle_is_told_with_the_commit_that_breaks_it_and_a_run_that_is_nowhere_by_its_name(earlier: str) -> None:
    with pytest.raises(InputError, match=rf"generate_prefs reads this model, .*: generated@{earlier} \(HEAD\); "):
        foreign("generated")
    nowhere = "0" * 40
    with pytest.raises(InputError, match=rf"generated@{nowhere}: cannot read its data/prefs/train\.jsonl: "):
        foreign(f"generated@{nowhere}")
