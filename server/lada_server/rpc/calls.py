"""The four calls of the board, and who makes them. Nothing but this module sees a gRPC context.

The caller is the roster's party whose TLS key is on the other end of the connection; no field of
a request can say otherwise.

Faults of a caller end its call with a status, a text and the reason code in the trailing metadata
`lada-reason`; they never end anybody else's.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NoReturn

import grpc
from cryptography import x509

from lada_protocol.identity.certificates import key_fingerprint, parse_certificate, verify_party
from lada_protocol.identity.roster import Party
from lada_protocol.kinds import Role
from lada_protocol.party_files import LiveIdentity
from lada_protocol.wire import lada_pb2
from lada_protocol.wire.envelope import Envelope, parse_envelope
from lada_protocol.wire.limits import CHUNK_BYTES, REASON_KEY
from lada_protocol.wire.messages import check_body, check_told
from lada_secure.errors import LadaError, LocalProtocolError, PeerError, TransportError
from lada_server.board.store import BoardStore
from lada_server.board.uploads import Upload, Uploads
from lada_server.rpc.limits import CallGate

LOG = logging.getLogger(__name__)

_DIGEST_BYTES: Final = 32

# The coordinator works on its own board in its own process. Whoever dials with the coordinator's
# key is not it, so no method lets it in.
CALLING_ROLES: Final = frozenset({Role.SITE, Role.AUDITOR})

_REASONS: Final = {
    grpc.StatusCode.UNAUTHENTICATED: {
        "unauthenticated",
        "unknown_party",
        "bad_certificate",
        "expired",
        "revoked",
        "bad_signature",
    },
    grpc.StatusCode.PERMISSION_DENIED: {"wrong_sender", "wrong_role", "cut_off"},
    grpc.StatusCode.FAILED_PRECONDITION: {"wrong_roster"},
    grpc.StatusCode.ALREADY_EXISTS: {"equivocation"},
    grpc.StatusCode.NOT_FOUND: {"not_found"},
    grpc.StatusCode.ABORTED: {"superseded"},
    grpc.StatusCode.RESOURCE_EXHAUSTED: {"rate_limited", "too_large", "quota"},
}
_STATUS: Final = {reason: status for status, reasons in _REASONS.items() for reason in reasons}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A party and the certificate it showed. identity: ours, with the CA and what it revoked."""

    party: Party
    certificate: x509.Certificate
    identity: LiveIdentity

    def check(self) -> None:
        """Whether it may go on. TLS asked when the connection was made, perhaps days ago.

        Raises: PeerError: bad_certificate, expired, revoked.
        """
        verify_party(
            self.certificate,
            ca=self.identity.credentials().ca,
            at=datetime.now(UTC),
            usage="tls",
            expected=self.party.name,
        )
        listed = self.identity.revocations()
        if listed is not None:
            listed.check(self.certificate, holder=self.party.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardCalls:
    """Answers the calls of one board."""

    store: BoardStore
    identity: LiveIdentity
    gate: CallGate
    uploads: Uploads

    def post(
        self, frames: Iterator[lada_pb2.PostFrame], context: grpc.ServicerContext
    ) -> lada_pb2.Receipt:
        """One message with its payload, or the rest of it."""
        with self._call(context, "Post") as caller:
            envelope = self._opening(frames, caller)
            sequence = self.store.admit(envelope)
            if envelope.header.payload_bytes > CHUNK_BYTES:
                with self.uploads.begin(caller.party.id, envelope) as upload:
                    if sequence is None:
                        sequence = self._take_in(upload, envelope, frames, caller, context)
                    upload.discard()
            elif sequence is None:
                chunks = self._chunks(frames, caller, envelope)
                sequence = self.store.post(envelope, b"".join(data for _, data in chunks))
            return lada_pb2.Receipt(
                sequence=sequence, message_sha256=bytes.fromhex(envelope.message_hash)
            )

    def progress(
        self, request: lada_pb2.ProgressRequest, context: grpc.ServicerContext
    ) -> lada_pb2.ProgressReply:
        """How much of a payload of the caller's has arrived."""
        with self._call(context, "Progress") as caller:
            message_hash = _message_hash(request.message_sha256, caller)
            try:
                self.store.payload_chunks(message_hash, reader=caller.party.id, offset=0)
            except PeerError:
                arrived = self.uploads.progress(caller.party.id, message_hash)
                return lada_pb2.ProgressReply(on_board=False, offset=arrived)
            return lada_pb2.ProgressReply(on_board=True)

    def list(
        self, request: lada_pb2.ListRequest, context: grpc.ServicerContext
    ) -> lada_pb2.ListReply:
        """Messages after a sequence; waits for the first."""
        with self._call(context, "List") as caller:

            def gone() -> bool:
                # Revoked while it waited: it gets the reason and not the messages.
                caller.check()
                return not context.is_active()

            # A caller that hangs up gives its thread back at once.
            context.add_callback(self.store.wake)
            found = self.store.entries(
                caller.party.id, request.after_sequence, wait_s=request.wait_ms / 1000, gone=gone
            )
            caller.check()
            entries = [
                lada_pb2.Entry(
                    sequence=entry.sequence, header=entry.header_bytes, signature=entry.signature
                )
                for entry in found
            ]
            return lada_pb2.ListReply(entries=entries)

    def fetch(
        self, request: lada_pb2.FetchRequest, context: grpc.ServicerContext
    ) -> Iterable[lada_pb2.Chunk]:
        """A payload from an offset on."""
        with self._call(context, "Fetch") as caller:
            message_hash, offset = _message_hash(request.message_sha256, caller), request.offset
            chunks = self.store.payload_chunks(message_hash, reader=caller.party.id, offset=offset)
            for data in chunks:
                caller.check()
                self._account(caller, down_bytes=len(data))
                yield lada_pb2.Chunk(offset=offset, data=data, sha256=hashlib.sha256(data).digest())
                offset += len(data)

    @contextmanager
    def _call(self, context: grpc.ServicerContext, method: str) -> Iterator[Caller]:
        """One call of one party, within its limits; an error of ours ends it with a status."""
        try:
            caller = self._caller(context, method)
            with self.gate.call(caller.party.id):
                yield caller
        except LadaError as error:
            self._abort(context, error)

    def _caller(self, context: grpc.ServicerContext, method: str) -> Caller:
        """The caller of a method.

        Raises: PeerError: no certificate (unauthenticated), a key that is not in the roster
          (unknown_party), a certificate for another name (bad_certificate), out of its period
          (expired), taken back (revoked), or of a role that may not call this (wrong_role).
        """
        shown = context.auth_context().get("x509_pem_cert")
        if not shown:
            raise PeerError("no client certificate was shown", reason="unauthenticated")
        certificate = parse_certificate(shown[0])
        party = self.store.roster.party_with_tls_key(key_fingerprint(certificate))
        caller = Caller(party=party, certificate=certificate, identity=self.identity)
        caller.check()
        if party.role not in CALLING_ROLES:
            raise PeerError(
                f"a {party.role} may not call {method}", reason="wrong_role", peer=party.id
            )
        return caller

    def _opening(self, frames: Iterator[lada_pb2.PostFrame], caller: Caller) -> Envelope:
        party, frame = caller.party, next(frames, None)
        if frame is None or frame.WhichOneof("frame") != "opening":
            raise PeerError("the first frame of a post must be its opening", peer=party.id)
        envelope = parse_envelope(
            frame.opening.header, frame.opening.signature, roster=self.store.roster
        )
        if envelope.header.sender != party.id:
            raise PeerError(
                f"message of {envelope.header.sender} was sent over the connection of {party.id}; "
                "every party posts its own messages",
                reason="wrong_sender",
                peer=party.id,
                round_id=envelope.header.round_id,
            )
        # Before it is on the board: one unreadable message there stops whoever reads it.
        check_body(envelope)
        check_told(envelope, auditor=self.store.roster.auditor.id)
        return envelope

    def _take_in(
        self,
        upload: Upload,
        envelope: Envelope,
        frames: Iterator[lada_pb2.PostFrame],
        caller: Caller,
        context: grpc.ServicerContext,
    ) -> int:
        """The rest of a payload of more than one chunk, which may come in several posts."""
        for offset, data in self._chunks(frames, caller, envelope, after=upload.received_bytes):
            upload.write(offset, data)
        arrived, announced = upload.received_bytes, envelope.header.payload_bytes
        if arrived < announced:
            if not context.is_active():
                raise TransportError(
                    f"the connection of {caller.party.id} broke after {arrived} bytes"
                )
            # A link that breaks can look like a stream that ended early, so a part that is merely
            # too short is kept for the next post.
            raise envelope.fault(
                f"{envelope.kind} of {caller.party.id}: header announces {announced} bytes, got "
                f"{arrived}",
                reason="payload_mismatch",
            )
        return self.store.receive(envelope, upload.move)

    def _chunks(
        self,
        frames: Iterator[lada_pb2.PostFrame],
        caller: Caller,
        envelope: Envelope,
        *,
        after: int = 0,
    ) -> Iterator[tuple[int, bytes]]:
        """Offset and data of every chunk, in order, each as its hash says.

        The first chunk begins at 0, or where the ones of an earlier post ended (`after`).
        """
        header, expected = envelope.header, {0, after}
        for frame in frames:
            chunk = frame.chunk
            caller.check()
            if frame.WhichOneof("frame") != "chunk" or chunk.offset not in expected:
                raise envelope.fault(f"expected the chunk at offset {max(expected)}")
            if not 0 < len(chunk.data) <= CHUNK_BYTES:
                raise envelope.fault(
                    f"chunk of {len(chunk.data)} bytes, expected 1 to {CHUNK_BYTES}"
                )
            if hashlib.sha256(chunk.data).digest() != chunk.sha256:
                raise envelope.fault(
                    f"chunk at offset {chunk.offset} does not have the hash that it states",
                    reason="payload_mismatch",
                )
            end = chunk.offset + len(chunk.data)
            if end > header.payload_bytes:
                raise envelope.fault(
                    f"{header.kind} of {header.sender}: payload is longer than the "
                    f"{header.payload_bytes} bytes that its header announces",
                    reason="too_large",
                )
            expected = {end}
            self._account(caller, up_bytes=len(chunk.data))
            yield chunk.offset, chunk.data

    def _account(self, caller: Caller, *, up_bytes: int = 0, down_bytes: int = 0) -> None:
        pause_s = self.gate.moved(caller.party.id, up_bytes=up_bytes, down_bytes=down_bytes)
        if pause_s > 0:
            # In the party's own thread: HTTP/2 flow control passes the pause on to its sender.
            time.sleep(pause_s)

    def _abort(self, context: grpc.ServicerContext, error: LadaError) -> NoReturn:
        """End the call with a status that tells the caller what to do."""
        reason, status = error.code, grpc.StatusCode.INTERNAL
        if isinstance(error, PeerError):
            reason = error.reason
            status = _STATUS.get(reason, grpc.StatusCode.INVALID_ARGUMENT)
            self.gate.refused(error.peer, reason)
            LOG.warning(
                "refused a call of %s: %s (%s)",
                error.peer or "an unknown peer",
                error,
                reason,
                extra={"peer": error.peer, "reason": reason},
            )
        elif isinstance(error, TransportError):
            # Our disk or database: the caller keeps its message and tries again.
            status = grpc.StatusCode.UNAVAILABLE
            LOG.error("a call failed: %s", error, extra={"reason": reason})
        context.set_trailing_metadata(((REASON_KEY, reason),))
        context.abort(status, _ascii(str(error)))
        raise LocalProtocolError("gRPC went on after a call was aborted")


def _message_hash(digest: bytes, caller: Caller) -> str:
    if len(digest) != _DIGEST_BYTES:
        raise PeerError("message_sha256: expected 32 bytes", peer=caller.party.id)
    return digest.hex()


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode("ascii")[:2000]
