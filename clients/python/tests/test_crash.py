"""Promise: kill -9 of the server in a stream of sends, and its restart, neither lose nor double an event."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

import ingestd_client as ic

from .conftest import NewClient, event
from .server import WAIT_SECONDS, Server

pytestmark = pytest.mark.anyio

KILLS = 2
EVENTS = 4000
PATIENT = ic.RetryPolicy(attempts_max=1000, time_max_seconds=WAIT_SECONDS, backoff_max_seconds=0.5)


@pytest.fixture(scope="module")
def mortal() -> Iterator[Server]:
    """A server that is killed."""
    server = Server()
    try:
        yield server.start()
    finally:
        server.remove()


async def kill_and_restart(server: Server, progress: list[int]) -> None:
    """Kills it whenever another part of the events was sent."""
    for kill in range(KILLS):
        while progress[0] < EVENTS * (kill + 1) // (KILLS + 2):
            await anyio.sleep(0.002)
        server.kill9()
        await anyio.sleep(0.2)
        await anyio.to_thread.run_sync(server.start)


def assert_exactly_once(server: Server, prefix: str) -> None:
    counts = f"SELECT count(*), count(DISTINCT event_id) FROM events WHERE starts_with(event_id, '{prefix}')"
    assert server.sql(counts) == f"{EVENTS}|{EVENTS}"


async def test_batches_land_once_through_kills(mortal: Server, new_client: NewClient, prefix: str) -> None:
    progress = [0]
    size = 50
    sent: list[ic.BatchResult] = []

    async def send_some(client: Any, numbers: range) -> None:
        for first in numbers:
            # Without timestamps: landing twice would be two rows.
            sent.append(await client.send_batch([event(f"{prefix}{first + n}") for n in range(size)]))
            progress[0] += size

    with anyio.fail_after(WAIT_SECONDS):
        async with new_client(mortal.url, retry=PATIENT) as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(kill_and_restart, mortal, progress)
                for lane in range(4):
                    tasks.start_soon(send_some, client, range(lane * size, EVENTS, 4 * size))
            for result in sent:
                assert (await client.wait_for_batch(result.batch_id, timeout=WAIT_SECONDS)).status == "completed"
    assert len({result.batch_id for result in sent}) == EVENTS // size
    assert_exactly_once(mortal, prefix)


async def test_buffered_events_land_once_through_kills(mortal: Server, new_client: NewClient, prefix: str) -> None:
    progress = [0]
    options = ic.SenderOptions(batch_events=50, batch_age_seconds=0.05, buffered_bytes=1_100_000, ack="commit")
    failed: list[ic.FailedBatch] = []

    async def send_all(sender: Any) -> None:
        for number in range(EVENTS):
            await sender.send(event(f"{prefix}{number}"))
            progress[0] += 1
            if number % 50 == 0:
                await anyio.sleep(0.005)

    with anyio.fail_after(WAIT_SECONDS):
        async with (
            new_client(mortal.url, retry=PATIENT) as client,
            client.buffered(options, on_error=failed.append) as sender,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(partial(kill_and_restart, mortal, progress))
            tasks.start_soon(send_all, sender)
    assert failed == []
    assert_exactly_once(mortal, prefix)
