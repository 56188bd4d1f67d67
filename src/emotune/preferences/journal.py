"""What was sampled and scored already: a memo in one SQLite file, crash-safe, shared between experiments.

It may be deleted at any time: what it lacks is made again. One law keeps it whole: who writes to the file or puts
another in its place holds the lock beside it, and who finds another file at the path than the one it opened opens that
one. SQLite's write-ahead log needs shared memory, so all processes of one journal run on one machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from emotune.core.errors import InputError

T = TypeVar("T")
Key = tuple[str, int]
Log = Callable[[str], None]

VERSION = 1
SCHEMA = """
CREATE TABLE contexts (id INTEGER PRIMARY KEY, made_of TEXT NOT NULL);
CREATE TABLE attempts (
    context INTEGER NOT NULL, prompt TEXT NOT NULL, attempt INTEGER NOT NULL,
    value TEXT NOT NULL, checksum INTEGER NOT NULL, created INTEGER NOT NULL,
    UNIQUE (context, prompt, attempt)
);
"""
FIND = "SELECT value, checksum FROM attempts WHERE context = ? AND prompt = ? AND attempt = ?"
DROP = "DELETE FROM attempts WHERE context = ? AND prompt = ? AND attempt = ?"
KEEP = "INSERT OR IGNORE INTO attempts VALUES (?, ?, ?, ?, ?, ?)"
NAME = "INSERT OR IGNORE INTO contexts VALUES (?, ?)"
# The index on its own answers this one; rows are added in the order of time, so the ends are the first and the last.
HELD = "SELECT context, count(*), count(DISTINCT prompt), min(rowid), max(rowid) FROM attempts GROUP BY context"
ENDS = "SELECT min(created), max(created) FROM attempts WHERE rowid IN (?, ?)"

# Our statements are fixed, so an SQLITE_ERROR (no such table ...) means that the schema is not what we wrote.
DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
# A salvage of a million attempts takes minutes, and everyone else waits for it.
PATIENCE = 600.0
CACHE_KIB = 65_536
SHOWN = 40


@dataclass(frozen=True, slots=True)
class Held:
    """Attempts that were made alike: how many, of how many prompts, from when to when (Unix seconds), made of what."""

    attempts: int
    prompts: int
    first: int
    last: int
    made_of: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a journal holds, the newest attempts first, and the bytes it takes on disk."""

    held: list[Held]
    size: int


@contextmanager
def opened(path: Path, made_of: Mapping[str, Any], log: Log = print) -> Iterator[Journal]:
    """The journal at `path`, of which only attempts kept under an equal `made_of` are found.

    `made_of` is all that produced the attempts, as JSON has it. A file that is damaged or of another version is set
    aside under another name, and the log says so; InputError where the folder cannot be made or written to.
    """
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = Journal(path, made_of, log)
        journal._greet()
    try:
        yield journal
    finally:
        with _told(path):
            journal._close()


