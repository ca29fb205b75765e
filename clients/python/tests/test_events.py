"""Promise: events are written digit for digit, and the same each time; what has no JSON is refused with its reason."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from ingestd_client import Event, InvalidEvent, new_batch_id
from ingestd_client._events import encode_batch, encode_event, encode_events, stamped

SEED = 20261126


class Point(NamedTuple):
    x: int
    y: int


def encoded(**members: Any) -> str:
    text = encode_event({"event_id": "e", "service_name": "s", "event_type": "t", "payload": {}} | members).decode()
    return text.removeprefix('{"event_id":"e","service_name":"s","event_type":"t","payload":').removesuffix("}")


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ({"n": Decimal("1.10")}, '{"n":1.10}'),
        ({"n": Decimal("-0")}, '{"n":-0}'),
        ({"n": Decimal("1E+30")}, '{"n":1E+30}'),
        ({"n": 10**80}, '{"n":1' + "0" * 80 + "}"),
        ({"n": [True, None, 1.5, "é\u2028\x00"]}, '{"n":[true,null,1.5,"é\u2028\\u0000"]}'),
        ({"n": MappingProxyType({"a": (1, 2)})}, '{"n":{"a":[1,2]}}'),
        ({"n": Point(1, 2)}, '{"n":[1,2]}'),
        (b'{"n": 1.10 }', '{"n": 1.10 }'),
    ],
)
def test_payloads_are_written_digit_for_digit(payload: Any, text: str) -> None:
    assert encoded(payload=payload) == text


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"payload": {"n": float("nan")}}, "nan"),
        ({"payload": {"n": Decimal("Infinity")}}, "Infinity is no JSON number"),
        ({"payload": {"n": b"bytes"}}, "a bytes is no JSON value"),
        ({"payload": {"n": date(2026, 11, 1)}}, "a date is no JSON value"),
        ({"payload": {"n": "\ud800"}}, "surrogates not allowed"),
        ({"payload": b'{"n": NaN}'}, "NaN is no JSON value"),
        ({"payload": b'{"n": 1}, "priority": 10'}, "payload is not JSON"),
        ({"payload": b"\xff"}, "payload is not JSON"),
        ({"metadata": b"[]"}, "metadata is JSON, but not an object"),
        ({"timestamp": datetime(2026, 11, 1)}, "without a time zone"),  # noqa: DTZ001
    ],
)
def test_what_has_no_json_is_refused_with_its_position(members: dict[str, Any], reason: str) -> None:
    good = Event("e", "s", "t", {})
    with pytest.raises(InvalidEvent, match=reason) as caught:
        encode_events([good, {"event_id": "e"} | members])
    assert caught.value.index == 1
    assert str(caught.value).startswith("event 1: ")


def test_an_event_that_holds_itself_is_refused() -> None:
    payload: dict[str, Any] = {}
    payload["self"] = payload
    with pytest.raises(InvalidEvent):
        encode_event(Event("e", "s", "t", payload))


def test_timestamps_are_rfc_3339_in_utc() -> None:
    odd = timezone(timedelta(minutes=19, seconds=32))  # Amsterdam's until 1937; RFC 3339 has no such offset
    at = datetime(2026, 11, 1, 0, 0, 0, 7, tzinfo=odd)
    assert encode_event(Event("e", "s", "t", {}, at)).endswith(b'"timestamp":"2026-10-31T23:40:28.000007+00:00"}')
    assert encode_event(Event("e", "s", "t", {}, "as given")).endswith(b'"timestamp":"as given"}')


def test_what_is_absent_is_left_out_and_what_is_unknown_stays() -> None:
    assert encoded(timestamp=None, metadata=None, more=None) == '{},"more":null'
    event = Event("e", "s", "t", {"a": 1}, metadata={"b": 2})
    members = {"event_id": "e", "service_name": "s", "event_type": "t", "payload": {"a": 1}, "metadata": {"b": 2}}
    assert json.loads(encode_event(event)) == members


def test_a_stamp_is_put_on_a_copy_and_over_nothing() -> None:
    now, then = datetime.now(timezone.utc), datetime(2026, 11, 1, tzinfo=timezone.utc)
    mapping = {"event_id": "e"}
    assert stamped(mapping, now) == {"event_id": "e", "timestamp": now}
    assert mapping == {"event_id": "e"}
    assert stamped({"timestamp": then}, now) == {"timestamp": then}
    event = Event("e", "s", "t", {})
    assert stamped(stamped(event, then), now) == Event("e", "s", "t", {}, then)


def test_the_priority_of_a_batch_stands_in_front() -> None:
    assert encode_batch([b"{}", b"{}"], 'a"b', 7) == b'{"priority":7,"batch_id":"a\\"b","events":[{},{}]}'
    assert encode_batch([], "b", None) == b'{"batch_id":"b","events":[]}'


def test_random_events_come_back_as_they_were_and_encode_the_same_twice() -> None:
    source = random.Random(SEED)

    def value(depth: int) -> Any:
        kinds: list[Callable[[], Any]] = [
            lambda: Decimal(source.randrange(-(10**30), 10**30)).scaleb(source.randrange(-40, 40)),
            lambda: source.randrange(-(10**60), 10**60),
            lambda: "".join(chr(source.randrange(0xD800) + source.choice([0, 0xE000])) for _ in range(5)),
            lambda: source.choice([True, False, None]),
            lambda: source.random() * 10 ** source.randrange(-300, 300),
            lambda: [value(depth + 1) for _ in range(source.randrange(4))],
            lambda: {str(n): value(depth + 1) for n in range(source.randrange(4))},
        ]
        return source.choice(kinds[: 5 if depth == 4 else None])()

    for _ in range(300):
        payload = {"value": value(0)}
        once = encode_event(Event("e", "s", "t", payload))
        assert once == encode_event(Event("e", "s", "t", payload))
        back = json.loads(once, parse_float=Decimal)["payload"]
        assert repr(back) == repr(_with_decimals(payload)), f"seed {SEED}"


def _with_decimals(value: Any) -> Any:
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, list):
        return [_with_decimals(item) for item in value]
    if isinstance(value, dict):
        return {name: _with_decimals(item) for name, item in value.items()}
    # What json reads back from digits alone is an int.
    if isinstance(value, Decimal) and not set(str(value)) & set(".E"):
        return int(value)
    return value


def test_batch_ids_are_version_7_and_sort_by_time() -> None:
    first = new_batch_id()
    others = [new_batch_id() for _ in range(1000)]
    assert len({first, *others}) == 1001
    assert all((name[14], name[19] in "89ab") == ("7", True) for name in others)
    assert first[:13] <= others[-1][:13]
    if sys.version_info >= (3, 14):
        import uuid  # noqa: PLC0415

        assert abs(uuid.UUID(first).time - uuid.uuid7().time) < 60_000
