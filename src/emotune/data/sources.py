"""Where dialogues come from: the embedded corpus, the official DailyDialog, a Hub dataset, JSONL files of one's own.

Each reader returns `Source(splits, dropped, changed)`: dialogues as they stand there, not yet cleaned, whose speakers
alternate from the user.
"""

import difflib
import hashlib
import io
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

from emotune.core import processes, records
from emotune.core.dialogue import ASSISTANT, DAILY_DIALOG_LABELS, SPLITS, USER, Dialogue, Turn
from emotune.core.errors import InputError
from emotune.data import corpus, speakers
from emotune.data.speakers import Rules

EMOTIONS = "dialogues_emotion_{}.txt"
TEXTS = "dialogues_{}.txt"
JSONL = "{}.jsonl"
MISMATCH, CROWD = "label_mismatch", "more_than_two_speakers"
# The files of each kind of source, by what `data.source` calls it.
FILES = {
    "folder": [name.format(split) for split in SPLITS for name in (TEXTS, EMOTIONS)],
    "jsonl": [JSONL.format(split) for split in SPLITS],
}
READABLE = {name for names in FILES.values() for name in names}
# As published, DailyDialog is a zip of a zip for each split. More is no corpus: an accident, or a trap.
ZIPS = {f"{split}.zip" for split in SPLITS}
MOST_NESTED, MOST_FILES, MOST_BYTES = 2, 100, 1 << 30


class Source(NamedTuple):
    """The dialogues of train, validation and test; how many the reader dropped, and what it changed, by split."""

    splits: dict[str, list[Dialogue]]
    dropped: dict[str, Counter[str]]
    changed: dict[str, Counter[str]]


class Row(NamedTuple):
    """What a reader makes of a row: where that stands, its dialogues, why it gives none, and what was changed."""

    where: str
    dialogues: Sequence[Dialogue]
    dropped: str | None = None
    changed: Mapping[str, int] = MappingProxyType({})


def embedded(count: int, seed: int) -> Source:
    """The corpus written for this project: `count` dialogues, the same ones for the same seed."""
    return _empty()._replace(splits=corpus.dialogues(count, seed))


def daily_dialog(path: str | Path, revision: str | None) -> Source:
    """DailyDialog as published: its folder or its zip, whose fingerprint must be `revision`.

    A dialogue with more or fewer labels than utterances is dropped as `label_mismatch`. Any other fault is an
    InputError: a missing file, files of different length, a label that is not 0..6.
    """
    files = _pinned(path, revision, FILES["folder"])

    def read(split: str) -> Iterator[Row]:
        texts, labels = _lines(files[TEXTS.format(split)]), _lines(files[EMOTIONS.format(split)])
        if len(texts) != len(labels):
            raise InputError(
                f"{files[EMOTIONS.format(split)].origin}: expected a line of labels for each of the {len(texts)} "
                f"dialogues, found {len(labels)} lines"
            )
        for number, ((_, text), (where, numbers)) in enumerate(zip(texts, labels, strict=True), start=1):
            # Every utterance ends with the mark, so what follows the last one is no utterance.
            utterances = [utterance.strip() for utterance in text.strip().removesuffix("__eou__").split("__eou__")]
            emotions = [DAILY_DIALOG_LABELS[_index(label, DAILY_DIALOG_LABELS, where)] for label in numbers.split()]
            yield _labelled(f"{split}-{number}", utterances, emotions, where)

    return _source(read)


def jsonl(path: str | Path, rules: Rules, revision: str | None) -> Source:
    """One's own dialogues: a folder (or zip) with train.jsonl, validation.jsonl and test.jsonl.

    A line is what `dialogue.to_record` gives: `{"id": "a", "turns": [{"role": "user", "content": "Hi!", "emotion":
    "happiness"}, ...]}`. `id` may be left out. So may `role`: speakers then alternate from the user, or `speaker` names
    them, and the first is the user. Where one takes two turns in a row, or a third one speaks, `rules` has its way.
    Anything else that is not so is an InputError with file and line.
    """
    files = _pinned(path, revision, FILES["jsonl"])

    def read(split: str) -> Iterator[Row]:
        for number, where, record in _records(files[JSONL.format(split)]):
            yield _from_foreign_record(record, f"{split}-{number}", rules, where)

    return _source(read)


