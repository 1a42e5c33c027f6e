"""What a study CA does: issue, renew and revoke certificates, and make the roster of a study.

Only whoever runs a study's CA uses this; parties get the folder that is written for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from lada_clients.ca.folder import (
    CA_KEY,
    CaFolder,
    check_absent,
    read_certificate,
    read_file,
    write_new_files,
)
from lada_protocol.identity.certificates import (
    PartyName,
    certificate_pem,
    verify_certificate,
    verify_party,
)
from lada_protocol.identity.credentials import (
    CA_CERTIFICATE,
    REVOCATIONS,
    SIGNING_CERTIFICATE,
    SIGNING_KEY,
    TLS_CERTIFICATE,
    TLS_KEY,
    Passphrase,
    private_key_pem,
)
from lada_protocol.identity.enrolment import (
    MAX_REQUEST_BYTES,
    SIGNING_REQUEST,
    TLS_REQUEST,
    parse_requests,
)
from lada_protocol.identity.issuance import (
    build_ca_certificate,
    issue_signing_certificate,
    issue_tls_certificate,
)
from lada_protocol.identity.revocation import build_revocation_list
from lada_protocol.identity.roster import Party, Roster, build_roster, party_of_certificates
from lada_secure.errors import ParameterError, PeerError
from lada_secure.storage.whole_files import write_atomically

# Clocks of two machines differ; a certificate must not be refused in its first minutes.
CLOCK_SKEW: Final = timedelta(minutes=5)
MAX_DAYS: Final = 36_500


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """An opened study CA."""

    folder: CaFolder
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def open(cls, folder: Path, *, passphrase: Passphrase | None = None) -> Authority:
        """The CA in `folder`.

        Raises: ParameterError: there is none, or its key needs another passphrase.
        """
        opened = CaFolder(folder)
        return cls(folder=opened, certificate=opened.certificate(), key=opened.key(passphrase))

    def issue(
        self,
        party: PartyName,
        *,
        tls_key: ec.EllipticCurvePublicKey,
        signing_key: Ed25519PublicKey,
        hosts: Sequence[str],
        days: int,
        now: datetime,
    ) -> dict[str, x509.Certificate]:
        """Certificates for two public keys, by file name; recorded before they are returned.

        Raises: ParameterError: a wrong host, or a period that passes the CA's own.
        """
        not_before, not_after = now - CLOCK_SKEW, now + _period(days)
        tls = issue_tls_certificate(
            ca=self.certificate,
            ca_key=self.key,
            party=party,
            public_key=tls_key,
            hosts=hosts,
            serial=x509.random_serial_number(),
            not_before=not_before,
            not_after=not_after,
        )
        signing = issue_signing_certificate(
            ca=self.certificate,
            ca_key=self.key,
            party=party,
            public_key=signing_key,
            serial=x509.random_serial_number(),
            not_before=not_before,
            not_after=not_after,
        )
        self.folder.record(tls, signing)
        return {
            CA_CERTIFICATE: self.certificate,
            TLS_CERTIFICATE: tls,
            SIGNING_CERTIFICATE: signing,
        }


def init_ca(
    folder: Path, *, name: str, days: int, now: datetime, passphrase: Passphrase | None = None
) -> x509.Certificate:
    """Make a new study CA in `folder`: ca.crt and ca.key (readable by its owner only).

    Raises: ParameterError: the folder holds a CA already, or `days` is not 1 to 36,500.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = build_ca_certificate(
        key=key,
        name=name,
        serial=x509.random_serial_number(),
        not_before=now - CLOCK_SKEW,
        not_after=now + _period(days),
    )
    write_new_files(
        folder,
        public={CA_CERTIFICATE: certificate_pem(certificate)},
        secret={CA_KEY: private_key_pem(key, passphrase)},
    )
    return certificate