class Journal:
    """A view of the journal's file through one `made_of`; for one thread."""

    def __init__(self, path: Path, made_of: Mapping[str, Any], log: Log) -> None:
        self._path, self._log = path, log
        self._made_of = json.dumps(made_of, sort_keys=True)
        self._context = _identity(self._made_of.encode())
        self._lock = _lock(path)
        with self._lock:
            self._open()

    def find(self, prompt: str, attempt: int) -> Any | None:
        """The value kept of an attempt at a prompt (its hex digest), or None."""
        return self.find_many([(prompt, attempt)]).get((prompt, attempt))

    def find_many(self, keys: Sequence[Key]) -> dict[Key, Any]:
        """The values kept of those attempts that are there. One whose checksum is wrong is dropped: it is not there."""
        with _told(self._path):
            rows = self._transact(
                "BEGIN", lambda db: [db.execute(FIND, (self._context, *key)).fetchone() for key in keys]
            )
            there = {key: row for key, row in zip(keys, rows, strict=True) if row}
            torn = {key for key, row in there.items() if _checksum(self._context, *key, row[0]) != row[1]}
            if torn:
                self._log(f"journal {self._path}: {len(torn)} attempts are damaged and will be made again")
                with self._lock:
                    self._follow()
                    self._transact("BEGIN IMMEDIATE", lambda db: self._drop_torn(db, torn))
        return {key: json.loads(row[0]) for key, row in there.items() if key not in torn}

    def keep(self, rows: Iterable[tuple[str, int, Any]]) -> int:
        """Write attempts (prompt, attempt, value) in one transaction, on disk when this returns how many were new.

        One that is there already stays as it is. InputError where the disk is full: what was kept before stays.
        """
        now = int(time.time())
        texts = [(prompt, attempt, json.dumps(value)) for prompt, attempt, value in rows]
        kept = [
            (self._context, prompt, attempt, text, _checksum(self._context, prompt, attempt, text.encode()), now)
            for prompt, attempt, text in texts
        ]

        def write(db: sqlite3.Connection) -> int:
            db.execute(NAME, (self._context, self._made_of))
            return db.executemany(KEEP, kept).rowcount

        with _told(self._path), self._lock:
            self._follow()
            return self._transact("BEGIN IMMEDIATE", write)

    def _drop_torn(self, db: sqlite3.Connection, keys: Iterable[Key]) -> None:
        """Drop attempts, except those that another process has replaced by good ones meanwhile."""
        for key in keys:
            row = db.execute(FIND, (self._context, *key)).fetchone()
            if row and _checksum(self._context, *key, row[0]) != row[1]:
                db.execute(DROP, (self._context, *key))

    def _transact(self, begin: str, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do some work in one transaction; where the file proves damaged, salvage it and do the work again."""
        try:
            return self._once(begin, work)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
        with self._lock:
            log_file = _read_log(self._path)
            self._db.close()
            if _inode(self._path) == self._inode:
                _salvage(self._path, log_file, self._log)
            self._open()
        return self._once(begin, work)

    def _once(self, begin: str, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            self._db.execute(begin)
            result = work(self._db)
            self._db.execute("COMMIT")
            return result
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _follow(self) -> None:
        """Open what is at the path now, where another process has cleared or salvaged the journal."""
        if _inode(self._path) != self._inode:
            self._db.close()
            self._open()

    def _open(self) -> None:
        self._db = _connected(self._path, self._log)
        self._inode = _inode(self._path)

    def _close(self) -> None:
        # The last one to close moves the log into the database.
        with self._lock:
            self._db.close()

    def _greet(self) -> None:
        """Say how many attempts fit, or else how the nearest that are there were made."""
        count = "SELECT count(*) FROM attempts WHERE context = ?"
        (fitting,) = self._transact("BEGIN", lambda db: db.execute(count, (self._context,)).fetchone())
        if fitting:
            self._log(f"journal {self._path}: {fitting} attempts that fit")
        elif others := self._transact("BEGIN", _held):
            total = sum(held.attempts for held in others)
            # Of several as near, the newest: min() takes the first.
            lines = min((_differences(held.made_of, json.loads(self._made_of)) for held in others), key=len)
            head = f"journal {self._path}: none of its {total} attempts fits; those nearest differ in"
            self._log("\n  ".join([head, *lines]))


def contents(path: Path) -> Contents:
    """What the journal at a path holds, nothing where there is none; InputError where it cannot be read."""
    if not path.exists():
        return Contents([], 0)
    # Only to read: the last one to close would else delete the log, of which a salvage may still read more than SQLite.
    with _told(path), _lock(path), closing(_connect(path, "ro")) as db:
        state = _state(db)
        if state in ("damaged", "foreign"):
            raise InputError(f"{path} is {state}: the next stage that uses it sets it aside")
        held = _held(db) if state == "whole" else []
        size = sum(file.stat().st_size for file in (path, _beside(path, "-wal")) if file.exists())
    return Contents(held, size)


def clear(path: Path) -> int:
    """Delete the journal and what was set aside of it; returns how many attempts went.

    Safe beside a running stage: it keeps what it makes from then on in a new file.
    """
    if not path.parent.exists():
        return 0
    with _told(path), _lock(path):
        with closing(_connect(path)) as db:
            gone = sum(held.attempts for held in _held(db)) if _state(db) == "whole" else 0
        # The database first: a log without its database is nothing to SQLite, a database without its log may be torn.
        asides = path.parent.glob(f"{path.name}.aside-*")
        for file in (path, _beside(path, "-wal"), _beside(path, "-shm"), *asides):
            file.unlink(missing_ok=True)
    return gone


def _held(db: sqlite3.Connection) -> list[Held]:
    made_of = {identity: json.loads(text) for identity, text in db.execute("SELECT id, made_of FROM contexts")}
    held = []
    for context, attempts, prompts, *ends in db.execute(HELD).fetchall():
        first, last = db.execute(ENDS, ends).fetchone()
        # A damaged file can lose what a context was made of and still have its attempts.
        held.append(Held(attempts, prompts, first, last, made_of.get(context, {})))
    return sorted(held, key=lambda context: -context.last)


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """A line for each leaf that differs: its dotted name, and both values, shortened."""
    old, new = _leaves(there), _leaves(here)
    return [
        f"{name}: {_short(old.get(name, 'absent'))} there, {_short(new.get(name, 'absent'))} here"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def _leaves(value: Any, name: str = "") -> dict[str, str]:
    if not isinstance(value, Mapping) or (name and not value):
        return {name: json.dumps(value)}
    dot = "." if name else ""
    return {leaf: text for key in value for leaf, text in _leaves(value[key], f"{name}{dot}{key}").items()}


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _identity(made_of: bytes) -> int:
    """A context's id is made of its content: rows find their context again in any file, also a salvaged one."""
    return int.from_bytes(hashlib.blake2b(made_of, digest_size=8).digest()) >> 1


def _checksum(context: int, prompt: str, attempt: int, value: Any) -> int | None:
    """The CRC of key and value, so that a damaged index cannot pass off one row as another; None of what is no text."""
    return zlib.crc32(f"{context} {prompt} {attempt} ".encode() + value) if isinstance(value, bytes) else None


def _lock(path: Path) -> FileLock:
    return FileLock(_beside(path, ".lock"), timeout=PATIENCE, poll_interval=0.01)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    # The low byte is the kind of error, the others its detail.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGE


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the disk or SQLite refuses becomes one message that names the journal and what is left of it."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise InputError(
            f"journal {path}: {error}. What was kept stays, and a run started again goes on from there, "
            "once the folder can be written to and its disk has room"
        ) from error


