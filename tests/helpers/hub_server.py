"""A small Hub on loopback, to which the real clients talk through HF_ENDPOINT; see `Hub`.

It keeps repositories on disk, with commits, refs and LFS objects, and answers what `huggingface_hub`, `datasets` and
`peft` ask for, Xet aside: it has no tokens for that, upon which this library uploads by LFS, while other uploads need
HF_HUB_DISABLE_XET=1. It can be told to misbehave. By hand: `make hub`.
"""

import argparse
import base64
import fnmatch
import hashlib
import hmac
import html
import json
import os
import re
import secrets
import shutil
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from tempfile import mkstemp
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

from tests.helpers.hub_cards import check_card

MB = 2**20
LFS_SUFFIXES = (
    "7z arrow bin ckpt gz h5 jpg jpeg npy npz onnx parquet pickle pkl png pt pth safetensors tar webp zip zst"
)
GITATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES.split())
REGULAR_BYTES = 10 * MB  # larger files are LFS objects whatever their name


class Refusal(Exception):
    """An answer that is an error: the status, a message for the user and the code by which clients tell them apart."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


class Reset(Exception):
    """The connection is to be reset without another byte."""


@dataclass(frozen=True)
class User:
    name: str
    role: str
    orgs: tuple[str, ...]


@dataclass
class Request:
    """What was asked and answered. `user` is None without a token and "?" with an unknown one; no token is kept."""

    method: str
    path: str
    host: str
    user: str | None
    range: str | None
    status: int = 0  # 0: not answered
    bytes_in: int = 0
    bytes_out: int = 0


@dataclass
class Pause:
    """Requests that match wait here; `reached` says that one has come, `release` lets all go on."""

    match: re.Pattern[str]
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        self.released.set()


@dataclass
class Fault:
    """See `Hub.fail`."""

    match: re.Pattern[str]
    times: int
    status: int | None
    headers: dict[str, str]
    body: bytes
    after_bytes: int | None
    delay: float
    lose_answer: bool
    in_order: bool
    then: Callable[[], object] | None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    number, aside = mkstemp(dir=path.parent, prefix=".new-")
    with os.fdopen(number, "wb") as file:
        file.write(data)
    os.replace(aside, path)


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Repo:
    """One repository: `repo.json`, `commits/`, `refs/`, `blobs/` (by their git id) and `lfs/` (by their SHA-256)."""

    def __init__(self, folder: Path, repo_type: str, repo_id: str, lock: threading.RLock) -> None:
        self.folder, self.type, self.id, self.lock = folder, repo_type, repo_id, lock

    @property
    def page(self) -> str:
        return f"{'datasets/' if self.type == 'dataset' else ''}{self.id}"

    @property
    def settings(self) -> dict[str, Any]:
        return json.loads((self.folder / "repo.json").read_bytes())

    def set(self, **changes: Any) -> None:
        with self.lock:
            _write(self.folder / "repo.json", json.dumps({**self.settings, **changes}).encode())

    def start(self, author: str, private: bool, gated: Any) -> None:
        settings = {"private": private, "gated": gated, "created": _now(), "granted": []}
        _write(self.folder / "repo.json", json.dumps(settings).encode())
        self._move(
            "heads/main",
            self._commit(None, {".gitattributes": self.add(GITATTRIBUTES.encode())}, "initial commit", author),
        )

    def add(self, data: bytes) -> dict[str, Any]:
        """Keep a regular file; its entry in a tree."""
        oid = _git_oid(data)
        _write(self.folder / "blobs" / oid, data)
        return {"oid": oid, "size": len(data), "sha256": None}

    def lfs_entry(self, sha256: str) -> dict[str, Any]:
        size = self.lfs_path(sha256).stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return {"oid": _git_oid(pointer), "size": size, "sha256": sha256}

    def lfs_path(self, sha256: str) -> Path:
        return self.folder / "lfs" / sha256

    def path(self, entry: dict[str, Any]) -> Path:
        return self.lfs_path(entry["sha256"]) if entry["sha256"] else self.folder / "blobs" / entry["oid"]

    def is_lfs(self, path: str, size: int, tree: dict[str, Any]) -> bool:
        rules = self.path(tree[".gitattributes"]).read_text().splitlines() if ".gitattributes" in tree else []
        patterns = [line.split()[0] for line in rules if "filter=lfs" in line]
        return size > REGULAR_BYTES or any(fnmatch.fnmatch(path.rsplit("/", 1)[-1], pattern) for pattern in patterns)

    def refs(self, kind: str) -> dict[str, str]:
        """The refs of a kind ("heads", "tags", "pr") with their commits."""
        files = (self.folder / "refs" / kind).glob("[!.]*")
        return {unquote(path.name): path.read_text() for path in sorted(files)}

    def _move(self, ref: str, oid: str) -> None:
        kind, name = ref.split("/", 1)
        _write(self.folder / "refs" / kind / quote(name, safe=""), oid.encode())

    def head(self, revision: str) -> str:
        """The commit of a branch, a tag, a full ref or a commit id."""
        known = {name: oid for kind in ("tags", "heads") for name, oid in self.refs(kind).items()}
        known |= {
            f"refs/{kind}/{name}": oid for kind in ("heads", "tags", "pr") for name, oid in self.refs(kind).items()
        }
        if revision in known:
            return known[revision]
        if re.fullmatch("[0-9a-f]{40}", revision) and (self.folder / "commits" / revision).exists():
            return revision
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(self, oid: str) -> dict[str, Any]:
        return json.loads((self.folder / "commits" / oid).read_bytes())

    def tree(self, revision: str) -> dict[str, dict[str, Any]]:
        return self.commit(self.head(revision))["tree"]

    def log(self, revision: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The commits from `revision` back to the first."""
        oid = self.head(revision)
        while oid:
            commit = self.commit(oid)
            yield oid, commit
            oid = commit["parent"]

    def _commit(
        self, parent: str | None, tree: dict[str, Any], message: str, author: str, description: str = ""
    ) -> str:
        commit = {
            "parent": parent,
            "tree": tree,
            "title": message,
            "message": description,
            "author": author,
            "date": _now(),
        }
        data = json.dumps(commit, sort_keys=True).encode()
        oid = hashlib.sha1(data).hexdigest()
        _write(self.folder / "commits" / oid, data)
        return oid

    def change(
        self,
        revision: str,
        edit: Callable[[dict[str, Any]], None],
        message: str,
        author: str,
        *,
        description: str = "",
        parent: str | None = None,
        create_pr: bool = False,
    ) -> tuple[str, int | None]:
        """Commit what `edit` makes of the tree, the ref last; the commit and the number of its pull request."""
        with self.lock:
            head = self.head(revision)
            ref = revision.removeprefix("refs/") if revision.startswith("refs/") else f"heads/{revision}"
            if revision in self.refs("tags") or revision == head:
                raise Refusal(400, f"{revision} is no branch, and only branches take commits")
            if parent is not None and parent != head:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(self.commit(head)["tree"])
            edit(tree)
            number = 1 + max(map(int, self.refs("pr")), default=0) if create_pr else None
            oid = self._commit(head, tree, message, author, description)
            self._move(f"pr/{number}" if number else ref, oid)
            return oid, number

    def create_ref(self, kind: str, name: str, revision: str) -> None:
        if not re.fullmatch(r"[\w][\w./+-]*", name) or ".." in name or name.endswith((".lock", "/", ".")):
            raise Refusal(400, f"{name!r} cannot be the name of a ref")
        with self.lock:
            if name in self.refs(kind):
                raise Refusal(409, "Tag reference exists already" if kind == "tags" else "Reference already exists")
            self._move(f"{kind}/{name}", self.head(revision))

    def delete_ref(self, kind: str, name: str) -> None:
        with self.lock:
            if name not in self.refs(kind):
                raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
            if (kind, name) == ("heads", "main"):
                raise Refusal(403, "The main branch cannot be deleted")
            (self.folder / "refs" / kind / quote(name, safe="")).unlink()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], hub: "Hub") -> None:
        self.hub = hub
        self.open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: socket.socket, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that went away
            super().handle_error(request, client_address)


