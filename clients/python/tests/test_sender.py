"""Promise: a buffering sender delivers each event once or hands it back, within its limits."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest

import ingestd_client as ic

from .conftest import NewClient, event
from .proxy import Proxy
from .server import WAIT_SECONDS, Server

pytestmark = pytest.mark.anyio

NOWHERE = "http://127.0.0.1:9"
GIVES_UP = ic.RetryPolicy(attempts_max=2, backoff_first_seconds=0.01)


async def test_what_is_left_is_sent_on_exit(server: Server, new_client: NewClient, prefix: str) -> None:
    options = ic.SenderOptions(batch_events=100, batch_age_seconds=1000, ack="commit")
    async with new_client(server.url) as client:
        async with client.buffered(options) as sender:
            for number in range(250):
                await sender.send(event(f"{prefix}{number}"))
        assert server.rows(prefix) == 250
        batches = f"SELECT count(DISTINCT batch_id) FROM events WHERE starts_with(event_id, '{prefix}')"
        assert server.sql(batches) == "3"
        with pytest.raises(ic.SenderClosed):
            await sender.send(event(f"{prefix}late"))


async def test_flush_and_age_send_without_waiting_for_more(server: Server, new_client: NewClient, prefix: str) -> None:
    async with new_client(server.url) as client:
        async with client.buffered(ic.SenderOptions(batch_age_seconds=1000, ack="commit")) as sender:
            await sender.send(event(f"{prefix}1"))
            await sender.flush()
            assert server.rows(prefix) == 1
        async with client.buffered(ic.SenderOptions(batch_age_seconds=0.05, ack="commit")) as sender:
            await sender.send(event(f"{prefix}2"))
            with anyio.fail_after(WAIT_SECONDS):
                while server.rows(prefix) < 2:
                    await anyio.sleep(0.02)


async def test_bytes_end_a_batch_too(server: Server, new_client: NewClient, prefix: str) -> None:
    options = ic.SenderOptions(batch_bytes=10_000, ack="commit")
    async with new_client(server.url) as client, client.buffered(options) as sender:
        for number in range(10):
            await sender.send(event(f"{prefix}{number}", payload={"text": "x" * 4000}))
        await sender.flush()
    assert (
        server.sql(
            "SELECT max(count) FROM (SELECT count(*) FROM events "
            f"WHERE starts_with(event_id, '{prefix}') GROUP BY batch_id) AS batches"
        )
        == "2"
    )


async def test_a_full_buffer_holds_the_caller_back(server: Server, new_client: NewClient, prefix: str) -> None:
    # Nothing is committed, and so nothing acknowledged: only 20 kB may wait.
    options = ic.SenderOptions(batch_bytes=5000, buffered_bytes=20_000, batches_in_flight=2, ack="commit")
    taken = 0

    async def fill(sender: Any) -> None:
        nonlocal taken
        for number in range(40):
            await sender.send(event(f"{prefix}{number}", payload={"text": "x" * 1000}))
            taken += 1

    async with new_client(server.url) as client, client.buffered(options) as sender:
        with server.commits_held_back():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fill, sender)
                before = 0
                with anyio.fail_after(WAIT_SECONDS):
                    while taken <= 10 or taken != before:
                        before = taken
                        await anyio.sleep(0.8)
                tasks.cancel_scope.cancel()
            assert taken < 20, "the buffer never filled"
        await sender.flush()
        for number in range(40, 60):
            await sender.send(event(f"{prefix}{number}", payload={"text": "x" * 1000}))
    # A thread that waited for room when its test went on has sent its event all the same.
    assert server.rows(prefix) in (taken + 20, taken + 21)


async def test_a_full_buffer_can_raise_instead(new_client: NewClient) -> None:
    options = ic.SenderOptions(
        batch_bytes=1000, buffered_bytes=3000, batches_in_flight=1, when_full="raise", close_seconds=0.2
    )
    failed: list[ic.FailedBatch] = []
    taken = 0
    async with new_client(NOWHERE) as client, client.buffered(options, on_error=failed.append) as sender:
        with pytest.raises(ic.BufferFull):
            for number in range(10):
                await sender.send(event(str(number), payload={"text": "x" * 500}))
                taken += 1
        with pytest.raises(ic.InvalidEvent, match="buffered_bytes"):
            await sender.send(event("huge", payload={"text": "x" * 5000}))
    assert taken == 4
    assert sorted(failed_ids(failed)) == ["0", "1", "2", "3"]
    assert {type(failure.error) for failure in failed} == {ic.CloseTimeout}


def failed_ids(failures: list[ic.FailedBatch]) -> list[str]:
    return [
        item.event_id if isinstance(item, ic.Event) else item["event_id"] for batch in failures for item in batch.events
    ]


async def test_what_fails_is_handed_over_with_its_reason(new_client: NewClient) -> None:
    failed: list[ic.FailedBatch] = []
    async with new_client(NOWHERE, retry=GIVES_UP) as client:
        async with client.buffered(ic.SenderOptions(batch_events=2), on_error=failed.append) as sender:
            for number in range(5):
                await sender.send({"event_id": str(number)})
    assert sorted(failed_ids(failed)) == ["0", "1", "2", "3", "4"]
    assert all(isinstance(failure.error, ic.ServerUnreachable) for failure in failed)
    assert all(failure.batch_id == failure.error.batch_id for failure in failed)  # type: ignore[attr-defined]


async def test_without_a_callback_what_fails_is_raised(new_client: NewClient) -> None:
    async with new_client(NOWHERE, retry=GIVES_UP) as client:
        with pytest.raises(ic.SenderFailed, match=r"3 events were not delivered.*ServerUnreachable") as caught:
            async with client.buffered(ic.SenderOptions(batch_events=2)) as sender:
                for number in range(3):
                    await sender.send(event(str(number)))
        assert sorted(failed_ids(list(caught.value.failures))) == ["0", "1", "2"]
        with pytest.raises(ic.SenderFailed):
            async with client.buffered() as sender:
                await sender.send(event("0"))
                with pytest.raises(ic.SenderFailed):
                    await sender.flush()
                with pytest.raises(ic.SenderFailed):
                    await sender.send(event("1"))


async def test_a_callback_that_fails_loses_nothing(new_client: NewClient, caplog: pytest.LogCaptureFixture) -> None:
    def on_error(failed: ic.FailedBatch) -> None:
        raise RuntimeError(failed.batch_id)

    async with new_client(NOWHERE, retry=GIVES_UP) as client:
        with pytest.raises(ic.SenderFailed) as caught:
            async with client.buffered(on_error=on_error) as sender:
                await sender.send(event("0"))
    assert failed_ids(list(caught.value.failures)) == ["0"]
    assert "on_error failed" in caplog.text


async def test_one_invalid_event_does_not_cost_the_others(server: Server, new_client: NewClient, prefix: str) -> None:
    failed: list[ic.FailedBatch] = []
    async with new_client(server.url) as client:
        async with client.buffered(ic.SenderOptions(ack="commit"), on_error=failed.append) as sender:
            await sender.send(event(f"{prefix}0"))
            await sender.send(event(f"{prefix}1", timestamp="yesterday"))
            await sender.send(event(f"{prefix}2"))
            with pytest.raises(ic.InvalidEvent, match="NaN"):
                await sender.send(event(f"{prefix}3", payload={"amount": Decimal("NaN")}))
    assert server.rows(prefix) == 2
    assert failed_ids(failed) == [f"{prefix}1"]
    assert isinstance(failed[0].error, ic.EventsRejected)
    assert (failed[0].error.errors[0].index, failed[0].error.errors[0].event_id) == (0, f"{prefix}1")


async def test_a_failed_batch_can_be_settled_without_doubling(
    server: Server, new_client: NewClient, prefix: str
) -> None:
    failed: list[ic.FailedBatch] = []
    proxy = Proxy(server.url, lose=2)
    try:
        async with new_client(proxy.url, retry=GIVES_UP) as client:
            async with client.buffered(ic.SenderOptions(priority=3), on_error=failed.append) as sender:
                for number in range(5):
                    await sender.send(event(f"{prefix}{number}"))
            batch = failed[0]
            again = await client.send_batch(
                batch.events, batch_id=batch.batch_id, priority=batch.priority, invalid="skip", ack="commit"
            )
            assert again.duplicate
            # Even as another batch they are the same events, since they keep the timestamp of `send`.
            other = await client.send_batch(batch.events, ack="commit")
            assert (other.inserted, other.duplicates) == (0, 5)
    finally:
        proxy.close()
    assert server.rows(prefix) == 5


async def test_closing_is_bounded(new_client: NewClient) -> None:
    failed: list[ic.FailedBatch] = []
    options = ic.SenderOptions(batch_events=1, batches_in_flight=2, close_seconds=0.3)
    async with new_client(NOWHERE, retry=ic.RetryPolicy(backoff_first_seconds=5)) as client:
        async with client.buffered(options, on_error=failed.append) as sender:
            for number in range(20):
                await sender.send(event(str(number)))
    assert sorted(failed_ids(failed), key=int) == [str(number) for number in range(20)]
    # Not given up by their own attempts, which would have gone on for a minute.
    assert {type(failure.error) for failure in failed} == {ic.CloseTimeout}


async def test_a_cancelled_caller_loses_nothing(
    server: Server, prefix: str, kind: object, anyio_backend_name: str
) -> None:
    if kind != (ic.IngestionClient, anyio_backend_name):
        return  # Threads are not cancelled.
    with anyio.CancelScope() as scope:
        async with ic.IngestionClient(server.url) as client, client.buffered(ic.SenderOptions(ack="commit")) as sender:
            await sender.send(event(f"{prefix}1"))
            scope.cancel()
            await anyio.sleep(WAIT_SECONDS)
    assert scope.cancelled_caught
    assert server.rows(prefix) == 1


async def test_on_error_may_be_a_coroutine_function(kind: object, anyio_backend_name: str) -> None:
    if kind != (ic.IngestionClient, anyio_backend_name):
        return  # There are none without async.
    failed: list[ic.FailedBatch] = []

    async def on_error(batch: ic.FailedBatch) -> None:
        await anyio.sleep(0.01)
        failed.append(batch)

    async with ic.IngestionClient(NOWHERE, retry=GIVES_UP) as client, client.buffered(on_error=on_error) as sender:
        await sender.send(event("0"))
    assert failed_ids(failed) == ["0"]


def test_a_sync_sender_that_nobody_closed_is_closed_at_exit(server: Server) -> None:
    program = (
        "import ingestd_client as ic\n"
        f"client = ic.SyncIngestionClient({server.url!r})\n"
        "sender = client.buffered(ic.SenderOptions(batch_age_seconds=1000, ack='commit'))\n"
        "sender.send(ic.Event('forgotten-1', 's', 't', {}))\n"
    )
    source = Path(__file__).parent.parent / "src"
    path = [str(source), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}\n{program}"],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert server.rows("forgotten-") == 1
