"""The Hub: what a repository there holds, what of a folder it lacks, sending that, getting it back.

The only caller of the Hub's API. The token is that of the environment (HF_TOKEN) or of the Hub's own login; nobody else
sees it, and no message carries it.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emotune.core import records
from emotune.core.addresses import without_password
from emotune.core.errors import InputError

MAIN = "main"
# The Hub's own, in every repository: which files it keeps outside git.
ATTRIBUTES = ".gitattributes"
CARD = "README.md"
# The line of a card that names the commit.
CHECKOUT = re.compile("^git checkout ([0-9a-f]{40})$", re.MULTILINE)
LOGIN = "set HF_TOKEN, or log in by `hf auth login`"
AGAIN = "start it again: it goes on where it stopped"
STATUS = {
    401: f"the Hub does not accept the token: {LOGIN}",
    403: "the token may not do that: give it write access there, or name an account of yours as publish.owner",
    404: "there is no such repository or revision, or the token may not see it",
    409: "it stands in the way of something that is there already",
    412: f"somebody else has changed it meanwhile; {AGAIN}",
    429: f"too many requests; wait, and {AGAIN}",
}


@dataclass(frozen=True)
class Repository:
    """Where a part lies on the Hub: a repository's id, a branch of it, and whether it is a `model` or a `dataset`."""

    id: str
    branch: str
    kind: str

    @property
    def name(self) -> str:
        return self.id.rsplit("/", 1)[-1]

    @property
    def url(self) -> str:
        path = f"datasets/{self.id}" if self.kind == "dataset" else self.id
        return f"https://huggingface.co/{path}" + ("" if self.branch == MAIN else f"/tree/{self.branch}")

    @property
    def link(self) -> str:
        """The id in Markdown."""
        return f"[{self.id}]({self.url})"

    @property
    def quoted(self) -> str:
        """The first arguments of a `from_pretrained` or `load_dataset`."""
        return json.dumps(self.id) + ("" if self.branch == MAIN else f", revision={json.dumps(self.branch)}")

    def tag(self, name: str) -> str:
        """A release's tag: tags belong to a repository, so that of another branch says which."""
        return name if self.branch == MAIN else f"{self.branch}-{name}"

    def revision(self, tag: str | None) -> str:
        """What a release, or else the branch, is called there."""
        return self.tag(tag) if tag else self.branch


@dataclass(frozen=True)
class Plan:
    """What has to happen so that a branch holds just the files of a folder, and a tag names them."""

    repository: Repository
    folder: Path
    # Whether a repository that has to be made may be seen by everybody.
    public: bool
    # The commit that the branch is at; None where there is no such branch, or no such repository.
    head: str | None
    send: tuple[str, ...]
    delete: tuple[str, ...]
    tag: str | None

    @property
    def changes(self) -> bool:
        """Whether the branch will be at another commit."""
        return bool(self.send or self.delete)

    @property
    def done(self) -> bool:
        return not (self.changes or self.tag)

    @property
    def summary(self) -> str:
        size = sum((self.folder / path).stat().st_size for path in self.send)
        return "nothing to send" if self.done else f"{len(self.send)} files, {size:,} bytes"


def account() -> str:
    """The name of the token's account."""
    with _one_message("who the token belongs to"):
        return str(_api().whoami()["name"])


def files(folder: Path) -> dict[str, Path]:
    """Every file below a folder, by the name that it has in a repository."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def plan(repository: Repository, folder: Path, tag: str | None, public: bool) -> Plan:
    """Compare a folder with what the Hub has; nothing is sent.

    InputError where the tag names other content already (a release does not move), and where the repository is public
    and `public` does not say that this is meant.
    """
    here = files(folder)
    with _one_message(repository.id):
        info = _info(repository)
        if info is None:
            return Plan(repository, folder, public, None, tuple(here), (), tag)
        if not info.private and not public:
            raise InputError(f"{repository.id} is public; --public says that this is meant")
        refs = _api().list_repo_refs(repository.id, repo_type=repository.kind)
        head = next((ref.target_commit for ref in refs.branches if ref.name == repository.branch), None)
        there = _hashes(repository, head) if head else {}
    send = tuple(name for name, path in here.items() if name not in there or not _has_hash(path, there[name]))
    delete = tuple(name for name in there if name not in here and name != ATTRIBUTES)
    release = next((ref.target_commit for ref in refs.tags if tag and ref.name == repository.tag(tag)), None)
    if release and (send or delete or release != head):
        raise InputError(
            f"{repository.id}: the tag {repository.tag(str(tag))} names commit {release[:12]}, which is another "
            "content; a release does not move: take another --tag"
        )
    return Plan(repository, folder, public, head, send, delete, None if release else tag)


def push(todo: Plan, message: str) -> str:
    """Do what a plan says, one commit for all files; returns the branch's commit. Nothing is done where it is done.

    Interrupted, it has sent whole files or nothing of them, and no commit: the Hub asks the next call for the others.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    repository = todo.repository
    with _one_message(repository.id):
        if not todo.head:
            _make_branch(repository, todo.public)
            # It does not begin empty: a repository has the Hub's own file, a branch all that main has.
            todo = plan(repository, todo.folder, todo.tag, todo.public)
        head = todo.head
        changes = [
            *(CommitOperationAdd(path, todo.folder / path) for path in todo.send),
            *(CommitOperationDelete(path) for path in todo.delete),
        ]
        if changes:
            commit = _api().create_commit(
                repository.id,
                changes,
                commit_message=message,
                repo_type=repository.kind,
                revision=repository.branch,
                # What was compared: a commit of somebody else since then is an error, not overwritten.
                parent_commit=head,
            )
            head = commit.oid
        if todo.tag:
            tag = repository.tag(todo.tag)
            _api().create_tag(repository.id, tag=tag, revision=head, repo_type=repository.kind)
    return str(head)


