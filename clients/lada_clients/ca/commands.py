"""`lada ca`: the certificate authority of a study, and the roster of its parties."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from lada_protocol.kinds import Role
from lada_secure.cli import JsonFlag, answer

if TYPE_CHECKING:
    from lada_protocol.identity.credentials import Passphrase
    from lada_protocol.identity.enrolment import Invitation
    from lada_protocol.identity.roster import Party

app = typer.Typer(
    help="Certificates of a study: its own CA, one identity folder per party, and the roster.",
    no_args_is_help=True,
)

CaFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the study CA.")]
PartyId = Annotated[str, typer.Option("--id", help="1 to 32 of a-z, 0-9 and -.")]
RoleOption = Annotated[Role, typer.Option(help="What the party may do.")]
Days = Annotated[int, typer.Option(help="Validity in days.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the passphrase of private keys; by default LADA_KEY_PASSPHRASE, or the "
        "file that LADA_KEY_PASSPHRASE_FILE names, if set."
    ),
]


@app.command()
def init(
    folder: CaFolder,
    name: Annotated[str, typer.Option(help="Name in the CA's certificate.")] = "lada study CA",
    days: Days = 3650,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a new study CA: DIR/ca.crt and DIR/ca.key.

    Example: lada ca init ca --name "Heart study" --passphrase-file ca.pass
    """
    from lada_clients.ca.authority import init_ca
    from lada_protocol.identity.certificates import certificate_fingerprint

    passphrase = _passphrase(passphrase_file)
    made = init_ca(folder, name=name, days=days, now=datetime.now(UTC), passphrase=passphrase)
    typer.echo(f"study CA in {folder}")
    typer.echo(f"fingerprint {certificate_fingerprint(made)}")
    typer.echo(f"keep {folder / 'ca.key'} to yourself; it can issue new parties")


@app.command()
def issue(
    folder: CaFolder,
    role: RoleOption,
    party_id: PartyId,
    out: Annotated[Path, typer.Option(help="New folder for what the party gets.")],
    csr: Annotated[
        Path | None,
        typer.Option(help="Folder with the party's tls.csr and sign.csr; no key is made here."),
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option(help="DNS name or IP address it is reached at; repeatable.")
    ] = None,
    days: Days = 365,
    passphrase_file: PassphraseFile = None,
    key_passphrase_file: Annotated[
        Path | None, typer.Option(help="Encrypt the party's new keys with the passphrase in it.")
    ] = None,
) -> None:
    """Issue the TLS and signing certificates of one party into a folder.

    Example: lada ca issue ca --role site --id hospital-a --csr from-hospital-a --out for-hospital-a

    With --csr the party made its keys itself (`lada site enroll`). Without, keys are made here and
    have to be handed over: fit for one machine, or for one who runs all parties.
    """
    from lada_clients.ca.authority import issue_party
    from lada_protocol.identity.certificates import PartyName
    from lada_secure.errors import ParameterError

    if csr is not None and key_passphrase_file is not None:
        raise ParameterError("--key-passphrase-file: with --csr no key is made here")
    party = issue_party(
        folder,
        party=PartyName(role=role, id=party_id),
        hosts=host or [],
        days=days,
        out=out,
        now=datetime.now(UTC),
        requests=csr,
        passphrase=_passphrase(passphrase_file),
        key_passphrase=_passphrase(key_passphrase_file) if key_passphrase_file else None,
    )
    _show_party(party, out)


