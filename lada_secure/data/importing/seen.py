"""What an import must remember of all rows: ids and units, on disk instead of in memory.

A temporary SQLite file beside the output, 0600 and deleted at the end. It costs about 100 bytes a
record on the disk and a fixed cache in memory, whatever the number of rows.
"""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from lada_secure.data.unit_ids import has_far_more
from lada_secure.errors import TransportError

_CACHE_KIB: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCounts:
    """Counts over units. by_size: units by how many records they have, of "1", "2", "3-5", ...

    most: records of a unit. cut_units, cut_records: what a cap would leave out.
    spelled_otherwise: units that came in several spellings. alike: units that may be one person
    with another one. placeholders: those that look like nobody and have far more records.
    """

    units: int = 0
    by_size: tuple[tuple[str, int], ...] = ()
    most: int = 0
    cut_units: int = 0
    cut_records: int = 0
    spelled_otherwise: int = 0
    alike: int = 0
    placeholders: int = 0


# By the most records of a class of units.
_SIZES: Final = ((1, "1"), (2, "2"), (5, "3-5"), (10, "6-10"), (100, "11-100"), (None, "over 100"))


class Seen:
    """Ids and units so far. Raises: TransportError: the disk refuses."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.touch(mode=0o600)
            self._base = sqlite3.connect(path, isolation_level=None)
            # It is thrown away after a crash: nothing of it need be brought back.
            for setting in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
                self._base.execute(f"PRAGMA {setting}")
            self._base.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._base.execute("CREATE TABLE ids (id BLOB PRIMARY KEY) WITHOUT ROWID")
            self._base.execute(
                "CREATE TABLE units (unit BLOB PRIMARY KEY, spelling TEXT NOT NULL, "
                "records INTEGER NOT NULL, others INTEGER NOT NULL, "
                "placeholder INTEGER NOT NULL) WITHOUT ROWID"
            )
            self._base.execute(
                "CREATE TABLE alike (likeness BLOB, unit BLOB, whole INTEGER NOT NULL, "
                "PRIMARY KEY (likeness, unit)) WITHOUT ROWID"
            )
            self._base.execute("BEGIN")
        except (sqlite3.Error, OSError) as error:
            path.unlink(missing_ok=True)
            raise TransportError(f"cannot write {path}: {error}; nothing was imported") from error

    def __enter__(self) -> Seen:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._base.close()
        self._path.unlink(missing_ok=True)

    def add_id(self, digest: bytes) -> bool:
        """Remember an id. Returns: whether it is new."""
        return self._run("INSERT OR IGNORE INTO ids VALUES (?)", digest).rowcount == 1

    def add_unit(self, digest: bytes, spelling: str) -> tuple[str, bool]:
        """Count a record of a unit.

        Returns: the spelling that the unit came in first, and whether this is its only record.
        """
        found = self._run(
            "INSERT INTO units VALUES (?, ?, 1, 0, 0) ON CONFLICT (unit) DO UPDATE SET "
            "records = records + 1, others = others + (spelling <> excluded.spelling) "
            "RETURNING spelling, records",
            digest,
            spelling,
        )
        first, records = found.fetchone()
        return str(first), records == 1

    def add_likeness(self, digest: bytes, whole: bytes, last: bytes, *, placeholder: bool) -> None:
        """What a new unit is like. whole, last: keyed hashes of `likeness`."""
        statement = "INSERT OR IGNORE INTO alike VALUES (?, ?, ?)"
        self._run(statement, whole, digest, 1)
        if last != whole:
            self._run(statement, last, digest, 0)
        if placeholder:
            self._run("UPDATE units SET placeholder = 1 WHERE unit = ?", digest)

    def take_back(self, digest: bytes) -> None:
        """A record that `add_unit` has counted is not used after all."""
        self._run("UPDATE units SET records = records - 1 WHERE unit = ?", digest)

    def units(self, *, cap: int | None, held_out: float) -> UnitCounts:
        """Counts over all units.

        Args: cap: most records of one, to see what it would cut of those to train on. held_out:
            the share of units that are not.
        """
        classes = dict.fromkeys((name for _, name in _SIZES), 0)
        units = spelled = most = of_all = 0
        # Groups are few: there are not many different numbers of records.
        groups = self._run(
            "SELECT records, count(*), sum(others > 0) FROM units WHERE records > 0 "
            "GROUP BY records ORDER BY records"
        )
        for records, count, others in groups:
            name = next(name for top, name in _SIZES if top is None or records <= top)
            classes[name] += count
            units, spelled, most = units + count, spelled + others, records
            of_all += records * count
        # As `is_held_out` has it: a digest at or above it is of somebody to train on.
        first = math.ceil(held_out * 2.0**64).to_bytes(8, "big")
        cut_units, cut_records = self._run(
            "SELECT count(*), coalesce(sum(records - ?1), 0) FROM units "
            "WHERE ?1 > 0 AND records > ?1 AND unit >= ?2",
            cap or 0,
            first,
        ).fetchone()
        return UnitCounts(
            units=units,
            by_size=tuple(classes.items()),
            most=most,
            cut_units=cut_units,
            cut_records=cut_records,
            spelled_otherwise=spelled,
            alike=self._alike(),
            placeholders=sum(
                has_far_more(records, of_all=of_all, units=units)
                for (records,) in self._run("SELECT records FROM units WHERE placeholder = 1")
            ),
        )

    def _alike(self) -> int:
        found = self._run(
            "WITH used AS (SELECT likeness, unit, whole FROM alike JOIN units USING (unit) "
            "WHERE records > 0) SELECT count(DISTINCT unit) FROM used WHERE likeness IN "
            "(SELECT likeness FROM used GROUP BY likeness HAVING count(*) > 1 AND max(whole))"
        )
        return int(found.fetchone()[0])

    def _run(self, statement: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._base.execute(statement, values)
        except sqlite3.Error as error:
            raise TransportError(
                f"cannot write {self._path}: {error}; nothing was imported"
            ) from error
