"""Requests, and what becomes of their answers: all of a client but its I/O and its waiting."""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Generic, Literal, Protocol, TypeVar
from urllib.parse import quote

import httpx

from . import _results
from ._compression import COMPRESS_FROM_BYTES, Compression, compress
from ._errors import (
    PROBLEM_MEDIA_TYPE,
    IngestionError,
    ServerUnreachable,
    UnexpectedAnswer,
    WaitTimeout,
    error_of,
)
from ._events import encode_batch
from ._ids import checked_batch_id
from ._retry import RETRYABLE_STATUSES, Failure, RetryPolicy, delay_after, retry_after_seconds
from ._version import __version__

T = TypeVar("T")

Ack = Literal["memory", "journal", "commit"]
"""When the server answers: when it has queued the batch, has it safe on its disk, or PostgreSQL has committed it."""

Invalid = Literal["reject", "skip"]
"""What an invalid event does: refuse its batch, or stay out of it."""

TIMEOUT = httpx.Timeout(15.0, connect=5.0)
"""Of one attempt, unless the caller gives another."""

COMMIT_TIMEOUT_SECONDS = 40.0
"""How long an answer with ack="commit" may take: the server waits for PostgreSQL for 30 s, then answers 202."""

USER_AGENT = f"ingestd-client-python/{__version__}"


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and the key to it."""

    url: str
    api_key: str | None = field(repr=False)

    def headers(self) -> dict[str, str]:
        """What goes with each request."""
        headers = {"User-Agent": USER_AGENT}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return headers


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    answers: frozenset[int] = frozenset({200})
    read_timeout_least: float = 0.0
    batch_id: str | None = None

    def request(
        self, client: httpx.Client | httpx.AsyncClient, target: Target, timeout: httpx.Timeout
    ) -> httpx.Request:
        """The request as `client` sends it; byte for byte the same each time."""
        return client.build_request(
            self.method,
            target.url.rstrip("/") + self.path,
            params=self.params,
            headers={**target.headers(), **self.headers},
            content=self.content,
            timeout=timeout,
        )

    @property
    def is_large(self) -> bool:
        """True when compressing the body is worth it."""
        return len(self.content or b"") >= COMPRESS_FROM_BYTES

    def compressed(self, compression: Compression) -> Call[T]:
        """The same call with a compressed body."""
        headers = {**self.headers, "Content-Encoding": compression}
        return replace(self, content=compress(self.content or b"", compression), headers=headers)


def send_batch(
    encoded: Iterable[bytes],
    batch_id: str,
    *,
    priority: int | None,
    ack: Ack | None,
    invalid: Invalid | None,
) -> Call[_results.BatchResult]:
    """The request that sends a batch."""
    checked_batch_id(batch_id)
    options = {"ack": ack, "invalid": invalid}
    return Call(
        "POST",
        "/v1/ingest/batch",
        lambda response: _results.batch_result(response.json()),
        params={name: value for name, value in options.items() if value is not None},
        headers={"Content-Type": "application/json"},
        content=encode_batch(encoded, batch_id, priority),
        answers=frozenset({200, 202}),
        read_timeout_least=COMMIT_TIMEOUT_SECONDS if ack == "commit" else 0.0,
        batch_id=batch_id,
    )


def get_batch_status(batch_id: str, owner: str | None) -> Call[_results.BatchStatus]:
    """The request for a batch's status."""
    return Call(
        "GET",
        f"/v1/batch/{quote(checked_batch_id(batch_id), safe=':')}/status",
        lambda response: _results.batch_status(response.json()),
        params={} if owner is None else {"owner": owner},
        batch_id=batch_id,
    )


def health() -> Call[_results.Health]:
    """The request for health; an unhealthy server answers it with 503."""
    return Call("GET", "/v1/health", lambda response: _results.health(response.json()), answers=frozenset({200, 503}))


def metrics() -> Call[dict[str, Any]]:
    """The request for metrics, as JSON."""
    return Call("GET", "/v1/metrics", lambda response: dict(response.json()), params={"format": "json"})


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """The answer was read."""

    value: T


class Deadline(Protocol):
    """A limit on the time of an exchange, over its policy's."""

    def end(self) -> float:
        """When it passes, by `time.monotonic`; may change."""

    def passed(self, error: IngestionError) -> IngestionError:
        """What to raise when it has passed after an attempt that came to `error`."""


