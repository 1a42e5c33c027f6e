"""One row becomes one sample of the public pool, or a reject that says why."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final

from lada_secure.data.importing.conversion import (
    QuestionReader,
    Read,
    UnusableRow,
    check_text,
    meant,
    text_reader,
)
from lada_secure.data.importing.mapping import PoolMapping, TextField
from lada_secure.data.importing.rows import Cells, Reject, Row
from lada_secure.data.records import PoolSample

_ID_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class SampleCandidate:
    """A sample that may be written, if its id is new."""

    line: int
    sample: PoolSample


class SampleConverter:
    """Makes samples of rows by a mapping."""

    def __init__(self, mapping: PoolMapping) -> None:
        self._reads = QuestionReader(mapping)
        self._id_field = mapping.record.id
        self._id = _optional(mapping.record.id)
        self._fields = mapping.pool
        self._licence = _optional(mapping.pool.licence)
        self._source = _optional(mapping.pool.source)

    def convert(self, row: Row) -> SampleCandidate | Reject:
        """The sample of a row, or why it has none."""
        try:
            return SampleCandidate(row.line, self._sample(row.cells))
        except UnusableRow as error:
            return Reject(row.line, error.reason, error.column)

    def _sample(self, cells: Cells) -> PoolSample:
        question, choices, answer = self._reads.read(cells)
        if self._id is None:
            # Public, so a bare hash does: the same sample has the same id in every pool.
            told = json.dumps((question, choices, answer), ensure_ascii=True).encode("ascii")
            sample_id = hashlib.sha256(told).hexdigest()[: 2 * _ID_BYTES]
        else:
            sample_id = meant(self._id(cells), self._id_field)
        return PoolSample(
            sample_id=sample_id,
            question=question,
            choices=choices,
            answer=answer,
            licence=_said(self._licence, self._fields.licence, cells),
            source=_said(self._source, self._fields.source, cells),
        )


def _optional(field: TextField | None) -> Read | None:
    return None if field is None else text_reader(field)


def _said(read: Read | None, field: TextField | None, cells: Cells) -> str | None:
    text = None if read is None else read(cells)
    if text is None or not text.strip():
        return None
    check_text(text, field)
    return text