def _connect(path: Path, mode: str = "rwc") -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=PATIENCE, isolation_level=None)
    # Damaged text is no UTF-8.
    db.text_factory = bytes
    return db


def _connected(path: Path, log: Log) -> sqlite3.Connection:
    """A connection to a whole journal, new or old; who calls holds the lock."""
    # Before SQLite sees it, which deletes a log that it cannot read to the end.
    log_file = _read_log(path)
    db = _connect(path)
    state = _state(db)
    if state in ("damaged", "foreign"):
        # Closed before the salvage reads the file: to close a file drops this process's locks on it, SQLite's as well.
        db.close()
        if state == "damaged":
            _salvage(path, log_file, log)
        else:
            log(f"journal {path}: of another version, so it is not used but set aside as {_set_aside(path)}")
        db = _connect(path)
    if state in ("new", "foreign"):
        _create(db)
    # FULL, not NORMAL: what keep() returned from has to survive a power cut too, and one fsync a batch is little beside
    # the sampling of the batch.
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    if log_file and state in ("new", "whole") and (back := _put(db, _readable_rows(log_file))):
        log(f"journal {path}: {back} attempts read off the log of a process that was stopped")
    return db


def _create(db: sqlite3.Connection) -> None:
    db.execute(f"PRAGMA page_size = {PAGE}")
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT")


def _state(db: sqlite3.Connection) -> str:
    """Whether a file is new (empty), whole, damaged, or foreign: no journal of this version.

    The check reads the whole file, in 2 to 3 s a million attempts, and sees to its structure; checksums do the rest.
    """
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version != VERSION:
            return "foreign" if version or tables else "new"
        db.execute("SELECT 1 FROM attempts, contexts LIMIT 0")
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        return "whole" if verdict == b"ok" else "damaged"
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise
        return "damaged"


def _set_aside(path: Path) -> Path:
    """Move a journal and its log to the first free name beside it; returns that name."""
    number = 1
    while _beside(path, f".aside-{number}").exists():
        number += 1
    aside = _beside(path, f".aside-{number}")
    # The log first: behind a database that is gone it would be taken for that of the next one.
    with suppress(FileNotFoundError):
        _beside(path, "-wal").rename(_beside(aside, "-wal"))
    _beside(path, "-shm").unlink(missing_ok=True)
    path.rename(aside)
    return aside


