"""What a file of records may hold and hardly means: told on the site's own screen, never refused.

Lines are named, never what they say. Nothing of it leaves the site.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection
from typing import Final

from lada_secure.data.record_faults import lines_text
from lada_secure.data.records import Record, RecordFile
from lada_secure.data.tasks import Classification
from lada_secure.data.unit_ids import alike_units, canonical_unit, has_far_more, is_placeholder

logger = logging.getLogger(__name__)

# All but tab and line ends; those of C1 are what a wrong encoding leaves.
CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def warn_of_oddities(file: RecordFile) -> None:
    """Control characters in texts, labels that differ, and a unit column that names no people."""
    told = list(zip(file.records, file.lines, strict=True))
    controlled = [line for one, line in told if any(map(CONTROL.search, _texts(one)))]
    if controlled:
        logger.warning(
            "%s: %d record(s) hold control characters (lines %s), which the model is trained on as "
            "they are; take them out",
            file.name,
            len(controlled),
            lines_text(controlled),
        )
    sets = {frozenset(one.choices) for one, _ in told if isinstance(one.task, Classification)}
    if len(sets) > 1:
        logger.warning(
            "%s: the records of kind classification have %d different sets of labels, and each is "
            "judged as a task of its own; a record with options of its own is of kind choice",
            file.name,
            len(sets),
        )
    if len(told) < 2:
        return
    counts = Counter(canonical_unit(one.unit) for one, _ in told)
    if len(counts) == 1:
        logger.warning(
            "%s: all %d records are of one unit, so at most max_records_per_unit of them count; "
            "name the person of each record as its unit",
            file.name,
            len(told),
        )
        return
    _warn_of_units(file, counts)
    if all(one.unit == one.record_id for one, _ in told):
        logger.warning(
            "%s: the unit of every record is its record_id, so each record is protected as a "
            "person of its own; name the person, unless everybody has one record alone",
            file.name,
        )


def _warn_of_units(file: RecordFile, counts: Counter[str]) -> None:
    """Units that may be one person in several forms, or nobody."""
    alike = alike_units(counts)
    if alike:
        logger.warning(
            "%s: %d units may be one person with another one (as on lines %s): they differ by "
            'leading zeros, a ".0" at the end, or what stands before the last "/" alone, and each '
            "is protected as a person of its own; spell one person alike (the filter plain_id of "
            "an import)",
            file.name,
            len(alike),
            lines_text(_lines_of(file, alike)),
        )
    placeholders = {
        one
        for one, records in counts.items()
        if is_placeholder(one) and has_far_more(records, of_all=counts.total(), units=len(counts))
    }
    if placeholders:
        logger.warning(
            "%s: %d unit(s) look like a placeholder and have far more records than others (lines "
            "%s): people who share one are protected as one; name the person of each record",
            file.name,
            len(placeholders),
            lines_text(_lines_of(file, placeholders)),
        )


def _lines_of(file: RecordFile, units: Collection[str]) -> list[int]:
    told = zip(file.records, file.lines, strict=True)
    return [line for one, line in told if canonical_unit(one.unit) in units]


def _texts(record: Record) -> tuple[str, ...]:
    return (record.question, record.answer, *record.choices, record.rationale or "")
