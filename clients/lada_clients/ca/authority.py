"""What a study CA does: issue, renew and revoke certificates, and make the roster of a study.

Only whoever runs a study's CA uses this; parties get the folder that is written for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from lada_clients.ca.enrolment import (
    check_absent,
    new_keys,
    read_certificate,
    read_file,
    write_new_files,
)
from lada_protocol.identity.certificates import (
    MAX_CERTIFICATE_BYTES,
    MAX_REVOCATION_BYTES,
    PartyName,
    RevocationList,
    certificate_fingerprint,
    certificate_pem,
    parse_revocations,
    party_name_of,
    verify_party,
)
from lada_protocol.identity.credentials import (
    IdentityFile,
    Passphrase,
    load_private_key,
    private_key_pem,
)
from lada_protocol.identity.issuance import (
    MAX_REQUEST_BYTES,
    SIGNING_REQUEST,
    TLS_REQUEST,
    Enrolment,
    Period,
    build_ca_certificate,
    build_revocation_list,
    issue_certificate,
    parse_requests,
)
from lada_protocol.identity.roster import Party, Roster, party_of_certificates
from lada_secure.errors import ParameterError, PeerError
from lada_secure.storage.whole_files import write_atomically

# Clocks of two machines differ; a certificate must not be refused in its first minutes.
CLOCK_SKEW: Final = timedelta(minutes=5)
MAX_DAYS: Final = 36_500
CA_KEY: Final = "ca.key"
ISSUED: Final = "issued"


class CaFolder:
    """A folder that `lada ca init` made, opened.

    Raises: ParameterError: there is no CA in it, or its key needs another passphrase.
    """

    def __init__(self, path: Path, passphrase: Passphrase | None) -> None:
        self.path = path
        self.certificate = read_certificate(path / IdentityFile.CA)
        file = path / CA_KEY
        key = load_private_key(str(file), read_file(file, MAX_CERTIFICATE_BYTES), passphrase)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ParameterError(f"{file}: expected an ECDSA key, as `lada ca init` writes it")
        self.key = key

    def record(self, *certificates: x509.Certificate) -> None:
        """Remember what was issued, before it is handed out: only that can be revoked by name."""
        public = {f"{made.serial_number:x}.crt": certificate_pem(made) for made in certificates}
        write_new_files(self.path / ISSUED, public=public, secret={})

    def issued_to(self, party_id: str) -> list[tuple[PartyName, x509.Certificate]]:
        """Certificates that were issued to a party, newest first."""
        issued = map(read_certificate, (self.path / ISSUED).glob("*.crt"))
        named = ((party_name_of(certificate), certificate) for certificate in issued)
        found = [(name, certificate) for name, certificate in named if name.id == party_id]
        return sorted(found, key=lambda pair: pair[1].not_valid_before_utc, reverse=True)

    def revocations(self) -> RevocationList | None:
        """The list as it stands; None where nothing was ever revoked."""
        path = self.path / IdentityFile.REVOCATIONS
        if not path.exists():
            return None
        try:
            return parse_revocations(read_file(path, MAX_REVOCATION_BYTES), ca=self.certificate)
        except PeerError as error:
            raise ParameterError(
                f"{path}: not a revocation list; restore it from a backup, or from the "
                "coordinator's identity folder"
            ) from error


def init_ca(
    folder: Path, *, name: str, days: int, now: datetime, passphrase: Passphrase | None = None
) -> x509.Certificate:
    """Make a new study CA in `folder`: ca.crt and ca.key (readable by its owner only).

    Raises: ParameterError: the folder holds a CA already, or `days` is not 1 to 36,500.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = build_ca_certificate(
        key=key, name=name, serial=x509.random_serial_number(), period=period_of(days, now)
    )
    write_new_files(
        folder,
        public={IdentityFile.CA: certificate_pem(certificate)},
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
    requests: Path | None = None,
    passphrase: Passphrase | None = None,
    key_passphrase: Passphrase | None = None,
) -> Party:
    """Issue TLS and signing certificates of a party into `out`: ca.crt, tls.crt and sign.crt.

    Args: folder: of the CA; `passphrase` is that of its key. requests: folder with tls.csr and
      sign.csr, where the party has made its keys itself: private keys are never seen then. Else
      they are made here and written as tls.key and sign.key, readable by their owner only, and
      encrypted where there is a `key_passphrase`.
    Raises: ParameterError: no CA in `folder`, `out` holds one of the files already, a wrong host,
      a period that passes the CA's own, unusable requests, or requests of another party.
    """
    ca = CaFolder(folder, passphrase)
    if requests is not None:
        asked = _read_requests(requests, party)
        return _issue(ca, asked, hosts=hosts, days=days, out=out, now=now)
    tls_key, signing_key, secret = new_keys(key_passphrase)
    own = Enrolment(party=party, tls_key=tls_key.public_key(), signing_key=signing_key.public_key())
    return _issue(ca, own, hosts=hosts, days=days, out=out, now=now, secret=secret)


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
    ca = CaFolder(folder, passphrase)
    listed = ca.revocations()
    newest: dict[bool, tuple[PartyName, x509.Certificate]] = {}
    for name, certificate in ca.issued_to(party_id):
        signs = isinstance(certificate.public_key(), Ed25519PublicKey)
        newest.setdefault(signs, (name, certificate))
    if len(newest) != 2:
        raise ParameterError(f"{folder}: this CA has issued no certificates to {party_id!r}")
    (party, tls), (_, signing) = newest[False], newest[True]
    if listed is not None and listed.revoked.keys() & {tls.serial_number, signing.serial_number}:
        raise ParameterError(
            f"the certificates of {party_id} are revoked; make new keys with `lada site "
            "enroll`, issue certificates for them, and agree on a new roster"
        )
    tls_key, signing_key = tls.public_key(), signing.public_key()
    if not isinstance(tls_key, ec.EllipticCurvePublicKey) or not isinstance(
        signing_key, Ed25519PublicKey
    ):
        raise ParameterError(f"{folder}: the certificates of {party_id} hold keys of another type")
    keys = Enrolment(party=party, tls_key=tls_key, signing_key=signing_key)
    return _issue(ca, keys, hosts=_hosts_of(tls), days=days, out=out, now=now)


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
    ca = CaFolder(folder, passphrase)
    if (party_id is None) == (certificate is None):
        raise ParameterError("revoke: name either a party or one certificate file")
    if certificate is not None:
        named = read_certificate(certificate)
        try:
            named.verify_directly_issued_by(ca.certificate)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise ParameterError(f"{certificate}: was not issued by this CA") from error
        serials = {named.serial_number}
    else:
        serials = {issued.serial_number for _, issued in ca.issued_to(party_id or "")}
    if not serials:
        raise ParameterError(f"{folder}: this CA has issued no certificates to {party_id!r}")
    listed = ca.revocations()
    number, known = (0, {}) if listed is None else (listed.number, dict(listed.revoked))
    raw = build_revocation_list(
        ca=ca.certificate,
        ca_key=ca.key,
        number=number + 1,
        revoked=dict.fromkeys(serials, now) | known,
        issued_at=now,
        next_at=max(ca.certificate.not_valid_after_utc, now + CLOCK_SKEW),
    )
    write_atomically(folder / IdentityFile.REVOCATIONS, raw)
    return len(serials - known.keys())