def _salvage(path: Path, log_file: bytes, log: Log) -> None:
    """Put a new journal, of all rows that are whole in the damaged one, in its place; who calls holds the lock."""
    part = _beside(path, ".part")
    part.unlink(missing_ok=True)
    try:
        with closing(_connect(part)) as db, path.open("rb") as file:

            def stored(number: int) -> bytes:
                return os.pread(file.fileno(), PAGE, (number - 1) * PAGE)

            _create(db)
            whole = _put(db, _readable_rows(log_file, stored, path.stat().st_size // PAGE + 1))
        aside = _set_aside(path)
        part.rename(path)
    finally:
        for suffix in ("", "-wal", "-shm"):
            _beside(part, suffix).unlink(missing_ok=True)
    log(f"journal {path}: damaged; {whole} whole attempts kept, the damaged file set aside as {aside}")


def _put(db: sqlite3.Connection, rows: Iterable[tuple[int, list[Any]]]) -> int:
    """Insert the rows whose checksum is right, in one transaction; returns how many attempts were not there before."""
    new = 0
    db.execute("BEGIN IMMEDIATE")
    for rowid, columns in rows:
        match columns:
            case [None, bytes() as made_of] if rowid == _identity(made_of):
                db.execute(NAME, (rowid, made_of.decode()))
            case [int() as context, bytes() as prompt, int() as attempt, bytes() as value, int() as crc, int() as at]:
                if crc == zlib.crc32(b"%d %b %d " % (context, prompt, attempt) + value):
                    row = (context, prompt.decode(), attempt, value.decode(), crc, at)
                    new += db.execute(KEEP, row).rowcount
    db.execute("COMMIT")
    return new


def _read_log(path: Path) -> bytes:
    log_file = _beside(path, "-wal")
    return log_file.read_bytes() if log_file.exists() else b""


# How SQLite lays out a file and its log: https://www.sqlite.org/fileformat2.html. Read page by page, without the tree
# that leads to the pages, any row can be had that is whole, whatever has become of the header, the index and the roots.
PAGE = 4096
WAL_HEADER, FRAME_HEADER = 32, 24
TABLE_LEAF = 13
LARGEST_LOCAL = PAGE - 35
SMALLEST_LOCAL = (PAGE - 12) * 32 // 255 - 23
INTEGER_BYTES = (0, 1, 2, 3, 4, 6, 8)


def _readable_rows(
    log_file: bytes, stored: Callable[[int], bytes] = lambda number: b"", pages: int = 0
) -> Iterator[tuple[int, list[Any]]]:
    """The rowid and columns of all that looks like a row on a database's pages and in its log; checksums say which are.

    `stored` reads a page of the database, of which there are `pages`.
    """
    logged = [
        (int.from_bytes(log_file[at : at + 4]), log_file[at + FRAME_HEADER : at + FRAME_HEADER + PAGE])
        for at in range(WAL_HEADER, len(log_file), FRAME_HEADER + PAGE)
    ]
    newest = dict(logged)

    def page(number: int) -> bytes:
        return newest[number] if number in newest else stored(number)

    for number in range(1, pages + 1):
        yield from _rows_of(stored(number), page)
    for _, image in logged:
        yield from _rows_of(image, page)


def _rows_of(leaf: bytes, page: Callable[[int], bytes]) -> Iterator[tuple[int, list[Any]]]:
    if not leaf or leaf[0] != TABLE_LEAF:
        return
    for pointer in range(8, 8 + 2 * int.from_bytes(leaf[3:5]), 2):
        try:
            size, at = _varint(leaf, int.from_bytes(leaf[pointer : pointer + 2]))
            rowid, at = _varint(leaf, at)
            columns = _columns(_payload(leaf, at, size, page))
        except IndexError:
            continue
        yield rowid, columns


def _payload(leaf: bytes, at: int, size: int, page: Callable[[int], bytes]) -> bytes:
    """A row's bytes: all on its leaf, or the beginning there and the rest on a chain of pages."""
    if size <= LARGEST_LOCAL:
        return leaf[at : at + size]
    local = SMALLEST_LOCAL + (size - SMALLEST_LOCAL) % (PAGE - 4)
    end = at + (local if local <= LARGEST_LOCAL else SMALLEST_LOCAL)
    parts, following = [leaf[at:end]], int.from_bytes(leaf[end : end + 4])
    passed: set[int] = set()
    while 0 < following <= 0xFFFFFFFE and following not in passed and len(passed) * (PAGE - 4) < size:
        passed.add(following)
        link = page(following)
        parts.append(link[4:])
        following = int.from_bytes(link[:4])
    return b"".join(parts)[:size]


def _columns(record: bytes) -> list[Any]:
    """A row's values: None, int or bytes, the three that a journal has; IndexError on any other kind."""
    header, at = _varint(record, 0)
    kinds = []
    while at < header:
        kind, at = _varint(record, at)
        kinds.append(kind)
    values: list[Any] = []
    for kind in kinds:
        length = (kind - 12) // 2 if kind >= 12 else INTEGER_BYTES[kind] if kind < 8 else 0
        body = record[at : at + length]
        values.append(
            body if kind >= 12 else kind - 8 if kind >= 8 else int.from_bytes(body, signed=True) if kind else None
        )
        at += length
    return values


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An integer of one to nine bytes, seven bits each, of the ninth all eight; and where the next thing begins."""
    value = 0
    for end in range(at, at + 8):
        value = value << 7 | data[end] & 127
        if data[end] < 128:
            return value, end + 1
    return value << 8 | data[at + 8], at + 9
