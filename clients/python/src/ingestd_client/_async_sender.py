"""The buffering sender for asyncio and trio: tasks around `_buffer`."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.lowlevel

from ._buffer import Batch, Buffer, FailedBatch, SenderOptions
from ._events import AnyEvent, encode_event, stamped
from ._exchange import Ack, Invalid
from ._results import BatchResult

if TYPE_CHECKING:
    from typing_extensions import Self

LOGGER = logging.getLogger("ingestd_client")

OnError = Callable[[FailedBatch], Awaitable[None] | None]
"""Is given every batch that was not delivered; a function or a coroutine function."""


class Send(Protocol):
    """Delivers one batch, retries included."""

    async def __call__(
        self,
        encoded: list[bytes],
        batch_id: str,
        *,
        priority: int | None,
        ack: Ack | None,
        invalid: Invalid | None,
    ) -> BatchResult:
        """Returns when the server has taken it."""


class BufferedSender:
    """Gathers events into batches and sends several at a time; made by `IngestionClient.buffered`.

    Leaving the context sends what is left, in `SenderOptions.close_seconds` at most. Batches that failed for good go to
    `on_error`. Without one the next `send` or `flush`, or leaving the context, raises `SenderFailed` with all of them.
    """

    def __init__(self, send: Send, options: SenderOptions, on_error: OnError | None) -> None:
        self._send = send
        self._buffer = Buffer(options)
        self._on_error = on_error
        # Set when the buffer changes, and replaced by the next one.
        self._changed = anyio.Event()
        self._tasks = anyio.create_task_group()
        # Of the tasks that have not ended.
        self._running: set[anyio.CancelScope] = set()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        for _ in range(self._buffer.options.batches_in_flight):
            scope = anyio.CancelScope(shield=True)
            self._running.add(scope)
            self._tasks.start_soon(self._work, scope)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._buffer.close()
        self._tell()
        # Shielded, as the tasks are: a caller that is cancelled would otherwise lose what it has sent so far.
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(self._buffer.options.close_seconds):
                await self._until(lambda: not self._running)
            for scope in self._running:
                scope.cancel()
            await self._until(lambda: not self._running)
            for batch, failure in self._buffer.abandon():
                await self._settle(batch, failure)
        await self._tasks.__aexit__(None, None, None)
        if error is None or isinstance(error, Exception):
            self._buffer.raise_failures()
        else:
            # To raise another exception now would hide a cancellation.
            for failed in self._buffer.failures:
                LOGGER.error("%d events were not delivered: %s", len(failed.events), failed.error)

    async def send(self, event: AnyEvent) -> None:
        """Takes an event, to be sent within `batch_age_seconds`; waits while there is no room.

        It is encoded now, so a change of the mapping afterwards changes nothing. Without a `timestamp` it gets the
        present time: what it is sent with is then the same however often it is sent.
        """
        event = stamped(event, datetime.now(timezone.utc))
        encoded = encode_event(event)
        while True:
            try:
                is_taken = self._buffer.offer(event, encoded, time.monotonic())
            finally:
                is_news = self._tell_news()
            if is_taken:
                break
            await self._changed.wait()
        if is_news:
            # Lets the tasks send, however busy the caller is.
            await anyio.lowlevel.checkpoint()

    async def flush(self) -> None:
        """Returns when everything that was sent before is taken by the server, or has failed."""
        self._buffer.seal()
        self._tell()
        mark = self._buffer.mark
        await self._until(lambda: self._buffer.is_settled(mark))
        self._buffer.raise_failures()

    async def _work(self, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                while (batch := await self._next()) is not None:
                    await self._deliver(batch)
        finally:
            self._running.remove(scope)
            self._tell()

    async def _next(self) -> Batch | None:
        while True:
            now = time.monotonic()
            batch = self._buffer.take(now)
            if batch is not None or self._buffer.is_finished:
                return batch
            due_in = self._buffer.due_in(now)
            with anyio.move_on_after(due_in):
                await self._changed.wait()

    async def _deliver(self, batch: Batch) -> None:
        options = self._buffer.options
        try:
            result = await self._send(
                batch.encoded,
                batch.batch_id,
                priority=options.priority,
                ack=options.ack,
                invalid=options.invalid,
            )
        except Exception as error:  # noqa: BLE001 (whatever it is, the events are not lost silently)
            failure: FailedBatch | None = self._buffer.failed(batch, error)
        else:
            failure = self._buffer.delivered(batch, result)
        await self._settle(batch, failure)

    async def _settle(self, batch: Batch, failure: FailedBatch | None) -> None:
        if failure is not None and self._on_error is not None:
            try:
                outcome = self._on_error(failure)
                if inspect.isawaitable(outcome):
                    await outcome
                failure = None
            except Exception:
                LOGGER.exception("on_error failed; its batch is raised when the sender closes")
        self._buffer.settle(batch, failure)
        self._tell()

    def _tell_news(self) -> bool:
        news = self._buffer.take_news()
        if news:
            self._tell()
        return news

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()
