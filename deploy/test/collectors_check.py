"""Runs a collector with its configuration of clients/collectors: a file of lines into a real ingestd that is killed.

    collectors_check.py fluent-bit|vector|otelcol-contrib PROGRAM [FLUENT_BIT]

The configuration is used as it is shipped, but for its paths and ports. INGESTD_BIN names the server.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATIONS = ROOT / "clients/collectors"
sys.path.insert(0, str(ROOT / "clients/python"))

from tests.server import Server  # noqa: E402

WAIT_SECONDS = 60.0
DOWN_SECONDS = 3.0
"""Long enough for several attempts in vain."""
LINES = 8_000
"""In four parts: before, between and after two kills of the server, and before one of the collector."""
TIMES = ["2026-11-20T09:30:00.123456Z", "2026-11-20T09:30:01Z", "2026-11-20T09:30:02.5+01:00"]
OTHERS = {"nothing": None, "list": [], "object": {}, "number": 12.5, "text": 'a "b" \u00e4'}
"""Members of every line that shall arrive as they are."""
COUNTS = "SELECT count(*), count(DISTINCT payload->>'amount'), count(DISTINCT event_id) FROM events"

SHIPPED = {
    "vector": ("vector.yaml", ["--config"]),
    "fluent-bit": ("fluent-bit.yaml", ["-c"]),
    "otelcol-contrib": ("otel-collector.yaml", ["--config"]),
}


RUNNING: dict[str, subprocess.Popen[bytes]] = {}
"""What must not end meanwhile, by name."""


def until(what: str, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        for name, process in RUNNING.items():
            assert process.poll() is None, f"{name} ended"
        assert time.monotonic() < end, f"waited for {what} in vain"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def configure(folder: Path, name: str, changes: dict[str, str]) -> Path:
    """The shipped configuration with other paths and ports, each of which it must have."""
    configuration = (CONFIGURATIONS / name).read_text()
    for shipped, here in changes.items():
        assert shipped in configuration, f"{name} has no {shipped}"
        configuration = configuration.replace(shipped, here)
    file = folder / name
    file.write_text(configuration)
    return file


def changes(name: str, folder: Path, server: Server, otlp_port: int) -> dict[str, str]:
    host_port = server.url.removeprefix("http://")
    files = {"/var/log/shop/*.jsonl": str(folder / "*.jsonl")}
    return {
        "vector": files | {"127.0.0.1:8000": host_port, "/var/lib/vector": str(folder / "data")},
        "fluent-bit": files
        | {
            "port: 8000": f"port: {host_port.split(':')[1]}",
            "port: 4318": f"port: {otlp_port}",
            "/var/lib/fluent-bit": str(folder / "data"),
        },
        "otelcol-contrib": files | {"127.0.0.1:4318": f"127.0.0.1:{otlp_port}"},
    }[name]


@contextlib.contextmanager
def running(name: str, program: str, folder: Path, server: Server, otlp_port: int) -> Iterator[None]:
    file, option = SHIPPED[name]
    shutil.copy(CONFIGURATIONS / "fluent-bit.lua", folder)
    (folder / "data").mkdir(exist_ok=True)
    configuration = configure(folder, file, changes(name, folder, server, otlp_port))
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen([program, *option, configuration], cwd=folder, stdout=output, stderr=output)
        RUNNING[name] = process
        try:
            yield
        except BaseException:
            sys.stderr.write(log.read_text(errors="replace")[-4000:])
            raise
        finally:
            RUNNING.pop(name, None)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait(10)


def write(file: Path, numbers: range) -> None:
    with file.open("a") as lines:
        for number in numbers:
            # Every tenth has no id: its place in the file is one.
            line = {"service": "shop", "event": "sold", "time": TIMES[number % 3], "amount": number} | OTHERS
            lines.write(json.dumps(({"id": f"order-{number}"} if number % 10 else {}) | line) + "\n")


def landed(server: Server) -> int:
    return int(server.sql(COUNTS).split("|")[1])


def check_server_killed(server: Server, folder: Path) -> None:
    """Whenever a part of the lines has landed, with more of them under way."""
    part = LINES // 4
    write(folder / "events.jsonl", range(part))
    until("the first lines", lambda: landed(server) > 0)
    server.kill9()
    write(folder / "events.jsonl", range(part, 2 * part))
    server.start()
    until("the first part", lambda: landed(server) >= part)
    server.kill9()
    write(folder / "events.jsonl", range(2 * part, 3 * part))
    time.sleep(DOWN_SECONDS)
    server.start()
    until("three parts", lambda: landed(server) >= 3 * part)


def check_collector_killed(name: str, server: Server, folder: Path) -> None:
    """What it knew of its progress is lost, too, so that it sends everything again."""
    write(folder / "events.jsonl", range(LINES * 3 // 4, LINES))
    until("some of the last part", lambda: landed(server) > LINES * 3 // 4)
    process = RUNNING.pop(name)
    process.kill()
    process.wait(10)
    shutil.rmtree(folder / "data")


def check_all_landed_once(server: Server) -> None:
    until("all lines", lambda: landed(server) >= LINES)
    until("lines that come again", lambda: server.sql("SELECT sum(duplicates) > 0 FROM ingest_batches") == "t")
    assert server.sql(COUNTS) == f"{LINES}|{LINES}|{LINES}", server.sql(COUNTS)


def check_mapping(server: Server) -> None:
    rows = server.sql(
        "SELECT event_id, service_name, event_type, \"timestamp\" AT TIME ZONE 'UTC', metadata <> '{}', payload"
        " FROM events WHERE event_id IN ('order-6', 'order-7', 'order-8') ORDER BY 1"
    ).split("\n")
    times = ["2026-11-20 09:30:00.123456", "2026-11-20 09:30:01", "2026-11-20 08:30:02.5"]
    for number, time_utc, row in zip((6, 7, 8), times, rows, strict=True):
        *columns, payload = row.split("|")
        assert columns == [f"order-{number}", "shop", "sold", time_utc, "t"], row
        sent = {
            "id": f"order-{number}",
            "service": "shop",
            "event": "sold",
            "time": TIMES[number % 3],
            "amount": number,
        }
        assert json.loads(payload) == sent | OTHERS, row


def check_refused(server: Server, folder: Path) -> None:
    """An event that ingestd rejects costs the others nothing."""
    with (folder / "events.jsonl").open("a") as lines:
        for name, service in (("bad", "x" * 200), ("good", "shop")):
            line = {"id": name, "service": service, "event": "sold", "time": "2026-11-20T09:30:00.123456Z"}
            lines.write(json.dumps(line) + "\n")
    until("the good one", lambda: server.sql("SELECT count(*) FROM events WHERE event_id IN ('good', 'bad')") == "1")
    with urllib.request.urlopen(server.url + "/v1/metrics?format=json", timeout=10) as answer:
        assert json.load(answer)["events"]["rejected"] == 1


def main() -> None:
    name, program, *fluent_bit = sys.argv[1:]
    folder = Path(tempfile.mkdtemp(prefix="ingestd-collectors-"))
    folder.chmod(0o755)
    server = Server()
    begin = time.monotonic()
    try:
        server.start()
        otlp_port = free_port()
        with contextlib.ExitStack() as programs:
            if fluent_bit:
                # Of a folder of its own, so that only the Collector sees the file.
                other = folder / "fluent-bit"
                other.mkdir()
                programs.enter_context(running("fluent-bit", fluent_bit[0], other, server, otlp_port))
            with running(name, program, folder, server, otlp_port):
                check_server_killed(server, folder)
                check_collector_killed(name, server, folder)
            with running(name, program, folder, server, otlp_port):
                check_all_landed_once(server)
                check_mapping(server)
                check_refused(server, folder)
    finally:
        server.remove()
        shutil.rmtree(folder)
    took = f"{time.monotonic() - begin:.0f} s"
    print(f"collectors: {name}: {LINES} lines landed once through kill -9 of the server, twice, and its own, {took}")


if __name__ == "__main__":
    main()
