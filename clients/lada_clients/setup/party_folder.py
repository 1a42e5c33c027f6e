"""A party's folder, made whole or not at all: settings, keys, request, and a CA if it has one."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from lada_clients.ca.authority import init_ca
from lada_clients.ca.enrolment import new_keys, write_new_files
from lada_clients.ca.invitations import admit, invite
from lada_protocol.identity.certificates import PartyName
from lada_protocol.identity.credentials import Passphrase
from lada_protocol.identity.enrolment import Invitation, build_enrolment, parse_invitation
from lada_protocol.kinds import Role
from lada_protocol.party_templates import GROUP, Answer, RoleTemplates
from lada_secure.errors import ParameterError, TransportError
from lada_secure.storage.whole_files import process_lives, sync, undone_when_stopped

IDENTITY: Final = "identity"
CA: Final = "ca"
CA_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 365


@dataclass(frozen=True, slots=True, kw_only=True)
class NewStudy:
    """A study whose CA begins with the coordinator's folder.

    name: in the CA's certificate. others: whom it invites. days: until they have to ask.
    """

    name: str
    party: PartyName
    address: str
    others: tuple[PartyName, ...]
    days: int


def known_templates() -> Mapping[Role, RoleTemplates]:
    """The templates of every role that is installed here."""
    found: list[RoleTemplates] = [one.load() for one in entry_points(group=GROUP)]
    return {one.role: one for one in found}


def templates_of(role: Role) -> RoleTemplates:
    """One role's. Raises: ParameterError: it is not installed."""
    found = known_templates().get(role)
    if found is None:
        raise ParameterError(f"the part of the {role} is not installed here; install lada-secure")
    return found


def request_file(party_id: str) -> str:
    """Name of the one file that leaves a party's folder."""
    return f"request-{party_id}.json"


def usable_invitation(text: str, *, role: Role, now: datetime) -> Invitation:
    """An invitation of this role that is not too late.

    Raises: ParameterError: damaged, of another role, or too late.
    """
    found = parse_invitation(text)
    if found.party.role is not role:
        raise ParameterError(
            f"the invitation is for {found.party.role} {found.party.id}, and this is `lada init "
            f"{role}`; run `lada init {found.party.role}`, or ask for another invitation"
        )
    if now > found.until:
        raise ParameterError(
            f"the invitation of {found.party.id} ended at {found.until:%Y-%m-%d %H:%M} UTC, here "
            f"it is {now:%Y-%m-%d %H:%M}; ask whoever runs the CA for a new one"
        )
    return found


def begin(
    folder: Path,
    invitation: Invitation,
    answers: Mapping[str, Answer],
    *,
    passphrase: Passphrase | None,
) -> None:
    """Make the folder of an invited party.

    Raises: ParameterError: the folder is there, or an answer is not allowed. TransportError: the
      disk refuses.
    """
    with new_folder(folder) as part:
        _write_party(part, invitation, answers, passphrase)


def begin_study(
    folder: Path,
    study: NewStudy,
    answers: Mapping[str, Answer],
    *,
    now: datetime,
    passphrase: Passphrase | None,
) -> dict[str, Invitation]:
    """Make the folder of a coordinator with a new CA in it; the coordinator is admitted at once.

    Returns: the invitations of the others, by id. Raises: as `begin`.
    """
    with new_folder(folder) as part:
        ca = part / CA
        init_ca(ca, name=study.name, days=CA_DAYS, now=now, passphrase=passphrase)
        made = invite(
            ca,
            (study.party, *study.others),
            coordinator=study.address,
            days=study.days,
            now=now,
            passphrase=passphrase,
        )
        own = made.pop(study.party.id)
        _write_party(part, own, answers, passphrase)
        request = part / request_file(study.party.id)
        admit(ca, [request], days=CERTIFICATE_DAYS, now=now, passphrase=passphrase)
    return made


def _write_party(
    folder: Path,
    invitation: Invitation,
    answers: Mapping[str, Answer],
    passphrase: Passphrase | None,
) -> None:
    tls_key, signing_key, secret = new_keys(passphrase)
    files = {
        template.file: template.filled(answers)
        for template in templates_of(invitation.party.role).files
    }
    files[request_file(invitation.party.id)] = build_enrolment(
        invitation, tls_key=tls_key, signing_key=signing_key
    )
    write_new_files(folder, public=files, secret={})
    write_new_files(folder / IDENTITY, public={}, secret=secret)


def check_new(folder: Path) -> None:
    """Raises: ParameterError: something has this name."""
    if folder.exists() or folder.is_symlink():
        raise ParameterError(
            f"{folder} is there already; name a new folder, so that no keys and no settings are "
            "lost. If it is half of something, move it away first"
        )


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes its name when the block ends, and is gone if it fails.

    Raises: ParameterError: something has the name already. TransportError: the disk refuses.
    """
    check_new(folder)
    folder = folder.absolute()
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    with undone_when_stopped(f"{folder} was not made") as deaf:
        try:
            _sweep(folder)
            part.mkdir(mode=0o700, parents=True)
            yield part
            deaf()
            part.rename(folder)
            sync(folder.parent)
        except OSError as error:
            raise TransportError(f"{folder}: cannot be written: {error.strerror}") from error
        finally:
            deaf()
            # After the renaming there is none left.
            shutil.rmtree(part, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Delete what killed processes had begun under this name; nobody has seen its keys."""
    name = re.compile(rf"\.{re.escape(folder.name)}\.([1-9][0-9]{{0,9}})")
    for path in folder.parent.glob(".*") if folder.parent.is_dir() else ():
        match = name.fullmatch(path.name)
        if match is not None and path.is_dir() and not process_lives(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)
