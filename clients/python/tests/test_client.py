"""Promise: what a caller sends lands once, as sent, and every refusal is an exception that says why."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import anyio
import httpx
import pytest

import ingestd_client as ic

from .conftest import NewClient, event
from .proxy import Proxy
from .server import WAIT_SECONDS, Server

pytestmark = pytest.mark.anyio

NO_RETRY = ic.RetryPolicy(attempts_max=1)


async def test_a_batch_lands_and_its_result_reads_like_the_json(
    server: Server, new_client: NewClient, prefix: str
) -> None:
    async with new_client(server.url) as client:
        response = await client.send_batch(
            events=[event(f"{prefix}{n}") for n in range(3)], batch_id=f"{prefix}batch", priority=8
        )
        assert (response["batch_id"], response.accepted, response.duplicate) == (f"{prefix}batch", 3, False)
        assert dict(response)["rejected"] == 0
        with pytest.raises(KeyError):
            response["nothing"]
        status = await client.wait_for_batch(response["batch_id"], timeout=WAIT_SECONDS)
        assert (status.status, status["inserted"], status.priority) == ("completed", 3, 8)
        assert abs(datetime.now(timezone.utc) - status.received_at) < timedelta(minutes=5)
        assert (await client.get_batch_status(f"{prefix}batch")).completed_at == status.completed_at
    assert server.rows(prefix) == 3


async def test_every_accepted_id_has_a_status_and_those_that_a_path_would_lose_are_refused(
    server: Server, new_client: NewClient, prefix: str
) -> None:
    async with new_client(server.url) as client:
        for name in ("...", "..a", "a:b", ":", "C:.._"):
            named = f"{name}{prefix}"
            await client.send_batch([event(named)], batch_id=named, ack="commit")
            assert (await client.get_batch_status(named)).batch_id == named
        for lost in ("", ".", ".."):
            with pytest.raises(ValueError, match="batch_id"):
                await client.send_batch([event("x")], batch_id=lost)
            with pytest.raises(ValueError, match="batch_id"):
                await client.get_batch_status(lost)


async def test_ack_commit_says_what_was_written(server: Server, new_client: NewClient, prefix: str) -> None:
    async with new_client(server.url) as client:
        now = datetime.now(timezone.utc)
        first = await client.send_batch([event(f"{prefix}1", timestamp=now)], ack="commit")
        again = await client.send_batch(
            [event(f"{prefix}1", timestamp=now), event(f"{prefix}2", timestamp=now)], ack="commit"
        )
    assert (first.inserted, first.duplicates) == (1, 0)
    assert (again.inserted, again.duplicates, again.dead_lettered) == (1, 1, 0)
    assert first.batch_id != again.batch_id


async def test_numbers_are_stored_digit_for_digit(server: Server, new_client: NewClient, prefix: str) -> None:
    payload = {"amount": Decimal("0.10000000000000000001"), "big": 2**200, "zeros": Decimal("1.500"), "text": "é"}
    at = datetime(2026, 11, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    async with new_client(server.url) as client:
        result = await client.send_batch(
            [
                event(f"{prefix}a", payload=payload, timestamp=at),
                event(f"{prefix}b", payload=b'{"amount": 12345678901234567890.10}', metadata={"ip": "192.0.2.1"}),
                {"event_id": f"{prefix}c", "service_name": "s", "event_type": "t", "payload": {}, "timestamp": at},
            ],
            ack="commit",
        )
    assert result.inserted == 3
    stored = server.sql(f"SELECT payload::text FROM events WHERE event_id = '{prefix}a'")
    assert stored == f'{{"big": {2**200}, "text": "é", "zeros": 1.500, "amount": 0.10000000000000000001}}'
    assert (
        server.sql(f"SELECT payload->>'amount' FROM events WHERE event_id = '{prefix}b'") == "12345678901234567890.10"
    )
    same = (
        f"""SELECT count(*) FROM events WHERE starts_with(event_id, '{prefix}') AND "timestamp" = '{at.isoformat()}'"""
    )
    assert server.sql(same) == "2"


async def test_a_lost_answer_is_asked_for_again_and_doubles_nothing(
    server: Server, new_client: NewClient, prefix: str
) -> None:
    proxy = Proxy(server.url, lose=3)
    try:
        async with new_client(proxy.url, compression=None) as client:
            # Without a timestamp: a second landing would be another row.
            result = await client.send_batch([event(f"{prefix}{n}") for n in range(5)])
            assert (result.duplicate, result.accepted) == (True, 5)
            await client.wait_for_batch(result.batch_id, timeout=WAIT_SECONDS)
    finally:
        proxy.close()
    sent = [body for body in proxy.bodies if body]
    assert len(sent) >= 4
    assert len(set(sent)) == 1
    assert server.rows(prefix) == 5


async def test_no_answer_is_an_error_that_knows_the_batch(server: Server, new_client: NewClient, prefix: str) -> None:
    proxy = Proxy(server.url, lose=2)
    events = [event(f"{prefix}1")]
    retry = ic.RetryPolicy(attempts_max=2, backoff_first_seconds=0.01)
    try:
        async with new_client(proxy.url, retry=retry) as client:
            with pytest.raises(ic.ServerUnreachable, match="attempt 2") as caught:
                await client.send_batch(events)
            assert caught.value.batch_id is not None
            settled = await client.send_batch(events, batch_id=caught.value.batch_id, ack="commit")
            assert settled.duplicate
    finally:
        proxy.close()
    assert server.rows(prefix) == 1


async def test_nobody_there_is_told_within_the_time(new_client: NewClient) -> None:
    # The attempts alone would go on for several minutes.
    retry = ic.RetryPolicy(attempts_max=10_000, time_max_seconds=0.3, backoff_max_seconds=0.1)
    async with new_client("http://127.0.0.1:9", retry=retry) as client:
        begun = time.monotonic()
        with pytest.raises(ic.ServerUnreachable):
            await client.health()
        assert time.monotonic() - begun < WAIT_SECONDS


async def test_invalid_events_are_told_one_by_one(server: Server, new_client: NewClient, prefix: str) -> None:
    events = [event(f"{prefix}1"), event(f"{prefix}2", timestamp="yesterday"), event("")]
    async with new_client(server.url) as client:
        with pytest.raises(ic.InvalidBatch) as caught:
            await client.send_batch(events)
        assert (caught.value.status, caught.value.code, caught.value.errors_total) == (422, "invalid_events", 2)
        assert [(error.index, error.pointer) for error in caught.value.errors] == [
            (1, "/events/1/timestamp"),
            (2, "/events/2/event_id"),
        ]
        assert caught.value.errors[0].event_id == f"{prefix}2"
        skipped = await client.send_batch(events, invalid="skip", ack="commit")
        assert (skipped.accepted, skipped.rejected, skipped.inserted) == (1, 2, 1)
        assert [error.index for error in skipped.errors] == [1, 2]
        with pytest.raises(ic.InvalidBatch, match="no event"):
            await client.send_batch([])
        with pytest.raises(ic.RequestRefused) as refused:
            await client.send_batch(events, invalid="never")
        assert refused.value.code == "invalid_parameter"


async def test_another_body_under_a_known_id_is_a_conflict(server: Server, new_client: NewClient, prefix: str) -> None:
    async with new_client(server.url) as client:
        await client.send_batch([event(f"{prefix}1")], batch_id=f"{prefix}b")
        with pytest.raises(ic.BatchConflict) as caught:
            await client.send_batch([event(f"{prefix}2")], batch_id=f"{prefix}b")
        assert (caught.value.code, caught.value.batch_id) == ("batch_id_conflict", f"{prefix}b")
        with pytest.raises(ic.BatchUnknown):
            await client.get_batch_status("never-sent")


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
async def test_large_bodies_are_compressed(
    server: Server, new_client: NewClient, prefix: str, compression: str
) -> None:
    proxy = Proxy(server.url, lose=1)
    try:
        async with new_client(proxy.url, compression=compression) as client:
            result = await client.send_batch([event(f"{prefix}{n}") for n in range(500)], ack="commit")
    finally:
        proxy.close()
    assert (result.inserted, result.duplicate) == (500, True)
    magic = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}[compression]
    assert [body[: len(magic)] for body in proxy.bodies] == [magic, magic]
    if compression == "gzip":
        assert len(proxy.bodies[0]) < len(gzip.decompress(proxy.bodies[0])) / 5


async def test_a_wait_is_bounded(server: Server, new_client: NewClient, prefix: str) -> None:
    async with new_client(server.url) as client:
        with server.commits_held_back():
            result = await client.send_batch([event(f"{prefix}1")])
            with pytest.raises(ic.WaitTimeout) as caught:
                await client.wait_for_batch(result.batch_id, timeout=0.5)
            assert caught.value.status.status in ("queued", "processing")
        assert (await client.wait_for_batch(result.batch_id, timeout=WAIT_SECONDS)).status == "completed"


async def test_health_and_metrics(server: Server, new_client: NewClient) -> None:
    async with new_client(server.url) as client:
        health = await client.health()
        assert (health.status, health.checks["database"]["status"]) == ("healthy", "ok")
        assert (await client.metrics())["events"]["accepted"] >= 0


async def test_what_is_no_ingestd_is_told(server: Server, new_client: NewClient) -> None:
    async with new_client(f"{server.url}/elsewhere", retry=NO_RETRY) as client:
        with pytest.raises(ic.RequestRefused) as caught:
            await client.health()
        assert (caught.value.status, caught.value.code) == (404, "not_found")
    async with new_client("ftp://127.0.0.1") as client:
        with pytest.raises(ic.ServerUnreachable, match=r"UnsupportedProtocol.*attempt 1\)"):
            await client.health()


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server with keys and rate limits."""
    server = Server(
        API_KEYS_FILE="keys.toml", RATE_LIMIT_EVENTS_PER_SECOND="20", RATE_LIMIT_BURST="20", LISTEN_ADDR="127.0.0.1:0"
    )
    server.new_key("--scope", "read")
    try:
        yield server.start()
    finally:
        server.remove()


