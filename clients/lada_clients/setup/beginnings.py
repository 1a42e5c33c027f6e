"""A party's first command, carried out: the folder is made, and what to do next is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from lada_clients.ca.commands import tell_invitations
from lada_clients.ca.invitations import BUNDLE, check_address
from lada_clients.setup.answers import party_answers
from lada_clients.setup.party_folder import (
    CA,
    NewStudy,
    begin,
    begin_study,
    request_file,
    templates_of,
)
from lada_protocol.identity.certificates import PartyName
from lada_protocol.identity.enrolment import Invitation
from lada_protocol.kinds import Role
from lada_protocol.party_files import read_passphrase
from lada_protocol.party_templates import Answer
from lada_secure.errors import ParameterError

# Facts for machines, and sentences for people.
Told: TypeAlias = tuple[dict[str, object], Sequence[str]]
_LEAST_SITES = 3


def begin_invited(
    folder: Path,
    invitation: Invitation,
    answers: Mapping[str, Answer],
    *,
    coordinator: str | None,
    passphrase_file: Path | None,
) -> Told:
    """Make an invited party's folder. Args: coordinator: address to dial, if not the invitation's.

    Raises: ParameterError: see `begin`; an address that cannot be dialled.
    """
    party = invitation.party
    dialled = check_address(coordinator or invitation.coordinator)
    whole = {**answers, **party_answers(party.id, passphrase_file), "coordinator": dialled}
    begin(folder, invitation, whole, passphrase=read_passphrase(passphrase_file))
    request, join = folder / request_file(party.id), f"lada init join {folder} bundle.json"
    said = (
        f"{party.role} {party.id} in {folder}: {_files(party.role)}; what they recommend stands "
        "there with its reason",
        "the keys were made here, and stay here",
        f"next: send {request} to whoever runs the CA",
        f"then, when the bundle has come: {join}",
    )
    return {**_facts(folder, party), "request": str(request), "next": [join]}, said


def found_study(
    folder: Path,
    coordinators: Sequence[PartyName],
    others: Sequence[PartyName],
    answers: Mapping[str, Answer],
    *,
    address: str,
    days: int,
    passphrase_file: Path | None,
) -> Told:
    """Make the folder of a coordinator, and in it the CA that invites the others.

    Raises: ParameterError: not one coordinator and one auditor, fewer than three sites, and see
      `begin_study`.
    """
    auditors = [one for one in others if one.role is Role.AUDITOR]
    if len(coordinators) != 1 or len(auditors) != 1:
        raise ParameterError("--name, --auditor: expected the id of one party each")
    party = coordinators[0]
    sites = sum(one.role is Role.SITE for one in others)
    if sites < _LEAST_SITES:
        raise ParameterError(
            f"--site: expected three sites or more, got {sites}; a sum over fewer would say too "
            "much about one of them"
        )
    name = str(answers["study_id"])
    made = begin_study(
        folder,
        NewStudy(name=name, party=party, address=address, others=tuple(others), days=days),
        {**answers, **party_answers(party.id, passphrase_file)},
        now=datetime.now(UTC),
        passphrase=read_passphrase(passphrase_file),
    )
    ca = folder / CA
    admit, join = f"lada ca admit {ca} request-*.json", f"lada init join {folder} {ca / BUNDLE}"
    said = (
        f"coordinator {party.id} in {folder}: {_files(party.role)}; what they recommend stands "
        "there with its reason",
        f"the study's CA in {ca}; keep ca.key to yourself, it can issue new parties",
        *tell_invitations(made),
        f"next, when their requests have come: {admit}",
        f"then: {join}",
    )
    invitations = {one: invitation.to_text() for one, invitation in made.items()}
    return {**_facts(folder, party), "invitations": invitations, "next": [admit, join]}, said


def _facts(folder: Path, party: PartyName) -> dict[str, object]:
    return {
        "folder": str(folder),
        "party": party.id,
        "role": str(party.role),
        "settings": str(folder / templates_of(party.role).settings.file),
    }


def _files(role: Role) -> str:
    return ", ".join(one.file for one in templates_of(role).files)