class Hub:
    """A Hub that listens on 127.0.0.1 and keeps everything but its users under `folder`.

    Downloads of LFS objects are redirected to, and their uploads go to, the same port of another host name, as the
    real Hub sends them to its storage; those addresses are signed, and clients send no token there.

    Attributes:
        multipart_bytes: LFS objects above this size are uploaded in parts of this size.
        page_size: How many entries of a tree one answer lists.
        requests: Every request since the last `clear`.
    """

    def __init__(self, folder: str | Path, port: int = 0) -> None:
        self.folder = Path(folder)
        self.port = port
        self.multipart_bytes = 100 * MB
        self.page_size = 1000
        self.requests: list[Request] = []
        self._users: dict[str, User] = {}
        self._faults: list[Fault] = []
        self._pauses: list[Pause] = []
        self._locks: dict[Path, threading.RLock] = {}
        self._lock = threading.RLock()
        self._secret = secrets.token_bytes(16)
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "Hub":
        self._server = _Server(("127.0.0.1", self.port), self)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop listening and close every connection."""
        if self._server is None:
            return
        for pause in self._pauses:
            pause.release()
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._server.open):
            with suppress(OSError):  # closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)
        self._server = None

    def __enter__(self) -> "Hub":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Users and repositories

    def add_user(self, name: str, token: str, role: str = "write", orgs: list[str] | tuple[str, ...] = ()) -> None:
        self._users[token] = User(name, role, tuple(orgs))

    def grant(self, repo_type: str, repo_id: str, user: str) -> None:
        """Let a user read a gated repository."""
        repo = self.repo(repo_type, repo_id)
        repo.set(granted=[*repo.settings["granted"], user])

    def create(self, repo_type: str, repo_id: str, private: bool = False, gated: Any = False, author: str = "") -> Repo:
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo_id) or ".." in repo_id or len(repo_id) > 193:
            raise Refusal(400, f"{repo_id!r} cannot be the name of a repository")
        with self._lock:
            repo = self._at(repo_type, repo_id)
            if (repo.folder / "repo.json").exists():
                raise Refusal(409, f"You already created this {repo_type} repo")
            aside = Repo(repo.folder.parent / f".new-{repo.folder.name}", repo_type, repo_id, repo.lock)
            shutil.rmtree(aside.folder, ignore_errors=True)
            aside.start(author or repo_id.split("/")[0], private, gated)
            aside.folder.rename(repo.folder)
        return repo

    def delete(self, repo_type: str, repo_id: str) -> None:
        with self._lock:
            shutil.rmtree(self.repo(repo_type, repo_id).folder)

    def repo(self, repo_type: str, repo_id: str) -> Repo:
        repo = self._at(repo_type, repo_id)
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id) or not (repo.folder / "repo.json").exists():
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return repo

    def repos(self) -> list[Repo]:
        found = sorted(self.folder.glob("[dm]*s/*/[!.]*/repo.json"))
        return [self._at(path.parts[-4][:-1], "/".join(path.parts[-3:-1])) for path in found]

    def _at(self, repo_type: str, repo_id: str) -> Repo:
        folder = self.folder / f"{repo_type}s" / repo_id
        with self._lock:
            return Repo(folder, repo_type, repo_id, self._locks.setdefault(folder, threading.RLock()))

    def put(
        self,
        repo_type: str,
        repo_id: str,
        files: dict[str, bytes | None],
        revision: str = "main",
        tag: str | None = None,
        message: str = "put",
    ) -> str:
        """Commit files under any names whatever, None to remove one; the commit. Makes the repository if need be."""
        if not (self._at(repo_type, repo_id).folder / "repo.json").exists():
            self.create(repo_type, repo_id)
        repo = self.repo(repo_type, repo_id)

        def edit(tree: dict[str, Any]) -> None:
            for path, data in files.items():
                if data is None:
                    del tree[path]
                elif repo.is_lfs(path, len(data), tree):
                    sha256 = hashlib.sha256(data).hexdigest()
                    _write(repo.lfs_path(sha256), data)
                    tree[path] = repo.lfs_entry(sha256)
                else:
                    tree[path] = repo.add(data)

        oid, _ = repo.change(revision, edit, message, "hub")
        if tag is not None:
            repo.create_ref("tags", tag, oid)
        return oid

    def files(self, repo_type: str, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repo(repo_type, repo_id)
        return {path: repo.path(entry).read_bytes() for path, entry in repo.tree(revision).items()}

    def head(self, repo_type: str, repo_id: str, revision: str = "main") -> str:
        return self.repo(repo_type, repo_id).head(revision)

    def tags(self, repo_type: str, repo_id: str) -> dict[str, str]:
        return self.repo(repo_type, repo_id).refs("tags")

    def commits(self, repo_type: str, repo_id: str, revision: str = "main") -> list[str]:
        """Commit ids, the newest first."""
        return [oid for oid, _ in self.repo(repo_type, repo_id).log(revision)]

    # Misbehaviour

    def fail(
        self,
        match: str,
        *,
        times: int = 1,
        status: int | None = None,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        after_bytes: int | None = None,
        delay: float = 0,
        lose_answer: bool = False,
        in_order: bool = False,
        then: Callable[[], object] | None = None,
    ) -> Fault:
        """Misbehave on the next `times` requests whose "METHOD /path?query" the pattern `match` finds.

        Args:
            status: Answer with it, with `headers` and `body`, instead of carrying the request out.
            after_bytes: Read so much of the body (or, for a GET, send so much), then reset the connection.
            delay: First wait so many seconds.
            lose_answer: Carry the request out, then reset the connection instead of answering.
            in_order: Close the connection in order, as a stopping server does, where it would be reset.
            then: Is called before the request is carried out, after `delay`.
        """
        answer = status, headers or {}, body
        fault = Fault(re.compile(match), times, *answer, after_bytes, delay, lose_answer, in_order, then)
        with self._lock:
            self._faults.append(fault)
        return fault

    def pause(self, match: str) -> Pause:
        """Hold every request whose "METHOD /path?query" the pattern finds, before it is carried out."""
        pause = Pause(re.compile(match))
        with self._lock:
            self._pauses.append(pause)
        return pause

    def clear(self) -> None:
        """Forget the requests so far, behave again, and release what waits."""
        with self._lock:
            for pause in self._pauses:
                pause.release()
            self.requests, self._faults, self._pauses = [], [], []

    def _fault(self, line: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.times > 0 and fault.match.search(line):
                    fault.times -= 1
                    return fault
        return None

    def sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()


Answer = tuple[int, dict[str, str], "bytes | Path"]
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Answer]]] = []
API = r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
PAGE = r"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+?)"


def route(method: str, pattern: str) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Answer requests whose undecoded path is the pattern; its groups, decoded, are the arguments."""

    def add(answer: Callable[..., Answer]) -> Callable[..., Answer]:
        ROUTES.append((method, re.compile(pattern), answer))
        return answer

    return add


