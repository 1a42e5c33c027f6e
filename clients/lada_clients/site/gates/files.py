"""The file gate: what a site's own files say, first of all; `model` is its second half.

A record that stops a release tells that it is there, and every restart would pay again. So all
faults of the files are found here, at once and before anything is promised or spent. This is the
one place that reads records without a reservation: nothing of it leaves, and its messages name
files and lines on the site's own screen, never what a record says.

A file that changes while a study runs would make its releases about two different data sets, and
the gate has not seen the second one. `RecordFiles` notices; what is noted never leaves the site.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lada_clients.site.settings import SitePolicy, SiteSettings
from lada_secure.canonical import canonical_json
from lada_secure.data.record_faults import Fault, lines_text, refuse
from lada_secure.data.record_oddities import warn_of_oddities
from lada_secure.data.records import RecordFile, inspect_records
from lada_secure.data.unit_ids import canonical_unit, likeness
from lada_secure.errors import LadaError, ParameterError
from lada_secure.privacy.release.units import Unit, bound_units, unit_faults
from lada_secure.storage.whole_files import write_atomically

logger = logging.getLogger(__name__)

NOTE_FILE: Final = "record-files.json"
_DOMAIN: Final = b"lada/2/record-file/"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFiles:
    """A site's records and held-out records, as they passed the gate."""

    records: RecordFile
    held_out: RecordFile | None

    def units(self, policy: SitePolicy, *, max_records_per_unit: int) -> tuple[Unit, ...]:
        """The bounded privacy units of the training records, see `bound_units`."""
        # With "refuse", no unit has two spellings; the protective reading then costs nothing.
        spellings = policy.units.spellings
        return bound_units(
            self.records.records,
            max_records_per_unit=max_records_per_unit,
            spellings="one_person" if spellings == "refuse" else spellings,
        )


def check_files(settings: SiteSettings, policy: SitePolicy) -> SiteFiles:
    """First half: all that the files alone say. Needs no network, no plan and no model.

    Raises: ParameterError: all faults of both files, by line.
    """
    records = inspect_records(settings.records)
    held_out = None if settings.held_out is None else inspect_records(settings.held_out)
    refuse([*_file_faults(records, policy), *_file_faults(held_out, policy)])
    if held_out is not None:
        _warn_of_overlap(records, held_out)
    warn_of_oddities(records)
    return SiteFiles(records=records, held_out=held_out)


def _file_faults(file: RecordFile | None, policy: SitePolicy) -> Iterator[tuple[str, Fault]]:
    if file is None:
        return
    units = unit_faults(
        file, spellings=policy.units.spellings, missing_like=policy.units.missing_like
    )
    for fault in sorted((*file.faults, *units), key=lambda one: one.line or 0):
        yield file.name, fault


def _warn_of_overlap(records: RecordFile, held_out: RecordFile) -> None:
    ids = {one.record_id for one in records.records}
    units = {canonical_unit(one.unit) for one in records.records}
    wholes = {likeness(one)[0] for one in units}
    parts = wholes | {likeness(one)[1] for one in units}

    def alike(unit: str) -> bool:
        whole, last = likeness(unit)
        return unit not in units and (whole in parts or last in wholes)

    told = list(zip(held_out.records, held_out.lines, strict=True))
    for what, lines in (
        ("record_id", [line for one, line in told if one.record_id in ids]),
        ("unit", [line for one, line in told if canonical_unit(one.unit) in units]),
        (
            "unit, but for leading zeros or what stands before a slash,",
            [line for one, line in told if alike(canonical_unit(one.unit))],
        ),
    ):
        if lines:
            logger.warning(
                "%s: %d record(s) share a %s with the training records (lines %s); the accuracy on "
                "them says little of people that the model has not seen",
                held_out.name,
                len(lines),
                what,
                lines_text(lines),
            )


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
                raise ParameterError(
                    f"{name}: cannot read {path}: {error.strerror}; a relative path in the "
                    "settings is taken from the folder of that file"
                ) from error
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
