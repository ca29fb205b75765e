"""What schemathesis cannot take from the document, because no schema can say it.

Requests that are valid by the document become valid in fact; invalid ones stay as they were generated.
"""

import datetime
import gzip
import json

import schemathesis
from hypothesis import strategies as st

# The accepted range of timestamps is relative to the server's clock: a year back, a day ahead.
NOW = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
RECENT = st.datetimes(NOW - datetime.timedelta(days=360), NOW, timezones=st.just(datetime.timezone.utc))
schemathesis.openapi.format("date-time", RECENT.map(datetime.datetime.isoformat))

# An event a line.
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
EVENTS = st.fixed_dictionaries(
    {"event_id": NAMES, "service_name": NAMES, "event_type": NAMES, "payload": st.dictionaries(NAMES, NAMES)}
)
schemathesis.openapi.format("ndjson", st.lists(EVENTS.map(json.dumps), min_size=1, max_size=5).map("\n".join))


@schemathesis.serializer("application/x-ndjson", "application/ndjson", "application/jsonl")
def lines(ctx, value):
    return compressed(ctx, value.encode() if isinstance(value, str) else as_json(value))


@schemathesis.serializer("application/json", "application/cloudevents-batch+json", "application/cloudevents+json")
def document(ctx, value):
    return compressed(ctx, as_json(value))


def as_json(value):
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def compressed(ctx, body):
    """The body as Content-Encoding says that it is."""
    match (ctx.case.headers or {}).get("Content-Encoding"):
        case "gzip":
            return gzip.compress(body)
        case "zstd":
            return zstd_stored(body)
        case _:
            return body


def zstd_stored(body):
    """A zstd frame with a window of 128 KiB whose blocks are stored as they are (RFC 8878, 3.1.1)."""
    block_bytes = 1 << 17
    blocks = [body[at : at + block_bytes] for at in range(0, len(body), block_bytes)] or [b""]
    frame = b"\x28\xb5\x2f\xfd\x00\x38"
    for number, block in enumerate(blocks, start=1):
        frame += (len(block) << 3 | (number == len(blocks))).to_bytes(3, "little") + block
    return frame


TEXT_BYTES_MAX = {"event_id": 256, "service_name": 128, "event_type": 128, "id": 256, "source": 128, "type": 128}


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.meta is None or not case.meta.generation.mode.is_positive or case.path != "/v1/ingest/batch":
        return
    agree(case)
    for event in events(case.body):
        shorten(event)


def agree(case):
    """Three places may name the batch; where several do, they must agree."""
    in_body = case.body.get("batch_id") if isinstance(case.body, dict) and case.media_type == "application/json" else None
    in_query = (case.query or {}).get("batch_id")
    in_header = (case.headers or {}).get("Idempotency-Key")
    chosen = in_body or in_query or in_header
    if in_query:
        case.query["batch_id"] = chosen.strip('"')
    if in_header:
        case.headers["Idempotency-Key"] = chosen


def events(body):
    if isinstance(body, dict):
        body = body.get("events", [body])
    return [event for event in body if isinstance(event, dict)] if isinstance(body, list) else []


def shorten(event):
    """Lengths are limited in bytes of UTF-8, and maxLength counts characters."""
    for name, bytes_max in TEXT_BYTES_MAX.items():
        if isinstance(event.get(name), str):
            event[name] = event[name].encode()[:bytes_max].decode(errors="ignore")
