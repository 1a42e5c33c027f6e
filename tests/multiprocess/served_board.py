"""A served board for tests: real store, real port, clients of every party."""

import hashlib
import logging
from contextlib import contextmanager

import grpc
import pytest

from lada_clients.net.transport import LOG, BoardClient
from lada_protocol.identity.certificates import role_host
from lada_protocol.kinds import Role
from lada_protocol.party_files import LiveIdentity
from lada_protocol.wire import lada_pb2
from lada_protocol.wire.lada_pb2_grpc import BoardStub
from lada_protocol.wire.limits import REASON_KEY
from lada_server.board.store import BoardStore
from lada_server.rpc.service import start_server

HOSTS = ("localhost", "127.0.0.1")
COORDINATOR_HOST = role_host(Role.COORDINATOR)
FIVE_MB = bytes(range(256)) * (5 * 4096)


def coordinator_identity(study, folder=None):
    """What the coordinator serves with; from another folder where one is given."""
    return LiveIdentity(
        folder or study.identity("coordinator"), party_id="coordinator", roster=study.roster
    )


class Served:
    """A board, its server, and clients of every party."""

    def __init__(self, study, folder, *, listen="127.0.0.1:0", settings=None, database=None):
        self.study = study
        self.store = BoardStore(
            database or f"sqlite:///{folder / 'board.sqlite'}",
            payload_dir=folder / "payloads",
            roster=study.roster,
        )
        self.server = start_server(
            listen,
            identity=coordinator_identity(study),
            store=self.store,
            upload_dir=folder / "uploads",
            settings=settings,
        )

    def client(self, party, **options):
        return BoardClient(
            self.server.address,
            identity=self.study.identity(party),
            roster=self.study.roster,
            party_id=party,
            patience_s=options.pop("patience_s", 5.0),
            **options,
        )

    def stop(self):
        self.server.stop()
        self.store.close()


@contextmanager
def serving(study, folder, **options):
    served = Served(study, folder, **options)
    try:
        yield served
    finally:
        served.stop()


@contextmanager
def told_waits(react=lambda: None):
    """Why calls of any client wait, as its log says it, before each pause."""
    told = []

    def note(record):
        if "waits since" in record.msg:
            told.append(record.getMessage())
            react()
        return True

    level = LOG.level
    LOG.setLevel(logging.INFO)
    LOG.addFilter(note)
    try:
        yield told
    finally:
        LOG.removeFilter(note)
        LOG.setLevel(level)


@contextmanager
def raw_stub(served, identity, ca):
    """Calls without our client's own checks, with any certificate; None for none at all."""
    key = chain = None
    if identity is not None:
        key, chain = ((identity / name).read_bytes() for name in ("tls.key", "tls.crt"))
    credentials = grpc.ssl_channel_credentials((ca / "ca.crt").read_bytes(), key, chain)
    options = [("grpc.ssl_target_name_override", COORDINATOR_HOST)]
    with grpc.secure_channel(served.server.address, credentials, options) as channel:
        yield BoardStub(channel)


def refusal(call):
    with pytest.raises(grpc.RpcError) as refused:
        call()
    metadata = dict(refused.value.trailing_metadata() or ())
    return refused.value.code(), metadata.get(REASON_KEY)


def opening(envelope):
    return lada_pb2.PostFrame(
        opening=lada_pb2.Opening(header=envelope.header_bytes, signature=envelope.signature)
    )


def chunk(data, offset=0, digest=None):
    return lada_pb2.PostFrame(
        chunk=lada_pb2.Chunk(
            offset=offset, data=data, sha256=digest or hashlib.sha256(data).digest()
        )
    )
