"""Both ends of the board without sockets: what goes over the wire is bytes all the same.

Requests and replies are serialised and read back as gRPC does, and a reply that cannot be read
fails as gRPC lets it fail. Everything above and below is the real code: the board's handlers, the
store, and the client with its checks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from lada_clients.net.transport import BoardClient
from lada_protocol.identity.roster import Roster
from lada_protocol.wire import lada_pb2
from lada_protocol.wire.lada_pb2_grpc import BoardStub
from lada_protocol.wire.limits import CHUNK_BYTES, REASON_KEY
from lada_server.rpc.calls import BoardCalls

_Result = TypeVar("_Result")
_Message = TypeVar("_Message", bound=Message)


class CallRefused(grpc.RpcError):
    """A call that ended with a status."""

    def __init__(self, status: grpc.StatusCode, details: str, reason: str | None) -> None:
        super().__init__(details)
        self._status = status
        self._details = details
        self.reason = reason

    def code(self) -> grpc.StatusCode:
        """The status."""
        return self._status

    def details(self) -> str:
        """The text."""
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        """The reason code, where there is one."""
        return () if self.reason is None else ((REASON_KEY, self.reason),)


class Idle(Exception):
    """Whoever is under test waits for others; nothing more will come."""


def read_message(kind: type[_Message], raw: bytes) -> _Message:
    """Deserialise as gRPC does.

    Raises: CallRefused: gRPC ends the call, no code of ours runs.
    """
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise CallRefused(grpc.StatusCode.INTERNAL, "not deserialised", None) from error


class Context:
    """A caller as the board's handlers see it: by its certificate."""

    def __init__(self, certificate_pem: bytes) -> None:
        self._pem = certificate_pem
        self._reason: str | None = None

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """What TLS knows of the peer."""
        return {"x509_pem_cert": [self._pem]}

    def set_trailing_metadata(self, metadata: Sequence[tuple[str, str]]) -> None:
        """Keep the reason code."""
        self._reason = dict(metadata).get(REASON_KEY)

    def abort(self, status: grpc.StatusCode, details: str) -> None:
        """End the call."""
        raise CallRefused(status, details, self._reason)

    def add_callback(self, _callback: Callable[[], None]) -> bool:
        """Nobody hangs up here."""
        return True

    def is_active(self) -> bool:
        """Nobody hangs up here."""
        return True


class _Stream:
    """A reply in parts that the client may cancel."""

    def __init__(self, parts: Iterator[lada_pb2.Chunk]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[lada_pb2.Chunk]:
        return self._parts

    def cancel(self) -> None:
        """Nothing is left to stop."""


class RealBoard:
    """The stub of one caller of a real board."""

    def __init__(self, board: BoardCalls, certificate_pem: bytes) -> None:
        self._board = board
        self._pem = certificate_pem

    def Post(self, frames: Iterator[lada_pb2.PostFrame]) -> lada_pb2.Receipt:  # noqa: N802 - gRPC's
        """Post what a client sends."""
        return self.post_raw(frame.SerializeToString() for frame in frames)

    def post_raw(self, frames: Iterator[bytes]) -> lada_pb2.Receipt:
        """Post any bytes."""
        read = (read_message(lada_pb2.PostFrame, raw) for raw in frames)
        return self._board.post(read, Context(self._pem))

    def Progress(self, request: lada_pb2.ProgressRequest, timeout: float = 0.0) -> Any:  # noqa: N802
        """How much of a payload is there."""
        return self._board.progress(request, Context(self._pem))

    def List(self, request: lada_pb2.ListRequest, timeout: float = 0.0) -> Any:  # noqa: N802
        """List without waiting."""
        return self._board.list(
            lada_pb2.ListRequest(after_sequence=request.after_sequence), Context(self._pem)
        )

    def Fetch(self, request: lada_pb2.FetchRequest) -> _Stream:  # noqa: N802 - gRPC's name
        """Fetch a payload."""
        return _Stream(iter(self._board.fetch(request, Context(self._pem))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A message as a board that need not be honest shows it."""

    header_bytes: bytes
    signature: bytes
    payload: bytes


@dataclass(slots=True, kw_only=True)
class ScriptedBoard:
    """A board played by whoever attacks: it shows these rows and keeps what it is sent.

    `reply_edit` and `chunk_edit` may change the bytes of list replies and payload chunks.
    """

    start: int
    rows: Sequence[Row]
    known: Mapping[str, bytes]
    reply_edit: Callable[[bytes], bytes] = lambda raw: raw
    chunk_edit: Callable[[bytes], bytes] = lambda raw: raw
    posted: list[str] = field(default_factory=list)
    _polls: int = 0

    def Post(self, frames: Iterator[lada_pb2.PostFrame]) -> lada_pb2.Receipt:  # noqa: N802
        """Take a message and say so."""
        opening, *_ = list(frames)
        header = opening.opening.header
        self.posted.append(hashlib.sha256(header).hexdigest())
        return lada_pb2.Receipt(
            sequence=self.start + len(self.rows) + len(self.posted),
            message_sha256=hashlib.sha256(header).digest(),
        )

    def Progress(self, _request: lada_pb2.ProgressRequest, timeout: float = 0.0) -> Any:  # noqa: N802
        """Nothing has arrived yet."""
        return lada_pb2.ProgressReply(on_board=False, offset=0)

    def List(self, request: lada_pb2.ListRequest, timeout: float = 0.0) -> Any:  # noqa: N802
        """Everything that is new, once."""
        entries = [
            lada_pb2.Entry(sequence=number, header=row.header_bytes, signature=row.signature)
            for number, row in enumerate(self.rows, start=self.start + 1)
            if number > request.after_sequence
        ]
        if not entries:
            self._polls += 1
            if self._polls > 2:
                raise Idle
        raw = lada_pb2.ListReply(entries=entries).SerializeToString()
        return read_message(lada_pb2.ListReply, self.reply_edit(raw))

    def Fetch(self, request: lada_pb2.FetchRequest) -> _Stream:  # noqa: N802 - gRPC's name
        """A payload in chunks."""
        payload = self._payload(request.message_sha256)

        def parts() -> Iterator[lada_pb2.Chunk]:
            for offset in range(request.offset, len(payload), CHUNK_BYTES):
                data = payload[offset : offset + CHUNK_BYTES]
                chunk = lada_pb2.Chunk(
                    offset=offset, data=data, sha256=hashlib.sha256(data).digest()
                )
                yield read_message(lada_pb2.Chunk, self.chunk_edit(chunk.SerializeToString()))

        return _Stream(parts())

    def _payload(self, digest: bytes) -> bytes:
        for row in self.rows:
            if hashlib.sha256(row.header_bytes).digest() == digest:
                return row.payload
        known = self.known.get(digest.hex())
        if known is None:
            raise CallRefused(grpc.StatusCode.NOT_FOUND, "no such message", "not_found")
        return known


class LoopbackClient(BoardClient):
    """The real client on a stub in this process."""

    def __init__(self, *, identity: Path, roster: Roster, party_id: str) -> None:
        super().__init__(
            "127.0.0.1:1", identity=identity, roster=roster, party_id=party_id, patience_s=0.0
        )
        self.stub: RealBoard | ScriptedBoard | None = None

    def _attempt(self, call: Callable[[BoardStub], _Result]) -> _Result:
        try:
            return call(self.stub)  # type: ignore[arg-type]  # has the three calls of a stub
        except grpc.RpcError as error:
            raise self._fault(error) from error
