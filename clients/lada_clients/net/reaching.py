"""Whether the coordinator can be reached from here, and what it proposes, for `lada check`.

The way is that of a run: proxy, TLS, and the certificate against the roster. The board is read at
most; no message is sent, and nothing is written here.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from lada_clients.net.connection import Endpoint, HungUp, NotNow, proxy_for, see_coordinator
from lada_clients.net.participant import Participant, joined_study
from lada_protocol.events import EventLog
from lada_protocol.identity.roster import Roster
from lada_protocol.party_files import DiallingSettings, LiveIdentity
from lada_protocol.plan import StudyPlan
from lada_protocol.wire.limits import join_address, split_address
from lada_secure.check.running import Found, fault, fine, unneeded, warn
from lada_secure.errors import TransportError

# Somebody waits for the answer, and the network has it at once or hardly at all.
_CONNECT_S: Final = 5.0
_PLAN_S: Final = 2.0


def coordinator_found(settings: DiallingSettings, roster: Roster) -> Iterator[Found]:
    """Dial the coordinator as the run will.

    Raises: ParameterError: no usable identity. TransportError: it is not this study's coordinator,
      it does not take us, or the environment names a proxy that cannot be used.
    """
    host, port = split_address(settings.coordinator)
    identity = LiveIdentity(
        settings.identity, party_id=settings.party, roster=roster, passphrase=settings.passphrase
    )
    transport = settings.transport
    quick = min(_CONNECT_S, transport.connect_timeout_s)
    endpoint = Endpoint(
        host=host,
        port=port,
        folder=settings.identity,
        identity=identity,
        roster=roster,
        settings=transport.model_copy(update={"connect_timeout_s": quick}),
    )
    proxy = proxy_for(host)
    through = "" if proxy is None else f", through the proxy {join_address(*proxy)}"
    try:
        see_coordinator(endpoint)
    except NotNow as error:
        yield _not_now(error, where=endpoint.address, direct=proxy is None)
        return
    yield fine(
        f"{roster.coordinator.id} at {endpoint.address}{through}: it answers, with the key of the "
        "roster",
        address=endpoint.address,
    )


@contextmanager
def proposed_study(settings: DiallingSettings, *, pinned: str) -> Iterator[Participant | None]:
    """The study that a coordinator which answers has proposed, to read it and leave; None where
    it has not yet.

    Args: pinned: hash of the roster that was agreed on.
    Raises: ParameterError: roster or identity are wrong. PeerError: a plan that cannot be read.
    """
    soon = settings.model_copy(update={"wait_s": _PLAN_S})
    nowhere = EventLog(party=settings.party, sink=lambda _: None, clock=time.time)
    with ExitStack() as left:
        participant = None
        # Here alone: what whoever reads the study then fails at is not that there is none.
        with suppress(TransportError):
            participant = left.enter_context(joined_study(soon, pinned=pinned, events=nowhere))
        yield participant


def proposed_plan(settings: DiallingSettings, *, pinned: str) -> StudyPlan | None:
    """The plan of the study that is proposed now. Args, Raises: see `proposed_study`."""
    with proposed_study(settings, pinned=pinned) as participant:
        return None if participant is None else participant.plan


def _not_now(error: NotNow, *, where: str, direct: bool) -> Found:
    """What it means that nobody answers: before a study begins, often nothing."""
    cause = error.__cause__
    if isinstance(error, HungUp):
        return warn(str(error))
    if not direct or isinstance(cause, socket.gaierror):
        return fault(str(error))
    if isinstance(cause, ConnectionRefusedError):
        return unneeded(
            f"nobody listens at {where} yet; look again when the coordinator runs, and at the "
            "address if it does"
        )
    return warn(str(error))
