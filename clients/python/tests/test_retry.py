"""Promise: retries are bounded in number and time, spread by chance, and never earlier than the server asked."""

from __future__ import annotations

import itertools
import random
import ssl
from datetime import datetime, timezone

import httpx
import pytest

import ingestd_client as ic
from ingestd_client import _exchange
from ingestd_client._exchange import Done, Exchange
from ingestd_client._retry import Failure, RetryPolicy, delay_after, retry_after_seconds

SEED = 20261126
NOW = datetime(2026, 11, 26, 12, 0, 0, tzinfo=timezone.utc)
POLICY = RetryPolicy()


def delays(policy: RetryPolicy, failure: Failure, left: float = 1000.0) -> list[float]:
    source = random.Random(SEED)
    made = (
        delay_after(failure, policy, attempts=attempts, left_seconds=left, chance=source.random())
        for attempts in itertools.count(1)
    )
    return list(itertools.takewhile(lambda delay: delay is not None, made))  # type: ignore[arg-type]


def test_attempts_are_bounded() -> None:
    assert len(delays(RetryPolicy(attempts_max=5), Failure(retryable=True))) == 4
    assert delays(RetryPolicy(attempts_max=1), Failure(retryable=True)) == []
    assert delays(POLICY, Failure(retryable=False)) == []


def test_waits_fill_a_window_that_doubles_up_to_its_limit() -> None:
    policy = RetryPolicy(attempts_max=10**6, backoff_first_seconds=0.1, backoff_max_seconds=5.0)
    source = random.Random(SEED)
    for attempts, window in [(1, 0.1), (2, 0.2), (4, 0.8), (7, 5.0), (2000, 5.0)]:
        waits = [
            delay_after(Failure(retryable=True), policy, attempts=attempts, left_seconds=99, chance=source.random())
            for _ in range(2000)
        ]
        assert all(wait is not None and 0 <= wait <= window for wait in waits)
        assert sum(wait or 0 for wait in waits) / len(waits) == pytest.approx(window / 2, rel=0.05), f"seed {SEED}"


def test_what_the_server_asked_for_is_waited_and_more() -> None:
    waits = delays(POLICY, Failure(retryable=True, retry_after_seconds=3.0))
    assert all(3.0 <= wait <= 8.0 for wait in waits)
    assert len(set(waits)) == len(waits), "who was sent away together does not come back together"


def test_time_is_bounded() -> None:
    assert delays(POLICY, Failure(retryable=True, retry_after_seconds=30.0), left=30.0) == []
    assert delays(POLICY, Failure(retryable=True), left=0.0) == []


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("3", None, 3.0),
        (" 120 ", None, 120.0),
        ("Thu, 26 Nov 2026 12:00:07 GMT", None, 7.0),
        ("Thu, 26 Nov 2026 11:00:00 GMT", None, 0.0),
        # By the server's own clock, which need not be ours.
        ("Thu, 26 Nov 2026 15:00:09 GMT", "Thu, 26 Nov 2026 15:00:00 GMT", 9.0),
        ("Thu, 26 Nov 2026 12:00:07 GMT", "yesterday", 7.0),
        ("Thursday, 26-Nov-26 12:00:07 GMT", None, 7.0),
        ("-1", None, None),
        ("1.5", None, None),
        ("soon", None, None),
        ("²", None, None),
        ("", None, None),
        (None, "Thu, 26 Nov 2026 15:00:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, date: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, date, NOW) == seconds


@pytest.mark.parametrize(
    "wrong",
    [{"attempts_max": 0}, {"time_max_seconds": 0}, {"backoff_first_seconds": 9.0}, {"backoff_first_seconds": -1}],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RetryPolicy(**wrong)  # type: ignore[arg-type]


def exchange(policy: RetryPolicy = POLICY) -> Exchange[ic.BatchResult]:
    call = _exchange.send_batch([b"{}"], "b", priority=None, ack=None, invalid=None)
    return Exchange(call, policy, httpx.Timeout(15.0, connect=5.0))


def answer(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_answers_that_may_change_are_asked_for_again(status: int) -> None:
    assert exchange().answered(answer(status, Retry_After="7")) >= 7.0  # type: ignore[operator]


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 408, 409, 413, 415, 422, 431, 501, 505])
def test_answers_that_stay_are_not(status: int) -> None:
    with pytest.raises(ic.IngestionError) as caught:
        exchange().answered(answer(status, Retry_After="0"))
    assert caught.value.batch_id == "b"


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError(""),
        httpx.ConnectTimeout(""),
        httpx.ReadError(""),
        httpx.ReadTimeout(""),
        httpx.WriteError(""),
        httpx.WriteTimeout(""),
        httpx.PoolTimeout(""),
        httpx.RemoteProtocolError(""),
    ],
    ids=lambda error: type(error).__name__,
)
def test_failures_of_the_network_are_tried_again(error: httpx.RequestError) -> None:
    tried = exchange(RetryPolicy(attempts_max=2))
    assert tried.failed(error) >= 0
    with pytest.raises(ic.ServerUnreachable, match=type(error).__name__):
        tried.failed(error)


def test_a_certificate_that_is_not_trusted_is_not_tried_again() -> None:
    untrusted = httpx.ConnectError("certificate verify failed")
    untrusted.__cause__ = ConnectionError()
    untrusted.__cause__.__context__ = ssl.SSLCertVerificationError()
    with pytest.raises(ic.ServerUnreachable, match="attempt 1"):
        exchange().failed(untrusted)


def test_a_wait_that_ends_within_a_request_tells_how_the_batch_was() -> None:
    polling = _exchange.Polling(0.0)
    asking = Exchange(_exchange.get_batch_status("b", None), POLICY, httpx.Timeout(15.0), polling)
    with pytest.raises(ic.ServerUnreachable):
        asking.failed(httpx.ReadTimeout(""))
    status = ic.BatchStatus("b", "queued", 0, 1, None, None, None, NOW, None, "node")
    with pytest.raises(ic.WaitTimeout):
        polling.after(status)
    with pytest.raises(ic.WaitTimeout) as caught:
        asking.failed(httpx.ReadTimeout(""))
    assert caught.value.status == status


def test_what_answers_without_a_document_is_no_ingestd() -> None:
    for content in (b"", b"[]", b"<html>", b'{"batch_id": "b"}'):
        with pytest.raises(ic.UnexpectedAnswer):
            exchange().answered(httpx.Response(200, content=content))
    accepted = b'{"batch_id":"b","status":"queued","accepted":1,"rejected":0,"errors":[],"later":1}'
    outcome = exchange().answered(httpx.Response(202, content=accepted))
    assert isinstance(outcome, Done)
    assert outcome.value == ic.BatchResult("b", "queued", 1, 0, ())


def test_an_attempt_never_outlasts_the_time() -> None:
    long = exchange().timeout()
    assert (long.connect, long.read) == (5.0, 15.0)
    short = exchange(RetryPolicy(time_max_seconds=0.5)).timeout()
    assert max(short.connect or 9, short.read or 9, short.write or 9, short.pool or 9) <= 0.5
    call = _exchange.send_batch([b"{}"], "b", priority=None, ack="commit", invalid=None)
    assert Exchange(call, POLICY, httpx.Timeout(15.0)).timeout().read == 40.0, "the server waits for PostgreSQL"
