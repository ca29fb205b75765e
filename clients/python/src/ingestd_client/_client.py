"""The clients. All that they do themselves is to send, to wait, and to ask again; the rest is in `_exchange`."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread
import httpx

from . import _exchange
from ._async_sender import BufferedSender, OnError
from ._buffer import SenderOptions
from ._compression import Compression, check_available
from ._events import AnyEvent, encode_events
from ._exchange import Ack, Call, Deadline, Done, Exchange, Invalid, Polling
from ._ids import new_batch_id
from ._results import BatchResult, BatchStatus, Health
from ._retry import RetryPolicy
from ._sync_sender import SyncBufferedSender, SyncOnError

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

WAIT_SECONDS = 60.0
"""How long `wait_for_batch` waits at most, unless told otherwise."""


class IngestionClient:
    """Sends batches of events to ingestd, with asyncio or trio.

        async with IngestionClient("http://localhost:8000") as client:
            result = await client.send_batch(events)

    Requests are retried as `retry` says, always under the same batch id and byte for byte the same, so a batch lands
    once however often it was sent. `timeout` is of one attempt. `http` is a client of your own, which you close
    yourself (for proxies, client certificates, event hooks); `url` and `api_key` then still count, `timeout` and
    `verify` do not.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        retry: RetryPolicy | None = None,
        compression: Compression | None = "gzip",
        timeout: httpx.Timeout | float | None = None,
        verify: ssl.SSLContext | bool = True,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        check_available(compression)
        self._target = _exchange.Target(url, api_key)
        self._retry = retry or RetryPolicy()
        self._compression = compression
        self._owns_http = http is None
        self._http = http or httpx.AsyncClient(timeout=_exchange.TIMEOUT if timeout is None else timeout, verify=verify)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes connections."""
        if self._owns_http:
            await self._http.aclose()

    async def send_batch(
        self,
        events: Iterable[AnyEvent],
        *,
        batch_id: str | None = None,
        priority: int | None = None,
        ack: Ack | None = None,
        invalid: Invalid | None = None,
    ) -> BatchResult:
        """Sends events as one batch; returns when the server has taken it, in the sense of `ack`.

        Without a `batch_id` one is made. `priority` is 0 to 10, 10 first. What is left out, the server decides.
        """
        encoded = encode_events(events)
        named = new_batch_id() if batch_id is None else batch_id
        return await self._send(encoded, named, priority=priority, ack=ack, invalid=invalid)

    async def get_batch_status(self, batch_id: str, *, owner: str | None = None) -> BatchStatus:
        """Where a batch is. `owner` names a key's batch, for keys of scope `admin`."""
        return await self._perform(_exchange.get_batch_status(batch_id, owner))

    async def wait_for_batch(self, batch_id: str, *, timeout: float = WAIT_SECONDS) -> BatchStatus:
        """Asks until the batch is completed, partial or failed; `WaitTimeout` when that takes longer than `timeout`."""
        polling = Polling(timeout)
        while True:
            status = await self._perform(_exchange.get_batch_status(batch_id, None), polling)
            wait = polling.after(status)
            if wait is None:
                return status
            await anyio.sleep(wait)

    async def health(self) -> Health:
        """How the server is."""
        return await self._perform(_exchange.health())

    async def metrics(self) -> dict[str, Any]:
        """The server's metrics, as its JSON."""
        return await self._perform(_exchange.metrics())

    def buffered(self, options: SenderOptions | None = None, *, on_error: OnError | None = None) -> BufferedSender:
        """A sender that gathers single events into batches, as an async context manager."""
        return BufferedSender(self._send, options or SenderOptions(), on_error)

    async def _send(
        self,
        encoded: list[bytes],
        batch_id: str,
        *,
        priority: int | None,
        ack: Ack | None,
        invalid: Invalid | None,
    ) -> BatchResult:
        call = _exchange.send_batch(encoded, batch_id, priority=priority, ack=ack, invalid=invalid)
        if self._compression is not None and call.is_large:
            # Beside the event loop: compressing lets go of the interpreter's lock.
            call = await anyio.to_thread.run_sync(call.compressed, self._compression)
        return await self._perform(call)

    async def _perform(self, call: Call[T], deadline: Deadline | None = None) -> T:
        exchange = Exchange(call, self._retry, self._http.timeout, deadline)
        while True:
            try:
                response = await self._http.send(call.request(self._http, self._target, exchange.timeout()))
            except httpx.RequestError as error:
                delay = exchange.failed(error)
            else:
                outcome = exchange.answered(response)
                if isinstance(outcome, Done):
                    return outcome.value
                delay = outcome
            await anyio.sleep(delay)