def hub(name: str, revision: str | None, rules: Rules) -> Source:
    """A dataset of the Hub at a commit, or a local folder of parquet files (then no revision is needed).

    Columns: `turns` as in `jsonl`, or DailyDialog's `dialog` (or `utterances`) with `emotion` (or `emotions`): names,
    class labels, or numbers in the order of DailyDialog.
    """
    tables = hub_tables(name, revision, "data")
    if missing := [split for split in SPLITS if split not in tables]:
        raise InputError(f"{name}: no split {', '.join(missing)}; it has {', '.join(tables)}")

    def read(split: str) -> Iterator[Row]:
        row_of = _row_reader(tables[split].features, rules, name)
        for number, row in enumerate(tables[split], start=1):
            yield row_of(row, f"{split}-{number}", f"{name}: row {split}-{number}")

    return _source(read)


def hub_tables(name: str, revision: str | None, section: str) -> Mapping[str, Any]:
    """The splits of a dataset of the Hub at a commit, or of a local folder of parquet files; `section` names them."""
    folder = _resolved(name)
    if not folder.is_dir() and not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise InputError(
            f"{section}.revision must be the commit of {name} (40 hex digits), which cannot move; got {revision!r}. "
            "For a dataset made by a script, take the commit of its branch refs/convert/parquet"
        )
    import datasets  # 1.3 s, and only this source needs it

    pinned = {"path": str(folder)} if folder.is_dir() else {"path": name, "revision": revision}
    try:
        tables: Mapping[str, Any] = datasets.load_dataset(**pinned)
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{section}.name: cannot load the dataset {name} at revision {revision}: {error}") from error
    return tables


def _row_reader(features: Mapping[str, Any], rules: Rules, name: str) -> Callable[[dict[str, Any], str, str], Row]:
    """How a row of a dataset with these columns, its id and its place become a Row."""
    if "turns" in features:
        return lambda row, row_id, where: _from_foreign_record(row, row_id, rules, where)
    texts = next((column for column in ("dialog", "utterances") if column in features), None)
    emotions = next((column for column in ("emotion", "emotions") if column in features), None)
    if texts is None or emotions is None:
        raise InputError(
            f"{name}: expected the column turns, or dialog (utterances) and emotion (emotions); "
            f"found {', '.join(features)}"
        )
    names = getattr(getattr(features[emotions], "feature", None), "names", None) or DAILY_DIALOG_LABELS

    def read(row: dict[str, Any], row_id: str, where: str) -> Row:
        if len(row[emotions]) != len(row[texts]):
            return Row(where, [], MISMATCH)
        named = [label if isinstance(label, str) else names[_index(label, names, where)] for label in row[emotions]]
        utterances = [_text(utterance, where) for utterance in row[texts]]
        return _labelled(row_id, utterances, [_emotion(emotion, rules.labels, where) for emotion in named], where)

    return read


def _empty() -> Source:
    return Source({s: [] for s in SPLITS}, {s: Counter() for s in SPLITS}, {s: Counter() for s in SPLITS})


def _source(read: Callable[[str], Iterable[Row]]) -> Source:
    """All that a reader gives of each split."""
    source = _empty()
    places: dict[str, str] = {}
    for split in SPLITS:
        for row in read(split):
            source.dropped[split].update([row.dropped] if row.dropped else [])
            source.changed[split].update(row.changed)
            for dialogue in row.dialogues:
                if dialogue.id in places:
                    raise InputError(f"{row.where}: the id {dialogue.id!r} is taken by {places[dialogue.id]}")
                places[dialogue.id] = row.where
                source.splits[split].append(dialogue)
    return source


def _labelled(row_id: str, utterances: Sequence[str], emotions: Sequence[str], where: str) -> Row:
    """The dialogue of two lists, whose speakers alternate from the user; dropped where they differ in length."""
    if len(utterances) != len(emotions):
        return Row(where, [], MISMATCH)
    return Row(where, [Dialogue(row_id, tuple(map(Turn, cycle((USER, ASSISTANT)), utterances, emotions)))])


def _records(file: "_File") -> Iterator[tuple[int, str, Any]]:
    """The number, the place and the JSON value of each line that is not empty."""
    for number, (where, line) in enumerate(_lines(file), start=1):
        if line.strip():
            try:
                yield number, where, json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{where}: not JSON: {error.msg}") from None