def _json(value: Any, status: int = 200, **headers: str) -> Answer:
    return status, {"Content-Type": "application/json", **headers}, json.dumps(value, default=str).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    # The wire

    def _serve(self) -> None:
        hub = self.hub = self.server.hub
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        self.user = hub._users.get(token)
        self.unknown = bool(token) and self.user is None
        name = self.user.name if self.user else "?" if token else None
        host = self.headers.get("Host") or ""
        self.record = Request(self.command, self.path, host, name, self.headers.get("Range"))
        hub.requests.append(self.record)
        self.unread = None
        line = f"{self.command} {self.path}"
        for pause in list(hub._pauses):
            if pause.match.search(line):
                pause.reached.set()
                pause.released.wait()
        self.fault = hub._fault(line)
        try:
            self._send(*self._misbehave(url.path))
        except (Reset, ConnectionError):
            self.close_connection = True
            if self.fault is None or not self.fault.in_order:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                os.close(self.connection.detach())

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _misbehave(self, path: str) -> Answer:
        fault = self.fault
        if fault is not None:
            time.sleep(fault.delay)
            if fault.then is not None:
                fault.then()
            if fault.after_bytes is not None and self.command not in ("GET", "HEAD"):
                length = int(self.headers.get("Content-Length") or fault.after_bytes)
                self.record.bytes_in = len(self.rfile.read(min(fault.after_bytes, length)))
                raise Reset
        if fault is not None and fault.status is not None:
            answer = fault.status, fault.headers, fault.body
        else:
            answer = self._answer(path)
        for _ in self._body():
            pass  # what a refusal left unread would be taken for the next request
        if fault is not None and fault.lose_answer:
            raise Reset
        return answer

    def _answer(self, path: str) -> Answer:
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for verb, pattern, answer in ROUTES:
                match = pattern.fullmatch(path)
                if verb == method and match:
                    arguments = {name: unquote(value or "") for name, value in match.groupdict().items()}
                    if "kind" in arguments:
                        arguments["kind"] = "dataset" if arguments["kind"] == "datasets" else "model"
                    return answer(self, **arguments)
            if re.match("/api/(models|datasets)/", path) or "/resolve/" in path:
                self._no_repo()
            raise Refusal(404, f"{self.command} {path} is not served here")
        except Refusal as refusal:
            headers = {"Content-Type": "application/json", **refusal.headers}
            return refusal.status, headers, json.dumps({"error": str(refusal)}).encode()
        except (KeyError, TypeError, ValueError, IndexError) as error:
            return _json({"error": f"{type(error).__name__}: {error}"}, 400)

    def _body(self) -> Iterator[bytes]:
        """What of the body was not read yet, in pieces."""
        if self.unread is None:
            self.unread = self._pieces()
        return self.unread

    def _pieces(self) -> Iterator[bytes]:
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        left = 0 if chunked else int(self.headers.get("Content-Length") or 0)
        while chunked or left:
            if chunked and left == 0:
                left = int(self.rfile.readline().split(b";")[0] or b"!", 16)
                if left == 0:
                    self.rfile.readline()
                    return
            piece = self.rfile.read(min(left, MB))
            if not piece:
                raise ConnectionError("the client went away")
            left -= len(piece)
            self.record.bytes_in += len(piece)
            if chunked and left == 0:
                self.rfile.readline()
            yield piece

    def _send(self, status: int, headers: dict[str, str], body: "bytes | Path") -> None:
        size = body.stat().st_size if isinstance(body, Path) else len(body)
        start, stop = 0, size
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if status == 200 and wanted and (wanted[1] or wanted[2]):
            start = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
            stop = min(size, int(wanted[2]) + 1) if wanted[1] and wanted[2] else size
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
            if start >= stop:
                status, start, stop, headers = 416, 0, 0, {"Content-Range": f"bytes */{size}"}
        self.record.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(stop - start), **headers}.items():
            self.send_header(name, value.encode("ascii", "replace").decode())
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.fault.after_bytes if self.fault is not None else None
        stop = stop if cut is None else min(stop, start + cut)
        for piece in _slices(body, start, stop):
            self.wfile.write(piece)
            self.record.bytes_out += len(piece)
        if cut is not None:
            time.sleep(0.1)  # a reset drops what the kernel has not sent yet
            raise Reset

    def _json_body(self) -> Any:
        return json.loads(b"".join(self._body()) or b"{}")

    def _other_host(self) -> str:
        host, _, port = self.record.host.partition(":")
        return f"http://{'localhost' if host == '127.0.0.1' else '127.0.0.1'}:{port}"

    # Rights

    def _no_repo(self) -> None:
        self._known()
        if self.user is None:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        raise Refusal(404, "Repository not found", "RepoNotFound")

    def _known(self) -> None:
        if self.unknown:
            raise Refusal(401, "Invalid credentials in Authorization header")

    def _member(self, repo_id: str) -> bool:
        return self.user is not None and repo_id.split("/")[0] in (self.user.name, *self.user.orgs)

    def _may_write(self, namespace: str) -> None:
        self._known()
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        if self.user.role != "write":
            raise Refusal(403, "Forbidden: this token can only read; use one with the role write")
        if not self._member(namespace):
            raise Refusal(403, f"Forbidden: you have no rights to write under the namespace {namespace.split('/')[0]}")

    def _repo(self, kind: str, repo: str, *, write: bool = False) -> Repo:
        self._known()
        try:
            found = self.hub.repo(kind, repo)
        except Refusal:
            self._no_repo()
        if found.settings["private"] and not self._member(repo):
            self._no_repo()
        if write:
            self._may_write(self.user.name if self._pull_request() and self.user else repo)
        return found

    def _pull_request(self) -> bool:
        return self.query.get("create_pr") == ["1"]

    # Accounts and repositories

    @route("GET", "/api/whoami-v2")
    def whoami(self) -> Answer:
        self._known()
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        orgs = [{"type": "org", "id": name, "name": name, "roleInOrg": self.user.role} for name in self.user.orgs]
        key = {"displayName": "token", "role": self.user.role}
        auth = {"type": "access_token", "accessToken": key}
        name = self.user.name
        return _json({"type": "user", "id": name, "name": name, "fullname": name, "orgs": orgs, "auth": auth})

    @route("POST", "/api/repos/create")
    def create(self) -> Answer:
        asked = self._json_body()
        namespace = asked.get("organization") or (self.user.name if self.user else "")
        self._may_write(namespace)
        kind, repo_id = asked.get("type") or "model", f"{namespace}/{asked['name']}"
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        try:
            self.hub.create(kind, repo_id, private=private, author=self.user.name)
        except Refusal as refusal:
            return _json({"error": str(refusal), "url": url}, refusal.status, **refusal.headers)
        return _json({"url": url, "name": repo_id, "id": repo_id})

    @route("DELETE", "/api/repos/delete")
    def delete(self) -> Answer:
        asked = self._json_body()
        repo_id = f"{asked.get('organization') or (self.user.name if self.user else '')}/{asked['name']}"
        repo = self._repo(asked.get("type") or "model", repo_id, write=True)
        self.hub.delete(repo.type, repo.id)
        return _json({})

    @route("PUT", API + "/settings")
    def settings(self, kind: str, repo: str) -> Answer:
        found, asked = self._repo(kind, repo, write=True), self._json_body()
        if "visibility" in asked:
            asked["private"] = asked["visibility"] == "private"
        found.set(**{key: asked[key] for key in ("private", "gated") if key in asked})
        return _json(asked)

    @route("GET", API + "(?:/revision/(?P<revision>[^/]+))?")
    def info(self, kind: str, repo: str, revision: str) -> Answer:
        found = self._repo(kind, repo)
        sha = found.head(revision or "main")
        commit, settings = found.commit(sha), found.settings
        card = _card(found, commit["tree"])[0]
        tags = [str(tag) for tag in card.get("tags") or []]
        siblings = []
        for path, entry in commit["tree"].items():
            sibling = {"rfilename": path}
            if self.query.get("blobs"):
                sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                if entry["sha256"]:
                    sibling["lfs"] = {"sha256": entry["sha256"], "size": entry["size"], "pointerSize": 134}
            siblings.append(sibling)
        return _json(
            {
                "_id": hashlib.sha1(found.page.encode()).hexdigest()[:24],
                "id": repo,
                "modelId": repo,
                "author": repo.split("/")[0],
                "sha": sha,
                "lastModified": commit["date"],
                "createdAt": settings["created"],
                "private": settings["private"],
                "gated": settings["gated"],
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": tags,
                "cardData": card,
                "siblings": siblings,
            }
        )

    @route("GET", API + "/refs")
    def refs(self, kind: str, repo: str) -> Answer:
        found = self._repo(kind, repo)

        def listed(kind: str) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid}
                for name, oid in found.refs(kind).items()
            ]

        answer = {"branches": listed("heads"), "tags": listed("tags"), "converts": []}
        return _json({**answer, **({"pullRequests": listed("pr")} if self.query.get("include_prs") else {})})

    @route("POST", API + "/tag/(?P<revision>[^/]+)")
    def tag(self, kind: str, repo: str, revision: str) -> Answer:
        self._repo(kind, repo, write=True).create_ref("tags", self._json_body()["tag"], revision)
        return _json({})

    @route("DELETE", API + "/tag/(?P<name>[^/]+)")
    def untag(self, kind: str, repo: str, name: str) -> Answer:
        self._repo(kind, repo, write=True).delete_ref("tags", name)
        return _json({})

    @route("POST", API + "/branch/(?P<name>[^/]+)")
    def branch(self, kind: str, repo: str, name: str) -> Answer:
        start = self._json_body().get("startingPoint") or "main"
        self._repo(kind, repo, write=True).create_ref("heads", name, start)
        return _json({})

    @route("DELETE", API + "/branch/(?P<name>[^/]+)")
    def unbranch(self, kind: str, repo: str, name: str) -> Answer:
        self._repo(kind, repo, write=True).delete_ref("heads", name)
        return _json({})

    @route("GET", API + "/commits/(?P<revision>[^/]+)")
    def commits(self, kind: str, repo: str, revision: str) -> Answer:
        return _json(
            [
                {
                    "id": oid,
                    "title": commit["title"],
                    "message": commit["message"],
                    "authors": [{"user": commit["author"]}],
                    "date": commit["date"],
                }
                for oid, commit in self._repo(kind, repo).log(revision)
            ]
        )

    # Files, down

    def _entries(self, repo: Repo, revision: str, paths: set[str], expand: bool) -> list[dict[str, Any]]:
        tree = repo.tree(revision)
        entries = []
        for path in sorted(paths):
            entry = tree.get(path)
            if entry is None:
                listed = {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
            else:
                listed = {"type": "file", "oid": entry["oid"], "size": entry["size"], "path": path}
                if entry["sha256"]:
                    listed["lfs"] = {"oid": entry["sha256"], "size": entry["size"], "pointerSize": 134}
            if expand:
                oid, commit = _last_change(repo, revision, path)
                listed["lastCommit"] = {"id": oid, "title": commit["title"], "date": commit["date"]}
            entries.append(listed)
        return entries

    @route("GET", API + "/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
    def tree(self, kind: str, repo: str, revision: str, path: str) -> Answer:
        found = self._repo(kind, repo)
        recursive, expand = (self.query.get(key, [""])[0].lower() == "true" for key in ("recursive", "expand"))
        prefix = path.rstrip("/") + "/" if path else ""
        everything = _with_folders(found.tree(revision))
        below = {name for name in everything if name.startswith(prefix) and name != prefix}
        if prefix and not below:
            raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
        if not recursive:
            below = {name for name in below if "/" not in name[len(prefix) :]}
        start = int(self.query.get("cursor", ["0"])[0])
        page = sorted(below)[start : start + self.hub.page_size]
        more = {}
        if start + len(page) < len(below):
            base = f"http://{self.record.host}{urlsplit(self.path).path}"
            query = f"recursive={recursive}&expand={expand}&cursor={start + len(page)}"
            more = {"Link": f'<{base}?{query}>; rel="next"'}
        return _json(self._entries(found, revision, set(page), expand), **more)

    @route("POST", API + "/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, kind: str, repo: str, revision: str) -> Answer:
        found = self._repo(kind, repo)
        data = b"".join(self._body())
        if "json" in (self.headers.get("Content-Type") or ""):
            asked = json.loads(data)
        else:
            form = parse_qs(data.decode())
            asked = {"paths": form.get("paths", []), "expand": form.get("expand") in (["true"], ["True"])}
        paths = {path.strip("/") if path not in found.tree(revision) else path for path in asked["paths"]}
        return _json(self._entries(found, revision, paths & _with_folders(found.tree(revision)), asked["expand"]))

    @route("GET", PAGE + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, kind: str, repo: str, revision: str, path: str) -> Answer:
        found = self._repo(kind, repo)
        settings = found.settings
        name = self.user.name if self.user else None
        if settings["gated"] and not self._member(repo) and name not in settings["granted"]:
            message = f"Access to {kind} {repo} is restricted. "
            if name is None:
                raise Refusal(401, message + "You must have access to it and be authenticated.", "GatedRepo")
            raise Refusal(403, message + "You are not in the authorized list; ask for access on its page.", "GatedRepo")
        sha = found.head(revision)
        entry = found.commit(sha)["tree"].get(path)
        if entry is None:
            raise Refusal(404, f"Entry not found: {path}", "EntryNotFound", **{"X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes", "ETag": f'"{entry["oid"]}"'}
        if not entry["sha256"]:
            return 200, {**headers, "Content-Type": "text/plain; charset=utf-8"}, found.path(entry)
        object_path = f"/cdn/{found.page}/{entry['sha256']}"
        location = f"{self._other_host()}{object_path}?signature={self.hub.sign(object_path)}"
        headers |= {"X-Linked-Size": str(entry["size"]), "X-Linked-Etag": f'"{entry["sha256"]}"', "Location": location}
        return 302, headers, b"Found"

    def _signed(self, what: str = "") -> None:
        path = urlsplit(self.path).path
        if not hmac.compare_digest(self.query.get("signature", [""])[0], self.hub.sign(path + what)):
            raise Refusal(403, "The signature does not match")

    @route("GET", "/cdn" + PAGE + "/(?P<oid>[0-9a-f]{64})")
    def cdn(self, kind: str, repo: str, oid: str) -> Answer:
        self._signed()
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "ETag": f'"{oid}"'}
        return 200, headers, self.hub.repo(kind, repo).lfs_path(oid)

    # Files, up

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> Answer:
        asked = self._json_body()
        errors, warned = check_card(asked["content"], asked.get("repoType") or "model")
        listed = {
            key: [{"message": text} for text in texts] for key, texts in (("errors", errors), ("warnings", warned))
        }
        return _json(listed, 400 if errors else 200)

    @route("POST", API + "/preupload/(?P<revision>[^/]+)")
    def preupload(self, kind: str, repo: str, revision: str) -> Answer:
        found = self._repo(kind, repo, write=True)
        tree = found.tree(revision)
        files = []
        for file in self._json_body()["files"]:
            entry = tree.get(file["path"], {})
            mode = "lfs" if found.is_lfs(file["path"], file["size"], tree) else "regular"
            oid = entry.get("sha256") or entry.get("oid")
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return _json({"files": files, "commitOid": found.head(revision)})

    @route("POST", PAGE + r"\.git/info/lfs/objects/batch")
    def lfs_batch(self, kind: str, repo: str) -> Answer:
        found = self._repo(kind, repo)
        self._may_write(self.user.name if self.user else repo)  # a pull request needs no rights in the repository
        asked = self._json_body()
        size = self.hub.multipart_bytes
        multipart = "multipart" in asked.get("transfers", []) and any(o["size"] > size for o in asked["objects"])
        objects = []
        for wanted in asked["objects"]:
            oid, answer = wanted["oid"], {**wanted, "authenticated": True}
            if not re.fullmatch("[0-9a-f]{64}", oid):
                raise Refusal(422, f"{oid!r} is not a SHA-256")
            if not found.lfs_path(oid).exists():
                path = f"/storage/{found.page}/{oid}"

                def href(host: str, what: str, path: str = path) -> str:
                    return f"{host}{path}?{what}&signature={self.hub.sign(path + what)}"

                upload = {"href": href(self._other_host(), "whole"), "header": {}}
                if multipart and wanted["size"] > size:
                    parts = range(1, -(-wanted["size"] // size) + 1)
                    upload["href"] = href(self.hub.url, "complete")
                    upload["header"] = {str(n): href(self._other_host(), f"part={n}") for n in parts}
                    upload["header"]["chunk_size"] = str(size)
                verify = {"href": f"{self.hub.url}/{found.page}.git/info/lfs/objects/verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        return _json({"transfer": "multipart" if multipart else "basic", "objects": objects})

    def _store(self, path: Path) -> str:
        """Put the body at `path`, whole or not at all; its SHA-256."""
        path.parent.mkdir(parents=True, exist_ok=True)
        number, aside = mkstemp(dir=path.parent, prefix=".new-")
        digest = hashlib.sha256()
        try:
            with os.fdopen(number, "wb") as file:
                for piece in self._body():
                    digest.update(piece)
                    file.write(piece)
            if re.fullmatch("[0-9a-f]{64}", path.name) and digest.hexdigest() != path.name:
                raise Refusal(400, "The content does not have the SHA-256 that was announced")
            os.replace(aside, path)
        finally:
            Path(aside).unlink(missing_ok=True)
        return digest.hexdigest()

    @route("PUT", "/storage" + PAGE + "/(?P<oid>[0-9a-f]{64})")
    def store(self, kind: str, repo: str, oid: str) -> Answer:
        what = urlsplit(self.path).query.rsplit("&", 1)[0]
        self._signed(what)
        target = self.hub.repo(kind, repo).lfs_path(oid)
        if what != "whole":
            target = target.parent / f"{oid}.parts" / str(int(what.removeprefix("part=")))
        return 200, {"ETag": f'"{self._store(target)}"'}, b""

    @route("POST", "/storage" + PAGE + "/(?P<oid>[0-9a-f]{64})")
    def complete(self, kind: str, repo: str, oid: str) -> Answer:
        self._signed("complete")
        target = self.hub.repo(kind, repo).lfs_path(oid)
        number, aside = mkstemp(dir=target.parent, prefix=".new-")
        digest = hashlib.sha256()
        try:
            with os.fdopen(number, "wb") as file:
                for part in self._json_body()["parts"]:
                    path = target.parent / f"{oid}.parts" / str(int(part["partNumber"]))
                    data = path.read_bytes() if path.exists() else b""
                    if part["etag"].strip('"') != hashlib.sha256(data).hexdigest():
                        raise Refusal(400, f"Part {path.name} is not the one that was uploaded")
                    digest.update(data)
                    file.write(data)
            if digest.hexdigest() != oid:
                raise Refusal(400, "The parts do not have the SHA-256 that was announced")
            os.replace(aside, target)
        finally:
            Path(aside).unlink(missing_ok=True)
        shutil.rmtree(target.parent / f"{oid}.parts")
        return _json({})

    @route("POST", PAGE + r"\.git/info/lfs/objects/verify")
    def verify(self, kind: str, repo: str) -> Answer:
        asked = self._json_body()
        path = self._repo(kind, repo).lfs_path(asked["oid"])
        if not path.exists() or path.stat().st_size != asked["size"]:
            raise Refusal(404, "The object was not uploaded")
        return _json({})

    @route("POST", API + "/commit/(?P<revision>[^/]+)")
    def commit(self, kind: str, repo: str, revision: str) -> Answer:
        found = self._repo(kind, repo, write=True)
        lines = [json.loads(line) for line in b"".join(self._body()).splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        operations = [(line["key"], line["value"]) for line in lines if line["key"] != "header"]
        oid, number = found.change(
            revision,
            lambda tree: [_apply(found, tree, key, value) for key, value in operations],
            header["summary"],
            self.user.name,
            description=header.get("description") or "",
            parent=header.get("parentCommit"),
            create_pr=self._pull_request(),
        )
        url = f"{self.hub.url}/{found.page}"
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}", "hookOutput": ""}
        return _json({**answer, **({"pullRequestUrl": f"{url}/discussions/{number}"} if number else {})})

    # Collections

    def _collections(self) -> Path:
        return self.hub.folder / "collections"

    @route("GET", "/api/collections")
    def collections(self) -> Answer:
        owners = self.query.get("owner", ["*"])
        files = sorted(path for owner in owners for path in self._collections().glob(f"{owner}/[!.]*"))
        found = [json.loads(path.read_bytes()) for path in files]
        listed = [{name: value for name, value in each.items() if name != "position"} for each in found]
        return _json([{**each, "items": each["items"][:4]} for each in listed])

    @route("POST", "/api/collections")
    def make_collection(self) -> Answer:
        asked = self._json_body()
        self._may_write(asked["namespace"])
        if len(asked.get("description") or "") > 150:
            raise Refusal(400, "The description of a collection has at most 150 characters")
        digest = hashlib.sha1(asked["title"].encode()).hexdigest()[:24]
        slug = f"{asked['namespace']}/{re.sub('[^a-z0-9]+', '-', asked['title'].lower())}-{digest}"
        made = {"slug": slug, "title": asked["title"], "owner": {"name": asked["namespace"]}, "items": []}
        made |= {"lastUpdated": _now(), "position": 0, "theme": "green", "upvotes": 0}
        made |= {"private": asked["private"], "description": asked.get("description")}
        with self.hub._lock:
            if (self._collections() / slug).exists():
                return _json({"error": "This collection already exists", "slug": slug}, 409)
            _write(self._collections() / slug, json.dumps(made).encode())
        return _json(made)

    def _collection(self, slug: str) -> dict[str, Any]:
        path = self._collections() / slug
        if ".." in slug or not path.exists():
            raise Refusal(404, "Collection not found")
        return json.loads(path.read_bytes())

    @route("GET", "/api/collections/(?P<slug>[^/]+/[^/]+)")
    def collection(self, slug: str) -> Answer:
        return _json(self._collection(slug))

    @route("POST", "/api/collections/(?P<slug>[^/]+/[^/]+)/items")
    def add_to_collection(self, slug: str) -> Answer:
        asked = self._json_body()
        self._may_write(slug)
        with self.hub._lock:
            found = self._collection(slug)
            item, note = asked["item"], asked.get("note")
            self._repo(item["type"], item["id"])
            if len(note or "") > 500:
                raise Refusal(400, "A note has at most 500 characters")
            if any((each["type"], each["id"]) == (item["type"], item["id"]) for each in found["items"]):
                return _json({"error": "This item is already in the collection"}, 409)
            number = len(found["items"])
            told = {"note": {"text": note}} if note else {}
            found["items"].append({"_id": f"{number:024x}", "position": number, **item, **told})
            _write(self._collections() / slug, json.dumps(found).encode())
        return _json(found)

    # For people

    @route("GET", "/")
    def index(self) -> Answer:
        shown = [repo for repo in self.hub.repos() if not repo.settings["private"] or self._member(repo.id)]
        return _page("Repositories", _links(f"/{repo.page}" for repo in shown))

    @route("GET", PAGE)
    def repo_page(self, kind: str, repo: str) -> Answer:
        found = self._repo(kind, repo)
        tree = found.tree("main")
        tags = "".join(f"<li>{html.escape(name)} <code>{oid}</code></li>" for name, oid in found.refs("tags").items())
        files = _links(f"/{found.page}/resolve/main/{quote(path)}" for path in sorted(tree))
        card = html.escape(_card(found, tree)[1])
        return _page(found.page, f"<h2>Tags</h2><ul>{tags}</ul><h2>Files</h2>{files}<h2>Card</h2><pre>{card}</pre>")


def _slices(body: "bytes | Path", start: int, stop: int) -> Iterator[bytes]:
    if isinstance(body, bytes):
        yield body[start:stop]
        return
    with body.open("rb") as file:
        file.seek(start)
        while start < stop:
            piece = file.read(min(MB, stop - start))
            start += len(piece)
            yield piece


def _with_folders(tree: dict[str, Any]) -> set[str]:
    folders = {path[: match.start()] for path in tree for match in re.finditer("/", path)}
    return (folders - {""}) | set(tree)


def _last_change(repo: Repo, revision: str, path: str) -> tuple[str, dict[str, Any]]:
    """The commit that last changed a file, or a folder."""

    def below(commit: dict[str, Any]) -> dict[str, Any]:
        return {name: entry for name, entry in commit["tree"].items() if name == path or name.startswith(f"{path}/")}

    history = list(repo.log(revision))
    for (oid, commit), (_, before) in pairwise(history):
        if below(commit) != below(before):
            return oid, commit
    return history[-1]


def _card(repo: Repo, tree: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Metadata and text of the card; no metadata where it has errors."""
    text = repo.path(tree["README.md"]).read_text("utf-8", "replace") if "README.md" in tree else ""
    block = re.match(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*$", text, re.DOTALL | re.MULTILINE)
    if block is None or check_card(text, repo.type)[0]:
        return {}, text
    return yaml.safe_load(block[1]) or {}, text


def _apply(repo: Repo, tree: dict[str, Any], key: str, value: dict[str, Any]) -> None:
    """Carry out one line of a commit on `tree`."""
    path = value["path"]
    if path.startswith("/") or {"", ".", "..", ".git"} & set(path.removesuffix("/").split("/")):
        raise Refusal(400, f"{path!r} cannot be the path of a file")
    if key == "file":
        data = base64.b64decode(value["content"]) if value.get("encoding") == "base64" else value["content"].encode()
        if len(data) > REGULAR_BYTES:
            raise Refusal(400, f"{path} is larger than 10 MiB, so it must be an LFS file")
        if path == "README.md" and (errors := check_card(data.decode("utf-8", "replace"), repo.type)[0]):
            raise Refusal(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
        tree[path] = repo.add(data)
    elif key == "lfsFile":
        if not re.fullmatch("[0-9a-f]{64}", value["oid"]) or not repo.lfs_path(value["oid"]).exists():
            raise Refusal(400, f"The LFS pointer {path} points to an object that does not exist")
        tree[path] = repo.lfs_entry(value["oid"])
    elif key in ("deletedFile", "deletedFolder"):
        folder = path.rstrip("/") + "/"
        gone = [name for name in tree if (name.startswith(folder) if key == "deletedFolder" else name == path)]
        if not gone:
            raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del tree[name]
    else:
        raise Refusal(400, f"{key!r} is no operation of a commit")


def _links(paths: Iterator[str]) -> str:
    return f"<ul>{''.join(f'<li><a href={path!r}>{html.escape(unquote(path))}</a></li>' for path in paths)}</ul>"


def _page(title: str, body: str) -> Answer:
    text = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><h1>{html.escape(title)}</h1>{body}"
    return 200, {"Content-Type": "text/html; charset=utf-8"}, text.encode()


def main() -> None:
    parser = argparse.ArgumentParser(description="A small Hub on loopback, to try a push without an account.")
    parser.add_argument("--folder", default="outputs/hub", help="where repositories are kept")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--user", default="you")
    parser.add_argument("--token", default="hf_you", help="the token of that user")
    options = parser.parse_args()
    with Hub(options.folder, options.port) as hub:
        hub.add_user(options.user, options.token)
        name = f"{options.user}/digits-ipc1"
        print(
            f"The Hub in {options.folder} is {hub.url}; look at it in a browser. In another shell:\n\n"
            f"  export HF_ENDPOINT={hub.url} HF_TOKEN={options.token}\n"
            f"  hf-distill tesla --push_to_hub --hub_model_id {name} --hub_tag v1.0.0\n"
            f"  python -c \"from datasets import load_dataset; print(load_dataset('{name}', revision='v1.0.0'))\"\n\n"
            "Ctrl-C stops it; what was pushed stays.",
            flush=True,
        )
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
