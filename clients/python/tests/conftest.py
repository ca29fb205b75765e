"""Servers, and clients of both kinds behind one face."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio.to_thread
import pytest
from typing_extensions import Self

from ingestd_client import (
    BatchResult,
    BatchStatus,
    Event,
    FailedBatch,
    Health,
    IngestionClient,
    SenderOptions,
    SyncBufferedSender,
    SyncIngestionClient,
)

from .server import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server without keys, for tests that leave it as it is."""
    server = Server()
    try:
        yield server.start()
    finally:
        server.remove()


_NUMBERS = itertools.count()


@pytest.fixture
def prefix() -> str:
    """Begins the ids of this test's events, and of no other's."""
    return f"t{next(_NUMBERS)}-"


def event(event_id: str, **members: Any) -> Event:
    """A valid event."""
    return Event(event_id, "user-service", "user_login", **{"payload": {"user_id": "user_456"}} | members)


class ThreadedSender:
    """A sync sender, awaited."""

    def __init__(self, sender: SyncBufferedSender) -> None:
        self._sender = sender

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await anyio.to_thread.run_sync(self._sender.close)

    async def send(self, item: Any) -> None:
        # Given up when the test is cancelled: it may be what waits for room.
        await anyio.to_thread.run_sync(self._sender.send, item, abandon_on_cancel=True)

    async def flush(self) -> None:
        await anyio.to_thread.run_sync(self._sender.flush)


class ThreadedClient:
    """A sync client, awaited, so that both kinds pass the same tests."""

    def __init__(self, url: str, **options: Any) -> None:
        self._client = SyncIngestionClient(url, **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.close()

    async def send_batch(self, events: Any, **options: Any) -> BatchResult:
        return await anyio.to_thread.run_sync(partial(self._client.send_batch, events, **options))

    async def get_batch_status(self, batch_id: str) -> BatchStatus:
        return await anyio.to_thread.run_sync(self._client.get_batch_status, batch_id)

    async def wait_for_batch(self, batch_id: str, **options: Any) -> BatchStatus:
        return await anyio.to_thread.run_sync(partial(self._client.wait_for_batch, batch_id, **options))

    async def health(self) -> Health:
        return await anyio.to_thread.run_sync(self._client.health)

    async def metrics(self) -> dict[str, Any]:
        return await anyio.to_thread.run_sync(self._client.metrics)

    def buffered(
        self, options: SenderOptions | None = None, *, on_error: Callable[[FailedBatch], None] | None = None
    ) -> ThreadedSender:
        return ThreadedSender(self._client.buffered(options, on_error=on_error))


TRUST = ssl.create_default_context()
"""Shared, because to read all authorities takes longer than most tests."""

NewClient = Callable[..., Any]


@pytest.fixture(
    params=[
        pytest.param((IngestionClient, "asyncio"), id="asyncio"),
        pytest.param((IngestionClient, "trio"), id="trio"),
        pytest.param((ThreadedClient, "asyncio"), id="sync"),
    ]
)
def kind(request: pytest.FixtureRequest) -> Any:
    """A kind of client, and what runs it."""
    return request.param


@pytest.fixture
def anyio_backend(kind: Any) -> str:
    """What anyio's plugin for pytest runs a test with."""
    backend: str = kind[1]
    return backend


@pytest.fixture
def new_client(kind: Any) -> NewClient:
    """Makes a client of this kind."""
    return partial(kind[0], verify=TRUST)
