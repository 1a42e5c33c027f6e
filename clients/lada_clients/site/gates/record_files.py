"""Whether a site's private files are still those that it accepted the plan with.

A file that changes while a study runs would make its releases about two different data sets, and
the file gate has not seen the second one. What is noted of the files never leaves the site.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lada_clients.site.settings import SiteSettings
from lada_secure.canonical import canonical_json
from lada_secure.errors import LadaError, ParameterError
from lada_secure.storage.whole_files import write_atomically

NOTE_FILE: Final = "record-files.json"
_DOMAIN: Final = b"lada/2/record-file/"


class RecordsChanged(LadaError):
    """A private file is not the one that was read before; nothing was reserved or sent."""

    code = "records_changed"


def file_digests(settings: SiteSettings) -> dict[str, str]:
    """SHA-256 of each private file, by the name of its setting. Raises: ParameterError."""
    found: dict[str, str] = {}
    for name in ("records", "held_out"):
        path = getattr(settings, name)
        if path is not None:
            # A pipe would be waited for without a word, and could be read only once.
            if path.exists() and not path.is_file():
                raise ParameterError(f"{name}: {path} is no regular file; name a file of records")
            try:
                with path.open("rb") as file:
                    found[name] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise ParameterError(f"{name}: cannot read {path}: {error.strerror}") from error
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFiles:
    """The private files during one study.

    Args:
        digests: of the files, taken before they were read for the gate.
        folder: the study's; it gets a note. key: secret, the site's own: a bare hash of few
            records could be confirmed by whoever guesses them and sees the note.
    """

    settings: SiteSettings
    digests: Mapping[str, str]
    folder: Path
    key: bytes

    def keep(self) -> None:
        """Note the files that the gate has read, before the plan is accepted.

        Raises: RecordsChanged: they changed since then.
        """
        self._compare(self.digests, file_digests(self.settings), since="this process started")
        note = canonical_json(self._keyed(self.digests))
        write_atomically(self.folder / NOTE_FILE, note, mode=0o600)

    def check(self) -> None:
        """Check that no file has changed since the plan was accepted.

        Raises: RecordsChanged. ParameterError: a file or the note cannot be read.
        """
        note = self.folder / NOTE_FILE
        try:
            kept = json.loads(note.read_bytes())
        except (OSError, ValueError) as error:
            raise ParameterError(
                f"cannot read {note}, the note of the private files that this study began with "
                f"({error}); put the study's folder back from its backup"
            ) from error
        self._compare(kept, self._keyed(file_digests(self.settings)), since="this study began")

    def _compare(self, before: Mapping[str, str], now: Mapping[str, str], *, since: str) -> None:
        for name in sorted(set(before) | set(now)):
            if before.get(name) != now.get(name):
                raise RecordsChanged(
                    f"{name}: {getattr(self.settings, name, None)} has changed since {since}. "
                    "Nothing more was reserved or sent. Put the file back and start "
                    "again; or leave the study with `lada site withdraw`"
                )

    def _keyed(self, digests: Mapping[str, str]) -> dict[str, str]:
        return {
            name: hmac.new(self.key, _DOMAIN + digest.encode("ascii"), hashlib.sha256).hexdigest()
            for name, digest in digests.items()
        }
