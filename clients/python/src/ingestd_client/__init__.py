"""Sends events to ingestd, exactly once.

`IngestionClient` (async) and `SyncIngestionClient` send batches; `client.buffered()` gathers single events into
batches.
"""

from ._async_sender import BufferedSender
from ._buffer import FailedBatch, SenderOptions
from ._client import IngestionClient, SyncIngestionClient
from ._errors import (
    BatchConflict,
    BatchUnknown,
    BufferFull,
    CloseTimeout,
    EventsRejected,
    Forbidden,
    IngestionError,
    InvalidBatch,
    InvalidEvent,
    OutcomeUnknown,
    Overloaded,
    Problem,
    ProblemError,
    RateLimited,
    RequestRefused,
    SenderClosed,
    SenderFailed,
    ServerFailed,
    ServerUnreachable,
    TooLarge,
    Unauthorized,
    UnexpectedAnswer,
    WaitTimeout,
)
from ._events import Event
from ._ids import new_batch_id
from ._results import BatchResult, BatchStatus, EventError, Health
from ._retry import RetryPolicy
from ._sync_sender import SyncBufferedSender
from ._version import __version__

__all__ = [
    "BatchConflict",
    "BatchResult",
    "BatchStatus",
    "BatchUnknown",
    "BufferFull",
    "BufferedSender",
    "CloseTimeout",
    "Event",
    "EventError",
    "EventsRejected",
    "FailedBatch",
    "Forbidden",
    "Health",
    "IngestionClient",
    "IngestionError",
    "InvalidBatch",
    "InvalidEvent",
    "OutcomeUnknown",
    "Overloaded",
    "Problem",
    "ProblemError",
    "RateLimited",
    "RequestRefused",
    "RetryPolicy",
    "SenderClosed",
    "SenderFailed",
    "SenderOptions",
    "ServerFailed",
    "ServerUnreachable",
    "SyncBufferedSender",
    "SyncIngestionClient",
    "TooLarge",
    "Unauthorized",
    "UnexpectedAnswer",
    "WaitTimeout",
    "__version__",
    "new_batch_id",
]
