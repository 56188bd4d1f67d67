"""Laws of the journal, on real files, real damage and real processes."""

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from emotune.core.errors import InputError
from emotune.preferences import journal

MADE_OF = {"base": "b" * 64, "sft": "a" * 64, "sampling": {"temperature": 0.7, "top_k": 50}, "candidates": 6}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "work" / "journal.sqlite"


def digest(number: object) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def value(number: int) -> dict:
    """What is kept of an attempt: 1 kB, of which every fiftieth time ten, more than a page of the file."""
    rng = random.Random(number)
    return {"text": rng.randbytes(5000 if number % 50 == 0 else 500).hex(), "confidence": rng.random()}


def fill(path: Path, count: int = 1000) -> dict:
    """A journal with attempts, closed; what it holds by their keys."""
    rows = {(digest(number // 5), number % 5): value(number) for number in range(count)}
    with journal.opened(path, MADE_OF, lambda _: None) as memo:
        memo.keep((*key, kept) for key, kept in rows.items())
    return rows


def found(path: Path, keys: object) -> tuple[dict, list[str]]:
    """What a run that opens the journal finds, and what the log says."""
    lines: list[str] = []
    with journal.opened(path, MADE_OF, lines.append) as memo:
        return memo.find_many(list(keys)), lines


def child(script: str, *arguments: object, **options: object) -> subprocess.Popen:
    """Another process, in which `path`, `made_of` and `value` are what they are here."""
    prelude = f"""
        import sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}]
        from pathlib import Path
        from emotune.core.errors import InputError
        from emotune.preferences import journal
        from test_journal import MADE_OF, digest, value
        path, *arguments = sys.argv[1:]
        path = Path(path)
    """
    command = [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def ended(process: subprocess.Popen) -> str:
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return out


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def sql(path: object, statement: str, *values: object) -> list:
    with closing(sqlite3.connect(path)) as db, db:
        return db.execute(statement, values).fetchall()


def set_aside(path: Path, reason: str, number: int = 1) -> str:
    """What the log says of a journal that is not used."""
    return f"journal {path}: {reason}, so it is set aside as {path}.aside-{number} and what it held is made again"


def asides(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.glob("*.aside-*") if not file.name.endswith("-wal"))


def test_what_is_kept_comes_back_exactly(path):
    values = [0.1, 1e-320, -0.0, 1.7976931348623157e308, None, "", "héllo 🙂 \ud83d", [1, [2.5, {"a": "x" * 20_000}]]]
    with journal.opened(path, MADE_OF) as memo:
        memo.keep([(digest("p"), 1, values), (digest("p"), 2, "two")])
        assert memo.find(digest("p"), 3) is None
    with journal.opened(path, MADE_OF) as memo:
        assert repr(memo.find(digest("p"), 1)) == repr(values)
        assert memo.find_many([(digest("p"), 2), (digest("q"), 1)]) == {(digest("p"), 2): "two"}


def test_an_attempt_that_is_there_stays_as_it_is(path):
    with journal.opened(path, MADE_OF) as memo:
        memo.keep([(digest("p"), 1, "first")])
        memo.keep([(digest("p"), 1, "second"), (digest("p"), 2, "new")])
        assert memo.find(digest("p"), 1) == "first"
        assert memo.find(digest("p"), 2) == "new"


def test_the_order_of_keys_is_no_difference_and_the_log_counts_what_fits(path):
    keys = fill(path, 10)
    lines = []
    with journal.opened(path, dict(reversed(MADE_OF.items())), lines.append) as memo:
        assert memo.find_many(list(keys)) == keys
    assert lines == [f"journal {path}: 10 attempts that fit"]


def test_of_attempts_that_do_not_fit_the_log_says_what_differs_from_the_nearest(path):
    near = {**MADE_OF, "sampling": {"temperature": 0.9, "top_k": 50}, "text": "x" * 100}
    for made_of in (MADE_OF, near, {**MADE_OF, "candidates": 1, "sft": 2, "base": 3, "seed": 4}):
        with journal.opened(path, made_of, lambda _: None) as memo:
            memo.keep([(digest("p"), attempt, 0) for attempt in range(3)])
    lines = []
    with journal.opened(path, {**near, "sampling": {"temperature": 0.8}}, lines.append) as memo:
        assert memo.find(digest("p"), 1) is None
    assert lines == [
        f"journal {path}: none of its 9 attempts fits; those nearest differ in\n"
        "  sampling.temperature: 0.9 there, 0.8 here\n"
        "  sampling.top_k: 50 there, absent here"
    ]
    with journal.opened(path, {**MADE_OF, "text": ["y" * 100]}, lines.append):
        pass
    assert lines[1].splitlines()[1:] == [f'  text: absent there, ["{"y" * 37}… here']


def test_of_contexts_as_near_the_newest_is_shown(path):
    for candidates in (1, 2, 3):
        with journal.opened(path, {"candidates": candidates}, lambda _: None) as memo:
            memo.keep([(digest("p"), 1, candidates)])
    sql(path, "UPDATE attempts SET created = 5 + (value = '2')")
    lines = []
    with journal.opened(path, {"candidates": 4}, lines.append):
        pass
    assert lines[0].endswith("candidates: 2 there, 4 here")


def test_a_new_journal_is_nothing_to_speak_of(path):
    assert found(path, [(digest("p"), 1)]) == ({}, [])


@pytest.mark.parametrize("damage", ["truncated", "random", "header", "roots"])
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(path, damage):
    rows = fill(path)
    noise, size = random.Random(1), path.stat().st_size
    if damage == "truncated":
        os.truncate(path, size // 2 + 1000)
    elif damage == "random":
        overwrite(path, size // 2 + 777, noise.randbytes(60_000))
    else:
        # The roots: the header, those of both tables and of the index, and one page of rows.
        overwrite(path, 0, noise.randbytes(4096 if damage == "header" else 5 * 4096))
    content = path.read_bytes()
    assert found(path, rows) == ({}, [set_aside(path, "damaged")])
    assert asides(path) == ["journal.sqlite.aside-1"]
    assert Path(f"{path}.aside-1").read_bytes() == content
    assert found(path, rows) == ({}, [])
    assert fill(path) == rows
    assert found(path, rows) == (rows, [f"journal {path}: 1000 attempts that fit"])


@pytest.mark.parametrize(
    ("database", "log", "least", "most"),
    [
        ((0, 0), (0, 0), 500, 500),
        # SQLite has the header from the log.
        ((0, 4096), (0, 0), 500, 500),
        ((0, 0), (0, 32), 0, 0),
        ((0, 4096), (0, 32), 0, 0),
        # All before the damage, in whole transactions of 50.
        ((0, 0), (300_000, 20_000), 50, 450),
    ],
    ids=["whole", "database", "log's header", "both headers", "log's middle"],
)
def test_what_only_the_log_of_a_killed_process_holds_is_there_up_to_the_first_damage(path, database, log, least, most):
    script = """
        import os
        with journal.opened(path, MADE_OF) as memo:
            for first in range(0, 500, 50):
                memo.keep((digest(n // 5), n % 5, value(n)) for n in range(first, first + 50))
            os.kill(os.getpid(), 9)
    """
    assert child(script, path).wait(timeout=60) == -signal.SIGKILL
    assert Path(f"{path}-wal").stat().st_size > 500_000
    for file, (at, size) in ((path, database), (Path(f"{path}-wal"), log)):
        overwrite(file, at, random.Random(1).randbytes(size))
    rows = {(digest(number // 5), number % 5): value(number) for number in range(500)}
    there, _ = found(path, rows)
    assert least <= len(there) <= most
    assert len(there) % 50 == 0
    assert there.items() <= rows.items()
    assert found(path, rows)[0] == there
    with journal.opened(path, MADE_OF) as memo:
        assert memo.keep((*key, value) for key, value in rows.items()) == 500 - len(there)
    assert found(path, rows) == (rows, [f"journal {path}: 500 attempts that fit"])


@pytest.mark.parametrize("content", [b"hello", b"hello\n" * 10_000, b"\0" * 8192, b"\x0d" * 50_000])
def test_a_file_that_is_no_database_is_set_aside(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    kept, lines = found(path, [(digest("p"), 1)])
    assert kept == {}
    assert lines == [set_aside(path, "damaged")]
    assert Path(f"{path}.aside-1").read_bytes() == content


def test_another_version_is_not_used_but_set_aside(path):
    rows = fill(path, 10)
    sql(path, "PRAGMA user_version = 0")
    kept, lines = found(path, rows)
    assert kept == {}
    assert lines == [set_aside(path, "of another version")]
    assert sql(f"{path}.aside-1", "SELECT count(*) FROM attempts") == [(10,)]


def test_a_second_damaged_file_gets_another_name(path):
    for number, content in ((1, b"one"), (2, b"two")):
        fill(path, 5)
        overwrite(path, 0, content)
        assert found(path, []) == ({}, [set_aside(path, "damaged", number)])
    assert asides(path) == ["journal.sqlite.aside-1", "journal.sqlite.aside-2"]


@pytest.mark.parametrize("torn", ["value || ' '", "x'ff00'", "5", "''"])
def test_an_attempt_with_a_wrong_checksum_is_absent_until_it_is_kept_again(path, torn):
    rows = fill(path, 10)
    key = (digest(0), 3)
    sql(path, f"UPDATE attempts SET value = {torn} WHERE prompt = ? AND attempt = ?", *key)
    lines = []
    with journal.opened(path, MADE_OF, lines.append) as memo:
        assert memo.find_many(list(rows)) == {other: there for other, there in rows.items() if other != key}
        assert lines[1:] == [f"journal {path}: 1 attempts are damaged and will be made again"]
        memo.keep([(*key, rows[key])])
        assert memo.find(*key) == rows[key]
    assert found(path, rows)[0] == rows


def test_damage_under_a_running_process_begins_a_new_journal_and_others_follow(path):
    rows = fill(path)
    lines = []
    with ExitStack() as stack:
        one, two, three = (stack.enter_context(journal.opened(path, MADE_OF, lines.append)) for _ in range(3))
        subprocess.run(
            ["dd", "if=/dev/urandom", f"of={path}", "bs=4096", "seek=100", "count=30", "conv=notrunc"],
            check=True,
            capture_output=True,
        )
        # What another wrote empties SQLite's cache: the damage is read.
        two.keep([(digest("two"), 1, "before")])
        assert one.find_many([*rows, (digest("two"), 1)]) == {}
        assert Path(f"{path}.aside-1-wal").stat().st_size > 0
        two.keep([(digest("two"), 2, "after")])
        assert one.find(digest("two"), 2) == "after"
        one.keep([(digest("one"), 1, "made again")])
        assert two.find(digest("one"), 1) == "made again"
        # Another that comes upon the damage finds that a new journal is there.
        assert three.find_many([*rows, (digest("one"), 1)]) == {(digest("one"), 1): "made again"}
    assert lines[3:] == [set_aside(path, "damaged")]
    new = {(digest("two"), 2): "after", (digest("one"), 1): "made again"}
    assert found(path, [*rows, *new]) == (new, [f"journal {path}: 2 attempts that fit"])


def test_a_journal_set_aside_under_another_process_is_left_to_that_one_until_it_writes(path):
    rows = fill(path)
    script = """
        with journal.opened(path, MADE_OF, lambda _: None) as memo:
            memo.keep([(digest("other"), 1, "before")])
            print("open", flush=True)
            input()
            memo.keep([(digest("other"), 2, "after")])
            print(memo.find(digest("new"), 1), memo.find(digest("other"), 1))
    """
    other = child(script, path, stdin=subprocess.PIPE)
    assert other.stdout.readline() == "open\n"
    overwrite(path, path.stat().st_size // 2, random.Random(1).randbytes(60_000))
    with journal.opened(path, MADE_OF, lambda _: None) as memo:
        memo.keep([(digest("new"), 1, "kept")])
        assert memo.find_many([*rows, (digest("new"), 1)]) == {(digest("new"), 1): "kept"}
        assert other.communicate("\n", timeout=60) == ("kept None\n", "")
        assert memo.find(digest("other"), 2) == "after"
    assert asides(path) == ["journal.sqlite.aside-1"]


def test_every_attempt_kept_before_a_sigkill_is_found(path):
    script = """
        with journal.opened(path, MADE_OF, lambda _: None) as memo:
            for number in range(100_000):
                memo.keep([(digest(number), attempt, value(number)) for attempt in range(3)])
                print(number, flush=True)
    """
    for kill in (1, 7, 20):
        process = child(script, path)
        acknowledged = [int(process.stdout.readline()) for _ in range(kill)]
        process.kill()
        acknowledged += [int(line) for line in process.communicate()[0].splitlines()]
        keys = [(digest(number), attempt) for number in acknowledged for attempt in range(3)]
        assert len(keys) >= 3 * kill
        kept, lines = found(path, keys)
        assert kept == {(digest(n), attempt): value(n) for n in acknowledged for attempt in range(3)}
        assert "damaged" not in " ".join(lines)


WRITE = """
    first, last = map(int, arguments)
    with journal.opened(path, MADE_OF) as memo:
        for number in range(first, last, 4):
            memo.keep([(digest(n), 1, value(n)) for n in range(number, number + 4)])
            assert memo.find(digest(number), 1) == value(number)
"""


def test_two_processes_write_at_once(path):
    processes = [child(WRITE, path, 0, 120), child(WRITE, path, 60, 180)]
    for process in processes:
        ended(process)
    kept, lines = found(path, [(digest(number), 1) for number in range(180)])
    assert kept == {(digest(number), 1): value(number) for number in range(180)}
    assert lines == [f"journal {path}: 180 attempts that fit"]


def test_a_damaged_journal_that_three_open_at_once_is_set_aside_once(path):
    rows = fill(path)
    overwrite(path, 0, b"gone")
    processes = [child(WRITE, path, 10_000 + 20 * n, 10_020 + 20 * n) for n in range(3)]
    said = "".join(ended(process) for process in processes)
    assert said.count(set_aside(path, "damaged")) == 1
    assert asides(path) == ["journal.sqlite.aside-1"]
    new = [(digest(number), 1) for number in range(10_000, 10_060)]
    assert found(path, [*rows, *new])[0].keys() == set(new)


FULL = """
    import resource, signal
    if arguments:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    kept = 0
    try:
        with journal.opened(path, MADE_OF) as memo:
            for kept in range(10_000):
                memo.keep([(digest(kept), attempt, value(kept)) for attempt in range(3)])
    except InputError as error:
        print(error)
    with journal.opened(path, MADE_OF) as memo:
        assert len(memo.find_many([(digest(n), a) for n in range(kept) for a in range(3)])) == 3 * kept
    print(kept)
"""


def told_of_a_full_disk(path: object, out: str) -> int:
    """The number of batches that were kept before the disk was full, as the child said after its one message."""
    message, *_, kept = out.strip().splitlines()
    assert message.startswith(f"journal {path}: ")
    assert "What was kept stays, and a run started again goes on from there" in message
    return int(kept)


def test_a_full_disk_stops_with_a_message_and_what_was_kept_stays(path):
    kept = told_of_a_full_disk(path, ended(child(FULL, path, "limit")))
    assert kept >= 10
    # With room again it goes on.
    with journal.opened(path, MADE_OF, lambda _: None) as memo:
        memo.keep([(digest(n), a, value(n)) for n in range(kept, 200) for a in range(3)])
    rows = {(digest(n), a): value(n) for n in range(200) for a in range(3)}
    there, lines = found(path, rows)
    assert there == rows
    assert lines == [f"journal {path}: 600 attempts that fit"]


@pytest.fixture
def mounted(tmp_path):
    """Runs a script on a small file system of its own, mounted at the folder that it is given."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def run(options: str, script: str) -> str:
        mount = f'mount -t tmpfs -o {options} none "$0" && exec "$@"'
        process = child(script, folder / "journal.sqlite")
        process.kill()
        command = ["unshare", "-Urm", "sh", "-c", mount, str(folder), *process.args]
        return ended(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))

    if (
        not shutil.which("unshare")
        or subprocess.run(
            ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", str(folder)], capture_output=True
        ).returncode
    ):
        pytest.skip("needs a mount namespace of its own: unshare -Urm is not allowed here")
    return run


def test_a_file_system_without_room_stops_with_a_message_and_what_was_kept_stays(mounted, tmp_path):
    out = mounted("size=1m", FULL)
    assert "database or disk is full" in out
    assert told_of_a_full_disk(tmp_path / "mounted" / "journal.sqlite", out) >= 10


def test_a_read_only_folder_is_one_message(mounted, tmp_path):
    script = """
        try:
            with journal.opened(path, MADE_OF):
                pass
        except InputError as error:
            print(error)
    """
    out = mounted("ro", script)
    assert out.startswith(f"journal {tmp_path / 'mounted' / 'journal.sqlite'}: [Errno 30] Read-only file system")


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"journal .*/file/work/journal.sqlite: .*Not a directory"),
        journal.opened(tmp_path / "file" / "work" / "journal.sqlite", MADE_OF),
    ):
        pass


def test_a_folder_in_the_journals_place_is_one_message(path):
    path.mkdir(parents=True)
    with pytest.raises(InputError, match="unable to open database file"), journal.opened(path, MADE_OF):
        pass


def test_a_journal_cleared_under_a_running_process_takes_what_it_makes_from_then_on(path):
    rows = fill(path, 10)
    with journal.opened(path, MADE_OF, lambda _: None) as memo:
        assert ended(child("print(journal.clear(path))", path)) == "10\n"
        assert not path.exists()
        memo.keep([(digest("new"), 1, "kept")])
        assert memo.find_many([*rows, (digest("new"), 1)]) == {(digest("new"), 1): "kept"}
    assert found(path, [*rows, (digest("new"), 1)])[0] == {(digest("new"), 1): "kept"}


def test_clear_leaves_the_lock_and_nothing_else(path):
    fill(path, 10)
    overwrite(path, 0, b"gone")
    found(path, [])
    fill(path, 10)
    assert len(asides(path)) == 1
    assert journal.clear(path) == 10
    assert [file.name for file in path.parent.iterdir()] == ["journal.sqlite.lock"]
    assert journal.clear(path) == 0
    assert journal.contents(path) == journal.Contents([], 0)


def test_a_damaged_journal_is_cleared_too(path):
    fill(path, 10)
    overwrite(path, 0, b"gone")
    assert journal.clear(path) == 0
    assert not path.exists()


def test_contents_of_two_contexts(path):
    fill(path, 12)
    with journal.opened(path, {"base": "c"}, lambda _: None) as memo:
        memo.keep([(digest("p"), attempt, 0) for attempt in range(3)])
    sql(path, "UPDATE attempts SET created = 1000 + rowid")
    held = journal.contents(path).held
    assert held == [journal.Held(3, 1, 1013, 1015, {"base": "c"}), journal.Held(12, 3, 1001, 1012, MADE_OF)]
    assert journal.contents(path).size == path.stat().st_size


def test_contents_of_a_damaged_journal_is_one_message_and_changes_nothing(path):
    script = """
        import os
        with journal.opened(path, MADE_OF) as memo:
            memo.keep((digest(n), 1, value(n)) for n in range(10))
            os.kill(os.getpid(), 9)
    """
    child(script, path).wait(timeout=60)
    log = Path(f"{path}-wal")
    for file in (path, log):
        overwrite(file, 0, b"gone")
    before = path.read_bytes(), log.read_bytes()
    with pytest.raises(InputError, match=r"journal.sqlite is damaged: the next stage that uses it sets it aside"):
        journal.contents(path)
    assert (path.read_bytes(), log.read_bytes()) == before


@pytest.mark.parametrize(
    "damage",
    ["DELETE FROM contexts", "UPDATE contexts SET made_of = made_of || ' '", "UPDATE contexts SET made_of = 5"],
)
def test_attempts_find_their_context_again_that_the_file_has_lost(path, damage):
    rows = fill(path, 10)
    sql(path, damage)
    assert found(path, rows)[0] == rows
    assert journal.contents(path).held[0].made_of == {}


def test_the_journal_imports_nothing_heavy():
    script = (
        "import sys; from emotune.preferences import journal\n"
        "print({'torch', 'transformers', 'mlflow', 'datasets', 'dvc', 'sklearn'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "set()\n"
