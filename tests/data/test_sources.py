"""Laws of the sources: the same record from each, pinned content, and errors that name file and line."""

import io
import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from emotune.core.dialogue import DAILY_DIALOG_LABELS, SPLITS, Dialogue, Turn, to_record
from emotune.core.errors import InputError
from emotune.data import sources
from emotune.data.speakers import Rules
from emotune.data.splits import clean, deduplicate, usable

LABELS = ("calm", "joy", "grief")


def rules(labels: Any, same_speaker: str = "error", others: str = "error") -> Rules:
    return Rules(labels, labels[0], same_speaker, others)


TEXT = "How are you , {0} ? __eou__ Fine , says {0} . __eou__ Good . __eou__\n"
TWO = {
    f"{split}/{name}": content
    for split in SPLITS
    for name, content in {
        f"dialogues_{split}.txt": TEXT.format(split) + "Oh ! __eou__ What ? __eou__\n",
        f"dialogues_emotion_{split}.txt": "0 4 0 \n6 1 \n",
    }.items()
}


def folder(path: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content, encoding="utf-8")
    return path


def zipped(files: dict[str, str | bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


def published_zip() -> bytes:
    """The nested zip as its authors published it, with the files that no reader needs."""
    inner: dict[str, str | bytes] = {
        f"ijcnlp_dailydialog/{split}.zip": zipped({name: text for name, text in TWO.items() if name.startswith(split)})
        for split in SPLITS
    }
    return zipped(
        {**inner, "ijcnlp_dailydialog/dialogues_text.txt": "all", "__MACOSX/train/._dialogues_train.txt": "x"}
    )


def read(path: Path) -> sources.Source:
    return sources.daily_dialog(path, sources.fingerprint(path))


def test_daily_dialog_gives_turns_that_alternate_from_the_user_with_named_emotions(tmp_path: Path) -> None:
    splits, dropped, _ = read(folder(tmp_path, TWO))
    assert splits["test"] == [
        Dialogue(
            "test-1",
            (
                Turn("user", "How are you , test ?", "neutral"),
                Turn("assistant", "Fine , says test .", "happiness"),
                Turn("user", "Good .", "neutral"),
            ),
        ),
        Dialogue("test-2", (Turn("user", "Oh !", "surprise"), Turn("assistant", "What ?", "anger"))),
    ]
    assert dropped == {"train": Counter(), "validation": Counter(), "test": Counter()}


def test_folder_zip_and_the_published_nested_zip_are_the_same_source(tmp_path: Path) -> None:
    plain = folder(tmp_path / "plain", TWO)
    (tmp_path / "flat.zip").write_bytes(zipped(dict(TWO)))
    (tmp_path / "published.zip").write_bytes(published_zip())
    zips = [tmp_path / "flat.zip", tmp_path / "published.zip"]
    assert {sources.fingerprint(path) for path in zips} == {sources.fingerprint(plain)}
    assert [read(path) for path in zips] == [read(plain)] * 2


def test_labels_that_do_not_match_the_utterances_drop_the_dialogue_and_are_counted(tmp_path: Path) -> None:
    splits, dropped, _ = read(folder(tmp_path, {**TWO, "train/dialogues_emotion_train.txt": "0 4 \n6 1 \n"}))
    assert [dialogue.id for dialogue in splits["train"]] == ["train-2"]
    assert dropped["train"] == {"label_mismatch": 1}


@pytest.mark.parametrize("label", ["7", "-1", "x", "1.0"])
def test_a_label_that_is_not_0_to_6_is_named_with_file_and_line(tmp_path: Path, label: str) -> None:
    path = folder(tmp_path, {**TWO, "test/dialogues_emotion_test.txt": f"0 4 0 \n6 {label} \n"})
    with pytest.raises(
        InputError, match=rf"test/dialogues_emotion_test.txt:2: expected labels 0 to 6 .*found '{label}'"
    ):
        read(path)


def test_a_missing_label_file_is_named(tmp_path: Path) -> None:
    files = {name: text for name, text in TWO.items() if name != "validation/dialogues_emotion_validation.txt"}
    with pytest.raises(InputError, match=r"no dialogues_emotion_validation\.txt; expected dialogues_train\.txt, "):
        read(folder(tmp_path, files))


def test_files_of_different_length_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"emotion_test.txt: expected a line of labels for each of the 2 .*found 1"):
        read(folder(tmp_path, {**TWO, "test/dialogues_emotion_test.txt": "0 4 0 \n"}))


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    (folder(tmp_path, TWO) / "test" / "dialogues_test.txt").write_bytes(b"Hi __eou__\nCaf\xe9 __eou__\n")
    with pytest.raises(InputError, match=r"dialogues_test.txt:2: not UTF-8"):
        read(tmp_path)


def test_no_such_path_and_a_broken_zip_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such folder or zip: .*nowhere"):
        sources.fingerprint(tmp_path / "nowhere")
    (tmp_path / "cut.zip").write_bytes(published_zip()[:100])
    with pytest.raises(InputError, match=r"cut.zip: not a readable zip"):
        sources.fingerprint(tmp_path / "cut.zip")


def test_two_files_of_one_name_must_agree(tmp_path: Path) -> None:
    folder(tmp_path, TWO)
    (tmp_path / "test.zip").write_bytes(zipped(dict(TWO)))
    assert len(read(tmp_path).splits["train"]) == 2
    folder(tmp_path, {"test/dialogues_test.txt": "Changed . __eou__\n"})
    with pytest.raises(InputError, match="differ: keep one of them"):
        sources.fingerprint(tmp_path)


@pytest.mark.parametrize("revision", [None, "0" * 64])
def test_an_unpinned_or_changed_source_is_refused_with_the_value_to_set(tmp_path: Path, revision: str | None) -> None:
    path = folder(tmp_path, TWO)
    with pytest.raises(InputError, match=f"data.revision is {revision}.*set data.revision={sources.fingerprint(path)}"):
        sources.daily_dialog(path, revision)


def test_of_a_folder_no_zip_is_read_but_those_of_the_splits(tmp_path: Path) -> None:
    for split in SPLITS:
        content = zipped({name: text for name, text in TWO.items() if name.startswith(split)})
        (tmp_path / f"{split}.zip").write_bytes(content)
    (tmp_path / "holiday.zip").write_bytes(b"no zip at all")
    (tmp_path / "other.zip").write_bytes(zipped({"dialogues_test.txt": "Another . __eou__\n"}))
    assert len(read(tmp_path).splits["train"]) == 2


def encrypted(content: bytes) -> bytes:
    """The zip with the flag of encryption in each of its headers, which is all that tells a reader of it."""
    for header, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        first, *parts = content.split(header)
        flagged = [part[: place - 4] + bytes([part[place - 4] | 1]) + part[place - 3 :] for part in parts]
        content = header.join([first, *flagged])
    return content


def deep() -> bytes:
    content = zipped(dict(TWO))
    for _ in range(2):
        content = zipped({"train.zip": content})
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encrypted(zipped(dict(TWO))), r"a.zip/test/dialogues_emotion_test.txt: encrypted, and no password"),
        (deep(), r"a.zip/train.zip/train.zip: a zip within zips, 3 deep; at most 2 are read"),
        (zipped({f"{n}/train.jsonl": "" for n in range(101)}), r"101 files of 0 MiB up to here; of zips at most 100"),
    ],
)
def test_a_zip_that_no_corpus_is_like_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match=message):
        sources.fingerprint(tmp_path / "a.zip")


