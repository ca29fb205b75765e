"""`Content-Encoding` of bodies."""

from __future__ import annotations

import gzip
import sys
from typing import Literal

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    try:
        from backports import zstd
    except ImportError:
        zstd = None  # type: ignore[assignment]

Compression = Literal["gzip", "zstd"]
"""The codings that the server takes."""

GZIP_LEVEL = 1
ZSTD_LEVEL = 1
"""The fastest levels: events repeat so much that higher ones cost more time than they save bytes."""

COMPRESS_FROM_BYTES = 16 * 1024
"""Smaller bodies are sent as they are: they fit into a few packets anyway."""


def check_available(compression: Compression | None) -> None:
    """Raises when this Python cannot do `compression`."""
    if compression not in ("gzip", "zstd", None):
        raise ValueError(f'compression is "gzip", "zstd" or None, not {compression!r}')
    if compression == "zstd" and zstd is None:
        raise ImportError("zstd needs Python 3.14, or: pip install 'ingestd-client[zstd]'")


def compress(body: bytes, compression: Compression) -> bytes:
    """The body in that coding; the same bytes for the same body."""
    if compression == "gzip":
        return gzip.compress(body, GZIP_LEVEL, mtime=0)
    return zstd.compress(body, ZSTD_LEVEL)
