"""Everything that goes wrong, as one tree of exceptions, and how an answer becomes one of them.

IngestionError
├── InvalidEvent            an event cannot be written as JSON; nothing was sent
├── ServerUnreachable       no answer came; the batch may have been taken
├── UnexpectedAnswer        what answers is no ingestd
├── WaitTimeout             a batch took longer than the caller would wait
├── EventsRejected          events of a buffered batch were refused, the others taken
├── BufferFull, SenderClosed, CloseTimeout, SenderFailed    of the buffering sender
└── ProblemError            the server said no (RFC 9457)
    ├── RequestRefused      4xx: the same again gives the same answer
    │   ├── InvalidBatch, TooLarge, BatchConflict, BatchUnknown
    │   ├── Unauthorized, Forbidden
    │   └── RateLimited     may be tried again
    └── ServerFailed        5xx: may be tried again
        ├── OutcomeUnknown  503 outcome_unknown: the batch may have been taken
        └── Overloaded      503
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._results import BatchStatus, EventError, event_errors

if TYPE_CHECKING:
    from ._buffer import FailedBatch

PROBLEM_MEDIA_TYPE = "application/problem+json"


class IngestionError(Exception):
    """Base of all errors of this package."""

    batch_id: str | None = None
    """The batch that it is about. Sending the same events again under this id never doubles them."""


class InvalidEvent(IngestionError, ValueError):
    """An event cannot be written as JSON: a naive datetime, NaN, an object of a class. Nothing was sent."""

    def __init__(self, detail: str, index: int | None = None) -> None:
        super().__init__(detail, index)
        self.detail = detail
        self.index = index

    def __str__(self) -> str:
        return self.detail if self.index is None else f"event {self.index}: {self.detail}"


class ServerUnreachable(IngestionError):
    """No answer came. A batch may have been taken all the same: send it again under its `batch_id`."""


class UnexpectedAnswer(IngestionError):
    """The answer is not one of ingestd's: the URL may be another server's, or a proxy answered."""


class WaitTimeout(IngestionError, TimeoutError):
    """The batch was not final in time. It is not lost: `status` says where it was last."""

    def __init__(self, status: BatchStatus, seconds: float) -> None:
        super().__init__(status, seconds)
        self.status = status
        self.batch_id = status.batch_id
        self.seconds = seconds

    def __str__(self) -> str:
        return f"batch {self.batch_id} is {self.status.status} after {self.seconds:g} s"


class EventsRejected(IngestionError):
    """The server took a buffered batch, but for these events."""

    def __init__(self, errors: Sequence[EventError]) -> None:
        super().__init__(errors)
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return f"{len(self.errors)} events rejected, the first: {_told(self.errors[:1])}"


class BufferFull(IngestionError):
    """The sender holds as many bytes as it may, and was told to raise instead of to wait."""


class SenderClosed(IngestionError):
    """The sender was closed; the event was not taken."""


class CloseTimeout(IngestionError):
    """The sender was closed before the batch was acknowledged. It may have been taken: see `ServerUnreachable`."""


class SenderFailed(IngestionError):
    """Batches failed for good, and there is no `on_error` that they could be handed to."""

    def __init__(self, failures: Sequence[FailedBatch]) -> None:
        super().__init__(failures)
        self.failures = tuple(failures)

    def __str__(self) -> str:
        events = sum(len(failure.events) for failure in self.failures)
        first = self.failures[0].error
        return f"{events} events were not delivered, the first because: {type(first).__name__}: {first}"


@dataclass(frozen=True, slots=True)
class Problem:
    """A refusal as the server words it."""

    status: int
    """HTTP status."""
    code: str
    """Stable code; empty where something between client and server answered."""
    detail: str
    """What is wrong and what to do, for people."""
    errors: tuple[EventError, ...] = ()
    """Verdicts on events, at most 100."""
    errors_total: int = 0
    """How many verdicts there are in all."""
    byte_offset: int | None = None
    """Where in the body the problem is."""
    retry_after: float | None = None
    """Seconds after which the server wants to be asked again."""


class ProblemError(IngestionError):
    """The server said no."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem
        self.status = problem.status
        self.code = problem.code
        self.detail = problem.detail
        self.errors = problem.errors
        self.errors_total = problem.errors_total
        self.byte_offset = problem.byte_offset
        self.retry_after = problem.retry_after

    def __str__(self) -> str:
        head = f"{self.status} {self.code}".rstrip()
        return f"{head}: {self.detail}{_told(self.errors[:1], before=': ')}"


class RequestRefused(ProblemError):
    """4xx: the same request would get the same answer."""


class InvalidBatch(RequestRefused):
    """422: `errors` has a verdict on each invalid event. Nothing was taken."""


class TooLarge(RequestRefused):
    """413: more bytes or events than the server takes at once."""


class BatchConflict(RequestRefused):
    """409: the batch id was used before, with other events."""


class BatchUnknown(RequestRefused):
    """404: no batch of this id is known."""


class Unauthorized(RequestRefused):
    """401: no API key, or a wrong one."""


class Forbidden(RequestRefused):
    """403: the key lacks the scope, or may not send for the service of an event (see `errors`)."""


class RateLimited(RequestRefused):
    """429: too much in too short a time. Nothing was taken."""


class ServerFailed(ProblemError):
    """5xx. A batch may have been taken all the same: send it again under its `batch_id`."""


class OutcomeUnknown(ServerFailed):
    """503 `outcome_unknown`: the server's journal failed while it wrote the batch, which may have been taken or not."""


class Overloaded(ServerFailed):
    """503: the server is full, shutting down or cannot write its journal. Nothing was taken."""


_BY_CODE: Mapping[str, type[ProblemError]] = {
    "invalid_batch": InvalidBatch,
    "invalid_events": InvalidBatch,
    "batch_id_conflict": BatchConflict,
    "batch_unknown": BatchUnknown,
    "outcome_unknown": OutcomeUnknown,
}
_BY_STATUS: Mapping[int, type[ProblemError]] = {
    401: Unauthorized,
    403: Forbidden,
    413: TooLarge,
    429: RateLimited,
    503: Overloaded,
}


def error_of(status: int, media_type: str, body: bytes, retry_after: float | None) -> ProblemError:
    """The exception for an answer of 400 or more."""
    problem = _problem(status, media_type, body, retry_after)
    general = ServerFailed if status >= 500 else RequestRefused  # noqa: PLR2004
    return (_BY_CODE.get(problem.code) or _BY_STATUS.get(status) or general)(problem)


def _problem(status: int, media_type: str, body: bytes, retry_after: float | None) -> Problem:
    try:
        document: Any = json.loads(body) if media_type == PROBLEM_MEDIA_TYPE else {}
        errors = event_errors(document.get("errors", ()))
        return Problem(
            status=status,
            code=str(document.get("code", "")),
            detail=str(document.get("detail", "an answer without a problem document, not from ingestd itself")),
            errors=errors,
            errors_total=document.get("errors_total", len(errors)),
            byte_offset=document.get("byte_offset"),
            retry_after=retry_after,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return Problem(status, "", "a problem document that cannot be read", retry_after=retry_after)


def _told(errors: Sequence[EventError], before: str = "") -> str:
    return "".join(f"{before}{error.pointer or '(body)'}: {error.detail}" for error in errors)
