"""Serves the board over gRPC: one port, mutual TLS, certificates renewed while it runs."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from lada_protocol.identity.credentials import Credentials
from lada_protocol.kinds import Role
from lada_protocol.party_files import LiveIdentity
from lada_protocol.wire.lada_pb2_grpc import BoardServicer, add_BoardServicer_to_server
from lada_protocol.wire.limits import (
    MAX_FRAME_BYTES,
    MAX_REPLY_BYTES,
    WINDOW_BYTES,
    join_address,
    split_address,
)
from lada_protocol.wire.transport_settings import TransportSettings
from lada_secure.errors import ParameterError
from lada_server.board.store import BoardStore
from lada_server.board.uploads import Uploads
from lada_server.rpc.calls import BoardCalls
from lada_server.rpc.limits import CallGate

LOG = logging.getLogger(__name__)

SPARE_THREADS: Final = 8
# Connections of parties that come back from a broken link, before the old ones are given up.
CONNECTIONS_PER_PARTY: Final = 8
SPARE_CONNECTIONS: Final = 32
# How soon open calls learn that their caller was revoked.
WATCH_INTERVAL_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """A listening board. End it with `stop`.

    port: the TCP port in use; the one chosen by the system where 0 was asked for.
    """

    server: grpc.Server
    store: BoardStore
    identity: LiveIdentity
    gate: CallGate
    host: str
    port: int
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> str:
        """host:port."""
        return join_address(self.host, self.port)

    def stop(self, grace_s: float = 1.0) -> None:
        """Take no more calls, let running ones end for `grace_s`, then cut them. Idempotent.

        The store stays open; it belongs to the caller.
        """
        if self.stopped.is_set():
            return
        self.stopped.set()
        done = self.server.stop(grace_s)
        self.store.wake()
        done.wait()


def start_server(
    listen: str,
    *,
    identity: LiveIdentity,
    store: BoardStore,
    upload_dir: Path,
    settings: TransportSettings | None = None,
) -> RunningServer:
    """Serve the board on `listen` ("host:port", "[::1]:port"; port 0 lets the system choose).

    Args: upload_dir: folder of unfinished uploads, this server's alone.
    Raises: ParameterError: the address cannot be read or used, the identity is not that of the
      roster's coordinator.
    """
    host, port = split_address(listen)
    roster, settings = store.roster, settings or TransportSettings()
    credentials = identity.credentials()
    if credentials.name.role is not Role.COORDINATOR:
        raise ParameterError(
            f"the identity folder is that of {credentials.name.uri}; a server needs the "
            "coordinator's"
        )
    # Every party can use up its own calls without taking a thread from anyone else.
    threads = len(roster.parties) * settings.concurrent_calls + SPARE_THREADS
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=threads, thread_name_prefix="board"),
        options=_options(settings, len(roster.parties)),
        maximum_concurrent_rpcs=2 * threads,
    )
    names = [party.id for party in roster.parties]
    gate = CallGate(settings, names)
    calls = BoardCalls(store=store, identity=identity, gate=gate, uploads=Uploads(upload_dir))
    handlers = BoardServicer()
    handlers.Post, handlers.Progress = calls.post, calls.progress
    handlers.List, handlers.Fetch = calls.list, calls.fetch
    add_BoardServicer_to_server(handlers, server)
    check_free(host, port)
    try:
        bound = server.add_secure_port(join_address(host, port), _tls(identity))
    except RuntimeError as error:
        raise _cannot_listen(listen, str(error)) from error
    if not bound:
        raise _cannot_listen(listen, "gRPC gave no port")
    server.start()
    running = RunningServer(
        server=server, store=store, identity=identity, gate=gate, host=host, port=bound
    )
    threading.Thread(target=_watch, args=(running,), name="identity", daemon=True).start()
    LOG.info(
        "board listens on %s:%d for %d parties", host, bound, len(names), extra={"port": bound}
    )
    return running


def _tls(identity: LiveIdentity) -> grpc.ServerCredentials:
    """Credentials that gRPC asks for again at every handshake."""
    used = identity.credentials()

    def configuration(credentials: Credentials) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(credentials.tls_key_pem, credentials.tls_certificate_pem)],
            root_certificates=credentials.ca_pem,
        )

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        newest = identity.credentials()
        if newest is used:
            return None
        used = newest
        ends = newest.tls_certificate.not_valid_after_utc
        LOG.info("serves with a new certificate, valid until %s UTC", f"{ends:%Y-%m-%d %H:%M}")
        return configuration(newest)

    return grpc.dynamic_ssl_server_credentials(
        configuration(used), renewed, require_client_authentication=True
    )


def _watch(running: RunningServer) -> None:
    """Wake waiting calls when a certificate is revoked, so that each asks whether it may go on."""
    known = running.identity.revocations()
    while not running.stopped.wait(WATCH_INTERVAL_S):
        newest = running.identity.revocations()
        if newest is not known and newest is not None:
            known = newest
            LOG.warning(
                "revocation list %d with %d certificates is in force",
                newest.number,
                len(newest.revoked),
            )
            running.store.wake()


def _options(settings: TransportSettings, parties: int) -> list[tuple[str, int]]:
    return [
        # Without this a second coordinator would share the port silently and take half the calls.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
        ("grpc.max_send_message_length", max(MAX_FRAME_BYTES, MAX_REPLY_BYTES)),
        ("grpc.max_metadata_size", 8 * 1024),
        # A fixed window; by default gRPC lets it grow with the link, and memory with it.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.max_concurrent_streams", 16),
        (
            "grpc.max_allowed_incoming_connections",
            CONNECTIONS_PER_PARTY * parties + SPARE_CONNECTIONS,
        ),
        ("grpc.server_handshake_timeout_ms", round(settings.connect_timeout_s * 1000)),
        # A peer whose network vanished is noticed after interval and timeout.
        ("grpc.keepalive_time_ms", round(settings.keepalive_interval_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(settings.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ]


def check_free(host: str, port: int) -> None:
    """Bind once before gRPC does: the system says why it refuses, gRPC only logs it.

    Raises: ParameterError: the port is taken, or the address is not this machine's.
    """
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
        why = error.strerror or str(error)
        raise _cannot_listen(
            join_address(host, port), why, taken=error.errno == errno.EADDRINUSE
        ) from error


def _cannot_listen(listen: str, why: str, *, taken: bool = False) -> ParameterError:
    first = "stop the process that uses the port, or " if taken else ""
    return ParameterError(
        f"cannot listen on {listen}: {why}; {first}choose another address in the settings"
    )