def issue_party(
    folder: Path,
    *,
    party: PartyName,
    hosts: Sequence[str],
    days: int,
    out: Path,
    now: datetime,
    passphrase: Passphrase | None = None,
    key_passphrase: Passphrase | None = None,
) -> Party:
    """Issue TLS and signing certificates of a party with fresh keys into `out`.

    Writes ca.crt, tls.crt, tls.key, sign.crt, sign.key; keys are readable by their owner only,
    and encrypted where there is a `key_passphrase`. `passphrase` is that of the CA's own key.
    Where the party makes its own keys, `sign_requests` is the one to use.

    Raises: ParameterError: no CA in `folder`, `out` holds one of the files already, a wrong host,
      or a period that passes the CA's own.
    """
    ca = Authority.open(folder, passphrase=passphrase)
    tls_key, signing_key = ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate()
    check_absent(out, CA_CERTIFICATE, TLS_CERTIFICATE, TLS_KEY, SIGNING_CERTIFICATE, SIGNING_KEY)
    made = ca.issue(
        party,
        tls_key=tls_key.public_key(),
        signing_key=signing_key.public_key(),
        hosts=hosts,
        days=days,
        now=now,
    )
    secret = {
        TLS_KEY: private_key_pem(tls_key, key_passphrase),
        SIGNING_KEY: private_key_pem(signing_key, key_passphrase),
    }
    return _hand_out(party, made, out=out, secret=secret)


def sign_requests(
    folder: Path,
    *,
    requests: Path,
    party: PartyName,
    hosts: Sequence[str],
    days: int,
    out: Path,
    now: datetime,
    passphrase: Passphrase | None = None,
) -> Party:
    """Issue certificates for the keys of a party's requests; private keys are never seen.

    Args: requests: folder with tls.csr and sign.csr. party: whom the CA's operator means to admit;
      the requests must ask for exactly this. out: new folder for ca.crt, tls.crt and sign.crt.
    Raises: ParameterError: as `issue_party`; requests of another party, or unusable ones.
    """
    ca = Authority.open(folder, passphrase=passphrase)
    try:
        asked = parse_requests(
            tls=read_file(requests / TLS_REQUEST, MAX_REQUEST_BYTES),
            signing=read_file(requests / SIGNING_REQUEST, MAX_REQUEST_BYTES),
        )
    except PeerError as error:
        raise ParameterError(f"{requests}: {error}") from error
    if asked.party != party:
        raise ParameterError(
            f"{requests} asks for {asked.party.uri}, you mean to admit {party.uri}; nothing was "
            "issued"
        )
    check_absent(out, CA_CERTIFICATE, TLS_CERTIFICATE, SIGNING_CERTIFICATE)
    made = ca.issue(
        party,
        tls_key=asked.tls_key,
        signing_key=asked.signing_key,
        hosts=hosts,
        days=days,
        now=now,
    )
    return _hand_out(party, made, out=out, secret={})


def renew_party(
    folder: Path,
    *,
    party_id: str,
    days: int,
    out: Path,
    now: datetime,
    passphrase: Passphrase | None = None,
) -> Party:
    """Issue new certificates for the keys that a party has; the roster stays as it is.

    Role and hosts are those of its newest certificates.

    Raises: ParameterError: this CA never issued anything to the party, or its newest certificates
      are revoked (a stolen key gets no new certificate; enrol the party again with new keys).
    """
    ca = Authority.open(folder, passphrase=passphrase)
    listed = ca.folder.revocations()
    newest: dict[bool, tuple[PartyName, x509.Certificate]] = {}
    for name, certificate in ca.folder.issued_to(party_id):
        signing = isinstance(certificate.public_key(), Ed25519PublicKey)
        newest.setdefault(signing, (name, certificate))
    if len(newest) != 2:
        raise ParameterError(f"{folder}: this CA has issued no certificates to {party_id!r}")
    for _, certificate in newest.values():
        if listed is not None and listed.get_revoked_certificate_by_serial_number(
            certificate.serial_number
        ):
            raise ParameterError(
                f"the certificates of {party_id} are revoked; make new keys with `lada site "
                "enroll`, issue certificates for them, and agree on a new roster"
            )
    party, tls = newest[False]
    tls_key, signing_key = tls.public_key(), newest[True][1].public_key()
    if not isinstance(tls_key, ec.EllipticCurvePublicKey) or not isinstance(
        signing_key, Ed25519PublicKey
    ):
        raise ParameterError(f"{folder}: the certificates of {party_id} hold keys of another type")
    check_absent(out, CA_CERTIFICATE, TLS_CERTIFICATE, SIGNING_CERTIFICATE)
    made = ca.issue(
        party,
        tls_key=tls_key,
        signing_key=signing_key,
        hosts=_hosts_of(tls),
        days=days,
        now=now,
    )
    return _hand_out(party, made, out=out, secret={})


