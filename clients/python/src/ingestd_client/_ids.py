"""Batch ids for callers who give none."""

import os
import time
import uuid


def new_batch_id() -> str:
    """A UUID of version 7 (RFC 9562): begins with the time in milliseconds, so that ids of one sender sort by age."""
    milliseconds = time.time_ns() // 1_000_000
    bits = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    bits = (bits & ~(0xF << 76)) | (0x7 << 76)  # version
    bits = (bits & ~(0x3 << 62)) | (0x2 << 62)  # variant
    return str(uuid.UUID(int=bits))


def checked_batch_id(batch_id: str) -> str:
    """`batch_id`; `ValueError` for an empty one, `.` and `..`, which no URL path keeps. The server checks the rest."""
    if batch_id in ("", ".", ".."):
        raise ValueError(f"batch_id {batch_id!r}: must be 1 to 128 characters, and not '.' or '..'")
    return batch_id
