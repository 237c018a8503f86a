"""A Hub on this machine, in memory: what huggingface_hub asks of it to create, upload, list and download.

Every file is a regular git blob; tokens and what they may do are given; requests are kept for the tests to look at.
"""

import base64
import hashlib
import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

WRITER, READER = "hf_writerSECRETwriterSECRET0123", "hf_readerSECRETreaderSECRET0123"


@dataclass
class Repository:
    private: bool = False
    branches: dict = field(default_factory=lambda: {"main": {}})  # branch → path → bytes
    commits: list = field(default_factory=list)  # of each: the paths it added and deleted

    def sha(self, branch):
        listed = sorted((path, blob_id(data)) for path, data in self.branches[branch].items())
        return hashlib.sha1(repr((branch, listed)).encode()).hexdigest()

    def files(self, revision):
        """By branch or by the commit that is the head of one."""
        for branch, files in self.branches.items():
            if revision in (branch, self.sha(branch)):
                return files, self.sha(branch)
        return None, None


def blob_id(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    def __init__(self, port, home):
        self.home = home  # where those who pull from it keep what they pulled
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.victim = None  # a process that is killed as soon as a commit arrives, which then is not made
        self.server = ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Handler,), {"hub": self}))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, data=b"", headers=()):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, message, code=""):
        self.answer(status, {"error": message}, [("X-Error-Code", code), ("X-Error-Message", message)])

    @property
    def token(self):
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def do_POST(self):
        length = self.headers.get("Content-Length")
        if length is not None:
            body = self.rfile.read(int(length))
        else:  # chunked
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(("POST", path))
        if self.token not in (WRITER, READER):
            return self.refuse(401, "Invalid credentials in Authorization header")
        if self.token == READER:
            return self.refuse(403, "You don't have the rights to create a model")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            content = json.loads(body)["content"]
            problems = [] if content.startswith("---\n") else [{"message": "no metadata"}]
            return self.answer(400 if problems else 200, {"errors": problems, "warnings": []})
        if path.count("/") < 6:
            return self.refuse(404, f"unknown {path}")
        *_, owner, name, action, rest = path.split("/", 6)[2:]
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if repository is None:
            return self.refuse(404, "Repository not found", "RepoNotFound")
        if action == "branch":
            if rest in repository.branches:
                return self.refuse(409, "exists")
            repository.branches[rest] = dict(repository.branches["main"])
            return self.answer(200, {})
        files = repository.branches.get(rest)
        if files is None:
            return self.refuse(404, "no such revision", "RevisionNotFound")
        if action == "preupload":
            asked = [entry["path"] for entry in json.loads(body)["files"]]
            known = {path: blob_id(files[path]) if path in files else None for path in asked}
            return self.answer(
                200,
                {
                    "files": [
                        {"path": p, "uploadMode": "regular", "shouldIgnore": False, "oid": known[p]} for p in asked
                    ]
                },
            )
        if action == "commit":
            return self.commit(repository, rest, files, [json.loads(line) for line in body.splitlines()])
        self.refuse(404, f"unknown {path}")

    def create(self, wish):
        name = f"{wish.get('organization')}/{wish['name']}"
        url = {"url": f"{self.hub.endpoint}/{name}"}
        if name in self.hub.repositories:
            return self.answer(409, url)
        private = bool(wish.get("private")) or wish.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private)
        self.answer(200, url)

    def commit(self, repository, branch, files, lines):
        if self.hub.victim is not None:
            self.hub.victim.kill()
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        changed = []
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                changed.append(("+", value["path"]))
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
                changed.append(("-", value["path"]))
        repository.commits.append(changed)
        oid = repository.sha(branch)
        self.answer(200, {"commitUrl": f"{self.hub.endpoint}/x/y/commit/{oid}", "commitOid": oid, "success": True})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models").split("/", 5)[1:]
        repository = self.hub.repositories.get("/".join(parts[:2]))
        if repository is None or (repository.private and self.token not in (WRITER, READER)):
            return self.refuse(401 if not self.token else 404, "Repository not found", "RepoNotFound")
        files, sha = repository.files(parts[3].split("/")[0] if len(parts) > 3 else "main")
        if files is None:
            return self.refuse(404, "no such revision", "RevisionNotFound")
        if api and (len(parts) == 2 or parts[2] == "revision"):
            siblings = [{"rfilename": name} for name in files]
            return self.answer(
                200, {"id": "/".join(parts[:2]), "sha": sha, "private": repository.private, "siblings": siblings}
            )
        if api and parts[2] == "tree":
            return self.answer(
                200,
                [{"type": "file", "path": n, "size": len(d), "oid": blob_id(d)} for n, d in sorted(files.items())],
            )
        if not api and parts[2] == "resolve":
            name = path.split(f"/resolve/{parts[3]}/", 1)[1]
            if name not in files:
                return self.refuse(404, "Entry not found", "EntryNotFound")
            headers = [("X-Repo-Commit", sha), ("ETag", f'"{blob_id(files[name])}"')]
            return self.answer(200, files[name], headers)
        self.refuse(404, f"unknown {path}")