def test_a_zip_that_unpacks_to_more_than_a_corpus_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(dict(TWO)))
    monkeypatch.setattr(sources, "MOST_BYTES", 100)
    with pytest.raises(InputError, match=r"files of 0 MiB up to here; .* 0 MiB are read"):
        sources.fingerprint(tmp_path / "a.zip")


def test_the_fingerprint_knows_every_byte_that_is_read_and_no_other(tmp_path: Path) -> None:
    path = folder(tmp_path, TWO)
    before = sources.fingerprint(path)
    folder(path, {"README.md": "new", "test/dialogues_act_test.txt": "1 2 3 \n"})
    assert sources.fingerprint(path) == before
    folder(path, {"test/dialogues_emotion_test.txt": "0 4 0 \n6 2 \n"})
    assert sources.fingerprint(path) != before


def test_a_relative_path_starts_at_dvc_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "repository" / "mine", TWO)
    (tmp_path / "workspace").mkdir()
    monkeypatch.chdir(tmp_path / "workspace")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "repository"))
    assert len(read(Path("mine")).splits["train"]) == 2


def talk(**changes: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "Hi.", "emotion": "calm"}, {"content": "Hey!", "emotion": "joy"}]
    return {"turns": turns, **changes}


def own(path: Path, *rows: Any, **allowed: str) -> sources.Source:
    """The JSONL source whose train split has these rows (text is written as it is)."""
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    folder(path, {"train.jsonl": lines, "validation.jsonl": json.dumps(talk()), "test.jsonl": json.dumps(talk())})
    return sources.jsonl(path, rules(LABELS, **allowed), sources.fingerprint(path))


