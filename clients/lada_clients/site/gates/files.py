"""The file gate: what a site's own files say, first of all; `model` is its second half.

A record that stops a release tells that it is there, and every restart would pay again. So all
faults of the files are found here, at once and before anything is promised or spent. This is the
one place that reads records without a reservation: nothing of it leaves, and its messages name
files and lines on the site's own screen, never what a record says.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from lada_clients.site.settings import SitePolicy, SiteSettings
from lada_secure.data.record_faults import Fault, lines_text, refuse
from lada_secure.data.records import RecordFile, inspect_records
from lada_secure.privacy.release.units import Unit, bound_units, canonical_unit, unit_faults

logger = logging.getLogger(__name__)


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
    told = list(zip(held_out.records, held_out.lines, strict=True))
    for what, lines in (
        ("record_id", [line for one, line in told if one.record_id in ids]),
        ("unit", [line for one, line in told if canonical_unit(one.unit) in units]),
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