@app.command()
def renew(
    folder: CaFolder,
    party_id: PartyId,
    out: Annotated[Path, typer.Option(help="New folder for the certificates.")],
    days: Days = 365,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Issue new certificates for the keys that a party has. The roster stays as it is.

    Example: lada ca renew ca --id hospital-a --out for-hospital-a

    The party takes them in with `lada ca install`; its running processes need no restart.
    """
    from lada_clients.ca.authority import renew_party

    now, passphrase = datetime.now(UTC), _passphrase(passphrase_file)
    party = renew_party(
        folder, party_id=party_id, days=days, out=out, now=now, passphrase=passphrase
    )
    _show_party(party, out)


@app.command()
def revoke(
    folder: CaFolder,
    party_id: Annotated[
        str | None, typer.Option("--id", help="Revoke every certificate of this party.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Revoke this one certificate file alone.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Take certificates back: writes DIR/ca.crl, a list signed by the CA.

    Example: lada ca revoke ca --id hospital-a && cp ca/ca.crl coordinator/identity/

    The list takes effect where it lies: copy it into the coordinator's identity folder, and where
    the coordinator itself is revoked into everybody's. A running process sees it within seconds.
    """
    from lada_clients.ca.authority import revoke as revoke_certificates
    from lada_protocol.identity.credentials import IdentityFile

    count = revoke_certificates(
        folder,
        now=datetime.now(UTC),
        party_id=party_id,
        certificate=certificate,
        passphrase=_passphrase(passphrase_file),
    )
    file = folder / IdentityFile.REVOCATIONS
    said = (
        f"{count} certificates revoked in {file}",
        "copy this list into the coordinator's identity folder to put it into force",
    )
    answer({"revoked": count, "list": str(file)}, said, as_json=as_json)


@app.command()
def roster(
    folder: CaFolder,
    out: Annotated[Path, typer.Option(help="Roster file to write.")],
    party: Annotated[
        list[Path], typer.Option(help="Folder with a party's tls.crt and sign.crt; repeatable.")
    ],
) -> None:
    """Write the roster of a study; its hash goes into every site's policy.

    Example: lada ca roster ca --out roster.json --party hub --party eye --party a --party b
    """
    from lada_clients.ca.authority import make_roster

    made = make_roster(folder, parties=party, out=out, now=datetime.now(UTC))
    table = Table("id", "role", "TLS key", "signing key", box=None)
    for listed in made.parties:
        keys = (listed.tls_fingerprint, listed.signing_fingerprint)
        table.add_row(listed.id, listed.role, *(f"{key[:16]}..." for key in keys))
    Console().print(table)
    typer.echo(f"roster {out}")
    typer.echo(f"roster_sha256 = {made.hash}")
    typer.echo("compare this hash over another channel before anyone accepts it")


@app.command()
def invite(
    folder: CaFolder,
    coordinator: Annotated[str | None, typer.Option(help="Id of the coordinator.")] = None,
    auditor: Annotated[str | None, typer.Option(help="Id of the auditor.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="Id of a site; repeatable.")] = None,
    address: Annotated[
        str | None,
        typer.Option(help="host:port that parties dial; by default as in earlier invitations."),
    ] = None,
    days: Annotated[int, typer.Option(help="Days until it is too late to ask.")] = 14,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Invite parties: one line of text for each, which lets it ask for its certificates once.

    Example: lada ca invite hub/ca --site hospital-d

    An invitation of the same party that was not used stops to count.
    """
    from lada_clients.ca.invitations import invite as make_invitations
    from lada_protocol.identity.certificates import PartyName
    from lada_secure.errors import ParameterError

    named = ((Role.COORDINATOR, [coordinator]), (Role.AUDITOR, [auditor]), (Role.SITE, site or []))
    parties = [PartyName(role=role, id=one) for role, ids in named for one in ids if one]
    if not parties:
        raise ParameterError("name whom to invite: --coordinator, --auditor or --site")
    made = make_invitations(
        folder,
        parties,
        coordinator=address,
        days=days,
        now=datetime.now(UTC),
        passphrase=_passphrase(passphrase_file),
    )
    lines = {party: one.to_text() for party, one in made.items()}
    answer({"invitations": lines}, tell_invitations(made), as_json=as_json)


@app.command()
def admit(
    folder: CaFolder,
    requests: Annotated[
        list[Path] | None,
        typer.Argument(metavar="REQUEST...", help="request-*.json files of invited parties."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The bundle to write; by default DIR/bundle.json.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Id of an invited party to leave out; repeatable.")
    ] = None,
    days: Days = 365,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Admit invited parties by their requests; writes the bundle for everybody, once all are there.

    Example: lada ca admit hub/ca request-*.json

    Requests may come one by one. The bundle holds certificates and the roster, nothing secret.
    """
    from lada_clients.ca.invitations import BUNDLE
    from lada_clients.ca.invitations import admit as admit_requests
    from lada_protocol.identity.enrolment import roster_fingerprint
    from lada_secure.storage.whole_files import write_atomically

    found = admit_requests(
        folder,
        requests or [],
        days=days,
        now=datetime.now(UTC),
        passphrase=_passphrase(passphrase_file),
        without=without or (),
    )
    facts: dict[str, object] = {
        "admitted": [one.id for one in found.admitted],
        "missing": found.missing,
    }
    said = [f"admitted: {one.role} {one.id}" for one in found.admitted]
    said += [f"missing: {party} {why}" for party, why in found.missing.items()]
    if found.bundle is not None:
        file, roster_sha256 = out or folder / BUNDLE, found.bundle.roster.hash
        write_atomically(file, found.bundle.to_bytes())
        fingerprint = roster_fingerprint(roster_sha256)
        facts |= {"bundle": str(file), "roster_sha256": roster_sha256, "fingerprint": fingerprint}
        said += [
            f"all parties are there; send {file} to everybody, for `lada init join`",
            f"fingerprint of the roster: {fingerprint}",
            "read it out to the others by telephone, and have them read theirs to each other",
        ]
    answer(facts, said, as_json=as_json)


@app.command()
def enroll(
    role: RoleOption,
    party_id: PartyId,
    out: Annotated[Path, typer.Option(help="New identity folder of the party.")],
    passphrase_file: PassphraseFile = None,
) -> None:
    """At a party: make its keys, and two requests for certificates to send to the CA.

    Example: lada ca enroll --role coordinator --id hub --out coordinator/identity
    """
    request_certificates(role, party_id, out, passphrase_file)


@app.command()
def install(
    answer: Annotated[
        Path, typer.Argument(metavar="ANSWER", help="Folder that the CA sent: three .crt files.")
    ],
    identity: Annotated[Path, typer.Option(help="Identity folder with the party's keys.")],
    ca_sha256: Annotated[
        str | None,
        typer.Option(
            "--ca-sha256", help="Fingerprint of the CA, compared out of band; the first time."
        ),
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """At a party: take certificates from the CA into the identity folder, new or renewed.

    Example: lada ca install from-ca --identity site/identity --ca-sha256 9f86d081884c7d65...
    """
    from lada_clients.ca.enrolment import install as install_certificates

    now, passphrase = datetime.now(UTC), _passphrase(passphrase_file)
    credentials = install_certificates(
        answer, identity=identity, ca_sha256=ca_sha256, passphrase=passphrase, now=now
    )
    end = credentials.tls_certificate.not_valid_after_utc
    typer.echo(f"{credentials.name.uri} in {identity}, valid until {end:%Y-%m-%d}")


def tell_invitations(made: Mapping[str, Invitation]) -> list[str]:
    """What to do with invitations, a line each."""
    return [
        f"for {one.party.role} {party} alone, until {one.until:%Y-%m-%d %H:%M} UTC: {one.to_text()}"
        for party, one in made.items()
    ]


def request_certificates(
    role: Role, party_id: str, out: Path, passphrase_file: Path | None
) -> None:
    """What `enroll` does under `lada ca`, `lada site` and `lada auditor`."""
    from lada_clients.ca.enrolment import enroll as make_requests
    from lada_protocol.identity.certificates import PartyName

    party = PartyName(role=role, id=party_id)
    requests = make_requests(out, party=party, passphrase=_passphrase(passphrase_file))
    typer.echo(f"keys in {out}; they stay there")
    typer.echo(f"send to the CA: {requests[0]} and {requests[1]}")
    typer.echo(f"then take its answer in: lada ca install ANSWER --identity {out} --ca-sha256 ...")


def _passphrase(file: Path | None) -> Passphrase | None:
    from lada_protocol.party_files import read_passphrase

    return read_passphrase(file)


def _show_party(party: Party, out: Path) -> None:
    typer.echo(f"{party.uri} in {out}")
    typer.echo(f"TLS key     {party.tls_fingerprint}")
    typer.echo(f"signing key {party.signing_fingerprint}")
