"""What a dialling party keeps in its state folder: its studies, what it has sent, its secrets.

The state folder itself outlives studies: the ledger, its key for fingerprints, the auditor's copies
and what it has opened. Everything else lies in one folder per study and plan, so that no study ever
reads what another one has left.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from lada_protocol.evidence.export import PLAN_FILE
from lada_protocol.identity.roster import Roster
from lada_protocol.rounds.index import Slot, slot_of
from lada_protocol.studies import STUDIES
from lada_protocol.wire.envelope import Envelope, envelope_from_line, envelope_to_line
from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.errors import ParameterError, TransportError
from lada_secure.storage.whole_files import read_file, read_if_there, write_atomically


def study_folder(state_dir: Path, study_id: str, plan_hash: str) -> Path:
    """The folder of one study under one plan; it need not be there yet."""
    return state_dir / STUDIES / f"{study_id}-{plan_hash[:16]}"


def find_study_folder(state_dir: Path, study: str | None) -> Path:
    """The folder of a study that a party took part in.

    Args: study: its id, or its folder's name where one id had several plans; it may be left out
        where there is one study only.
    Raises: ParameterError: none, or several.
    """
    found = sorted(plan.parent for plan in (state_dir / STUDIES).glob(f"*/{PLAN_FILE}"))
    if study is not None:
        found = [folder for folder in found if study in (folder.name, folder.name[:-17])]
    if len(found) == 1:
        return found[0]
    if not found:
        which = "study" if study is None else f"study {study}"
        raise ParameterError(f"{state_dir / STUDIES}: no {which} here yet")
    names = ", ".join(folder.name for folder in found)
    raise ParameterError(f"{state_dir / STUDIES} holds several studies; name one: {names}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbox:
    """Messages written to disk before they are sent, so that a retry sends the same bytes.

    Sealing and encryption are randomised: a message made twice would differ, and two different
    messages in one slot look like a lie to every reader. One signed message per slot, in each
    study's folder; `folder` is the party's state folder.
    """

    folder: Path
    roster: Roster

    def load(self, slot: Slot, *, study_id: str, plan_hash: str) -> tuple[Envelope, bytes] | None:
        """The message once written for a slot, with its payload; None if there is none."""
        base = self._base(slot, study_id, plan_hash)
        line = read_if_there(base.with_suffix(".message"))
        payload = read_if_there(base.with_suffix(".payload"))
        if line is None or payload is None:
            return None
        return envelope_from_line(line, roster=self.roster), payload

    def store(self, envelope: Envelope, payload: bytes) -> None:
        """Keep a message. The payload is written first: the message file makes it count."""
        head = envelope.header
        base = self._base(slot_of(envelope), head.study_id, head.plan_hash)
        write_atomically(base.with_suffix(".payload"), payload)
        write_atomically(base.with_suffix(".message"), envelope_to_line(envelope))

    def _base(self, slot: Slot, study_id: str, plan_hash: str) -> Path:
        digest = sha256_hex(canonical_json([study_id, plan_hash, *slot]))[:32]
        study = study_folder(self.folder, study_id, plan_hash)
        return study / "outbox" / f"{slot.kind}-{slot.round_id}-{digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretFolder:
    """Key files, made once per purpose of use and readable by their owner only.

    For keys that must outlive a crash between two messages, and nothing longer. Python cannot wipe
    memory and a file system may keep deleted blocks; SECURITY.md says so.
    """

    folder: Path

    def once(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The secret of that name, made and written (0600) at the first call.

        Where two processes come at once, both get the secret of the first.
        """
        path = self.folder / name
        secret = read_if_there(path, what="key file ")
        if secret is not None:
            return secret
        secret = make()
        # The process id at the end is what `sweep_parts` reads.
        draft = self.folder / f".{name}.{token_hex(8)}.{os.getpid()}"
        write_atomically(draft, secret, mode=0o600)
        try:
            os.link(draft, path)
        except FileExistsError:
            return read_file(path, what="key file ", refusal=TransportError)
        except OSError as error:
            raise TransportError(f"cannot write {path}: {error.strerror}") from error
        finally:
            draft.unlink(missing_ok=True)
        return secret

    def forget(self, prefix: str) -> None:
        """Delete the secrets with this prefix, which no message needs any more."""
        for path in self.folder.glob(f"{prefix}*"):
            path.unlink(missing_ok=True)
