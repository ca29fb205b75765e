"""Whether a server speaks sd_notify(3) as deploy/systemd/ingestd.service expects it. Python's standard library only.

    notify.py SERVER FOLDER

Starts it in FOLDER without a PostgreSQL (it need not have one to be ready) and listens where systemd would: READY=1 once
requests are answered, WATCHDOG=1 twice in WATCHDOG_USEC, RELOADING=1 then READY=1 for a SIGHUP, STOPPING=1 for a SIGTERM.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

WATCHDOG_SECONDS = 2


def main(server, folder):
    path = os.path.join(folder, "notify.socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, open(os.path.join(folder, "log"), "wb") as log:
        listener.bind(path)
        environment = {
            "PATH": os.environ["PATH"],
            "NOTIFY_SOCKET": path,
            "WATCHDOG_USEC": str(WATCHDOG_SECONDS * 1_000_000),
            "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
            "LISTEN_ADDR": "127.0.0.1:0",
        }
        process = subprocess.Popen([server, "serve"], cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            return conversation(process, listener, log.name)
        except TimeoutError as missing:
            return f"no {missing} came"
        finally:
            process.kill()
            process.wait()


def conversation(process, listener, log):
    """What is wrong, or None."""
    expect(listener, "READY=1", 20)
    with open(log, encoding="utf-8") as text:
        address = re.search(r"listening on (http://\S+)", text.read())
    if not address:
        return "READY=1 came before it listens"
    with urllib.request.urlopen(f"{address[1]}/readyz", timeout=5) as answer:
        if answer.status != 200:
            return f"READY=1 came while /readyz answers {answer.status}"
    for _ in range(3):
        expect(listener, "WATCHDOG=1", WATCHDOG_SECONDS / 2 + 0.3)
    process.send_signal(signal.SIGHUP)
    reloading = expect(listener, "RELOADING=1", 5)
    if not re.search(r"^MONOTONIC_USEC=\d+$", reloading, re.MULTILINE):
        return "RELOADING=1 came without MONOTONIC_USEC, which Type=notify-reload wants"
    expect(listener, "READY=1", 5)
    process.send_signal(signal.SIGTERM)
    expect(listener, "STOPPING=1", 5)
    if code := process.wait(timeout=40):
        return f"it ended with exit code {code}"
    return None


def expect(listener, line, seconds):
    """The first message that has this line, which comes within so many seconds."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        listener.settimeout(left)
        try:
            message = listener.recv(4096).decode()
        except TimeoutError:
            break
        if line in message.splitlines():
            return message
    raise TimeoutError(f"{line} within {seconds} s")


if __name__ == "__main__":
    problem = main(*sys.argv[1:])
    if problem:
        sys.exit(f"systemd: {problem}")
