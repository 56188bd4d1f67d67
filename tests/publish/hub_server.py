"""A Hub on loopback, in memory: the requests that huggingface_hub 2.4 sends, with the replies that it needs."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_aTokenThatNobodyElseMaySee"
CHUNK = 200_000
# A file of these goes beside git, as the Hub does with large and binary ones.
LARGE = (".safetensors", ".parquet")


@dataclass
class Repository:
    private: bool
    # Each commit is a whole tree: the sha256 of every path's content, and whether it is kept beside git.
    commits: dict[str, dict[str, tuple[str, bool]]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, tree: dict[str, tuple[str, bool]]) -> str:
        name = hashlib.sha1(json.dumps([branch, len(self.commits), sorted(tree.items())]).encode()).hexdigest()
        self.commits[name] = tree
        self.branches[branch] = name
        return name

    def find(self, revision: str) -> str | None:
        named = self.branches.get(revision) or self.tags.get(revision)
        return named or (revision if revision in self.commits else None)


class Refused(Exception):
    """A status other than 200; its headers say which of the client's errors it is."""

    def __init__(self, status: int, said: str = "", **headers: str) -> None:
        self.status, self.said, self.headers = status, said, headers


class Hub(ThreadingHTTPServer):
    """`log` has every request; `fault(method, path)` may raise Refused, or end the connection by ConnectionError."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.contents: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.log: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], None] = lambda method, path: None
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def keep(self, content: bytes) -> str:
        name = hashlib.sha256(content).hexdigest()
        self.contents[name] = content
        return name

    def sent(self) -> list[tuple[str, str]]:
        """What changes something, of the log."""
        asking = r"preupload|paths-info|validate-yaml|objects/batch"
        return [
            (method, path) for method, path in self.log if method in ("POST", "PUT") and not re.search(asking, path)
        ]

    def files(self, kind: str, id: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[kind, id]
        tree = repository.commits[repository.find(revision) or ""]
        return {path: self.contents[content] for path, (content, _) in tree.items() if path != ".gitattributes"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):
            super().handle_one_request()
            return
        self.close_connection = True

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.log.append((self.command, path))
        try:
            self.server.fault(self.command, path)
            own = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if not own and not re.search(r"^/lfs/|validate-yaml|agent-harnesses", path):
                raise Refused(
                    401, "Invalid credentials", **{"X-Error-Message": "Invalid credentials in Authorization header"}
                )
            for method, pattern, reply in ROUTES:
                if self.command in method.split() and (found := re.fullmatch(pattern, path)):
                    status, headers, content = reply(self, body, *found.groups())
                    break
            else:
                raise Refused(404, f"no such endpoint: {self.command} {path}")
        except Refused as refused:
            status, headers = refused.status, refused.headers
            content = json.dumps({"error": refused.said}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def repository(self, kind: str, id: str) -> Repository:
        found = self.server.repositories.get((kind, id))
        if found is None:
            raise Refused(404, "Repository not found", **{"X-Error-Code": "RepoNotFound"})
        return found

    def at(self, kind: str, id: str, revision: str) -> tuple[str, dict[str, tuple[str, bool]]]:
        repository = self.repository(kind, id)
        commit = repository.find(revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", **{"X-Error-Code": "RevisionNotFound"})
        return commit, repository.commits[commit]


Reply = tuple[int, dict[str, str], bytes]


def said(value: Any) -> Reply:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def whoami(at: Handler, body: bytes) -> Reply:
    return said({"name": "me", "type": "user", "orgs": [], "auth": {}})


def create(at: Handler, body: bytes) -> Reply:
    asked = json.loads(body)
    key = (f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or 'me'}/{asked['name']}")
    if key in at.server.repositories:
        raise Refused(409, "You already created this repository")
    new = at.server.repositories[key] = Repository(asked.get("private") or asked.get("visibility") == "private")
    new.commit("main", {".gitattributes": (at.server.keep(b"* -text\n"), False)})
    return said({"url": f"{at.server.url}/{key[1]}"})


def info(at: Handler, body: bytes, kind: str, id: str, revision: str | None) -> Reply:
    commit, tree = at.at(kind, id, revision or "main")
    siblings = [{"rfilename": path} for path in sorted(tree)]
    private = at.repository(kind, id).private
    return said({"id": id, "sha": commit, "private": private, "siblings": siblings, "tags": [], "downloads": 0})


def refs(at: Handler, body: bytes, kind: str, id: str) -> Reply:
    repository = at.repository(kind, id)
    listed = {
        name: [{"name": ref, "ref": f"refs/{name}/{ref}", "targetCommit": commit} for ref, commit in found.items()]
        for name, found in (("branches", repository.branches), ("tags", repository.tags))
    }
    return said({**listed, "converts": []})


def entry(at: Handler, path: str, found: tuple[str, bool]) -> dict[str, Any]:
    content, large = found
    data = at.server.contents[content]
    git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    lfs = {"lfs": {"oid": content, "size": len(data), "pointerSize": 134}} if large else {}
    return {"type": "file", "path": path, "oid": git, "size": len(data), **lfs}


def tree(at: Handler, body: bytes, kind: str, id: str, revision: str, below: str | None) -> Reply:
    _, found = at.at(kind, id, revision)
    begin = f"{below}/" if below else ""
    under = [path for path in sorted(found) if path.startswith(begin)]
    if below and not under:
        raise Refused(404, "no such folder", **{"X-Error-Code": "EntryNotFound"})
    if "recursive=true" in at.path.lower():
        return said([entry(at, path, found[path]) for path in under])
    folders = {begin + path.removeprefix(begin).split("/")[0] for path in under if "/" in path.removeprefix(begin)}
    files = [entry(at, path, found[path]) for path in under if "/" not in path.removeprefix(begin)]
    return said([{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)] + files)


def paths_info(at: Handler, body: bytes, kind: str, id: str, revision: str) -> Reply:
    _, found = at.at(kind, id, revision)
    asked = json.loads(body)["paths"] if body[:1] == b"{" else []
    folders = [path for path in asked if path not in found and any(name.startswith(f"{path}/") for name in found)]
    listed = [entry(at, path, found[path]) for path in asked if path in found]
    return said(listed + [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders])


def validate(at: Handler, body: bytes) -> Reply:
    return said({"errors": [], "warnings": []})


def preupload(at: Handler, body: bytes, kind: str, id: str, revision: str) -> Reply:
    at.at(kind, id, revision)
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
            "shouldIgnore": False,
            "oid": None,
        }
        for file in json.loads(body)["files"]
    ]
    return said({"files": files})


def batch(at: Handler, body: bytes, kind: str | None, id: str) -> Reply:
    objects = []
    for wanted in json.loads(body)["objects"]:
        oid, size, here = wanted["oid"], wanted["size"], f"{at.server.url}/lfs"
        upload: dict[str, Any] = {"href": f"{here}/whole/{oid}"}
        if size > CHUNK:
            numbers = range(1, -(-size // CHUNK) + 1)
            header = {f"{number:05}": f"{here}/part/{oid}/{number}" for number in numbers}
            upload = {"href": f"{here}/complete/{oid}", "header": {"chunk_size": str(CHUNK), **header}}
        actions = {"upload": upload, "verify": {"href": f"{here}/verify"}}
        objects.append({"oid": oid, "size": size, **({} if oid in at.server.contents else {"actions": actions})})
    multipart = any(wanted["size"] > CHUNK for wanted in objects)
    return said({"transfer": "multipart" if multipart else "basic", "objects": objects})


def whole(at: Handler, body: bytes, oid: str) -> Reply:
    if at.server.keep(body) != oid:
        raise Refused(422, "not the content that was announced")
    return said({})


def part(at: Handler, body: bytes, oid: str, number: str) -> Reply:
    at.server.parts.setdefault(oid, {})[int(number)] = body
    return 200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, b""


def complete(at: Handler, body: bytes, oid: str) -> Reply:
    parts = at.server.parts.pop(oid)
    return whole(at, b"".join(parts[number] for number in sorted(parts)), oid)


def verify(at: Handler, body: bytes) -> Reply:
    if json.loads(body)["oid"] not in at.server.contents:
        raise Refused(404, "no such object")
    return said({})


def commit(at: Handler, body: bytes, kind: str, id: str, branch: str) -> Reply:
    before, tree = at.at(kind, id, branch)
    lines = [json.loads(line) for line in body.splitlines()]
    parent = lines[0]["value"].get("parentCommit")
    if parent and parent != before:
        raise Refused(412, "The branch has moved")
    after = dict(tree)
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            after[value["path"]] = (at.server.keep(base64.b64decode(value["content"])), False)
        elif line["key"] == "lfsFile":
            after[value["path"]] = (value["oid"], True)
        else:
            del after[value["path"]]
    new = at.repository(kind, id).commit(branch, after)
    return said({"commitUrl": f"{at.server.url}/{id}/commit/{new}", "commitOid": new, "success": True})


def branch(at: Handler, body: bytes, kind: str, id: str, name: str) -> Reply:
    repository = at.repository(kind, id)
    if name in repository.branches:
        raise Refused(409, "Reference already exists")
    repository.branches[name] = repository.branches["main"]
    return said({})


def tag(at: Handler, body: bytes, kind: str, id: str, revision: str) -> Reply:
    target, name = at.at(kind, id, revision)[0], json.loads(body)["tag"]
    tags = at.repository(kind, id).tags
    if name in tags:
        raise Refused(409, "Tag reference exists already")
    tags[name] = target
    return said({})


def resolve(at: Handler, body: bytes, datasets: str | None, id: str, revision: str, path: str) -> Reply:
    commit, tree = at.at("datasets" if datasets else "models", id, revision)
    if path not in tree:
        raise Refused(404, "Entry not found", **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
    found, content = entry(at, path, tree[path]), at.server.contents[tree[path][0]]
    headers = {"X-Repo-Commit": commit, "ETag": f'"{found["oid"]}"', "Content-Length": str(len(content))}
    if "lfs" in found:
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{found["lfs"]["oid"]}"'}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", at.headers.get("Range", ""))
    if not asked:
        return 200, headers, content
    first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
    headers |= {"Content-Range": f"bytes {first}-{last}/{len(content)}", "Content-Length": str(last + 1 - first)}
    return 206, headers, content[first : last + 1]


REPO = r"/api/(models|datasets)/([^/]+/[^/]+)"
ROUTES = (
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/repos/create", create),
    ("POST", "/api/validate-yaml", validate),
    ("GET", rf"{REPO}/refs", refs),
    ("GET", rf"{REPO}/tree/([^/]+)(?:/(.+))?", tree),
    ("GET", rf"{REPO}(?:/revision/(.+))?", info),
    ("POST", rf"{REPO}/paths-info/([^/]+)", paths_info),
    ("POST", rf"{REPO}/preupload/([^/]+)", preupload),
    ("POST", rf"{REPO}/commit/([^/]+)", commit),
    ("POST", rf"{REPO}/branch/([^/]+)", branch),
    ("POST", rf"{REPO}/tag/([^/]+)", tag),
    ("POST", r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", batch),
    ("PUT", r"/lfs/whole/(\w+)", whole),
    ("PUT", r"/lfs/part/(\w+)/(\d+)", part),
    ("POST", r"/lfs/complete/(\w+)", complete),
    ("POST", r"/lfs/verify", verify),
    ("GET HEAD", r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", resolve),
)
