"""What both ends of a connection must agree on besides the messages: sizes, names, addresses."""

from __future__ import annotations

from typing import Final

from lada_protocol.wire.envelope import MAX_HEADER_BYTES
from lada_secure.errors import ParameterError

CHUNK_BYTES: Final = 256 * 1024
# A frame holds a header or a chunk, never both; the rest is room for framing.
MAX_FRAME_BYTES: Final = CHUNK_BYTES + MAX_HEADER_BYTES + 4096
# A list holds at most this many bytes of headers, unless its first entry alone is larger.
MAX_LIST_BYTES: Final = 512 * 1024
MAX_LIST_ENTRIES: Final = 128
MAX_REPLY_BYTES: Final = MAX_LIST_BYTES + MAX_HEADER_BYTES + MAX_LIST_ENTRIES * 256
# What one end may have under way to the other, unread: bounds memory, and what a broken link costs.
# It carries 20 MB/s at a round trip of 50 ms.
WINDOW_BYTES: Final = 1 << 20
MAX_WAIT_S: Final = 20.0
# Trailing metadata with the reason code of a refusal.
REASON_KEY: Final = "lada-reason"


def split_address(address: str) -> tuple[str, int]:
    """Split "host:port" or "[v6]:port"; the host comes without brackets.

    Raises: ParameterError: any other form, or a port that is not 0 to 65535.
    """
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or (":" in bare and bare == host):
        raise ParameterError(f"address {address!r}: expected host:port, e.g. 127.0.0.1:7443")
    if not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ParameterError(f"address {address!r}: expected a port of 0 to 65535, got {port!r}")
    return bare, int(port)


def join_address(host: str, port: int) -> str:
    """The opposite of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
