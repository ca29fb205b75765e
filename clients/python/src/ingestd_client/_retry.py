"""When to try again, and how long to wait before: pure functions of what happened, without clock or randomness."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

RETRYABLE_STATUSES = frozenset({429, 500, 502, 503, 504})
"""Answers that another attempt may change. After 500, 502, 504 and 503 `outcome_unknown` a batch may have been taken:
its id tells."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long a request is tried.

    The wait before attempt n+1 is drawn from 0 to `backoff_first_seconds` · 2ⁿ⁻¹, at most `backoff_max_seconds`
    ("full jitter"), so that clients which failed together do not come back together. What the server asks for by
    `Retry-After` is added.
    """

    attempts_max: int = 20
    """Attempts in all; 1 means no retry."""
    time_max_seconds: float = 60.0
    """Time in all, waits and attempts together."""
    backoff_first_seconds: float = 0.1
    backoff_max_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts_max < 1:
            raise ValueError("attempts_max must be 1 or more")
        if self.time_max_seconds <= 0:
            raise ValueError("time_max_seconds must be more than 0")
        if not 0 <= self.backoff_first_seconds <= self.backoff_max_seconds:
            raise ValueError("backoff_first_seconds must be from 0 to backoff_max_seconds")


@dataclass(frozen=True, slots=True)
class Failure:
    """What an attempt came to."""

    retryable: bool
    retry_after_seconds: float | None = None


def delay_after(
    failure: Failure, policy: RetryPolicy, *, attempts: int, left_seconds: float, chance: float
) -> float | None:
    """Seconds to wait before the next attempt; None: give up.

    `attempts` were made, `left_seconds` of the time are left, `chance` is a random number from 0 to 1.
    """
    if not failure.retryable or attempts >= policy.attempts_max:
        return None
    # The exponent is bounded: 2**1024 is no float.
    backoff = min(policy.backoff_max_seconds, policy.backoff_first_seconds * 2.0 ** min(attempts - 1, 60))
    delay = chance * backoff + (failure.retry_after_seconds or 0.0)
    return delay if delay < left_seconds else None


def retry_after_seconds(value: str | None, date: str | None, now: datetime) -> float | None:
    """Reads `Retry-After`: seconds, or a date as seen from the answer's own `Date` (else from `now`)."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    until, since = _http_date(value), _http_date(date) or now
    return None if until is None else max(0.0, (until - since).total_seconds())


def _http_date(text: str | None) -> datetime | None:
    try:
        instant = parsedate_to_datetime(text) if text else None
    except ValueError:
        return None
    if instant is not None and instant.tzinfo is None:
        return instant.replace(tzinfo=timezone.utc)
    return instant
