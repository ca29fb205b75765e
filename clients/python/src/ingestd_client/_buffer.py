"""What a buffering sender holds and decides: no I/O, no locks, no clock of its own.

    send ─▶ open batch ─(count, bytes, age, flush, full)─▶ sealed ─▶ under way ─▶ settled
                                                                        └─▶ failed ─▶ on_error, or kept for close

Invariants: an event is in exactly one of these places; the bytes of all but the last together stay within
`buffered_bytes`; an event that leaves without having been taken by the server leaves as part of a `FailedBatch`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ._errors import BufferFull, CloseTimeout, EventsRejected, InvalidEvent, SenderClosed, SenderFailed
from ._events import AnyEvent
from ._exchange import Ack, Invalid
from ._ids import new_batch_id
from ._results import BatchResult


@dataclass(frozen=True, slots=True)
class SenderOptions:
    """Limits of a buffering sender, and what it asks of the server."""

    batch_events: int = 1000
    """A batch is sent when it has so many events …"""
    batch_bytes: int = 1024 * 1024
    """… or another event would make its JSON larger than this …"""
    batch_age_seconds: float = 1.0
    """… or its first event has waited so long."""
    buffered_bytes: int = 64 * 1024 * 1024
    """JSON of all events that the server has not taken yet. At this limit `send` waits or raises."""
    batches_in_flight: int = 4
    """Requests at a time. Their order is not promised."""
    when_full: Literal["wait", "raise"] = "wait"
    """Whether `send` waits for room, or raises `BufferFull`."""
    close_seconds: float = 30.0
    """How long closing may take; what is not acknowledged by then has failed."""
    priority: int | None = None
    ack: Ack | None = None
    invalid: Invalid = "skip"
    """`skip`: one invalid event does not cost the others their batch; it goes to `on_error` alone."""

    def __post_init__(self) -> None:
        for name in (
            "batch_events",
            "batch_bytes",
            "batch_age_seconds",
            "batches_in_flight",
            "close_seconds",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0")
        if self.buffered_bytes < self.batch_bytes:
            raise ValueError("buffered_bytes must be batch_bytes or more")


@dataclass(frozen=True, slots=True)
class FailedBatch:
    """Events that were not delivered, and why.

    Where `error` leaves open whether the server took them (no answer came), `send_batch(events, batch_id=batch_id,
    priority=priority, invalid="skip")` settles it without doubling any: the server knows the batch if it took it, and
    events carry the timestamp that they were sent with.
    """

    events: tuple[AnyEvent, ...]
    error: Exception
    batch_id: str
    priority: int | None


@dataclass(slots=True)
class Batch:
    """Events on their way."""

    number: int
    opened_at: float
    batch_id: str = field(default_factory=new_batch_id)
    events: list[AnyEvent] = field(default_factory=list)
    encoded: list[bytes] = field(default_factory=list)
    size: int = 0


class Buffer:
    """The state of a sender. Its methods are called by one thread at a time and never wait."""

    def __init__(self, options: SenderOptions) -> None:
        self.options = options
        self._open: Batch | None = None
        self._sealed: deque[Batch] = deque()
        self._unsettled: dict[int, Batch] = {}
        self._failures: list[FailedBatch] = []
        self._next_number = 0
        self._held_bytes = 0
        self._is_closed = False
        self._news = False

    def offer(self, event: AnyEvent, encoded: bytes, now: float) -> bool:
        """Takes an event. False: there is no room yet, come again. Raises where it will never be taken."""
        if self._failures:
            raise SenderFailed(self._failures)
        if self._is_closed:
            raise SenderClosed("the sender is closed; the event was not taken")
        options = self.options
        if len(encoded) > options.buffered_bytes:
            raise InvalidEvent(f"its {len(encoded)} bytes are more than buffered_bytes={options.buffered_bytes}")
        if self._held_bytes + len(encoded) > options.buffered_bytes:
            # What is open would otherwise wait for its age, and the caller with it.
            self.seal()
            if options.when_full == "raise":
                raise BufferFull(f"{self._held_bytes} bytes wait to be delivered; the event was not taken")
            return False
        if self._open is not None and self._open.size + len(encoded) > options.batch_bytes:
            self.seal()
        batch = self._open or self._begin(now)
        batch.events.append(event)
        batch.encoded.append(encoded)
        batch.size += len(encoded)
        self._held_bytes += len(encoded)
        if len(batch.events) >= options.batch_events or batch.size >= options.batch_bytes:
            self.seal()
        return True

    def seal(self) -> None:
        """Lets what is open be sent now."""
        if self._open is not None:
            self._sealed.append(self._open)
            self._open = None
            self._news = True

    def close(self) -> None:
        """Takes nothing more."""
        self._is_closed = True
        self.seal()

    def take(self, now: float) -> Batch | None:
        """The next batch to send, if one is due."""
        due_in = self.due_in(now)
        if due_in is not None and due_in <= 0:
            self.seal()
        return self._sealed.popleft() if self._sealed else None

    def due_in(self, now: float) -> float | None:
        """Seconds until the open batch is due; None when there is none."""
        return None if self._open is None else self._open.opened_at + self.options.batch_age_seconds - now

    @property
    def is_finished(self) -> bool:
        """True when it is closed and there is nothing left to send."""
        return self._is_closed and not self._sealed

    def take_news(self) -> bool:
        """True once after whoever sends must look: a batch was sealed, or begun and its age counts now."""
        news, self._news = self._news, False
        return news

    @property
    def held_bytes(self) -> int:
        """JSON of what the server has not taken."""
        return self._held_bytes

    @property
    def mark(self) -> int:
        """The number that the next batch will have: see `is_settled`."""
        return self._next_number

    def is_settled(self, mark: int) -> bool:
        """True when every batch before `mark` was taken by the server, or has failed."""
        return all(number >= mark for number in self._unsettled)

    def delivered(self, batch: Batch, result: BatchResult) -> FailedBatch | None:
        """What of a batch that the server took was refused, if anything."""
        if not result.errors:
            return None
        verdicts = [error for error in result.errors if error.index is not None]
        refused = [batch.events[error.index] for error in verdicts if error.index is not None]
        # `index` is a position in what the callback gets.
        errors = [replace(error, index=position) for position, error in enumerate(verdicts)]
        return self._failed(batch, EventsRejected(errors), refused)

    def failed(self, batch: Batch, error: Exception) -> FailedBatch:
        """The batch as one that was not delivered."""
        return self._failed(batch, error, batch.events)

    def settle(self, batch: Batch, failure: FailedBatch | None) -> None:
        """Lets go of a batch. A `failure` is one that nobody has been told of."""
        if self._unsettled.pop(batch.number, None) is not None:
            self._held_bytes -= batch.size
            if failure is not None:
                self._failures.append(failure)

    def abandon(self) -> list[tuple[Batch, FailedBatch]]:
        """All that was not delivered in time, when the sender ends."""
        self._sealed.clear()
        told = unacknowledged(self.options.close_seconds)
        return [(batch, self.failed(batch, _about(CloseTimeout(told), batch))) for batch in self._unsettled.values()]

    @property
    def failures(self) -> Sequence[FailedBatch]:
        """What nobody was told of."""
        return self._failures

    def raise_failures(self) -> None:
        """Raises what nobody was told of."""
        if self._failures:
            raise SenderFailed(self._failures)

    def _begin(self, now: float) -> Batch:
        self._open = Batch(self._next_number, now)
        self._unsettled[self._next_number] = self._open
        self._next_number += 1
        self._news = True
        return self._open

    def _failed(self, batch: Batch, error: Exception, events: Iterable[AnyEvent]) -> FailedBatch:
        return FailedBatch(tuple(events), error, batch.batch_id, self.options.priority)


def unacknowledged(close_seconds: float) -> str:
    """What is said of a batch when its sender ends before the server has answered."""
    return f"not acknowledged within close_seconds={close_seconds:g}; it may have been taken"


def _about(error: CloseTimeout, batch: Batch) -> CloseTimeout:
    error.batch_id = batch.batch_id
    return error