def test_jsonl_reads_what_to_record_writes_and_fills_in_id_and_role(tmp_path: Path) -> None:
    turns = (Turn("user", "Hi.", "calm"), Turn("assistant", "Hey!", "joy"))
    mine = Dialogue("mine", turns)
    read = own(tmp_path, to_record(mine), "", talk())
    assert read.splits["train"] == [mine, Dialogue("train-3", turns)]


TURN = {"content": "Hi.", "emotion": "calm"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"turns": [', r"not JSON: "),
        ([1], r"expected a JSON object, found list"),
        ({"id": "a"}, r"the key 'turns' is missing, found 'id'"),
        ({"turns": "Hi."}, r"turns must be a list, found str"),
        ({"turns": ["Hi."]}, r"turn 1: expected a JSON object, found str"),
        ({"turns": [{"emotion": "joy"}]}, r"turn 1: the key 'content' is missing, found 'emotion'"),
        ({"turns": [TURN, {"content": "Hi."}]}, r"turn 2: the key 'emotion' is missing, found 'content'"),
        (
            {"turns": [{**TURN, "emotion": "greif"}]},
            r"unknown emotion 'greif'; .* calm, joy, grief; the nearest is grief",
        ),
        ({"turns": [{**TURN, "emotion": 1}]}, r"unknown emotion 1"),
        ({"turns": [{**TURN, "content": "  "}]}, r"turn 1: content is empty"),
        ({"turns": [{**TURN, "content": None}]}, r"turn 1: content must be text, found None"),
        ({"turns": [{**TURN, "role": "system"}]}, r"turn 1: role must be user in the first turn, found 'system'"),
        ({"turns": [{**TURN, "role": "assistant"}]}, r"turn 1: role must be user in the first turn, found 'assistant'"),
        ({"turns": [TURN, {**TURN, "role": "bot"}]}, r"turn 2: role must be user or assistant, .*, found 'bot'"),
        ({"turns": [{**TURN, "speaker": "Ann"}, TURN]}, r"turn 2: speaker must be a name, .*, found None"),
        ({"turns": [TURN, {**TURN, "role": "user"}]}, r"turn 2: 'user' has the turn before, too; data.same_speaker"),
        ({"turns": [{**TURN, "speaker": "Ann"}] * 2}, r"turn 2: 'Ann' has the turn before, too; data.same_speaker"),
        (
            {"id": "scene", "turns": [{**TURN, "speaker": name} for name in ("Ann", "Bob", "Cid")]},
            r"in dialogue 'scene' 3 speak \(Ann, Bob, Cid\), and two can; data.others: drop ",
        ),
        (talk(id=7), r"id must be text, found 7"),
        (talk(id="first"), r"the id 'first' is taken by .*train.jsonl:1"),
    ],
)
def test_a_wrong_line_of_jsonl_is_named_with_what_was_found(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"train.jsonl:2: {'' if message.startswith('turn') else '.*'}{message}"):
        own(tmp_path, talk(id="first"), row)


def scene(*turns: str) -> dict[str, Any]:
    """`Ann joy Hey!`: a speaker, an emotion and what is said."""
    return {
        "id": "s",
        "turns": [dict(zip(("speaker", "emotion", "content"), t.split(" ", 2), strict=True)) for t in turns],
    }


