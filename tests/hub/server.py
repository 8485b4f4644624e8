"""A Hub on loopback: enough of the Hugging Face Hub's HTTP API for the real client.

Repositories are folders: `blobs/` holds file contents by SHA-256, `commits/<id>.json` maps paths
to blobs, `refs.json` maps branches to commits, `meta.json` holds type, owner, privacy and gating.
Nothing is mocked: uploads go through preupload, LFS batch and commit, downloads through resolve
with ETags and range requests.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64decode
from collections.abc import Callable
from contextlib import nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.bare import bare

LFS_SUFFIXES = (".safetensors", ".gguf", ".parquet", ".bin")
LFS_MIN_SIZE = 1 << 20


class HubError(Exception):
    """An HTTP error with the Hub's error code, and further headers."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class OtherAnswerError(Exception):
    """An answer in place of the right one."""

    def __init__(self, content: bytes, content_type: str = "application/json") -> None:
        super().__init__(content)
        self.content, self.content_type = content, content_type


class SilenceError(Exception):
    """No answer for some seconds, and then the connection is cut."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(seconds)
        self.seconds = seconds


def git_blob_id(content: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Repo:
    """One repository on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.folder / "meta.json").read_text())

    def refs(self) -> dict[str, str]:
        return json.loads((self.folder / "refs.json").read_text())

    def create(self, meta: dict[str, Any]) -> None:
        (self.folder / "blobs").mkdir(parents=True)
        (self.folder / "commits").mkdir()
        (self.folder / "meta.json").write_text(json.dumps(meta))
        (self.folder / "refs.json").write_text("{}")
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, files: dict[str, str], message: str) -> str:
        refs = self.refs()
        body = json.dumps(
            {"files": files, "parent": refs.get(branch), "message": message, "time": time.time_ns()}
        )
        identity = hashlib.sha1(body.encode()).hexdigest()
        (self.folder / "commits" / f"{identity}.json").write_text(body)
        (self.folder / "refs.json").write_text(json.dumps(refs | {branch: identity}))
        return identity

    def resolve(self, revision: str) -> str:
        commit = self.refs().get(revision, revision)
        if not (self.folder / "commits" / f"{commit}.json").exists():
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def history(self, branch: str = "main") -> list[dict[str, Any]]:
        """Commits of a branch, newest first."""
        commit, found = self.refs().get(branch), []
        while commit:
            body = json.loads((self.folder / "commits" / f"{commit}.json").read_text())
            found.append(body | {"id": commit})
            commit = body["parent"]
        return found

    def files(self, commit: str) -> dict[str, str]:
        return json.loads((self.folder / "commits" / f"{commit}.json").read_text())["files"]

    def blob(self, digest: str) -> Path:
        return self.folder / "blobs" / digest

    def store(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.blob(digest).write_bytes(content)
        return digest

    def entry(self, path: str, digest: str) -> dict[str, Any]:
        size = self.blob(digest).stat().st_size
        entry: dict[str, Any] = {"type": "file", "path": path, "size": size}
        if is_lfs(path, size):
            entry["oid"] = digest[:40]
            entry["lfs"] = {"oid": digest, "sha256": digest, "size": size, "pointerSize": 134}
        else:
            entry["oid"] = git_blob_id(self.blob(digest).read_bytes())
        return entry


def is_lfs(path: str, size: int) -> bool:
    """Which files go through LFS."""
    return path.endswith(LFS_SUFFIXES) or size >= LFS_MIN_SIZE


class Job:
    """What was asked for, and the process that does it in an empty folder.

    For `uv run` stands a script on the path, with the Python of an environment that has what uv would
    install, and no slm-judge.
    """

    def __init__(self, hub: "LoopbackHub", owner: str, spec: dict[str, Any]) -> None:
        self.identity, self.owner, self.spec = f"{len(hub.jobs):024x}", owner, spec
        self.folder = Path(tempfile.mkdtemp(dir=hub.root))
        shim = self.folder / "bin" / "uv"
        shim.parent.mkdir()
        shim.write_text(
            f'#!/bin/sh\n[ "$1 $2 $3 $4" = "run --with huggingface_hub python" ] && shift 3\n'
            f'shift 1\nexec "{hub.bare_python()}" "$@"\n'
        )
        shim.chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "PYTHONPATH")}
        environment = kept | spec["environment"] | spec["secrets"]
        environment["PATH"] = f"{shim.parent}:{environment['PATH']}"
        environment["HF_HOME"] = str(self.folder / "hf")
        self.process = subprocess.Popen(
            hub.does or spec["command"], cwd=self.folder, env=environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.said: list[str] = []
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        assert self.process.stdout
        self.said.extend(iter(self.process.stdout.readline, ""))
        self.process.wait(60)

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def info(self) -> dict[str, Any]:
        code = None if self.listener.is_alive() else self.process.returncode
        stage = "RUNNING" if code is None else "ERROR" if code else "COMPLETED"
        owner = {"id": "1", "name": self.owner, "type": "user"}
        return {
            "id": self.identity, "owner": owner, "flavor": self.spec["flavor"],
            "command": self.spec["command"], "arguments": [],
            "status": {"stage": stage, "message": f"exit code {code}" if code else None},
        }  # fmt: skip


class LoopbackHub:
    """The server; use as a context manager.

    Attributes:
        url: for `HF_ENDPOINT`.
        tokens: token -> user.
        requests: (method, path) of every request, in order.
        fail: called with (method, path) before each request; may raise `HubError`, `OtherAnswerError` or
            `SilenceError`, or say how much of the right answer to send before the connection is cut:
            "none" or "half".
        stored: digests of the files that were uploaded, in order.
        collections: slug -> collection.
        jobs: identity -> job, a process of this machine.
        does: the command of new jobs, in place of what they were asked to do.
    """

    def __init__(self, root: Path, tokens: dict[str, str]) -> None:
        self.root, self.tokens = root, tokens
        self.requests: list[tuple[str, str]] = []
        self.fail: Callable[[str, str], str | None] | None = None
        self.stored: list[str] = []
        self.collections: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, Job] = {}
        self.does: list[str] | None = None
        self.lock = threading.Lock()
        hub = self

        class Bound(_Handler):
            server_hub = hub

        self.server = _Server(("127.0.0.1", 0), Bound)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        for job in self.jobs.values():
            job.end()

    def bare_python(self) -> Path:
        """Of the environment of jobs, which has no slm-judge."""
        environment = self.root / "environment"
        python = environment / "bin/python"
        return python if python.exists() else bare(environment, "train", "export")

    def repo(self, name: str, kind: str = "model") -> Repo:
        """A repository, whether or not it exists."""
        return Repo(self.root / f"{kind}s" / name)

    def set_meta(self, name: str, **changes: Any) -> None:
        """Change a repository's privacy or gating."""
        repo = self.repo(name)
        (repo.folder / "meta.json").write_text(json.dumps(repo.meta | changes))


_ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", r"/api/jobs/([^/]+)", "start_job"),
    ("GET", r"/api/jobs/([^/]+)", "list_jobs"),
    ("GET", r"/api/jobs/([^/]+)/([^/]+)", "job"),
    ("GET", r"/api/jobs/([^/]+)/([^/]+)/logs", "job_logs"),
    ("POST", r"/api/collections", "new_collection"),
    ("GET", r"/api/collections/([^/]+/[^/]+)", "collection"),
    ("POST", r"/api/collections/([^/]+/[^/]+)/items", "collect"),
    ("POST", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/preupload/([^/]+)", "preupload"),
    ("POST", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/commit/([^/]+)", "commit"),
    ("POST", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/paths-info/([^/]+)", "paths_info"),
    ("POST", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/branch/([^/]+)", "branch"),
    ("GET", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", "tree"),
    ("GET", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/refs", "refs"),
    ("GET", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/revision/([^/]+))?", "info"),
    ("POST", r"/(datasets/|spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(model|dataset|space)/([^/]+/[^/]+)/([0-9a-f]{64})", "lfs_put"),
    ("POST", r"/lfs/(model|dataset|space)/([^/]+/[^/]+)/([0-9a-f]{64})/verify", "lfs_verify"),
    ("GET", r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "download"),
    ("HEAD", r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "download"),
]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # of a client that was killed
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a connection may stay silent
    disable_nagle_algorithm = True  # it would hold back each answer's content for 40 ms
    server_hub: LoopbackHub
    sent: str | None = None

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._route()

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815

    def _route(self) -> None:
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        hub, self.sent, fault = self.server_hub, None, None
        hub.requests.append((self.command, address.path))
        try:
            self.sent = hub.fail(self.command, address.path) if hub.fail else None
        except (HubError, OtherAnswerError, SilenceError) as error:
            fault = error
        if not isinstance(fault, SilenceError):  # which does not listen either
            length = int(self.headers.get("Content-Length") or 0)
            self.body = self.rfile.read(length)
            if len(self.body) < length:  # of a client that was killed
                self.close_connection = True
                return
        try:
            if fault:
                raise fault
            for method, pattern, name in _ROUTES:
                match = re.fullmatch(pattern, address.path)
                if method == self.command and match:
                    groups = [unquote(group) if group else group for group in match.groups()]
                    with nullcontext() if name == "job_logs" else hub.lock:  # those wait
                        getattr(self, f"_{name}")(*groups)
                    return
            raise HubError(404, "NotFound", f"no route for {self.command} {address.path}")
        except HubError as error:
            self._send(
                error.status,
                json.dumps({"error": str(error)}).encode(),
                {"X-Error-Code": error.code, "X-Error-Message": str(error), **error.headers},
            )
        except OtherAnswerError as answer:
            self._send(200, answer.content, {"Content-Type": answer.content_type})
        except SilenceError as silence:
            threading.Event().wait(silence.seconds)
            self.close_connection = True

    # --- helpers ---

    def _send(
        self, status: int, content: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        if self.sent:
            self.close_connection = True
        if self.sent == "none":
            return
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.sent else content)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    @property
    def _user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return self.server_hub.tokens.get(token)

    def _writer(self) -> str:
        if self._user is None:
            raise HubError(401, "", "Invalid username or password.")
        return self._user

    def _repo(self, kind: str | None, name: str, write: bool = False) -> Repo:
        plain = kind.rstrip("s/") if kind else "model"
        repo = self.server_hub.repo(name, plain)
        hidden = not repo.folder.exists() or (
            repo.meta["private"] and self._user != repo.meta["owner"]
        )
        if hidden:
            raise HubError(
                401 if self._user is None else 404, "RepoNotFound", "Repository not found"
            )
        if write and self._writer() != repo.meta["owner"]:
            raise HubError(403, "", "You don't have the rights to write to this repository.")
        return repo

    # --- routes ---

    def _whoami(self) -> None:
        self._json(
            {"name": self._writer(), "type": "user", "orgs": [], "auth": {"type": "access_token"}}
        )

    def _create(self) -> None:
        request = json.loads(self.body)
        owner = request.get("organization") or self._writer()
        if owner != self._writer():
            raise HubError(403, "", "You don't have the rights to create a repository there.")
        kind, name = request.get("type") or "model", f"{owner}/{request['name']}"
        repo = self.server_hub.repo(name, kind)
        prefix = "" if kind == "model" else f"{kind}s/"
        answer = {"url": f"{self.server_hub.url}/{prefix}{name}", "name": name, "id": name}
        if repo.folder.exists():
            self._json(answer | {"error": "You already created this repository"}, 409)
            return
        private = request.get("private") or request.get("visibility") == "private"
        if kind == "space" and not request.get("sdk"):
            raise HubError(400, "", "A Space needs an sdk.")
        repo.create({"owner": owner, "private": bool(private), "gated": False})
        self._json(answer)

    def _start_job(self, owner: str) -> None:
        if owner != self._writer():
            raise HubError(403, "", "You don't have the rights to start a job there.")
        job = Job(self.server_hub, owner, json.loads(self.body))
        self.server_hub.jobs[job.identity] = job
        self._json(job.info())

    def _list_jobs(self, owner: str) -> None:
        if owner != self._writer():
            raise HubError(403, "", "You don't have the rights to see jobs there.")
        jobs = [job for job in self.server_hub.jobs.values() if job.owner == owner]
        self._json([job.info() for job in reversed(jobs)])  # newest first

    def _job(self, owner: str, identity: str) -> None:
        self._json(self.server_hub.jobs[identity].info())

    def _job_logs(self, owner: str, identity: str) -> None:
        job = self.server_hub.jobs[identity]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = alive = True
        sent = 0
        while alive or sent < len(job.said):
            alive = job.listener.is_alive()
            for line in job.said[sent:]:
                event = json.dumps({"timestamp": "2026-01-01T00:00:00.000Z", "data": line})
                self.wfile.write(f"data: {event}\n\n".encode())
                sent += 1
            self.wfile.write(b": keep-alive\n\n")
            job.listener.join(0.2)

    def _new_collection(self) -> None:
        asked, there = json.loads(self.body), self.server_hub.collections
        if asked["namespace"] != self._writer():
            raise HubError(403, "", "You don't have the rights to create a collection there.")
        identity = hashlib.sha1(asked["title"].encode()).hexdigest()[:24]
        slug = f"{asked['namespace']}/{asked['title'].lower()}-{identity}"
        if slug in there:
            self._json({"error": "This collection exists already", "slug": slug}, 409)
            return
        there[slug] = {
            "slug": slug, "title": asked["title"], "owner": {"name": asked["namespace"]}, "items": [],
            "lastUpdated": "2026-01-01T00:00:00.000Z", "position": 0, "private": asked["private"],
            "theme": "blue", "upvotes": 0,
        }  # fmt: skip
        self._json(there[slug])

    def _collection(self, slug: str) -> None:
        if slug not in self.server_hub.collections:
            raise HubError(404, "", "There is no such collection.")
        self._json(self.server_hub.collections[slug])

    def _collect(self, slug: str) -> None:
        item, collection = json.loads(self.body)["item"], self.server_hub.collections[slug]
        self._repo(item["type"], item["id"], write=True)
        if any(item["id"] == other["id"] for other in collection["items"]):
            raise HubError(409, "", "The item is in the collection already.")
        number = len(collection["items"])
        added = {"_id": f"{number:024}", "position": number, "repoType": item["type"]}
        collection["items"].append(item | added)
        self._json(collection)

    def _validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        valid = content.startswith("---\n")
        errors = [] if valid else [{"message": "no metadata"}]
        self._json({"errors": errors, "warnings": []}, 200 if valid else 400)

    def _preupload(self, kind: str, name: str, revision: str) -> None:
        repo = self._repo(kind, name, write=True)
        files = repo.files(repo.resolve(revision))
        answers = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if is_lfs(file["path"], file["size"]) else "regular"
            digest = files.get(file["path"])
            oid = (
                repo.entry(file["path"], digest)["oid"] if digest and mode == "regular" else digest
            )
            answers.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            )
        self._json({"files": answers})

    def _lfs_batch(self, kind: str | None, name: str) -> None:
        repo = self._repo(kind, name, write=True)
        plain = kind.rstrip("s/") if kind else "model"
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if not repo.blob(wanted["oid"]).exists():
                base = f"{self.server_hub.url}/lfs/{plain}/{name}/{wanted['oid']}"
                header = {"Authorization": self.headers["Authorization"]}
                answer["actions"] = {
                    "upload": {"href": base, "header": {}},
                    "verify": {"href": f"{base}/verify", "header": header},
                }
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, kind: str, name: str, digest: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != digest:
            raise HubError(400, "", "The content does not match its SHA-256.")
        self.server_hub.repo(name, kind).blob(digest).write_bytes(self.body)
        self.server_hub.stored.append(digest)
        self._send(200)

    def _lfs_verify(self, kind: str, name: str, digest: str) -> None:
        if not self.server_hub.repo(name, kind).blob(digest).exists():
            raise HubError(404, "", "The object was never uploaded.")
        self._json({})

    def _commit(self, kind: str, name: str, revision: str) -> None:
        repo = self._repo(kind, name, write=True)
        if revision not in repo.refs():
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        files, message = dict(repo.files(repo.resolve(revision))), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = repo.store(b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if not repo.blob(value["oid"]).exists():
                    raise HubError(400, "", f"{value['path']} was never uploaded.")
                files[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        commit = repo.commit(revision, files, message)
        prefix = "" if kind == "models" else f"{kind}/"
        url = f"{self.server_hub.url}/{prefix}{name}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _branch(self, kind: str, name: str, branch: str) -> None:
        repo = self._repo(kind, name, write=True)
        refs = repo.refs()
        if branch in refs:
            raise HubError(409, "", "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        refs[branch] = repo.resolve(start)
        (repo.folder / "refs.json").write_text(json.dumps(refs))
        self._json({})

    def _refs(self, kind: str, name: str) -> None:
        refs = self._repo(kind, name).refs()
        branches = [
            {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": commit}
            for ref, commit in refs.items()
        ]
        self._json({"branches": branches, "tags": [], "converts": []})

    def _info(self, kind: str, name: str, revision: str | None) -> None:
        repo = self._repo(kind, name)
        commit = repo.resolve(revision or "main")
        siblings = []
        for path, digest in repo.files(commit).items():
            entry = repo.entry(path, digest)
            siblings.append(
                {"rfilename": path, "size": entry["size"], "blobId": entry["oid"]}
                | ({"lfs": entry["lfs"]} if "lfs" in entry else {})
            )
        meta = repo.meta
        self._json(
            {
                "_id": commit[:24],
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": meta["private"],
                "gated": meta["gated"],
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": siblings,
            }
        )

    def _entries(self, repo: Repo, revision: str) -> list[dict[str, Any]]:
        files = repo.files(repo.resolve(revision))
        return [repo.entry(path, digest) for path, digest in sorted(files.items())]

    def _tree(self, kind: str, name: str, revision: str, folder: str | None) -> None:
        repo = self._repo(kind, name)
        inside = f"{folder}/" if folder else ""
        found = [e for e in self._entries(repo, revision) if e["path"].startswith(inside)]
        if folder and not found:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist")
        if self.query.get("recursive", ["false"])[0].lower() in ("false", "0"):
            files, folders = [], set()
            for entry in found:
                rest = entry["path"].removeprefix(inside)
                if "/" in rest:
                    folders.add(inside + rest.split("/")[0])
                else:
                    files.append(entry)
            found = files + [
                {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
                for path in sorted(folders)
            ]
        self._json(found)

    def _paths_info(self, kind: str, name: str, revision: str) -> None:
        repo = self._repo(kind, name)
        if self.headers.get("Content-Type", "").startswith("application/json"):
            wanted = json.loads(self.body)["paths"]
        else:
            wanted = parse_qs(self.body.decode()).get("paths", [])
        entries = self._entries(repo, revision)
        found = [entry for entry in entries if entry["path"] in wanted]
        for path in wanted:
            if path not in {e["path"] for e in found} and any(
                e["path"].startswith(f"{path}/") for e in entries
            ):
                found.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        self._json(found)

    def _download(self, kind: str | None, name: str, revision: str, path: str) -> None:
        repo = self._repo(kind, name)
        commit = repo.resolve(revision)
        if repo.meta["gated"] and self._user != repo.meta["owner"]:
            raise HubError(403, "GatedRepo", f"Access to {name} is restricted.")
        digest = repo.files(commit).get(path)
        if digest is None:
            raise HubError(404, "EntryNotFound", f"{path} does not exist")
        entry, content = repo.entry(path, digest), repo.blob(digest).read_bytes()
        etag = digest if "lfs" in entry else entry["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        status = 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted:
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._send(status, content, headers | {"Content-Length": str(len(content))})
