"""Promise: every answer of 400 or more becomes an exception of the right kind that keeps what the server said."""

from __future__ import annotations

import json
import pickle

import pytest

import ingestd_client as ic
from ingestd_client._errors import PROBLEM_MEDIA_TYPE, error_of

VERDICT = {
    "index": 3,
    "event_id": None,
    "pointer": "/events/3/payload",
    "code": "member_missing",
    "detail": "no payload",
}


def problem(status: int, code: str, **members: object) -> ic.ProblemError:
    document = {"type": "urn:x", "status": status, "code": code, "detail": "told"} | members
    return error_of(status, PROBLEM_MEDIA_TYPE, json.dumps(document).encode(), 2.0)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "not_json", ic.RequestRefused),
        (401, "key_missing", ic.Unauthorized),
        (403, "scope_missing", ic.Forbidden),
        (404, "batch_unknown", ic.BatchUnknown),
        (404, "not_found", ic.RequestRefused),
        (409, "batch_id_conflict", ic.BatchConflict),
        (409, "batch_ambiguous", ic.RequestRefused),
        (413, "too_many_events", ic.TooLarge),
        (422, "invalid_events", ic.InvalidBatch),
        (422, "invalid_batch", ic.InvalidBatch),
        (422, "invalid_parameter", ic.RequestRefused),
        (429, "rate_limited", ic.RateLimited),
        (500, "internal_error", ic.ServerFailed),
        (503, "queue_full", ic.Overloaded),
        (503, "outcome_unknown", ic.OutcomeUnknown),
    ],
)
def test_each_problem_has_its_exception(status: int, code: str, kind: type[ic.ProblemError]) -> None:
    error = problem(status, code)
    assert type(error) is kind
    assert (error.status, error.code, error.detail, error.retry_after) == (status, code, "told", 2.0)
    assert str(error) == f"{status} {code}: told"


def test_verdicts_are_kept_and_the_first_is_told() -> None:
    error = problem(422, "invalid_events", errors=[VERDICT], errors_total=250, byte_offset=7)
    assert error.errors == (ic.EventError(3, None, "/events/3/payload", "member_missing", "no payload"),)
    assert error.errors[0]["pointer"] == "/events/3/payload"
    assert (error.errors_total, error.byte_offset) == (250, 7)
    assert str(error).endswith("told: /events/3/payload: no payload")


def test_an_exception_survives_pickling() -> None:
    error = problem(422, "invalid_events", errors=[VERDICT])
    error.batch_id = "b"
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), again.problem, again.batch_id) == (ic.InvalidBatch, error.problem, "b")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"errors": [{}]}', b'{"errors": 7}', b"\xff"])
@pytest.mark.parametrize("media_type", [PROBLEM_MEDIA_TYPE, "text/html", ""])
def test_what_a_proxy_says_is_an_exception_too(media_type: str, body: bytes) -> None:
    error = error_of(502, media_type, body, None)
    assert type(error) is ic.ServerFailed
    assert (error.status, error.code, error.errors) == (502, "", ())
    assert type(error_of(429, media_type, body, None)) is ic.RateLimited