def test_the_first_to_speak_is_the_user_whatever_the_name(tmp_path: Path) -> None:
    read = own(tmp_path, scene("Bob calm Hi.", "Ann joy Hey!", "Bob grief Oh."))
    assert read.splits["train"] == [
        Dialogue("s", (Turn("user", "Hi.", "calm"), Turn("assistant", "Hey!", "joy"), Turn("user", "Oh.", "grief")))
    ]
    assert read.changed == {"train": {}, "validation": {}, "test": {}}


@pytest.mark.parametrize(("emotions", "of_both"), [("joy calm", "joy"), ("joy grief", "grief"), ("calm calm", "calm")])
def test_joined_turns_have_the_last_emotion_that_is_not_neutral(tmp_path: Path, emotions: str, of_both: str) -> None:
    one, two = emotions.split()
    row = scene("Bob calm Hi.", f"Ann {one} One.", f"Ann {two} Two.", "Bob joy Three.")
    read = own(tmp_path, row, same_speaker="join")
    [joined] = read.splits["train"]
    assert [turn.content for turn in joined.turns] == ["Hi.", "One. Two.", "Three."]
    assert (joined.turns[1].role, joined.turns[1].emotion) == ("assistant", of_both)
    assert read.changed["train"] == {"joined_turns": 1}


CROWD = ("Ann calm 1", "Bob joy 2", "Bob calm 3", "Ann calm 4", "Cid joy 5", "Ann calm 6", "Dan joy 7")


def test_a_dialogue_of_more_than_two_is_dropped_where_that_is_asked_for(tmp_path: Path) -> None:
    read = own(tmp_path, talk(), scene(*CROWD), same_speaker="join", others="drop")
    assert [dialogue.id for dialogue in read.splits["train"]] == ["train-1"]
    assert read.dropped["train"] == {"more_than_two_speakers": 1}


def test_a_dialogue_of_more_than_two_is_cut_where_a_third_one_speaks(tmp_path: Path) -> None:
    read = own(tmp_path, scene(*CROWD), same_speaker="join", others="split")
    assert [(d.id, [(turn.role, turn.content) for turn in d.turns]) for d in read.splits["train"]] == [
        ("s/1", [("user", "1"), ("assistant", "2 3"), ("user", "4")]),
        ("s/2", [("user", "5"), ("assistant", "6")]),
    ]
    assert read.changed["train"] == {"joined_turns": 1, "split_dialogues": 1, "lone_turns": 1}


def test_no_emotion_is_neutral(tmp_path: Path) -> None:
    row = {"turns": [{"content": "Hi.", "emotion": "no emotion"}]}
    folder(tmp_path, {f"{split}.jsonl": json.dumps(row) for split in SPLITS})
    read = sources.jsonl(tmp_path, rules(DAILY_DIALOG_LABELS), sources.fingerprint(tmp_path))
    assert read.splits["test"][0].turns[0].emotion == "neutral"


@pytest.fixture
def parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a local dataset of parquet files with these columns and reads it as `hub` does a Hub name."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()

    def read(
        columns: dict[str, list[Any]], labels: Any = DAILY_DIALOG_LABELS, names: Any = None, splits: Any = SPLITS
    ) -> Any:
        table = datasets.Dataset.from_dict(columns)
        if names:
            emotions = datasets.List(datasets.ClassLabel(names=names))
            table = table.cast(datasets.Features({**table.features, "emotion": emotions}))
        (tmp_path / "hub").mkdir()
        for split in splits:
            table.to_parquet(tmp_path / "hub" / f"{split}.parquet")
        return sources.hub(str(tmp_path / "hub"), None, rules(labels))

    return read


HI = ["Hi .", "Hello ."]


@pytest.mark.parametrize(("texts", "emotions"), [("dialog", "emotion"), ("utterances", "emotions")])
def test_hub_reads_daily_dialogs_columns(parquet: Any, texts: str, emotions: str) -> None:
    splits, dropped, _ = parquet({texts: [HI, HI], emotions: [[0, 4], [0]]})
    turns = (Turn("user", "Hi .", "neutral"), Turn("assistant", "Hello .", "happiness"))
    assert splits["validation"] == [Dialogue("validation-1", turns)]
    assert dropped["validation"] == {"label_mismatch": 1}