def _from_foreign_record(record: Any, default_id: str, rules: Rules, where: str) -> Row:
    turns: list[Turn] = []
    for place, turn in _turns(record, where):
        text = _text(_value(turn, "content", place), place)
        emotion = _emotion(_value(turn, "emotion", place), rules.labels, place)
        name = _speaker(turn, turns[-1].role if turns else None, place)
        if turns and name == turns[-1].role and rules.same_speaker == "error":
            raise InputError(f"{place}: {name!r} has the turn before, too; data.same_speaker: join makes them one")
        turns.append(Turn(name, text, emotion))
    given = record.get("id")
    if given is not None and not (isinstance(given, str) and given):
        raise InputError(f"{where}: id must be text, found {given!r}")
    return _of_two_speakers(given or default_id, turns, rules, where)


def _turns(record: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The turns of a row, each after its place."""
    turns = _value(record, "turns", where)
    if not isinstance(turns, list):
        raise InputError(f"{where}: turns must be a list, found {type(turns).__name__}")
    return ((f"{where}: turn {number}", turn) for number, turn in enumerate(turns, start=1))


def _speaker(turn: Mapping[str, Any], before: str | None, where: str) -> str:
    """Who has a turn: its role, else its speaker, else the role that is not that of the turn before."""
    role, speaker = turn.get("role"), turn.get("speaker")
    if role is None and speaker is None and before in (None, USER, ASSISTANT):
        return ASSISTANT if before == USER else USER
    if role not in (None, USER, ASSISTANT) or (role == ASSISTANT and before is None):
        accepted = f"{USER} or {ASSISTANT}, and speaker may be any name" if before else f"{USER} in the first turn"
        raise InputError(f"{where}: role must be {accepted}, found {role!r}")
    if role is None and not (isinstance(speaker, str) and speaker.strip()):
        raise InputError(f"{where}: speaker must be a name, as in the turn before, found {speaker!r}")
    return role or str(speaker).strip()


def _of_two_speakers(row_id: str, turns: Sequence[Turn], rules: Rules, where: str) -> Row:
    """Turns whose roles are their speakers' names as dialogues of a user and an assistant who alternate."""
    names = dict.fromkeys(turn.role for turn in turns)
    if len(names) > 2 and rules.others == "error":
        raise InputError(
            f"{where}: in dialogue {row_id!r} {len(names)} speak ({', '.join(names)}), and two can; data.others: drop "
            "leaves such a dialogue out, data.others: split cuts it before each third one"
        )
    if len(names) > 2 and rules.others == "drop":
        return Row(where, [], CROWD)
    talk = speakers.joined(turns, rules.neutral)
    parts = speakers.of_two(talk)
    changed = Counter(joined_turns=len(turns) - len(talk))
    if len(parts) == 1:
        return Row(where, [Dialogue(row_id, speakers.cast(talk))], changed=+changed)
    # A part of one turn, which nobody answers, is no dialogue.
    pairs = [part for part in parts if len(part) > 1]
    changed.update(split_dialogues=1, lone_turns=len(parts) - len(pairs))
    dialogues = [Dialogue(f"{row_id}/{number}", speakers.cast(part)) for number, part in enumerate(pairs, start=1)]
    return Row(where, dialogues, changed=+changed)


def _value(record: Any, key: str, where: str) -> Any:
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(record).__name__}")
    if key not in record:
        raise InputError(f"{where}: the key {key!r} is missing, found {', '.join(map(repr, record)) or 'none'}")
    return record[key]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: content must be text, found {value!r}")
    if not value.strip():
        raise InputError(f"{where}: content is empty")
    return value


def _emotion(value: Any, labels: Sequence[str], where: str) -> str:
    if value in labels:
        return value
    if value == "no emotion" and "neutral" in labels:
        return "neutral"
    near = difflib.get_close_matches(str(value), labels, n=1, cutoff=0.0)
    raise InputError(
        f"{where}: unknown emotion {value!r}; data.labels has {', '.join(labels)}; the nearest is {', '.join(near)}"
    )