class Exchange(Generic[T]):
    """A call from its first attempt to its end: is told each outcome by whoever does the I/O, and says what is next."""

    def __init__(
        self,
        call: Call[T],
        policy: RetryPolicy,
        timeout: httpx.Timeout,
        deadline: Deadline | None = None,
    ) -> None:
        self._call = call
        self._policy = policy
        self._timeout = timeout
        self._end = time.monotonic() + policy.time_max_seconds
        self._deadline = deadline
        self._attempts = 0

    def timeout(self) -> httpx.Timeout:
        """For the next attempt: never longer than what is left of the time."""
        end = self._end if self._deadline is None else min(self._end, self._deadline.end())
        left = max(0.001, end - time.monotonic())
        configured = self._timeout
        reading = configured.read if configured.read is None else max(configured.read, self._call.read_timeout_least)

        def bounded(seconds: float | None) -> float:
            return left if seconds is None else min(seconds, left)

        return httpx.Timeout(
            connect=bounded(configured.connect),
            read=bounded(reading),
            write=bounded(configured.write),
            pool=bounded(configured.pool),
        )

    def answered(self, response: httpx.Response) -> Done[T] | float:
        """After an answer: what it says, or the seconds until the next attempt. Raises when there is none."""
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if response.status_code in self._call.answers and media_type != PROBLEM_MEDIA_TYPE:
            return Done(self._read(response))
        if response.status_code < 400:  # noqa: PLR2004
            raise self._about_batch(UnexpectedAnswer(f"HTTP {response.status_code} is no answer of ingestd"))
        asked = retry_after_seconds(
            response.headers.get("Retry-After"), response.headers.get("Date"), datetime.now(timezone.utc)
        )
        error = error_of(response.status_code, media_type, response.content, asked)
        return self._next(Failure(response.status_code in RETRYABLE_STATUSES, asked), error)

    def failed(self, error: httpx.RequestError) -> float:
        """After an attempt without an answer: the seconds until the next one. Raises when there is none."""
        self_made = isinstance(error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.DecodingError))
        retryable = isinstance(error, httpx.TransportError) and not self_made and not _is_untrusted(error)
        told = f"{type(error).__name__}: {error}".rstrip(": ")
        reason = ServerUnreachable(f"{told} (attempt {self._attempts + 1})")
        reason.__cause__ = error
        return self._next(Failure(retryable), reason)

    def _next(self, failure: Failure, error: IngestionError) -> float:
        self._attempts += 1
        delay = delay_after(
            failure,
            self._policy,
            attempts=self._attempts,
            left_seconds=self._end - time.monotonic(),
            chance=random.random(),  # noqa: S311 (spreads load, hides nothing)
        )
        if delay is None:
            raise self._about_batch(error)
        if self._deadline is not None and time.monotonic() + delay >= self._deadline.end():
            raise self._about_batch(self._deadline.passed(error)) from error
        return delay

    def _read(self, response: httpx.Response) -> T:
        try:
            return self._call.read(response)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._about_batch(UnexpectedAnswer("the answer is not a document of ingestd")) from error

    def _about_batch(self, error: IngestionError) -> IngestionError:
        error.batch_id = self._call.batch_id
        return error


def _is_untrusted(error: BaseException | None) -> bool:
    """True when the server's certificate was not accepted: that does not mend itself."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


class Polling:
    """The waits between questions after a batch: short at first, as most are committed within milliseconds."""

    FIRST_SECONDS = 0.02
    MAX_SECONDS = 1.0

    def __init__(self, timeout: float) -> None:
        self._end = time.monotonic() + timeout
        self._timeout = timeout
        self._wait = self.FIRST_SECONDS
        self._status: _results.BatchStatus | None = None

    def end(self) -> float:
        """See `Deadline`."""
        return self._end

    def passed(self, error: IngestionError) -> IngestionError:
        """See `Deadline`: how the batch was last, where that is known."""
        return error if self._status is None else WaitTimeout(self._status, self._timeout)

    def after(self, status: _results.BatchStatus) -> float | None:
        """Seconds until the next question; None when the status is final. Raises `WaitTimeout` at the end."""
        self._status = status
        if status.is_final:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise WaitTimeout(status, self._timeout)
        wait, self._wait = min(self._wait, left), min(self._wait * 1.5, self.MAX_SECONDS)
        return wait
