"""The board over gRPC: one port, mutual TLS, callers known by their certificate.

The caller is the roster's party whose TLS certificate was shown; no field of a request can say
otherwise. Faults of a caller end its call with a status, a text and the reason code in the
trailing metadata `lada-reason`; they never end anybody else's.
"""

from __future__ import annotations

import hashlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from datetime import UTC, datetime
from typing import Final, NoReturn, TypeVar

import grpc

from lada_protocol import lada_pb2
from lada_protocol.credentials import Credentials
from lada_protocol.envelope import Envelope, parse_envelope
from lada_protocol.identity import certificate_fingerprint, parse_certificate
from lada_protocol.kinds import Role
from lada_protocol.lada_pb2_grpc import BoardServicer, add_BoardServicer_to_server
from lada_protocol.roster import Party, Roster
from lada_protocol.wire import (
    CHUNK_BYTES,
    MAX_FRAME_BYTES,
    MAX_REPLY_BYTES,
    MAX_WAIT_S,
    REASON_KEY,
    join_address,
    split_address,
)
from lada_secure.errors import (
    LadaError,
    LocalProtocolError,
    ParameterError,
    PeerError,
    TransportError,
)
from lada_server.limits import CallGate, PeerLimits
from lada_server.store import BoardStore

LOG = logging.getLogger(__name__)

SPARE_THREADS: Final = 8
_SIGNATURE_BYTES: Final = 64
_DIGEST_BYTES: Final = 32

_STATUS: Final = {
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "unknown_party": grpc.StatusCode.UNAUTHENTICATED,
    "bad_certificate": grpc.StatusCode.UNAUTHENTICATED,
    "expired": grpc.StatusCode.UNAUTHENTICATED,
    "bad_signature": grpc.StatusCode.UNAUTHENTICATED,
    "wrong_sender": grpc.StatusCode.PERMISSION_DENIED,
    "wrong_role": grpc.StatusCode.PERMISSION_DENIED,
    "wrong_roster": grpc.StatusCode.FAILED_PRECONDITION,
    "equivocation": grpc.StatusCode.ALREADY_EXISTS,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "rate_limited": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "too_large": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "quota": grpc.StatusCode.RESOURCE_EXHAUSTED,
}

_Result = TypeVar("_Result")


class RunningServer:
    """A listening board. Stop it with `stop`, or use it as a context."""

    def __init__(self, server: grpc.Server, store: BoardStore, host: str, port: int) -> None:
        self._server = server
        self._store = store
        self._host = host
        self._port = port
        self._stopped = threading.Event()

    @property
    def port(self) -> int:
        """The TCP port in use; the one chosen by the system where 0 was asked for."""
        return self._port

    @property
    def address(self) -> str:
        """host:port."""
        return join_address(self._host, self._port)

    def stop(self, grace_s: float = 1.0) -> None:
        """Take no more calls, let running ones end for `grace_s`, then cut them. Idempotent.

        The store stays open; it belongs to the caller.
        """
        if self._stopped.is_set():
            return
        self._stopped.set()
        done = self._server.stop(grace_s)
        self._store.wake()
        done.wait()

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_server(
    listen: str,
    *,
    credentials: Credentials,
    store: BoardStore,
    limits: PeerLimits | None = None,
) -> RunningServer:
    """Serve the board on `listen` ("host:port", "[::1]:port"; port 0 lets the system choose).

    Raises: ParameterError: the address cannot be read or used, the credentials are not those of
      the roster's coordinator.
    """
    host, port = split_address(listen)
    roster = store.roster
    if credentials.name.role is not Role.COORDINATOR:
        raise ParameterError(
            f"the identity folder is that of {credentials.name.uri}; a server needs the "
            "coordinator's"
        )
    credentials.check_roster(roster)
    limits = limits or PeerLimits()
    # Every party can use up its own calls without taking a thread from anyone else.
    threads = len(roster.parties) * limits.concurrent_calls + SPARE_THREADS
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=threads, thread_name_prefix="board"),
        options=_SERVER_OPTIONS,
        maximum_concurrent_rpcs=2 * threads,
    )
    gate = CallGate(limits, (party.id for party in roster.parties), time.monotonic)
    board = _Board(store, roster, gate)
    handlers = BoardServicer()
    handlers.Post, handlers.List, handlers.Fetch = board.post, board.list, board.fetch
    add_BoardServicer_to_server(handlers, server)
    tls = grpc.ssl_server_credentials(
        [(credentials.tls_key_pem, credentials.tls_certificate_pem)],
        root_certificates=credentials.ca_pem,
        require_client_auth=True,
    )
    _check_free(host, port)
    try:
        bound = server.add_secure_port(join_address(host, port), tls)
    except RuntimeError as error:
        raise _cannot_listen(listen, str(error)) from error
    if not bound:
        raise _cannot_listen(listen, "gRPC gave no port")
    server.start()
    LOG.info("board listens on %s:%d for %d parties", host, bound, len(roster.parties))
    return RunningServer(server, store, host, bound)


