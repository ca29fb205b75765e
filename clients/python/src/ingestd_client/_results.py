"""What the server answers, as frozen dataclasses that can also be read like the JSON object they came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal

State = Literal["queued", "processing", "completed", "partial", "failed"]
"""Where a batch is."""

FINAL_STATES: frozenset[str] = frozenset({"completed", "partial", "failed"})
"""States that a batch does not leave."""


class Record(Mapping[str, Any]):
    """Gives a dataclass the face of a mapping: `result["batch_id"]` is `result.batch_id`."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        if name in self.__names():
            return getattr(self, name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__names())

    def __len__(self) -> int:
        return len(self.__names())

    def __names(self) -> list[str]:
        return [item.name for item in fields(self)]  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class EventError(Record):
    """A verdict on one event, or on the envelope of a batch."""

    index: int | None
    """Position of the event in the batch, from 0; None for the envelope."""
    event_id: str | None
    """The event's id, where it could be read."""
    pointer: str
    """RFC 6901 pointer into the body."""
    code: str
    """Stable code."""
    detail: str
    """What is wrong and what is expected, for people."""


@dataclass(frozen=True, slots=True)
class BatchResult(Record):
    """The answer to a batch that was taken, now or before."""

    batch_id: str
    """The batch's id: the caller's, or the one made for it."""
    status: State
    """Where the batch is."""
    accepted: int
    """Events taken."""
    rejected: int
    """Events refused, with `invalid="skip"`."""
    errors: tuple[EventError, ...]
    """A verdict on each of the refused."""
    duplicate: bool = False
    """True when the server had the batch already, as after a retry. It was not taken twice."""
    inserted: int | None = None
    """Rows written; None while that is not known."""
    duplicates: int | None = None
    """Events that were in the table before; None while that is not known."""
    dead_lettered: int | None = None
    """Events that PostgreSQL refused; None while that is not known."""


@dataclass(frozen=True, slots=True)
class BatchStatus(Record):
    """Where a batch is and what became of its events."""

    batch_id: str
    status: State
    priority: int
    events: int
    inserted: int | None
    duplicates: int | None
    dead_lettered: int | None
    received_at: datetime
    completed_at: datetime | None
    node: str

    @property
    def is_final(self) -> bool:
        """True when the status does not change any more."""
        return self.status in FINAL_STATES


@dataclass(frozen=True, slots=True)
class Health(Record):
    """How the server is. Callers without the scope `metrics` see `status` alone."""

    status: Literal["healthy", "degraded", "unhealthy"]
    checks: Mapping[str, Any] = field(default_factory=dict)
    node: str | None = None
    version: str | None = None
    uptime_seconds: float | None = None


def event_errors(items: Any) -> tuple[EventError, ...]:
    """The verdicts in `errors` of an answer."""
    names = [item.name for item in fields(EventError)]
    return tuple(EventError(**{name: item[name] for name in names}) for item in items)


def batch_result(document: Any) -> BatchResult:
    """Reads the answer to a batch; KeyError, TypeError or ValueError when it is none."""
    return BatchResult(
        batch_id=document["batch_id"],
        status=document["status"],
        accepted=document["accepted"],
        rejected=document["rejected"],
        errors=event_errors(document["errors"]),
        duplicate=document.get("duplicate", False),
        inserted=document.get("inserted"),
        duplicates=document.get("duplicates"),
        dead_lettered=document.get("dead_lettered"),
    )


def batch_status(document: Any) -> BatchStatus:
    """Reads a status document; KeyError, TypeError or ValueError when it is none."""
    completed_at = document.get("completed_at")
    return BatchStatus(
        batch_id=document["batch_id"],
        status=document["status"],
        priority=document["priority"],
        events=document["events"],
        inserted=document.get("inserted"),
        duplicates=document.get("duplicates"),
        dead_lettered=document.get("dead_lettered"),
        received_at=_instant(document["received_at"]),
        completed_at=None if completed_at is None else _instant(completed_at),
        node=document["node"],
    )


def health(document: Any) -> Health:
    """Reads a health document; KeyError, TypeError or ValueError when it is none."""
    return Health(
        status=document["status"],
        checks=document.get("checks", {}),
        node=document.get("node"),
        version=document.get("version"),
        uptime_seconds=document.get("uptime_seconds"),
    )


def _instant(text: str) -> datetime:
    # Before Python 3.11 fromisoformat does not know Z.
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
