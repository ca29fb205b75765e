"""A real ingestd with a PostgreSQL of its own, and what tests do with it. Every wait is bounded."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

WAIT_SECONDS = 120.0
"""How long anything may take that a test waits for: long enough for a machine that does much else."""

RELOADED = "reloaded API keys"
"""What it logs after SIGHUP."""

INHERITED = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "LLVM_PROFILE_FILE", "INGESTD_PG_BIN")
"""What a server under test inherits; the settings of whoever runs the tests are not among it."""


class Server:
    """Starts with the object; `restart` keeps address and data."""

    def __init__(self, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ingestd-client-"))
        # As root, PostgreSQL runs as another user, who must come in.
        self.folder.chmod(0o755)
        self.settings = {"LISTEN_ADDR": "127.0.0.1:0"} | settings
        self.url = ""
        self._psql: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        """Returns when it listens."""
        log = self.folder / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [ingestd(), "serve", "--embedded"],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        end = time.monotonic() + WAIT_SECONDS
        while not (found := re.search(r"listening on (http://(\S+))", log.read_text())):
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)
        self.url = found[1]
        self.settings["LISTEN_ADDR"] = found[2]
        inside = re.search(r"inspect it with: (.+?) version=", log.read_text())
        assert inside is not None, log.read_text()
        self._psql = shlex.split(inside[1])
        return self

    def kill9(self) -> None:
        """Ends the server at once; its PostgreSQL may live on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(WAIT_SECONDS)

    def remove(self) -> None:
        """Ends it at once, and its PostgreSQL: their data are forgotten."""
        self.kill9()
        remove_folder(self.folder)

    def sql(self, query: str) -> str:
        """What psql answers: rows by line, columns by |."""
        command = [*self._psql, "--no-psqlrc", "--tuples-only", "--no-align", "--command", query]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @contextlib.contextmanager
    def commits_held_back(self) -> Iterator[None]:
        """Nothing is written to `events` within the block."""
        lock = "BEGIN; LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE; SELECT pg_sleep(600)"
        asleep = "pg_stat_activity WHERE wait_event = 'PgSleep'"
        command = [*self._psql, "--no-psqlrc", "--quiet", "--command", lock]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + WAIT_SECONDS
            while self.sql(f"SELECT count(*) FROM {asleep}") == "0":
                assert time.monotonic() < end
            yield
        finally:
            self.sql(f"SELECT pg_terminate_backend(pid) FROM {asleep}")
            process.wait(WAIT_SECONDS)

    def reload(self) -> None:
        """Makes it read its keys again; returns when it has."""
        assert self._process is not None
        log = self.folder / "log"
        before = log.read_text().count(RELOADED)
        self._process.send_signal(signal.SIGHUP)
        end = time.monotonic() + WAIT_SECONDS
        while log.read_text().count(RELOADED) == before:
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.01)

    def rows(self, prefix: str) -> int:
        """Rows of events whose ids begin with `prefix`."""
        return int(self.sql(f"SELECT count(*) FROM events WHERE starts_with(event_id, '{prefix}')"))

    def new_key(self, *arguments: str) -> str:
        """Makes an API key in the file that `API_KEYS_FILE` names."""
        command = [ingestd(), "keys", "new", "--name", "test", *arguments]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=True,
        )
        return done.stdout.strip()

    def _environment(self) -> dict[str, str]:
        return {name: os.environ[name] for name in INHERITED if name in os.environ} | self.settings


def remove_folder(folder: Path) -> None:
    """Removes the folder that a server worked in, and ends its PostgreSQL."""
    data = folder / "data/postgres"
    end_postgres(data / "postmaster.pid")
    target = data.resolve() if data.is_symlink() else None
    shutil.rmtree(folder)
    if target is not None:
        shutil.rmtree(target, ignore_errors=True)


def end_postgres(pid_file: Path) -> None:
    """Ends the PostgreSQL whose process `pid_file` names, if it has not ended with its server."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        pid = int(pid_file.read_text().splitlines()[0])
        os.kill(pid, signal.SIGQUIT)
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            os.kill(pid, 0)
            time.sleep(0.01)


def ingestd() -> str:
    """The binary under test."""
    return os.environ["INGESTD_BIN"]