_SERVER_OPTIONS: Final = (
    # Without this a second coordinator would share the port silently and take half the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", max(MAX_FRAME_BYTES, MAX_REPLY_BYTES)),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.max_concurrent_streams", 16),
    ("grpc.server_handshake_timeout_ms", 20_000),
    # A peer whose network vanished is noticed within a minute.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


class _Board:
    """The three calls. Nothing but this class sees a gRPC context."""

    def __init__(self, store: BoardStore, roster: Roster, gate: CallGate) -> None:
        self._store = store
        self._roster = roster
        self._gate = gate

    def post(
        self, frames: Iterator[lada_pb2.PostFrame], context: grpc.ServicerContext
    ) -> lada_pb2.Receipt:
        """One message with its payload."""

        def answer(party: Party) -> lada_pb2.Receipt:
            envelope = self._opening(frames, party)
            sequence = self._store.receive(envelope, _chunks(frames, envelope))
            return lada_pb2.Receipt(
                sequence=sequence, message_sha256=bytes.fromhex(envelope.message_hash)
            )

        return self._answer(context, answer)

    def list(
        self, request: lada_pb2.ListRequest, context: grpc.ServicerContext
    ) -> lada_pb2.ListReply:
        """Messages after a sequence; waits for the first."""

        def answer(party: Party) -> lada_pb2.ListReply:
            # A caller that hangs up gives its thread back at once.
            context.add_callback(self._store.wake)
            found = self._store.entries(
                party.id,
                request.after_sequence,
                wait_s=min(request.wait_ms / 1000, MAX_WAIT_S),
                gone=lambda: not context.is_active(),
            )
            return lada_pb2.ListReply(
                entries=[
                    lada_pb2.Entry(
                        sequence=one.sequence, header=one.header_bytes, signature=one.signature
                    )
                    for one in found
                ]
            )

        return self._answer(context, answer)

    def fetch(
        self, request: lada_pb2.FetchRequest, context: grpc.ServicerContext
    ) -> Iterable[lada_pb2.Chunk]:
        """A payload from an offset on."""
        try:
            party = self._caller(context)
            with self._gate.call(party.id):
                if len(request.message_sha256) != _DIGEST_BYTES:
                    raise PeerError("message_sha256: expected 32 bytes", peer=party.id)
                offset = request.offset
                for data in self._store.payload_chunks(
                    request.message_sha256.hex(), reader=party.id, offset=offset
                ):
                    yield lada_pb2.Chunk(
                        offset=offset, data=data, sha256=hashlib.sha256(data).digest()
                    )
                    offset += len(data)
        except LadaError as error:
            _abort(context, error)

    def _answer(self, context: grpc.ServicerContext, answer: Callable[[Party], _Result]) -> _Result:
        try:
            party = self._caller(context)
            with self._gate.call(party.id):
                return answer(party)
        except LadaError as error:
            _abort(context, error)

    def _caller(self, context: grpc.ServicerContext) -> Party:
        """The roster's party whose certificate is on the other end of the connection."""
        shown = context.auth_context().get("x509_pem_cert")
        if not shown:
            raise PeerError("no client certificate was shown", reason="unauthenticated")
        certificate = parse_certificate(shown[0])
        party = self._roster.party_with_certificate(certificate_fingerprint(certificate))
        if certificate.not_valid_after_utc < datetime.now(UTC):
            # TLS checked this when the connection was made, which may be days ago.
            raise PeerError(
                f"certificate of {party.id} ended at {certificate.not_valid_after_utc}; issue a "
                "new one",
                reason="expired",
                peer=party.id,
            )
        return party

    def _opening(self, frames: Iterator[lada_pb2.PostFrame], party: Party) -> Envelope:
        frame = next(frames, None)
        if frame is None or frame.WhichOneof("frame") != "opening":
            raise PeerError("the first frame of a post must be its opening", peer=party.id)
        if len(frame.opening.signature) != _SIGNATURE_BYTES:
            raise PeerError("signature: expected 64 bytes", reason="bad_signature", peer=party.id)
        envelope = parse_envelope(
            frame.opening.header, frame.opening.signature, roster=self._roster
        )
        if envelope.header.sender != party.id:
            raise PeerError(
                f"message of {envelope.header.sender} was sent over the connection of {party.id}; "
                "every party posts its own messages",
                reason="wrong_sender",
                peer=party.id,
                round_id=envelope.header.round_id,
            )
        return envelope


def _chunks(frames: Iterator[lada_pb2.PostFrame], envelope: Envelope) -> Iterator[bytes]:
    """Check order, size and hash of every chunk, and that there is not one too many."""
    sender, offset = envelope.header.sender, 0
    for frame in frames:
        chunk = frame.chunk
        if frame.WhichOneof("frame") != "chunk" or chunk.offset != offset:
            raise PeerError(f"expected the chunk at offset {offset}", peer=sender)
        if not 0 < len(chunk.data) <= CHUNK_BYTES:
            raise PeerError(
                f"chunk of {len(chunk.data)} bytes, expected 1 to {CHUNK_BYTES}", peer=sender
            )
        if hashlib.sha256(chunk.data).digest() != chunk.sha256:
            raise PeerError(
                f"chunk at offset {offset} does not have the hash that it states",
                reason="payload_mismatch",
                peer=sender,
            )
        offset += len(chunk.data)
        yield chunk.data


def _abort(context: grpc.ServicerContext, error: LadaError) -> NoReturn:
    """End the call with a status that tells the caller what to do."""
    reason, status = error.code, grpc.StatusCode.INTERNAL
    if isinstance(error, PeerError):
        reason = error.reason
        status = _STATUS.get(reason, grpc.StatusCode.INVALID_ARGUMENT)
        LOG.warning("refused a call of %s: %s (%s)", error.peer or "an unknown peer", error, reason)
    elif isinstance(error, TransportError):
        # Our disk or database: the caller keeps its message and tries again.
        status = grpc.StatusCode.UNAVAILABLE
        LOG.error("a call failed: %s", error)
    context.set_trailing_metadata(((REASON_KEY, reason),))
    context.abort(status, _ascii(str(error)))
    raise LocalProtocolError("gRPC went on after a call was aborted")


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode("ascii")[:2000]


def _check_free(host: str, port: int) -> None:
    """Bind once before gRPC does: the system says why it refuses, gRPC only logs it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as trial:
            # As gRPC does: a port whose last connections are still closing counts as free.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen(1)
    except OSError as error:
        raise _cannot_listen(join_address(host, port), error.strerror or str(error)) from error


def _cannot_listen(listen: str, why: str) -> ParameterError:
    return ParameterError(
        f"cannot listen on {listen}: {why}; stop the process that uses the port, or choose "
        "another address in the settings"
    )