def revoke(
    folder: Path,
    *,
    now: datetime,
    party_id: str | None = None,
    certificate: Path | None = None,
    passphrase: Passphrase | None = None,
) -> int:
    """Revoke all certificates of a party, or one; writes the next list, ca.crl, into `folder`.

    Returns: how many certificates were revoked that were not before.
    Raises: ParameterError: neither or both are named, or this CA issued no such certificate.
    """
    ca = Authority.open(folder, passphrase=passphrase)
    if (party_id is None) == (certificate is None):
        raise ParameterError("revoke: name either a party or one certificate file")
    if certificate is not None:
        one = read_certificate(certificate)
        try:
            one.verify_directly_issued_by(ca.certificate)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise ParameterError(f"{certificate}: was not issued by this CA") from error
        serials = {one.serial_number}
    else:
        serials = {one.serial_number for _, one in ca.folder.issued_to(party_id or "")}
    if not serials:
        raise ParameterError(f"{folder}: this CA has issued no certificates to {party_id!r}")
    listed = ca.folder.revocations()
    known = {} if listed is None else {one.serial_number: one.revocation_date_utc for one in listed}
    number = 1 if listed is None else _number_of(listed) + 1
    raw = build_revocation_list(
        ca=ca.certificate,
        ca_key=ca.key,
        number=number,
        revoked=sorted((known | {one: known.get(one, now) for one in serials}).items()),
        issued_at=now,
        next_at=max(ca.certificate.not_valid_after_utc, now + CLOCK_SKEW),
    )
    write_atomically(folder / REVOCATIONS, raw)
    return len(serials - known.keys())


def make_roster(folder: Path, *, parties: Sequence[Path], out: Path, now: datetime) -> Roster:
    """Write the roster of the parties whose folders hold tls.crt and sign.crt of this CA.

    Private keys are not needed, so parties may hand over their certificates alone.

    Raises: ParameterError: a certificate is missing, of another CA, expired or of another party,
      the parties do not make a roster, or `out` exists already.
    """
    ca = CaFolder(folder).certificate()
    entries = []
    for one in parties:
        tls = read_certificate(one / TLS_CERTIFICATE)
        signing = read_certificate(one / SIGNING_CERTIFICATE)
        try:
            name = verify_certificate(tls, ca=ca, at=now, usage="tls")
            verify_party(signing, ca=ca, at=now, usage="signing", expected=name)
        except PeerError as error:
            raise ParameterError(f"{one}: {error}") from error
        entries.append(party_of_certificates(name, tls=tls, signing=signing))
    roster = build_roster(ca=ca, parties=entries)
    write_new_files(out.parent, public={out.name: roster.to_bytes()}, secret={})
    return roster


def _hand_out(
    party: PartyName, made: dict[str, x509.Certificate], *, out: Path, secret: dict[str, bytes]
) -> Party:
    public = {name: certificate_pem(one) for name, one in made.items()}
    write_new_files(out, public=public, secret=secret)
    return party_of_certificates(
        party, tls=made[TLS_CERTIFICATE], signing=made[SIGNING_CERTIFICATE]
    )


def _hosts_of(tls: x509.Certificate) -> list[str]:
    names = tls.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [str(one) for one in names.get_values_for_type(x509.IPAddress)]
    # The first DNS name is the one of the role, which every certificate gets anew.
    return [*names.get_values_for_type(x509.DNSName)[1:], *addresses]


def _number_of(listed: x509.CertificateRevocationList) -> int:
    return listed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def _period(days: int) -> timedelta:
    if not 1 <= days <= MAX_DAYS:
        raise ParameterError(f"days of validity: expected 1 to {MAX_DAYS}, got {days}")
    return timedelta(days=days)