def test_hub_reads_class_labels_by_their_names(parquet: Any) -> None:
    read = parquet({"dialog": [HI], "emotion": [[1, 0]]}, names=["no emotion", "sadness"])
    assert [turn.emotion for turn in read.splits["test"][0].turns] == ["sadness", "neutral"]


def test_hub_reads_our_own_records(parquet: Any) -> None:
    read = parquet({"turns": [[{"content": "Hi.", "emotion": "calm"}]]}, LABELS)
    assert read.splits["train"] == [Dialogue("train-1", (Turn("user", "Hi.", "calm"),))]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"], "turns": [[TURN]]}, r"row train-1: turn 1: unknown emotion 'calm'"),
        ({"id": ["a"], "turns": [[{**TURN, "emotion": "fear"}]]}, r"validation-1: the id 'a' is taken by .*train-1"),
        ({"text": ["a"]}, r"expected the column turns, or dialog .* found text"),
        ({"dialog": [HI], "emotion": [[0, 9]]}, r"hub: row train-1: expected labels 0 to 6 .* found 9"),
        ({"dialog": [HI], "emotion": [["joy", "fear"]]}, r"row train-1: unknown emotion 'joy'"),
        ({"dialog": [["Hi", " "]], "emotion": [[0, 0]]}, r"row train-1: content is empty"),
    ],
)
def test_hub_names_the_row_that_is_wrong(parquet: Any, columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parquet(columns)


def test_hub_names_a_missing_split(parquet: Any) -> None:
    with pytest.raises(InputError, match="no split validation; it has train, test"):
        parquet({"dialog": [HI], "emotion": [[0, 0]]}, splits=["train", "test"])


@pytest.mark.parametrize("revision", [None, "main", "refs/convert/parquet", "0123abc"])
def test_a_hub_name_without_a_commit_is_refused(revision: str | None) -> None:
    with pytest.raises(InputError, match=r"data.revision must be the commit of a/dialogues \(40 hex digits\)"):
        sources.hub("a/dialogues", revision, rules(LABELS))


def test_a_hub_name_that_cannot_be_loaded_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"data.name: cannot load the dataset a/dialogues at revision aaa"):
        sources.hub("a/dialogues", "a" * 40, rules(LABELS))


def test_the_embedded_corpus_is_the_same_for_the_same_seed() -> None:
    assert sources.embedded(100, 1) == sources.embedded(100, 1)
    assert sources.embedded(100, 1) != sources.embedded(100, 2)


def test_the_embedded_corpus_needs_no_cleaning() -> None:
    texts = [turn.content for split in sources.embedded(500, 1).splits.values() for d in split for turn in d.turns]
    assert [text for text in texts if clean(text) != text] == []


def test_the_real_daily_dialog_loses_one_dialogue_to_its_labels_and_its_splits_share_none(shared: Path) -> None:
    pin = "561c4d5d5cff50e7e605abcff39a7fe90408a4ceb8fc0d1d3e74a09627d48517"
    raw, dropped, _ = sources.daily_dialog(shared / "daily_dialog", pin)
    assert {split: len(raw[split]) for split in SPLITS} == {"train": 11_117, "validation": 1_000, "test": 1_000}
    assert dropped == {"train": {"label_mismatch": 1}, "validation": {}, "test": {}}
    cleaned = {split: usable(raw[split]) for split in SPLITS}
    assert {split: unusable.total() for split, (_, unusable) in cleaned.items()} == dict.fromkeys(SPLITS, 0)
    splits, duplicates = deduplicate({split: kept for split, (kept, _) in cleaned.items()})
    assert {split: len(splits[split]) for split in SPLITS} == {"train": 9_947, "validation": 982, "test": 995}
    assert duplicates["train"] == {"test": 177, "validation": 139, "train": 854}
    spoken = {
        split: {"".join(c for turn in d.turns for c in turn.content.lower() if c.isalnum()) for d in splits[split]}
        for split in SPLITS
    }
    assert not spoken["train"] & spoken["test"]
    assert not spoken["train"] & spoken["validation"]
    assert not spoken["validation"] & spoken["test"]