def _index(value: Any, names: Sequence[str], where: str) -> int:
    if not re.fullmatch("[0-9]+", str(value)) or int(value) >= len(names):
        raise InputError(f"{where}: expected labels 0 to {len(names) - 1} ({', '.join(names)}), found {value!r}")
    return int(value)


class _File(NamedTuple):
    origin: str
    content: bytes


class Corpus(NamedTuple):
    """What lies in a folder or zip: its `data.source`, its fingerprint, its dialogues by split, turns by emotion."""

    source: str
    revision: str
    dialogues: dict[str, int]
    emotions: Counter[str]


def recognised(path: str | Path) -> Corpus:
    """Which of the sources that have a path lies there; InputError where none does, or both."""
    files = _files(path)
    kinds = [kind for kind, names in FILES.items() if files.keys() >= set(names)]
    if len(kinds) != 1:
        fault = "two sources at once" if kinds else "neither of the two sources"
        raise InputError(
            f"{_resolved(path)}: {fault}; accepted: JSONL ({', '.join(FILES['jsonl'])}) or DailyDialog "
            f"({', '.join(FILES['folder'])}); found {', '.join(sorted(files)) or 'none of these'}{_zips_in(path)}"
        )
    dialogues, emotions = {}, Counter(dict.fromkeys(DAILY_DIALOG_LABELS, 0)) if kinds == ["folder"] else Counter()
    for split in SPLITS:
        rows = _emotions_of(files, split, kinds[0])
        dialogues[split] = len(rows)
        emotions.update(emotion for row in rows for emotion in row)
    return Corpus(kinds[0], _digest(files), dialogues, emotions)


def _emotions_of(files: Mapping[str, "_File"], split: str, kind: str) -> list[list[str]]:
    """The emotions of each dialogue of a split, whatever they are."""
    if kind == "folder":
        lines = _lines(files[EMOTIONS.format(split)])
        return [[DAILY_DIALOG_LABELS[_index(n, DAILY_DIALOG_LABELS, at)] for n in line.split()] for at, line in lines]
    records = _records(files[JSONL.format(split)])
    return [[_named(_value(turn, "emotion", at), at) for at, turn in _turns(record, row)] for _, row, record in records]


def _named(value: Any, where: str) -> str:
    if not (isinstance(value, str) and value.strip()):
        raise InputError(f"{where}: emotion must be a name, found {value!r}")
    return "neutral" if value == "no emotion" else value


def fingerprint(path: str | Path) -> str:
    """The sha256 of the names and contents of a source's files, sorted: the same for a folder and for a zip of it.

    Only files that a reader may read count (dialogues_SPLIT.txt, dialogues_emotion_SPLIT.txt, SPLIT.jsonl), in the
    folder, its subfolders, or zips there named SPLIT.zip; a README beside them, or another zip, does not.
    """
    return _digest(_files(path))