class SyncIngestionClient:
    """The same as `IngestionClient`, without async. Threads may share one."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        retry: RetryPolicy | None = None,
        compression: Compression | None = "gzip",
        timeout: httpx.Timeout | float | None = None,
        verify: ssl.SSLContext | bool = True,
        http: httpx.Client | None = None,
    ) -> None:
        check_available(compression)
        self._target = _exchange.Target(url, api_key)
        self._retry = retry or RetryPolicy()
        self._compression = compression
        self._owns_http = http is None
        self._http = http or httpx.Client(timeout=_exchange.TIMEOUT if timeout is None else timeout, verify=verify)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes connections."""
        if self._owns_http:
            self._http.close()

    def send_batch(
        self,
        events: Iterable[AnyEvent],
        *,
        batch_id: str | None = None,
        priority: int | None = None,
        ack: Ack | None = None,
        invalid: Invalid | None = None,
    ) -> BatchResult:
        """See `IngestionClient.send_batch`."""
        encoded = encode_events(events)
        named = new_batch_id() if batch_id is None else batch_id
        return self._send(encoded, named, priority=priority, ack=ack, invalid=invalid)

    def get_batch_status(self, batch_id: str, *, owner: str | None = None) -> BatchStatus:
        """See `IngestionClient.get_batch_status`."""
        return self._perform(_exchange.get_batch_status(batch_id, owner))

    def wait_for_batch(self, batch_id: str, *, timeout: float = WAIT_SECONDS) -> BatchStatus:
        """See `IngestionClient.wait_for_batch`."""
        polling = Polling(timeout)
        while True:
            status = self._perform(_exchange.get_batch_status(batch_id, None), deadline=polling)
            wait = polling.after(status)
            if wait is None:
                return status
            time.sleep(wait)

    def health(self) -> Health:
        """How the server is."""
        return self._perform(_exchange.health())

    def metrics(self) -> dict[str, Any]:
        """The server's metrics, as its JSON."""
        return self._perform(_exchange.metrics())

    def buffered(
        self, options: SenderOptions | None = None, *, on_error: SyncOnError | None = None
    ) -> SyncBufferedSender:
        """A sender that gathers single events into batches, sent by threads of its own; close it before the client."""
        return SyncBufferedSender(self._send, options or SenderOptions(), on_error)

    def _send(
        self,
        encoded: list[bytes],
        batch_id: str,
        *,
        priority: int | None,
        ack: Ack | None,
        invalid: Invalid | None,
        sleep: Callable[[float], None] = time.sleep,
        deadline: Deadline | None = None,
    ) -> BatchResult:
        call = _exchange.send_batch(encoded, batch_id, priority=priority, ack=ack, invalid=invalid)
        if self._compression is not None and call.is_large:
            call = call.compressed(self._compression)
        return self._perform(call, sleep=sleep, deadline=deadline)

    def _perform(
        self,
        call: Call[T],
        *,
        sleep: Callable[[float], None] = time.sleep,
        deadline: Deadline | None = None,
    ) -> T:
        exchange = Exchange(call, self._retry, self._http.timeout, deadline)
        while True:
            try:
                response = self._http.send(call.request(self._http, self._target, exchange.timeout()))
            except httpx.RequestError as error:
                delay = exchange.failed(error)
            else:
                outcome = exchange.answered(response)
                if isinstance(outcome, Done):
                    return outcome.value
                delay = outcome
            sleep(delay)