def _make_branch(repository: Repository, public: bool) -> None:
    # Another branch of the repository may have been sent since it was planned.
    if _info(repository) is None:
        _api().create_repo(repository.id, repo_type=repository.kind, private=not public)
    if repository.branch != MAIN:
        _api().create_branch(repository.id, repo_type=repository.kind, branch=repository.branch)


def origin(name: str) -> dict[str, str] | None:
    """Of what commit a revision on the Hub was made, by its card: `repo`, `revision` and `commit`.

    None where the name is not `owner/name@revision`, with a branch, a tag or a commit, or of no repository there.
    """
    named = re.fullmatch(r"([\w.-]+/[\w.-]+)@([\w./-]+)", name)
    for kind in ("model", "dataset") if named else ():
        assert named
        with _one_message(name):
            if _info(Repository(named[1], MAIN, kind)):
                revision = str(_api().repo_info(named[1], repo_type=kind, revision=named[2]).sha)
                card = _api().hf_hub_download(named[1], CARD, repo_type=kind, revision=revision)
                if commit := CHECKOUT.search(Path(card).read_text(encoding="utf-8")):
                    return {"repo": named[1], "revision": revision, "commit": commit[1]}
                raise InputError(f"{name}: its card names no commit that it was made of")
    return None


def download(repository: Repository, tag: str | None, cache: Path) -> Path:
    """A folder with all that a branch, or a release, holds, downloaded into a cache of its own."""
    from huggingface_hub import snapshot_download

    with _one_message(repository.id):
        folder = snapshot_download(
            repository.id, repo_type=repository.kind, revision=repository.revision(tag), cache_dir=cache
        )
    return Path(folder)


def rows(repository: Repository, tag: str | None, cache: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each split of a dataset there, as `load_dataset` reads them, downloaded into a cache of its own."""
    import datasets

    datasets.disable_progress_bars()
    with _one_message(repository.id):
        splits = datasets.load_dataset(repository.id, revision=repository.revision(tag), cache_dir=str(cache))
        return {split: list(table) for split, table in splits.items()}


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="emotune")


def _info(repository: Repository) -> Any:
    """What the Hub says of a repository; None where it knows none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return _api().repo_info(repository.id, repo_type=repository.kind)
    except RepositoryNotFoundError as error:
        # It comes for 401 too.
        if error.response.status_code == 404:
            return None
        raise


def _hashes(repository: Repository, commit: str) -> dict[str, str]:
    """The hash of every file there: git's own, or the sha256 of one that is kept outside git."""
    from huggingface_hub.hf_api import RepoFile

    tree = _api().list_repo_tree(repository.id, repo_type=repository.kind, revision=commit, recursive=True)
    return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in tree if isinstance(file, RepoFile)}


def _has_hash(path: Path, hash: str) -> bool:
    """Whether a file has the content that the Hub calls by a sha256, or by git's sha1 of content and size."""
    if len(hash) == 64:
        return records.sha256(path) == hash
    with path.open("rb") as file:
        header = f"blob {path.stat().st_size}\0".encode()
        return hashlib.file_digest(file, lambda: hashlib.sha1(header)).hexdigest() == hash


@contextmanager
def _one_message(subject: str) -> Iterator[None]:
    """Errors of the Hub as one InputError that says of what, what it answered, and what to do; never with the token."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except InputError:
        raise
    except (HTTPError, OSError, ValueError) as error:
        told = f"{constants.ENDPOINT}: {subject}: {_reason(error)}"
        raise InputError(without_password(told, constants.ENDPOINT)) from None


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

    text = _without_token(str(error))
    if isinstance(error, LocalTokenNotFoundError):
        return f"no token: {LOGIN}"
    if not isinstance(error, HfHubHTTPError):
        return f"no answer ({text}); {AGAIN}" if isinstance(error, HTTPError) else text
    status, wait = error.response.status_code, error.response.headers.get("Retry-After")
    return (
        f"{status}: {STATUS.get(status, f'the Hub failed; {AGAIN}' if status >= 500 else text)}"
        + (f" (it asks to wait {wait} s)" if wait else "")
        + (f"; it says: {_without_token(error.server_message)}" if error.server_message else "")
    )


def _without_token(text: str) -> str:
    from huggingface_hub import get_token

    line = " ".join(text.split())
    return line.replace(token, "(the token)") if (token := get_token()) else line
