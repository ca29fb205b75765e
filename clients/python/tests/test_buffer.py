"""Promise: whatever happens in whatever order, a buffer keeps its limits, and no event leaves it unaccounted for."""

from __future__ import annotations

import random

import pytest

import ingestd_client as ic
from ingestd_client._buffer import Batch, Buffer, FailedBatch, SenderOptions

from .conftest import event

SEED = 20261126


class History:
    """A buffer, what it took, and what came out of it again."""

    def __init__(self, seed: int) -> None:
        self.source = source = random.Random(seed)
        batch_bytes = source.randrange(10, 60)
        self.buffer = Buffer(
            SenderOptions(
                batch_events=source.randrange(1, 6),
                batch_bytes=batch_bytes,
                buffered_bytes=batch_bytes + source.randrange(100),
            )
        )
        self.now = 0.0
        self.offered = 0
        self.taken: list[str] = []
        self.left: list[str] = []
        self.under_way: list[Batch] = []

    def step(self) -> None:
        """Something happens."""
        self.now += self.source.random() / 2
        options = self.buffer.options
        match self.source.randrange(4):
            case 0 | 1:
                self.offered += 1
                size = self.source.randrange(1, options.buffered_bytes + 1)
                if self.buffer.offer(event(str(self.offered)), b"x" * min(size, 20), self.now):
                    self.taken.append(str(self.offered))
            case 2:
                if (batch := self.buffer.take(self.now)) is not None:
                    assert 1 <= len(batch.events) <= options.batch_events
                    assert batch.size <= options.batch_bytes or len(batch.events) == 1
                    self.under_way.append(batch)
            case _ if self.under_way:
                batch = self.under_way.pop(self.source.randrange(len(self.under_way)))
                self.settle(batch, fails=self.source.random() < 0.3)
        assert 0 <= self.buffer.held_bytes <= options.buffered_bytes
        assert (self.buffer.due_in(self.now) or 0.0) < options.batch_age_seconds + 1e-6

    def settle(self, batch: Batch, *, fails: bool) -> None:
        """A batch ends, and a callback is told of it where it failed."""
        events = self.buffer.failed(batch, ic.ServerUnreachable()).events if fails else batch.events
        self.left.extend(item.event_id for item in events if isinstance(item, ic.Event))
        self.buffer.settle(batch, None)


def test_random_histories_keep_the_invariants() -> None:
    for seed in range(SEED, SEED + 300):
        history = History(seed)
        buffer = history.buffer
        for _ in range(200):
            history.step()
        mark = buffer.mark
        buffer.close()
        if seed % 2:
            while (batch := buffer.take(history.now)) is not None:
                history.settle(batch, fails=False)
            assert buffer.is_finished
            assert buffer.is_settled(mark) == (not history.under_way)
        for batch, failure in buffer.abandon():
            assert isinstance(failure.error, ic.CloseTimeout)
            history.settle(batch, fails=True)
        assert sorted(history.left) == sorted(history.taken), f"seed {seed}"
        assert len(history.taken) > 10
        assert buffer.held_bytes == 0
        assert buffer.is_settled(mark)


def test_a_batch_is_due_by_age_of_its_first_event() -> None:
    buffer = Buffer(SenderOptions(batch_age_seconds=2.0))
    assert buffer.due_in(0.0) is None
    buffer.offer(event("1"), b"{}", 10.0)
    buffer.offer(event("2"), b"{}", 11.5)
    assert buffer.take(11.9) is None
    assert buffer.due_in(11.5) == 0.5
    batch = buffer.take(12.0)
    assert batch is not None
    assert len(batch.events) == 2


def test_senders_are_woken_once_for_what_is_new() -> None:
    buffer = Buffer(SenderOptions(batch_events=3))
    woken = []
    for number in range(4):
        buffer.offer(event(str(number)), b"{}", 0.0)
        woken.append(buffer.take_news())
    assert woken == [True, False, True, True]
    assert not buffer.take_news()


def test_an_event_larger_than_a_batch_goes_alone() -> None:
    buffer = Buffer(SenderOptions(batch_bytes=10, buffered_bytes=100))
    for name, size in (("1", 5), ("2", 50), ("3", 5)):
        assert buffer.offer(event(name), b"x" * size, 0.0)
    buffer.seal()
    batches = [buffer.take(0.0) for _ in range(3)]
    assert [len(batch.events) for batch in batches if batch] == [1, 1, 1]


def test_what_nobody_was_told_of_stops_the_sender() -> None:
    buffer = Buffer(SenderOptions(batch_events=1))
    buffer.offer(event("1"), b"{}", 0.0)
    batch = buffer.take(0.0)
    assert batch is not None
    buffer.settle(batch, buffer.failed(batch, ic.ServerUnreachable("gone")))
    with pytest.raises(ic.SenderFailed, match="1 events were not delivered"):
        buffer.offer(event("2"), b"{}", 0.0)
    assert [type(failure) for failure in buffer.failures] == [FailedBatch]


@pytest.mark.parametrize(
    "wrong",
    [{"batch_events": 0}, {"batch_age_seconds": -1.0}, {"buffered_bytes": 10}, {"batches_in_flight": 0}],
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SenderOptions(**wrong)  # type: ignore[arg-type]
