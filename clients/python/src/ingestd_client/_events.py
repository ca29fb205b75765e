"""Events, and their JSON.

Invariant: the same events give the same bytes, whenever they are encoded. The server tells a retry from a conflict by a
digest of the body, so nothing that changes (a clock, an order) may get into it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import simplejson

from ._errors import InvalidEvent

JsonObject = Mapping[str, Any] | bytes
"""A mapping, or the UTF-8 text of a JSON object that is sent as it is."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event. The server says what it may hold: ids of 1 to 256 bytes, names of 1 to 128, nesting of 128.

    Two events are the same when service, type, timestamp and id are.
    """

    event_id: str
    service_name: str
    event_type: str
    payload: JsonObject
    timestamp: datetime | str | None = None
    """When it happened: a datetime with a time zone, or RFC 3339 text. Without it the server takes its receive time."""
    metadata: JsonObject | None = None


AnyEvent = Event | Mapping[str, Any]
"""An event, or a mapping with the same members."""


def stamped(event: AnyEvent, now: datetime) -> AnyEvent:
    """The event with a timestamp: its own, or `now`."""
    if isinstance(event, Event):
        return event if event.timestamp is not None else dataclasses.replace(event, timestamp=now)
    return event if event.get("timestamp") is not None else {**event, "timestamp": now}


def encode_event(event: AnyEvent) -> bytes:
    """The event's JSON; `InvalidEvent` where it has none."""
    try:
        if isinstance(event, Event):
            names = ("event_id", "service_name", "event_type", "payload", "timestamp", "metadata")
            members = {name: getattr(event, name) for name in names}
        else:
            members = dict(event)
        for name in ("payload", "metadata"):
            if isinstance(members.get(name), bytes):
                members[name] = _as_it_is(name, members[name])
        timestamp = members.get("timestamp")
        if isinstance(timestamp, datetime):
            members["timestamp"] = _rfc3339(timestamp)
        optional = ("timestamp", "metadata")
        members = {name: value for name, value in members.items() if value is not None or name not in optional}
        return _ENCODER.encode(members).encode()
    except InvalidEvent:
        raise
    except RecursionError:
        raise InvalidEvent("it is nested too deeply, or holds itself") from None
    except (TypeError, ValueError) as error:
        raise InvalidEvent(str(error)) from error


def encode_events(events: Iterable[AnyEvent]) -> list[bytes]:
    """The JSON of each; `InvalidEvent` names the position of the first that has none."""
    encoded = []
    for index, event in enumerate(events):
        try:
            encoded.append(encode_event(event))
        except InvalidEvent as error:
            raise InvalidEvent(error.detail, index) from error
    return encoded


def encode_batch(encoded: Iterable[bytes], batch_id: str, priority: int | None) -> bytes:
    """The body of a batch. The priority stands in front: an overloaded server then looks no further."""
    envelope: dict[str, Any] = {} if priority is None else {"priority": priority}
    envelope["batch_id"] = batch_id
    head = _ENCODER.encode(envelope)[:-1].encode()
    return b"".join((head, b',"events":[', b",".join(encoded), b"]}"))


def _rfc3339(timestamp: datetime) -> str:
    if timestamp.utcoffset() is None:
        raise InvalidEvent(
            "timestamp is a datetime without a time zone, so nobody can say which instant it means: "
            "give it one, as in datetime.now(timezone.utc)"
        )
    # In UTC, because RFC 3339 has no offsets with seconds, as old local times have them.
    return timestamp.astimezone(timezone.utc).isoformat()


def _as_it_is(name: str, text: bytes) -> simplejson.RawJSON:
    # Looked at because one text that is not JSON would cost the batch all its other events.
    try:
        decoded = text.decode()
        value = json.loads(decoded, parse_int=str, parse_float=str, parse_constant=_no_constant)
    except ValueError as error:
        raise InvalidEvent(f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidEvent(f"{name} is JSON, but not an object")
    return simplejson.RawJSON(decoded)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def _plain(value: Any) -> Any:
    """What the encoder does not know by itself."""
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise ValueError(f"{value} is no JSON number")
        return simplejson.RawJSON(str(value))
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is no JSON value")


_ENCODER = simplejson.JSONEncoder(
    allow_nan=False,
    default=_plain,
    encoding=None,  # type: ignore[arg-type]  # bytes within a payload are a mistake, not text
    ensure_ascii=False,
    namedtuple_as_object=False,
    separators=(",", ":"),
    use_decimal=False,  # by _plain, which refuses NaN
)