def _digest(files: Mapping[str, _File]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {len(files[name].content)}\n".encode())
        digest.update(files[name].content)
    return digest.hexdigest()


def _pinned(path: str | Path, revision: str | None, names: Sequence[str]) -> dict[str, _File]:
    """The named files of a folder or zip, once its fingerprint is the revision that the params declare."""
    files = _files(path)
    if missing := [name for name in names if name not in files]:
        raise InputError(f"{_resolved(path)}: no {', no '.join(missing)}; expected {', '.join(names)}{_zips_in(path)}")
    if revision != (found := _digest(files)):
        raise InputError(
            f"data.revision pins what DVC cannot hash: the content of {_resolved(path)} has {found}, "
            f"data.revision is {revision}. If this is the data you mean, set data.revision={found}"
        )
    return files


def _files(path: str | Path) -> dict[str, _File]:
    files: dict[str, _File] = {}
    for file in _walk(_resolved(path)):
        first = files.setdefault(file.origin.rsplit("/", 1)[-1], file)
        # A zip often lies beside what was extracted from it: no conflict while they agree.
        if first.content != file.content:
            raise InputError(f"{first.origin} and {file.origin} differ: keep one of them")
    return files


def _walk(path: Path) -> Iterator[_File]:
    """The files that a reader may read, in a folder and its subfolders, or in a zip."""
    if not path.exists():
        raise InputError(f"data.path: no such folder or zip: {path}")
    unpacked = _Unpacked()
    for file in sorted([*path.glob("*"), *path.glob("*/*")]) if path.is_dir() else [path]:
        if file.name in ZIPS or (file == path and file.suffix.lower() == ".zip"):
            yield from unpacked.files(file, file.as_posix())
        elif file.name in READABLE and file.is_file():
            yield _File(file.as_posix(), file.read_bytes())


def _zips_in(path: str | Path) -> str:
    """What an error adds of a folder with zips, none of which is read unasked."""
    names = sorted(file.name for file in _resolved(path).glob("*.zip") if file.name not in ZIPS)
    return f". Of several things in one folder a zip is named itself; here are {', '.join(names[:5])}" if names else ""


class _Unpacked:
    """The files that a reader may read in zips, and in zips within: so deep, so many and so large as a corpus is."""

    def __init__(self) -> None:
        self.count = self.size = 0

    def files(self, zip: Path | IO[bytes], origin: str, depth: int = 1) -> Iterator[_File]:
        if depth > MOST_NESTED:
            raise InputError(f"{origin}: a zip within zips, {depth} deep; at most {MOST_NESTED} are read: unpack it")
        try:
            with zipfile.ZipFile(zip) as archive:
                for info in sorted(archive.infolist(), key=lambda info: info.filename):
                    place, name = f"{origin}/{info.filename}", info.filename.rsplit("/", 1)[-1]
                    if name in READABLE:
                        yield _File(place, self._content(archive, info, place))
                    elif name in ZIPS:
                        yield from self.files(io.BytesIO(self._content(archive, info, place)), place, depth + 1)
        # NotImplementedError: a compression that Python has not.
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise InputError(f"{origin}: not a readable zip: {error}") from None

    def _content(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, place: str) -> bytes:
        self.count, self.size = self.count + 1, self.size + info.file_size
        if info.flag_bits & 1:
            raise InputError(f"{place}: encrypted, and no password can be given: unpack it")
        if self.count > MOST_FILES or self.size > MOST_BYTES:
            raise InputError(
                f"{place}: {self.count} files of {self.size / 2**20:.0f} MiB up to here; of zips at most {MOST_FILES} "
                f"files and {MOST_BYTES / 2**20:.0f} MiB are read: unpack them"
            )
        with archive.open(info) as file:
            return file.read(info.file_size)  # never more, whatever it unpacks to


def _lines(file: _File) -> list[tuple[str, str]]:
    """The lines of a UTF-8 file, each after its place `file:line`."""
    text = decoded(file.content, file.origin)
    # Not splitlines: a form feed or U+2028 inside an utterance ends no line of the file.
    lines = text.removesuffix("\n").split("\n") if text else []
    return [(f"{file.origin}:{number}", line) for number, line in enumerate(lines, start=1)]


def decoded(content: bytes, origin: str) -> str:
    """The text of a UTF-8 file; InputError names the line that is none."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{origin}:{line}: not UTF-8: {error.reason}") from None


def pinned_files(path: str | Path, revision: str | None, suffixes: Sequence[str], section: str) -> dict[str, Path]:
    """The files of a folder, and of those below it, that end so, by name; their content is what the revision pins.

    A folder or file whose name begins with a dot is passed over, as ls does. A file may stand for a folder.
    """
    start = _resolved(path)
    if not start.exists():
        raise InputError(f"{section}.path: no such folder or file: {start}")
    folder = start if start.is_dir() else start.parent
    paths = sorted(start.rglob("*")) if start.is_dir() else [start]
    named = {file.relative_to(folder).as_posix(): file for file in paths if file.suffix.lower() in suffixes}
    files = {name: file for name, file in named.items() if file.is_file() and not re.search(r"(^|/)\.", name)}
    if not files:
        raise InputError(f"{section}.path: no file in {start} ends in {', '.join(suffixes)}")
    content = records.content_hash({name: records.sha256(file) for name, file in files.items()})
    if revision != content:
        raise InputError(
            f"{section}.revision pins what DVC cannot hash: the content of {start} has {content}, {section}.revision "
            f"is {revision}. If this is the data you mean, set {section}.revision={content}"
        )
    return files


def _resolved(path: str | Path) -> Path:
    # A DVC experiment runs in a temporary copy of the repository, from where `../data` would lead elsewhere.
    return processes.root() / Path(path).expanduser()
