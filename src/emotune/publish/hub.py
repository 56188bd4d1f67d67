"""The Hub: what a repository there holds, what of a folder it lacks, sending that, getting it back.

The only caller of the Hub's API. The token is that of the environment (HF_TOKEN) or of the Hub's own login; nobody else
sees it, and no message carries it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from emotune.core.errors import InputError

T = TypeVar("T")

MAIN = "main"
# The Hub's own, in every repository: which files it keeps outside git.
KEPT = ".gitattributes"
LOGIN = "set HF_TOKEN, or log in by `hf auth login`"
AGAIN = "start it again: it goes on where it stopped"
TOLD = {
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

    def quoted(self) -> str:
        """The first arguments of a `from_pretrained` or `load_dataset`."""
        return json.dumps(self.id) + ("" if self.branch == MAIN else f", revision={json.dumps(self.branch)}")

    def tag(self, name: str) -> str:
        """A release's tag: tags belong to a repository, so that of another branch says which."""
        return name if self.branch == MAIN else f"{self.branch}-{name}"


@dataclass(frozen=True)
class Plan:
    """What has to happen so that a branch holds just the files of a folder, and a tag names them."""

    repository: Repository
    folder: Path
    # The commit that the branch is at; None where there is no such branch, or no such repository.
    head: str | None
    exists: bool
    send: tuple[str, ...]
    delete: tuple[str, ...]
    tag: str | None

    @property
    def done(self) -> bool:
        return not (self.send or self.delete or self.tag)

    @property
    def bytes(self) -> int:
        return sum((self.folder / path).stat().st_size for path in self.send)


def account() -> str:
    """The name of the token's account."""
    with _told("who the token belongs to"):
        return str(_api().whoami()["name"])


def compared(repository: Repository, folder: Path, tag: str | None, public: bool) -> Plan:
    """Compare a folder with what the Hub has; nothing is sent.

    InputError where the tag names other content already (a release does not move), and where the repository is public
    and `public` does not say that this is meant.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    with _told(repository.id):
        info = _found(lambda: _api().repo_info(repository.id, repo_type=repository.kind))
        if info is None:
            return Plan(repository, folder, None, False, tuple(files), (), tag)
        if not info.private and not public:
            raise InputError(f"{repository.id} is public; --public says that this is meant")
        refs = _api().list_repo_refs(repository.id, repo_type=repository.kind)
        head = next((ref.target_commit for ref in refs.branches if ref.name == repository.branch), None)
        there = _hashes(repository, head) if head else {}
    send = tuple(name for name, path in files.items() if there.get(name) not in _hashes_of(path))
    delete = tuple(name for name in there if name not in files and name != KEPT)
    tagged = next((ref.target_commit for ref in refs.tags if tag and ref.name == repository.tag(tag)), None)
    if tagged and (send or delete or tagged != head):
        raise InputError(
            f"{repository.id}: the tag {repository.tag(str(tag))} names commit {tagged[:12]}, which is another "
            "content; a release does not move: take another --tag"
        )
    return Plan(repository, folder, head, True, send, delete, None if tagged else tag)


def push(plan: Plan, public: bool, message: str) -> str:
    """Do what a plan says, one commit for all files; returns the branch's commit. Nothing is done where it is done.

    Interrupted, it has sent whole files or nothing of them, and no commit: the Hub asks the next call for the others.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api, repository = _api(), plan.repository
    where: dict[str, Any] = {"repo_id": repository.id, "repo_type": repository.kind}
    if plan.head is None:
        # Another branch of it may have been sent since.
        plan = compared(repository, plan.folder, plan.tag, public)
    if plan.head is None:
        with _told(repository.id):
            if not plan.exists:
                api.create_repo(**where, private=not public)
            if repository.branch != MAIN:
                api.create_branch(**where, branch=repository.branch)
        # Neither begins empty: a repository has the Hub's own file, a branch all that main has.
        plan = compared(repository, plan.folder, plan.tag, public)
    head = plan.head
    with _told(repository.id):
        if plan.send or plan.delete:
            head = api.create_commit(
                **where,
                operations=[
                    *(CommitOperationAdd(path, plan.folder / path) for path in plan.send),
                    *(CommitOperationDelete(path) for path in plan.delete),
                ],
                commit_message=message,
                revision=repository.branch,
                # What was compared: a commit of somebody else since then is an error, not overwritten.
                parent_commit=head,
            ).oid
        if plan.tag:
            api.create_tag(**where, tag=repository.tag(plan.tag), revision=head)
    return str(head)


def fetched(repository: Repository, tag: str | None, cache: Path) -> Path:
    """A folder with all that a branch, or a release, holds, downloaded into a cache of its own."""
    from huggingface_hub import snapshot_download

    with _told(repository.id):
        return Path(
            snapshot_download(
                repository.id,
                repo_type=repository.kind,
                revision=repository.tag(tag) if tag else repository.branch,
                cache_dir=cache,
            )
        )


def rows(repository: Repository, tag: str | None, cache: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each split of a dataset there, as `load_dataset` reads them, downloaded into a cache of its own."""
    import datasets

    datasets.disable_progress_bars()
    with _told(repository.id):
        revision = repository.tag(tag) if tag else repository.branch
        loaded = datasets.load_dataset(repository.id, revision=revision, cache_dir=str(cache))
        return {split: list(table) for split, table in loaded.items()}


def same(one: Path, other: Path) -> bool:
    """Whether two files have the same sha256."""
    return one.is_file() and other.is_file() and _digest(one, "sha256") == _digest(other, "sha256")


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="emotune")


def _found(ask: Callable[[], T]) -> T | None:
    """What the Hub answers; None where it knows no such repository."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return ask()
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


def _hashes_of(path: Path) -> set[str]:
    return {_digest(path, "sha256"), _digest(path, "sha1", f"blob {path.stat().st_size}\0".encode())}


def _digest(path: Path, algorithm: str, begin: bytes = b"") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, begin)).hexdigest()


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of the Hub as one InputError that says of what, what it answered, and what to do; never with the token."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

    def without_token(error: Exception) -> str:
        text = " ".join(str(error).split())
        return text.replace(token, "(the token)") if (token := get_token()) else text

    try:
        yield
    except InputError:
        raise
    except LocalTokenNotFoundError:
        raise InputError(f"{constants.ENDPOINT}: {what}: no token: {LOGIN}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        told = TOLD.get(status, f"the Hub failed; {AGAIN}" if status >= 500 else without_token(error))
        wait = error.response.headers.get("Retry-After")
        said = without_token(Exception(error.server_message)) if error.server_message else ""
        raise InputError(
            f"{constants.ENDPOINT}: {what}: {status}: {told}"
            + (f" (it asks to wait {wait} s)" if wait else "")
            + (f"; it says: {said}" if said else "")
        ) from None
    except HTTPError as error:
        raise InputError(f"{constants.ENDPOINT}: {what}: no answer ({without_token(error)}); {AGAIN}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{constants.ENDPOINT}: {what}: {without_token(error)}") from None