def make_roster(folder: Path, *, parties: Sequence[Path], out: Path, now: datetime) -> Roster:
    """Write the roster of the parties whose folders hold tls.crt and sign.crt of this CA.

    Private keys are not needed, so parties may hand over their certificates alone.

    Raises: ParameterError: a certificate is missing, of another CA, expired or of another party,
      the parties do not make a roster, or `out` exists already.
    """
    ca = read_certificate(folder / IdentityFile.CA)
    entries = []
    for party in parties:
        tls = read_certificate(party / IdentityFile.TLS)
        signing = read_certificate(party / IdentityFile.SIGNING)
        try:
            name = verify_party(tls, ca=ca, at=now, usage="tls")
            verify_party(signing, ca=ca, at=now, usage="signing", expected=name)
        except PeerError as error:
            raise ParameterError(f"{party}: {error}") from error
        entries.append(party_of_certificates(name, tls=tls, signing=signing))
    roster = Roster(study_ca=certificate_fingerprint(ca), parties=tuple(entries))
    write_new_files(out.parent, public={out.name: roster.to_bytes()}, secret={})
    return roster


def issue_certificates(
    ca: CaFolder, keys: Enrolment, *, hosts: Sequence[str], days: int, now: datetime
) -> tuple[x509.Certificate, x509.Certificate]:
    """TLS and signing certificates for two public keys; recorded at the CA before they are handed
    out.

    Raises: ParameterError: a wrong host, or a period that passes the CA's own.
    """
    period = period_of(days, now)
    tls, signing = (
        issue_certificate(
            ca=ca.certificate,
            ca_key=ca.key,
            party=keys.party,
            public_key=key,
            hosts=hosts,
            serial=x509.random_serial_number(),
            period=period,
        )
        for key in (keys.tls_key, keys.signing_key)
    )
    ca.record(tls, signing)
    return tls, signing


def _read_requests(folder: Path, party: PartyName) -> Enrolment:
    """The requests in a folder; they must ask for exactly the party that the operator admits."""
    try:
        asked = parse_requests(
            tls=read_file(folder / TLS_REQUEST, MAX_REQUEST_BYTES),
            signing=read_file(folder / SIGNING_REQUEST, MAX_REQUEST_BYTES),
        )
    except PeerError as error:
        raise ParameterError(f"{folder}: {error}") from error
    if asked.party != party:
        raise ParameterError(
            f"{folder} asks for {asked.party.uri}, you mean to admit {party.uri}; nothing was "
            "issued"
        )
    return asked


def _issue(
    ca: CaFolder,
    keys: Enrolment,
    *,
    hosts: Sequence[str],
    days: int,
    out: Path,
    now: datetime,
    secret: dict[str, bytes] | None = None,
) -> Party:
    """Write certificates for two public keys into a folder."""
    check_absent(out, IdentityFile.CA, IdentityFile.TLS, IdentityFile.SIGNING, *(secret or ()))
    tls, signing = issue_certificates(ca, keys, hosts=hosts, days=days, now=now)
    made: dict[str, x509.Certificate] = {IdentityFile.CA: ca.certificate}
    made |= {IdentityFile.TLS: tls, IdentityFile.SIGNING: signing}
    public = {name: certificate_pem(certificate) for name, certificate in made.items()}
    write_new_files(out, public=public, secret=secret or {})
    return party_of_certificates(keys.party, tls=tls, signing=signing)


def _hosts_of(tls: x509.Certificate) -> list[str]:
    names = tls.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    # The first DNS name is the one of the role, which every certificate gets anew.
    return [*names.get_values_for_type(x509.DNSName)[1:], *addresses]


def period_of(days: int, now: datetime) -> Period:
    """From now on, so many days. Raises: ParameterError: not 1 to 36,500."""
    if not 1 <= days <= MAX_DAYS:
        raise ParameterError(f"days of validity: expected 1 to {MAX_DAYS}, got {days}")
    return now - CLOCK_SKEW, now + timedelta(days=days)
