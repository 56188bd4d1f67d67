"""Laws of URLs that are shown: nobody reads a password in them, and everybody where they lead."""

import pytest

from emotune.core.addresses import without_password


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me:secret@db.org:5432/runs", "postgresql://db.org:5432/runs"),
        ("https://secret@example.org/x", "https://example.org/x"),
        ("ssh://git@example.org:22/x@y", "ssh://example.org:22/x@y"),
        # What should have been escaped, and was not.
        ("mysql+pymysql://me:se/cret@db.org/runs", "mysql+pymysql://db.org/runs"),
        ("mysql://me:se?cr#et@db.org/runs", "mysql://db.org/runs"),
        ("mysql://me:se@cr:e/t@db.org/runs", "mysql://db.org/runs"),
        ("http://me:secret@[::1]:5000/", "http://[::1]:5000/"),
        ("postgresql://db.org/runs?user=me&password=secret", "postgresql://db.org/runs?user=me&password=***"),
        ("https://x.org/?Access_Token=secret&page=2#top", "https://x.org/?Access_Token=***&page=2#top"),
        ("mssql:///?odbc_connect=UID%3Dme%3BPWD%3Dsecret", "mssql:///?odbc_connect=***"),
        ("https://x.org/?sig=secret#token=secret", "https://x.org/?sig=***#token=***"),
        # No URL, though an error may quote it: half of one.
        ("http://[me:secret@db", "http://db"),
    ],
)
def test_no_address_shows_its_password(address: str, shown: str) -> None:
    assert without_password(address) == shown


@pytest.mark.parametrize(
    "address",
    [
        "sqlite:////home/somebody/mlflow.db",
        "s3://bucket/folder@2",
        "https://huggingface.co/owner/model@main",
        "https://example.org:8080/path?page=2&sort=name",
        "somebody@example.org",
        "file:///key=3",
    ],
)
def test_an_address_without_one_stays_as_it_is(address: str) -> None:
    assert without_password(address) == address


def test_every_address_of_a_text_is_masked_and_its_other_words_stay() -> None:
    text = "MLflow at http://me:secret@a.org failed, and\npostgresql://b.org/?password=secret&x=1 too: write me@a.org"
    assert without_password(text) == (
        "MLflow at http://a.org failed, and\npostgresql://b.org/?password=***&x=1 too: write me@a.org"
    )


@pytest.mark.parametrize(
    ("address", "quoted", "shown"),
    [
        ("http://user:secret@host", "nonnumeric port: 'secret@host'", "nonnumeric port: '***@host'"),
        ("http://user:pa/ss@host", "Port could not be cast to integer value as 'pa'", "'***'"),
        ("http://user:p%40ss@host", "no login with p@ss", "no login with ***"),
        ("postgresql://b.org/?password=secret", 'for "secret", not for secretary', 'for "***", not for secretary'),
    ],
)
def test_an_error_that_quotes_a_part_of_an_address_quotes_no_password(address: str, quoted: str, shown: str) -> None:
    assert without_password(quoted, address).endswith(shown)
    assert without_password(quoted) == quoted
