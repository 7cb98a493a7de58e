"""A Hub on this machine's loopback interface, as far as publishing and downloading a model needs one.

huggingface_hub talks to it unmodified. It keeps repositories with commits, tags and large files, checks tokens, hashes
and sizes as the Hub does, and does what it is told to wrongly. Large files come by Git LFS, in one piece or several, or
by Xet, of which it keeps the blocks without unpacking them and believes the hashes in their index.

    hub.fault("PUT", r"/lfs/", status=503, times=2)     # answer so, twice
    hub.fault("PUT", r"/lfs/", drop=True)               # read half of it and hang up
    hub.on("PUT", r"/lfs/", call)                       # do something beside it
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_stand_in"
PART = 256 * 1024  # bytes of a part of files above LARGE
LARGE = 1024 * 1024


@dataclass
class Stored:
    """A file of a commit: its content, and whether it came as a large file. `announced`, by Xet, is (sha256, bytes)."""

    content: bytes
    large: bool
    announced: tuple[str, int] | None = None

    @property
    def sha256(self) -> str:
        return self.announced[0] if self.announced else hashlib.sha256(self.content).hexdigest()

    @property
    def nbytes(self) -> int:
        return self.announced[1] if self.announced else len(self.content)

    @property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


def in_index(sha256: str) -> bytes:
    """A hash as Xet's index writes it: four numbers of eight bytes, the lowest first."""
    plain = bytes.fromhex(sha256)
    return b"".join(plain[start : start + 8][::-1] for start in range(0, 32, 8))


@dataclass
class Repo:
    private: bool
    commits: list[tuple[str, str, dict[str, Stored]]] = field(default_factory=list)  # (id, message, files)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, message: str, files: dict[str, Stored]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append((oid, message, files))
        return oid

    @property
    def head(self) -> str:
        return self.commits[-1][0]

    def files(self, revision: str) -> dict[str, Stored] | None:
        wanted = self.tags.get(revision, self.head if revision == "main" else revision)
        return next((files for oid, _, files in self.commits if oid == wanted), None)


@dataclass
class Fault:
    method: str
    pattern: str
    status: int = 500
    times: int = 1
    drop: bool = False
    headers: dict = field(default_factory=dict)
    act: object = None
    after: int = 0  # requests that pass first


