"""Who calls: the party behind a connection, whether it is still welcome, and its role.

The caller is the roster's party whose TLS key is on the other end of the connection; no field of
a request can say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import grpc
from cryptography import x509

from lada_protocol.identity.certificates import key_fingerprint, parse_certificate, verify_party
from lada_protocol.identity.roster import Party, Roster
from lada_protocol.kinds import Role
from lada_protocol.party_files import LiveIdentity
from lada_secure.errors import PeerError

# The coordinator works on its own board in its own process. Whoever dials with the coordinator's
# key is not it, so no method lets it in.
CALLING_ROLES: Final = frozenset({Role.SITE, Role.AUDITOR})


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A party and the certificate it showed."""

    party: Party
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Callers:
    """Decides who may call.

    Args: identity: ours, with the CA and what it has revoked. clock: aware UTC time.
    """

    roster: Roster
    identity: LiveIdentity
    clock: Callable[[], datetime]

    def identify(self, context: grpc.ServicerContext, method: str) -> Caller:
        """The caller of a method.

        Raises: PeerError: no certificate (unauthenticated), a key that is not in the roster
          (unknown_party), a certificate for another name (bad_certificate), out of its period
          (expired), taken back (revoked), or of a role that may not call this (wrong_role).
        """
        shown = context.auth_context().get("x509_pem_cert")
        if not shown:
            raise PeerError("no client certificate was shown", reason="unauthenticated")
        certificate = parse_certificate(shown[0])
        party = self.roster.party_with_tls_key(key_fingerprint(certificate))
        caller = Caller(party=party, certificate=certificate)
        self.check(caller)
        if party.role not in CALLING_ROLES:
            raise PeerError(
                f"a {party.role} may not call {method}", reason="wrong_role", peer=party.id
            )
        return caller

    def check(self, caller: Caller) -> None:
        """Whether a caller may go on. TLS asked when the connection was made, perhaps days ago.

        Raises: PeerError: bad_certificate, expired, revoked.
        """
        verify_party(
            caller.certificate,
            ca=self.identity.credentials().ca,
            at=self.clock(),
            usage="tls",
            expected=caller.party.name,
        )
        listed = self.identity.revocations()
        if listed is not None:
            listed.check(caller.certificate, holder=caller.party.id)

    def welcome(self, caller: Caller) -> bool:
        """`check` as a question."""
        try:
            self.check(caller)
        except PeerError:
            return False
        return True