async def test_keys_are_asked_for_and_sent(guarded: Server, new_client: NewClient, prefix: str) -> None:
    key = guarded.new_key("--scope", "ingest,read", "--service", "user-*")
    reader = guarded.new_key("--scope", "read")
    guarded.reload()
    async with new_client(guarded.url) as client:
        with pytest.raises(ic.Unauthorized) as caught:
            await client.send_batch([event(f"{prefix}1")])
        assert caught.value.code == "key_missing"
        assert (await client.health())["status"] == "healthy"
    async with new_client(guarded.url, api_key=reader) as client:
        with pytest.raises(ic.Forbidden) as forbidden:
            await client.send_batch([event(f"{prefix}1")])
        assert forbidden.value.code == "scope_missing"
    async with new_client(guarded.url, api_key=key) as client:
        assert (await client.send_batch([event(f"{prefix}1")], ack="commit")).inserted == 1
        other = {"event_id": f"{prefix}2", "service_name": "orders", "event_type": "t", "payload": {}}
        with pytest.raises(ic.Forbidden) as forbidden:
            await client.send_batch([other])
        assert forbidden.value.errors[0].pointer == "/events/0/service_name"
        assert key not in repr(vars(client))


async def test_rate_limits_are_waited_for_or_told(guarded: Server, new_client: NewClient, prefix: str) -> None:
    key = guarded.new_key("--scope", "ingest,read,metrics")
    guarded.reload()
    names = (f"{prefix}{number}-" for number in range(1_000_000))
    async with new_client(guarded.url, api_key=key, retry=NO_RETRY) as client:
        # A batch that comes within a second of the one before it.
        with pytest.raises(ic.RateLimited) as caught, anyio.fail_after(WAIT_SECONDS):
            while True:
                name = next(names)
                await client.send_batch([event(f"{name}{n}") for n in range(20)])
        assert caught.value.retry_after == 1
    async with new_client(guarded.url, api_key=key) as client:

        async def refused() -> int:
            return int((await client.metrics())["errors"]["requests"].get("429", 0))

        before = await refused()
        name = next(names)
        result = await client.send_batch([event(f"{name}{n}") for n in range(20)], ack="commit")
        assert result.inserted == 20
        assert await refused() - before <= 2, "it does not come again before the server said"
        with pytest.raises(ic.TooLarge) as too_large:
            await client.send_batch([event(f"{prefix}c{n}") for n in range(21)])
        assert too_large.value.code == "batch_over_rate_limit"


async def test_a_client_of_ones_own_stays_open(server: Server, prefix: str, kind: object) -> None:
    if kind == (ic.IngestionClient, "asyncio"):
        async with httpx.AsyncClient() as http:
            async with ic.IngestionClient(server.url, http=http) as client:
                await client.send_batch([event(f"{prefix}1")])
            assert not http.is_closed
    else:
        with httpx.Client() as sync_http:
            with ic.SyncIngestionClient(server.url, http=sync_http) as sync_client:
                sync_client.send_batch([event(f"{prefix}1")])
            assert not sync_http.is_closed