class HubStandIn:
    """Use it as a context; `url` is what to give as `endpoint`."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.blocks: dict[str, bytes] = {}  # Xet's
        self.indices: list[bytes] = []
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.corrupt: set[str] = set()  # names of files that it stores with a changed byte
        self.lock = threading.RLock()

    def fault(self, method: str, pattern: str, **how) -> None:
        self.faults.append(Fault(method, pattern, **how))

    def on(self, method: str, pattern: str, act, after: int = 0) -> None:
        self.faults.append(Fault(method, pattern, act=act, after=after))

    def count(self, method: str, pattern: str) -> int:
        return sum(m == method and re.search(pattern, path) is not None for m, path in self.requests)

    def __enter__(self) -> HubStandIn:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    # ---- answers: (status, content, headers) ------------------------------------------------

    def answer(self, method: str, path: str, query: dict, body: bytes, headers) -> tuple:
        for wanted, pattern, function in ROUTES:
            if wanted == method and (match := re.fullmatch(pattern, path)):
                expected = "Bearer xet" if path.startswith("/v1/") else f"Bearer {TOKEN}"
                if not path.startswith("/lfs/") and headers.get("Authorization") != expected:
                    return 401, {"error": "Invalid username or password."}, {"X-Error-Message": "Invalid credentials"}
                with self.lock:
                    return function(self, *map(unquote, match.groups()), query=query, body=body)
        return 404, {"error": f"the stand-in has no {method} {path}"}, {}

    def create(self, query, body):
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}, {}
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repos[name] = Repo(private)
        self.repos[name].commit("initial commit", {".gitattributes": Stored(b"*.safetensors filter=lfs\n", False)})
        return 200, {"url": f"{self.url}/{name}", "name": name, "id": name}, {}

    def known(function):
        def with_repo(self, name, *rest, **options):
            if name not in self.repos:
                return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
            return function(self, name, self.repos[name], *rest, **options)

        return with_repo

    @known
    def info(self, name, repo, revision="main", query=None, body=b""):
        files = repo.files(revision)
        if files is None:
            return 404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"}
        sha = next(oid for oid, _, found in repo.commits if found is files)
        siblings = [{"rfilename": path} for path in files]
        return 200, {"id": name, "modelId": name, "sha": sha, "private": repo.private, "siblings": siblings}, {}

    @known
    def refs(self, name, repo, query, body):
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head}
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid} for tag, oid in repo.tags.items()]
        return 200, {"branches": [branch], "tags": tags, "converts": []}, {}

    @known
    def tree(self, name, repo, revision, query, body):
        entries = []
        for path, stored in repo.files(revision).items():
            entry = {"type": "file", "path": path, "size": stored.nbytes, "oid": stored.blob_id}
            if stored.large:
                entry["lfs"] = {"oid": stored.sha256, "size": stored.nbytes, "pointerSize": 134}
            entries.append(entry)
        return 200, entries, {}

    @known
    def preupload(self, name, repo, revision, query, body):
        there = repo.files("main")
        answers = []
        for file in json.loads(body)["files"]:
            path, stored = file["path"], there.get(file["path"])
            large = path.endswith((".safetensors", ".npz")) or file["size"] > 10 * 2**20
            oid = (stored.sha256 if stored.large else stored.blob_id) if stored else None
            answers.append(
                {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        return 200, {"files": answers}, {}

    @known
    def batch(self, name, repo, query, body):
        answers = []
        for wanted in json.loads(body)["objects"]:
            oid, nbytes = wanted["oid"], wanted["size"]
            answer = {"oid": oid, "size": nbytes}
            if oid not in self.objects:
                upload = {"href": f"{self.url}/lfs/{oid}", "header": {}}
                if nbytes > LARGE:
                    numbers = range(1, -(-nbytes // PART) + 1)
                    parts = {str(number): f"{self.url}/lfs/{oid}/{number}" for number in numbers}
                    upload = {"href": f"{self.url}/lfs/{oid}/complete", "header": {"chunk_size": str(PART), **parts}}
                verify = {"href": f"{self.url}/lfs/{oid}/verify", "header": {}}
                answer["actions"] = {"upload": upload, "verify": verify}
            answers.append(answer)
        return 200, {"transfer": "basic", "objects": answers}, {}

    def put(self, oid, query, body):
        return self.store(oid, body)

    def put_part(self, oid, number, query, body):
        self.parts.setdefault(oid, {})[int(number)] = body
        return 200, {}, {"ETag": hashlib.md5(body).hexdigest()}

    def complete(self, oid, query, body):
        parts = self.parts.pop(oid, {})
        return self.store(oid, b"".join(parts[number] for number in sorted(parts)))

    def store(self, oid, content):
        if hashlib.sha256(content).hexdigest() != oid:
            return 400, {"error": "the content does not have the hash that was announced"}, {}
        self.objects[oid] = content
        return 200, {}, {}

    def verify(self, oid, query, body):
        told = json.loads(body)
        if oid not in self.objects or len(self.objects[oid]) != told["size"]:
            return 422, {"error": "not the object that was announced"}, {}
        return 200, {}, {}

    @known
    def xet_token(self, name, repo, revision, query, body):
        ends = int(time.time()) + 3600
        return 200, {"accessToken": "xet", "exp": ends, "casUrl": self.url}, {}

    def xet_block(self, block, query, body):
        new = block not in self.blocks
        self.blocks[block] = body
        return 200, {"was_inserted": new}, {}

    def xet_index(self, query, body):
        self.indices.append(body)
        return 200, {"result": 1}, {}

    def validate(self, query, body):
        match = re.match(r"\s*---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        try:
            metadata = yaml.safe_load(match[1]) if match else None
        except yaml.YAMLError as error:
            return 400, {"errors": [{"message": str(error)}], "warnings": []}, {}
        if not metadata or not isinstance(metadata.get("license"), str):
            return 400, {"errors": [{"message": '"license" must be a string'}], "warnings": []}, {}
        return 200, {"errors": [], "warnings": []}, {}

    @known
    def commit(self, name, repo, revision, query, body):
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.head):
            return 412, {"error": "the branch has moved"}, {}
        files = dict(repo.files("main"))
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                if value["oid"] in self.objects:
                    files[value["path"]] = Stored(self.objects[value["oid"]], True)
                elif any(in_index(value["oid"]) in index for index in self.indices):
                    files[value["path"]] = Stored(b"", True, (value["oid"], value["size"]))
                else:
                    return 400, {"error": f"large file {value['path']} was not uploaded"}, {}
            else:
                files[value["path"]] = Stored(base64.b64decode(value["content"]), False)
        for path in self.corrupt & files.keys():
            stored = files[path]
            files[path] = Stored(bytes([stored.content[0] ^ 1]) + stored.content[1:], stored.large)
        oid = repo.commit(header["summary"], files)
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}"}, {}

    @known
    def tag(self, name, repo, revision, query, body):
        tag = json.loads(body)["tag"]
        if tag in repo.tags:
            return 409, {"error": "Tag reference exists already"}, {}
        repo.tags[tag] = repo.head if revision == "main" else revision
        return 200, {}, {}

    @known
    def resolve(self, name, repo, revision, path, query, body):
        stored = (repo.files(revision) or {}).get(path)
        if stored is None:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        etag = stored.sha256 if stored.large else stored.blob_id
        sha = next(oid for oid, _, files in repo.commits if files is repo.files(revision))
        return 200, stored.content, {"ETag": f'"{etag}"', "X-Repo-Commit": sha}


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("POST", "/api/repos/create", HubStandIn.create),
    ("POST", "/api/validate-yaml", HubStandIn.validate),
    ("GET", f"/api/models/{REPO}", HubStandIn.info),
    ("GET", f"/api/models/{REPO}/revision/([^/]+)", HubStandIn.info),
    ("GET", f"/api/models/{REPO}/refs", HubStandIn.refs),
    ("GET", f"/api/models/{REPO}/tree/([^/]+)", HubStandIn.tree),
    ("POST", f"/api/models/{REPO}/preupload/([^/]+)", HubStandIn.preupload),
    ("POST", f"/api/models/{REPO}/commit/([^/]+)", HubStandIn.commit),
    ("POST", f"/api/models/{REPO}/tag/([^/]+)", HubStandIn.tag),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", HubStandIn.batch),
    ("PUT", r"/lfs/(\w+)", HubStandIn.put),
    ("PUT", r"/lfs/(\w+)/(\d+)", HubStandIn.put_part),
    ("POST", r"/lfs/(\w+)/complete", HubStandIn.complete),
    ("POST", r"/lfs/(\w+)/verify", HubStandIn.verify),
    ("GET", f"/api/models/{REPO}/xet-write-token/([^/]+)", HubStandIn.xet_token),
    ("POST", r"/v1/xorbs/default/(\w+)", HubStandIn.xet_block),
    ("POST", r"/v1/shards", HubStandIn.xet_index),
    ("GET", f"/{REPO}/resolve/([^/]+)/(.+)", HubStandIn.resolve),
]


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece: else each would wait for an acknowledgement
    disable_nagle_algorithm = True

    def log_message(self, *arguments):
        pass

    def body(self, limit: int | None = None) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            found = b""
            while (length := int(self.rfile.readline(), 16)) > 0:
                found += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            return found
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length if limit is None else length // limit)

    def handle_request(self) -> None:
        split = urlsplit(self.path)
        method = "GET" if self.command == "HEAD" else self.command
        with self.hub.lock:
            self.hub.requests.append((self.command, split.path))
            fault = next(
                (f for f in self.hub.faults if f.method == method and f.times and re.search(f.pattern, split.path)),
                None,
            )
            if fault and fault.after:
                fault.after -= 1
                fault = None
            elif fault:
                fault.times -= 1
        if fault and fault.drop:
            self.body(limit=2)
            self.close_connection = True
            self.connection.close()
            return
        body = self.body()
        if fault and fault.act:
            fault.act()
        if fault and not fault.act:
            status, content, headers = fault.status, {"error": "as told"}, fault.headers
        else:
            status, content, headers = self.hub.answer(method, split.path, parse_qs(split.query), body, self.headers)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request
