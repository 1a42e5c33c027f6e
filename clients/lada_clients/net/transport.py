"""A site's or the auditor's end of the board: post, list, fetch; retries and byte counts.

Everything foreign (sockets, TLS, gRPC) ends here and comes out as `TransportError`.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Final, TypeAlias, TypeVar

import grpc

from lada_clients.net.connection import BackOff, Endpoint, NotNow, open_channel
from lada_protocol.identity.certificates import RevocationList
from lada_protocol.identity.credentials import Credentials, Passphrase
from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import may_read
from lada_protocol.party_files import LiveIdentity
from lada_protocol.run_loop import ByteCounts
from lada_protocol.wire import lada_pb2
from lada_protocol.wire.envelope import Envelope, parse_envelope
from lada_protocol.wire.lada_pb2_grpc import BoardStub
from lada_protocol.wire.limits import CHUNK_BYTES, MAX_WAIT_S, REASON_KEY, split_address
from lada_protocol.wire.transport_settings import TransportSettings
from lada_secure.errors import LocalProtocolError, ParameterError, PeerError, TransportError

LOG = logging.getLogger(__name__)

# Refusals of a certificate that a renewed one may end.
_CERTIFICATE: Final = frozenset({"expired", "revoked", "bad_certificate"})
_RETRIED: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)

Messages: TypeAlias = list[tuple[int, Envelope]]
_Standing: TypeAlias = tuple[Credentials, RevocationList | None]
_Result = TypeVar("_Result")


class RefusedByBoard(TransportError):
    """The coordinator refused a call; trying again would not help. `reason` is its code."""

    code: ClassVar[str] = "refused"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class BoardClient:
    """Connection of one party to the coordinator's board, for one thread at a time.

    The first call connects; a lost connection is made again, with the certificate that lies in
    the identity folder by then. A call that cannot get through is repeated, with growing pauses,
    until nothing has moved for `patience_s`; every request is idempotent, and a payload goes on
    where it stopped.

    Args: address: host:port of the coordinator. identity: folder with our certificates and keys.
      party_id: who we are. patience_s: how long one call waits for a coordinator that is not
      there. passphrase: of encrypted keys. settings: of the connection.
    Raises: ParameterError: the address or the identity folder is wrong, or the roster does not
      list us with these certificates.
    """

    def __init__(
        self,
        address: str,
        *,
        identity: Path,
        roster: Roster,
        party_id: str,
        patience_s: float = 600.0,
        passphrase: Passphrase | None = None,
        settings: TransportSettings | None = None,
    ) -> None:
        host, port = split_address(address)
        if not patience_s >= 0:
            raise ParameterError(f"patience_s: expected 0 or more seconds, got {patience_s}")
        self._endpoint = Endpoint(
            host=host,
            port=port,
            folder=identity,
            identity=LiveIdentity(
                identity, party_id=party_id, roster=roster, passphrase=passphrase
            ),
            roster=roster,
            settings=settings or TransportSettings(),
        )
        self._party = roster.party(party_id)
        self._patience_s = patience_s
        self._channel: grpc.Channel | None = None
        self._opened_with: _Standing | None = None
        self._was_served = False
        # gRPC takes the pieces of a payload in a thread of its own.
        self._counting = threading.Lock()
        self._traffic = ByteCounts(up_bytes=0, down_bytes=0)

    def __enter__(self) -> BoardClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection. Idempotent."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    @property
    def traffic(self) -> ByteCounts:
        """Bytes sent and received so far, repetitions included."""
        return self._traffic

    def post(
        self, envelope: Envelope, payload: bytes = b"", *, patience_s: float = math.inf
    ) -> int:
        """Put our message on the board; returns its sequence. Posting it again is harmless.

        patience_s: where it is less than the client's own.

        Raises: LocalProtocolError: the message is not ours, or the payload not the announced one.
          RefusedByBoard: e.g. reason "equivocation". TransportError: no connection.
        """
        header = envelope.header
        if header.sender != self._party.id:
            raise LocalProtocolError(f"{self._party.id} posts a message of {header.sender}")
        if (
            len(payload) != header.payload_bytes
            or hashlib.sha256(payload).hexdigest() != header.payload_sha256
        ):
            raise LocalProtocolError(
                f"{header.kind}: payload of {len(payload)} bytes is not the one in the header"
            )

        arrived = 0

        def call(stub: BoardStub) -> int:
            nonlocal arrived
            arrived = self._arrived(stub, envelope, payload)
            receipt: lada_pb2.Receipt = stub.Post(self._frames(envelope, payload, arrived))
            if receipt.message_sha256.hex() != envelope.message_hash:
                raise self._coordinator_fault(
                    f"receipt for {header.kind} names another message",
                    reason="bad_receipt",
                    round_id=header.round_id,
                )
            return int(receipt.sequence)

        what = f"post {header.kind}"
        try:
            return self._repeat(what, call, lambda: arrived, patience_s=patience_s)
        except RefusedByBoard as error:
            if error.reason != "payload_mismatch" or arrived == 0:
                raise
            # What had arrived earlier was damaged there, as by a power cut, and is dropped by now.
            LOG.warning("%s starts over: %s", what, error)
            return self._repeat(what, call, lambda: arrived, patience_s=patience_s)

    def list(self, after: int, *, wait_s: float = 0.0, patience_s: float = math.inf) -> Messages:
        """Messages for us with a sequence above `after`, in order, signatures checked.

        Waits up to `wait_s` (at most 20 s) for the first. A long list comes in parts: ask again
        after the last sequence until nothing comes. The board takes `after` for what we have read.
        patience_s: where it is less than the client's own.

        Raises: PeerError: the board shows a message that is malformed, forged, not for us, or out
          of order. TransportError: no connection.
        """
        wait_s = min(max(wait_s, 0.0), MAX_WAIT_S)
        request = lada_pb2.ListRequest(after_sequence=after, wait_ms=round(wait_s * 1000))
        deadline_s = wait_s + self._endpoint.settings.answer_timeout_s

        def call(stub: BoardStub) -> Messages:
            reply: lada_pb2.ListReply = stub.List(request, timeout=deadline_s)
            return self._entries(reply, after)

        return self._repeat("list messages", call, patience_s=patience_s)

    def fetch(self, envelope: Envelope) -> bytes:
        """The payload of a message from the board, with the length and hash of its header.

        A broken download goes on where it stopped.

        Raises: PeerError: the board sends other bytes than the sender signed (reason
          "payload_mismatch"). RefusedByBoard, TransportError: as for `post`.
        """
        header = envelope.header
        if header.payload_bytes > envelope.kind.rules.max_payload_bytes:
            raise envelope.fault(
                f"{header.kind} of {header.sender} announces {header.payload_bytes} bytes",
                reason="too_large",
            )
        received, digest = io.BytesIO(), hashlib.sha256()

        def call(stub: BoardStub) -> None:
            request = lada_pb2.FetchRequest(
                message_sha256=bytes.fromhex(envelope.message_hash), offset=received.tell()
            )
            chunks = stub.Fetch(request)
            try:
                for chunk in chunks:
                    self._check_chunk(chunk, received.tell(), header.payload_bytes)
                    received.write(chunk.data)
                    digest.update(chunk.data)
            finally:
                chunks.cancel()

        if header.payload_bytes > 0:
            self._repeat(f"fetch {header.kind}", call, received.tell)
        if received.tell() != header.payload_bytes or digest.hexdigest() != header.payload_sha256:
            raise self._damaged(f"payload of {header.kind} is not the one that was signed")
        # Shares the buffer: a payload is in memory once.
        return received.getvalue()

    def _arrived(self, stub: BoardStub, envelope: Envelope, payload: bytes) -> int:
        """How much of a payload the coordinator has, from an earlier try or an earlier process."""
        if len(payload) <= CHUNK_BYTES:
            return 0
        reply: lada_pb2.ProgressReply = stub.Progress(
            lada_pb2.ProgressRequest(message_sha256=bytes.fromhex(envelope.message_hash)),
            timeout=self._endpoint.settings.answer_timeout_s,
        )
        return len(payload) if reply.on_board else min(int(reply.offset), len(payload))

    def _frames(
        self, envelope: Envelope, payload: bytes, arrived: int
    ) -> Iterator[lada_pb2.PostFrame]:
        opening = lada_pb2.Opening(header=envelope.header_bytes, signature=envelope.signature)
        self._count(up=len(envelope.header_bytes) + len(envelope.signature))
        yield lada_pb2.PostFrame(opening=opening)
        for offset in range(arrived, len(payload), CHUNK_BYTES):
            data = payload[offset : offset + CHUNK_BYTES]
            self._count(up=len(data))
            yield lada_pb2.PostFrame(
                chunk=lada_pb2.Chunk(offset=offset, data=data, sha256=hashlib.sha256(data).digest())
            )

    def _entries(self, reply: lada_pb2.ListReply, after: int) -> Messages:
        found: Messages = []
        for entry in reply.entries:
            self._count(down=len(entry.header) + len(entry.signature))
            envelope = parse_envelope(entry.header, entry.signature, roster=self._endpoint.roster)
            header = envelope.header
            allowed = may_read(
                kind=envelope.kind,
                sender=header.sender,
                to=header.to,
                reader=self._party.id,
                role=self._party.role,
            )
            if entry.sequence <= after or not allowed:
                raise self._coordinator_fault(
                    f"the board shows {header.kind} of {header.sender} out of order or to the "
                    "wrong party",
                    reason="bad_list",
                    round_id=header.round_id,
                )
            after = entry.sequence
            found.append((after, envelope))
        return found

    def _check_chunk(self, chunk: lada_pb2.Chunk, offset: int, size: int) -> None:
        self._count(down=len(chunk.data))
        if (
            chunk.offset != offset
            or not 0 < len(chunk.data) <= CHUNK_BYTES
            or offset + len(chunk.data) > size
            or hashlib.sha256(chunk.data).digest() != chunk.sha256
        ):
            raise self._damaged(
                f"chunk at offset {chunk.offset} does not fit after {offset} of {size} bytes"
            )

    def _damaged(self, what: str) -> PeerError:
        what = f"{what}; the coordinator's store is damaged or somebody changed it"
        return self._coordinator_fault(what, reason="payload_mismatch")

    def _coordinator_fault(
        self, what: str, *, reason: str, round_id: int | None = None
    ) -> PeerError:
        peer = self._endpoint.roster.coordinator.id
        return PeerError(what, reason=reason, peer=peer, round_id=round_id)

    def _repeat(
        self,
        what: str,
        call: Callable[[BoardStub], _Result],
        moved: Callable[[], int] = lambda: 0,
        *,
        patience_s: float = math.inf,
    ) -> _Result:
        """Repeat a call until it gets through, or until nothing `moved` for our patience."""
        back_off = BackOff(
            what=what,
            patience_s=min(self._patience_s, patience_s),
            longest_pause_s=self._endpoint.settings.longest_pause_s,
            clock=time.monotonic,
            known_there=self._was_served,
        )
        while True:
            try:
                result = self._attempt(call)
                self._was_served = True
                return result
            except NotNow as error:
                fault = error
            pause_s = back_off.pause_s(fault, moved=moved())
            LOG.info("%s waits since %.1f s: %s", what, back_off.since_s, fault)
            time.sleep(pause_s)

    def _attempt(self, call: Callable[[BoardStub], _Result]) -> _Result:
        channel = self._connected()
        try:
            return call(BoardStub(channel))
        except grpc.RpcError as error:
            renewed = _reason(error) in _CERTIFICATE and self._standing() != self._opened_with
            if error.code() in _RETRIED or renewed:
                # A new connection is diagnosed from the start, see `connection.py`.
                self.close()
            if renewed:
                raise NotNow(f"our certificate was renewed: {error.details()}") from error
            raise self._fault(error) from error

    def _connected(self) -> grpc.Channel:
        standing = self._standing()
        if self._channel is None or standing != self._opened_with:
            self.close()
            self._channel, self._opened_with = open_channel(self._endpoint), standing
        return self._channel

    def _standing(self) -> _Standing:
        """What a connection rests on: where it changes, the next call makes a new one."""
        identity = self._endpoint.identity
        return identity.credentials(), identity.revocations()

    def _fault(self, error: grpc.RpcError) -> TransportError:
        """Turn a failed call into our own error; NotNow where repeating it may help."""
        where = f"coordinator at {self._endpoint.address}"
        status, text = error.code(), error.details() or "no details"
        reason = _reason(error)
        if reason in ("superseded", "rate_limited") or (
            status in _RETRIED and reason in (None, "transport")
        ):
            return NotNow(f"{where}: {text}")
        if reason is not None:
            return RefusedByBoard(f"{where} refused: {text}", reason=reason)
        return TransportError(f"{where}: {status.name.lower()}: {text}")

    def _count(self, *, up: int = 0, down: int = 0) -> None:
        with self._counting:
            so_far = self._traffic
            self._traffic = ByteCounts(so_far.up_bytes + up, so_far.down_bytes + down)


def _reason(error: grpc.RpcError) -> str | None:
    return dict(error.trailing_metadata() or ()).get(REASON_KEY)
