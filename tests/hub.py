"""A substitute for the Hub: a small HTTP server with the part of its protocol that a download needs.

The client is the real one. It runs in a process of its own, because it reads the address of the Hub once, at import.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A server with one public repository, `org/clara`, and a gated one."""

    files: dict[str, bytes]
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        path = path.partition("?")[0]
        if path.startswith("/api/models/org/gated"):
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"}, b"{}"
        if path in ("/api/models/org/clara/revision/main", "/api/models/org/clara"):
            siblings = [{"rfilename": name} for name in self.files]
            info = {"id": "org/clara", "sha": COMMIT, "siblings": siblings, "private": False}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        if path.startswith("/api/models/org/clara/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in self.files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        if path.startswith("/api/models/org/clara/revision/"):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        name = path.removeprefix(f"/org/clara/resolve/{COMMIT}/")
        if name in self.files:
            etag = hashlib.sha256(self.files[name]).hexdigest()
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, self.files[name]
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder as the files of a repository."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    """Run a Hub with these files in its public repository."""
    content = Hub(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            status, headers, body = content.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *arguments):
            """Do not log requests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    content.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield content
    finally:
        server.shutdown()
        server.server_close()


CALL = """
    import json, sys
    from clara_core.common.errors import CheckpointError
    from clara_core.model.checkpoint.hub import resolve
    try:
        print(json.dumps({"folder": str(resolve(**json.loads(sys.argv[1])))}))
    except CheckpointError as exc:
        print(json.dumps({"error": str(exc)}))
"""


def from_hub(url: str, home: Path, **arguments: object) -> dict[str, str]:
    """Call `resolve` in a process whose Hub is at `url`, with the cache in `home`."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CALL), json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
        },
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
