"""What was sampled and scored already: a memo in one SQLite file, crash-safe, shared between experiments.

It may be deleted at any time: what it lacks is made again, so a damaged file is set aside and a new one begun. One law
keeps it whole: who writes to the file or puts another in its place holds the lock beside it, and who finds another file
at the path than the one it opened opens that one. SQLite's write-ahead log needs shared memory, so all processes of one
journal run on one machine.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from emotune.core.errors import InputError
from emotune.core.nested import leaves

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
COUNT = "SELECT count(*) FROM attempts WHERE context = ?"
FIND = "SELECT value, checksum FROM attempts WHERE context = ? AND prompt = ? AND attempt = ?"
DROP = "DELETE FROM attempts WHERE context = ? AND prompt = ? AND attempt = ?"
KEEP = "INSERT OR IGNORE INTO attempts VALUES (?, ?, ?, ?, ?, ?)"
NAME = "INSERT OR IGNORE INTO contexts VALUES (?, ?)"
# The index on its own answers this one; rows are added in the order of time, so the ends are the first and the last.
HELD = "SELECT context, count(*), count(DISTINCT prompt), min(rowid), max(rowid) FROM attempts GROUP BY context"
ENDS = "SELECT min(created), max(created) FROM attempts WHERE rowid IN (?, ?)"

# What a file can be.
NEW, WHOLE, DAMAGED, FOREIGN = "new", "whole", "damaged", "of another version"
# Our statements are fixed, so an SQLITE_ERROR (no such table ...) means that the schema is not what we wrote.
DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
# Seconds: to open a file of a million attempts takes a few, far more on a slow disk, and everyone else waits for it.
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
        journal.greet()
    try:
        yield journal
    finally:
        with _told(path):
            journal.close()


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
            whole = {key: row[0] for key, row in there.items() if _checksum(self._context, *key, row[0]) == row[1]}
            if torn := [(self._context, *key) for key in there if key not in whole]:
                self._log(f"journal {self._path}: {len(torn)} attempts are damaged and will be made again")
                # One that another process has made again meanwhile is made a third time.
                self._write(lambda db: db.executemany(DROP, torn))
        return {key: json.loads(text) for key, text in whole.items()}

    def keep(self, rows: Iterable[tuple[str, int, Any]]) -> int:
        """Write attempts (prompt, attempt, value) in one transaction, on disk when this returns how many were new.

        One that is there already stays as it is. InputError where the disk is full: what was kept before stays.
        """
        now, attempts = int(time.time()), []
        for prompt, attempt, value in rows:
            text = json.dumps(value)
            checksum = _checksum(self._context, prompt, attempt, text.encode())
            attempts.append((self._context, prompt, attempt, text, checksum, now))

        def insert(db: sqlite3.Connection) -> int:
            db.execute(NAME, (self._context, self._made_of))
            return db.executemany(KEEP, attempts).rowcount

        with _told(self._path):
            return self._write(insert)

    def greet(self) -> None:
        """Say how many attempts fit, or else how the nearest that are there were made."""
        (fitting,) = self._transact("BEGIN", lambda db: db.execute(COUNT, (self._context,)).fetchone())
        if fitting:
            self._log(f"journal {self._path}: {fitting} attempts that fit")
        elif others := self._transact("BEGIN", _held):
            total = sum(held.attempts for held in others)
            # Of several as near, the newest: min() takes the first.
            lines = min((_differences(held.made_of, json.loads(self._made_of)) for held in others), key=len)
            head = f"journal {self._path}: none of its {total} attempts fits; those nearest differ in"
            self._log("\n  ".join([head, *lines]))

    def close(self) -> None:
        """Leave the file; the last one to do so moves SQLite's log into the database."""
        with self._lock:
            self._db.close()

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            # Another process may have cleared the journal or set it aside.
            if _inode(self._path) != self._inode:
                self._db.close()
                self._open()
            return self._transact("BEGIN IMMEDIATE", work)

    def _transact(self, begin: str, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do some work in one transaction; where the file proves damaged, begin a new one and do the work again."""
        try:
            return self._once(begin, work)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
        with self._lock:
            self._db.close()
            if _inode(self._path) == self._inode:
                _set_aside(self._path, DAMAGED, self._log)
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

    def _open(self) -> None:
        """Connect to the whole journal at the path, a new one where there is none; who calls holds the lock."""
        self._db = db = _connect(self._path)
        state = _state(db)
        if state not in (NEW, WHOLE):
            db.close()
            _set_aside(self._path, state, self._log)
            self._db = db = _connect(self._path)
        if state != WHOLE:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT")
        # FULL, not NORMAL: what keep() returned from has to survive a power cut too, and one fsync a batch is little
        # beside the sampling of the batch.
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._inode = _inode(self._path)


def contents(path: Path) -> Contents:
    """What the journal at a path holds, nothing where there is none; InputError where it cannot be read."""
    if not path.exists():
        return Contents([], 0)
    # Only to read: who closes a journal last moves its log into the database.
    with _told(path), _lock(path), closing(_connect(path, "ro")) as db:
        state = _state(db)
        if state not in (NEW, WHOLE):
            raise InputError(f"{path} is {state}: the next stage that uses it sets it aside")
        held = _held(db) if state == WHOLE else []
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
            gone = sum(held.attempts for held in _held(db)) if _state(db) == WHOLE else 0
        # The database first: a log without its database is nothing to SQLite, a database without its log may be torn.
        asides = path.parent.glob(f"{path.name}.aside-*")
        for file in (path, _beside(path, "-wal"), _beside(path, "-shm"), *asides):
            file.unlink(missing_ok=True)
    return gone


def _held(db: sqlite3.Connection) -> list[Held]:
    made_of = {
        identity: json.loads(text)
        for identity, text in db.execute("SELECT id, made_of FROM contexts")
        if isinstance(text, bytes) and _identity(text) == identity
    }
    held = []
    for context, attempts, prompts, *ends in db.execute(HELD).fetchall():
        first, last = db.execute(ENDS, ends).fetchone()
        # Bytes that went bad can cost what a context was made of, and leave its attempts.
        held.append(Held(attempts, prompts, first, last, made_of.get(context, {})))
    return sorted(held, key=lambda context: -context.last)


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """A line for each leaf that differs: its dotted name, and both values, shortened."""
    sides = [{name: json.dumps(leaf) for name, leaf in leaves(side)} for side in (there, here)]
    lines = []
    for name in sorted({*sides[0], *sides[1]}):
        old, new = (side.get(name, "absent") for side in sides)
        if old != new:
            old, new = (text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…" for text in (old, new))
            lines.append(f"{name}: {old} there, {new} here")
    return lines


def _identity(made_of: bytes) -> int:
    """A context's id is made of its content, so it is its own checksum, and attempts find their context in any file."""
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


def _state(db: sqlite3.Connection) -> str:
    """Whether a file is new (empty), whole, damaged, or no journal of this version.

    The check reads the whole file, in 2 to 3 s a million attempts, and sees to its structure; checksums do the rest.
    """
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version != VERSION:
            return FOREIGN if version or tables else NEW
        db.execute("SELECT 1 FROM attempts, contexts LIMIT 0")
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        return WHOLE if verdict == b"ok" else DAMAGED
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise
        return DAMAGED


def _set_aside(path: Path, state: str, log: Log) -> None:
    """Move a journal and its log to the first free name beside it; who calls holds the lock."""
    names = (_beside(path, f".aside-{number}") for number in count(1))
    aside = next(name for name in names if not name.exists())
    # Memory that is shared by those who have this file open: another file needs another. The database goes before its
    # log, for a log alone is nothing to SQLite.
    _beside(path, "-shm").unlink(missing_ok=True)
    path.rename(aside)
    with suppress(FileNotFoundError):
        _beside(path, "-wal").rename(_beside(aside, "-wal"))
    log(f"journal {path}: {state}, so it is set aside as {aside} and what it held is made again")
