"""A TCP proxy before the real server that loses answers, as networks do: the request arrives, the answer does not."""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlsplit

from .server import WAIT_SECONDS


class Proxy:
    """Drops the first `lose` answers and resets their connections; then passes everything on."""

    def __init__(self, url: str, lose: int) -> None:
        target = urlsplit(url)
        self._target = (target.hostname or "", target.port or 80)
        self._lose = lose
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.bodies: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self._target) as server:
            client.settimeout(WAIT_SECONDS)
            server.settimeout(WAIT_SECONDS)
            while (request := _message(client)) is not None:
                server.sendall(request)
                answer = _message(server)
                with self._lock:
                    self.bodies.append(request.partition(b"\r\n\r\n")[2])
                    self._lose -= 1
                    is_lost = self._lose >= 0
                if is_lost or answer is None:
                    # Linger of zero: the client meets a reset, not an orderly end.
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    return
                client.sendall(answer)


def _message(source: socket.socket) -> bytes | None:
    """A message with Content-Length, or without a body."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := source.recv(65536)):
            return None
        data += more
    head = data.partition(b"\r\n\r\n")[0]
    fields = (line.partition(b":") for line in head.lower().split(b"\r\n")[1:])
    lengths = [int(value) for name, _, value in fields if name == b"content-length"]
    size = len(head) + 4 + (lengths[0] if lengths else 0)
    while len(data) < size:
        if not (more := source.recv(65536)):
            return None
        data += more
    return data
