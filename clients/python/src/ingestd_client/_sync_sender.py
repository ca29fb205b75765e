"""The buffering sender for threads: threads around `_buffer`."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from ._buffer import Batch, Buffer, FailedBatch, SenderOptions, unacknowledged
from ._errors import CloseTimeout, IngestionError
from ._events import AnyEvent, encode_event, stamped
from ._exchange import Ack, Deadline, Invalid
from ._results import BatchResult

if TYPE_CHECKING:
    from typing_extensions import Self

LOGGER = logging.getLogger("ingestd_client")

SyncOnError = Callable[[FailedBatch], None]
"""Is given every batch that was not delivered, in a thread of the sender; in several at once, perhaps."""

JOIN_SECONDS = 1.0
"""What threads get to end in, after the time for closing."""


class Send(Protocol):
    """Delivers one batch, retries included."""

    def __call__(
        self,
        encoded: list[bytes],
        batch_id: str,
        *,
        priority: int | None,
        ack: Ack | None,
        invalid: Invalid | None,
        sleep: Callable[[float], None],
        deadline: Deadline,
    ) -> BatchResult:
        """Returns when the server has taken it."""


class _Closing:
    """Whether a sender is being closed, and when that must be over."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = float("inf")
        self._begun = threading.Event()

    def begin(self) -> None:
        if not self._begun.is_set():
            self._end = time.monotonic() + self._seconds
            self._begun.set()

    def end(self) -> float:
        return self._end

    def passed(self, error: IngestionError) -> IngestionError:
        """A batch that was not acknowledged by then, as in `Deadline`."""
        return CloseTimeout(f"{unacknowledged(self._seconds)}: {error}")

    def sleep(self, seconds: float) -> None:
        """Sleeps, but no longer than closing may take once it has begun."""
        end = time.monotonic() + seconds
        if self._begun.wait(seconds):
            time.sleep(max(0.0, min(end, self._end) - time.monotonic()))


class SyncBufferedSender:
    """The same as `BufferedSender`, with threads; any thread may send. Made by `SyncIngestionClient.buffered`.

    A sender that nobody closed is closed when the interpreter exits.
    """

    def __init__(self, send: Send, options: SenderOptions, on_error: SyncOnError | None) -> None:
        self._send = send
        self._buffer = Buffer(options)
        self._on_error = on_error
        # Guards the buffer; notified when it changes.
        self._changed = threading.Condition()
        self._closing = _Closing(options.close_seconds)
        self._threads = [
            # Daemons: others would keep the interpreter from its exit, where they are closed.
            threading.Thread(target=self._work, name=f"ingestd-sender-{n}", daemon=True)
            for n in range(options.batches_in_flight)
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, event: AnyEvent) -> None:
        """See `BufferedSender.send`."""
        event = stamped(event, datetime.now(timezone.utc))
        encoded = encode_event(event)
        with self._changed:
            while True:
                try:
                    is_taken = self._buffer.offer(event, encoded, time.monotonic())
                finally:
                    if self._buffer.take_news():
                        self._changed.notify_all()
                if is_taken:
                    return
                self._changed.wait()

    def flush(self) -> None:
        """See `BufferedSender.flush`."""
        with self._changed:
            self._buffer.seal()
            self._changed.notify_all()
            mark = self._buffer.mark
            self._changed.wait_for(lambda: self._buffer.is_settled(mark))
            self._buffer.raise_failures()

    def close(self) -> None:
        """Sends what is left, in `SenderOptions.close_seconds` at most.

        Raises `SenderFailed` with all that was not delivered, where there is no `on_error`.
        """
        atexit.unregister(self.close)
        with self._changed:
            self._closing.begin()
            self._buffer.close()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, self._closing.end() + JOIN_SECONDS - time.monotonic()))
        with self._changed:
            abandoned = self._buffer.abandon()
        for batch, failure in abandoned:
            self._settle(batch, failure)
        with self._changed:
            self._buffer.raise_failures()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            self._deliver(batch)

    def _next(self) -> Batch | None:
        with self._changed:
            while True:
                now = time.monotonic()
                batch = self._buffer.take(now)
                if batch is not None or self._buffer.is_finished:
                    return batch
                self._changed.wait(self._buffer.due_in(now))

    def _deliver(self, batch: Batch) -> None:
        options = self._buffer.options
        try:
            result = self._send(
                batch.encoded,
                batch.batch_id,
                priority=options.priority,
                ack=options.ack,
                invalid=options.invalid,
                sleep=self._closing.sleep,
                deadline=self._closing,
            )
        except Exception as error:  # noqa: BLE001 (whatever it is, the events are not lost silently)
            failure: FailedBatch | None = self._buffer.failed(batch, error)
        else:
            failure = self._buffer.delivered(batch, result)
        self._settle(batch, failure)

    def _settle(self, batch: Batch, failure: FailedBatch | None) -> None:
        if failure is not None and self._on_error is not None:
            try:
                self._on_error(failure)
                failure = None
            except Exception:
                LOGGER.exception("on_error failed; its batch is raised when the sender closes")
        with self._changed:
            self._buffer.settle(batch, failure)
            self._changed.notify_all()
