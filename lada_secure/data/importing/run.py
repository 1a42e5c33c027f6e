"""An import: rows in, records and rejects out, with the same bytes whenever it is run again."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from lada_secure.canonical import sha256_hex
from lada_secure.data.importing.conversion import (
    Candidate,
    Converter,
    check_constants,
)
from lada_secure.data.importing.databases import is_database
from lada_secure.data.importing.mapping import Mapping as Settings
from lada_secure.data.importing.mapping import parse_mapping
from lada_secure.data.importing.outputs import (
    DUPLICATES,
    HELD_OUT,
    INDEX,
    RECORDS,
    REJECTS,
    REPORT,
    OutputFolder,
    check_apart,
)
from lada_secure.data.importing.overlap import count_near, csv_line
from lada_secure.data.importing.progress import Progress
from lada_secure.data.importing.reports import DEFAULT_STEP, Figures, NearCounts, report
from lada_secure.data.importing.rows import Reject, Row
from lada_secure.data.importing.seen import Seen
from lada_secure.data.importing.sources import is_wanted, open_source, rows_with
from lada_secure.data.importing.splits import is_held_out, read_salt, salt_path, unit_digest
from lada_secure.data.record_faults import MAX_LINE_BYTES
from lada_secure.data.records import Record, parse_records, read_pool, record_line
from lada_secure.data.unit_ids import canonical_unit, is_placeholder, likeness
from lada_secure.errors import LadaError, TransportError
from lada_secure.storage.whole_files import read_file

_CHUNK: Final = 512
# Of a line that is no record, whoever has written it.
_NO_RECORD: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
# What a text may hold without being meant so; it is counted and kept.
_LOOKS: Final = {
    "look like HTML": re.compile(r"</?[A-Za-z][^<>\n]{0,200}>|&(?:[a-z]{2,8}|#[0-9]{1,6});"),
    "hold signs that turn the direction of text": re.compile("[\u202a-\u202e\u2066-\u2069]"),
    "hold letters that were lost or misread (\\ufffd, or as in \\u00c3\\u00bc)": re.compile(
        "\ufffd|\u00c3[\u0080-\u00bf]|\u00e2\u20ac"
    ),
}


class ImportRefused(LadaError):
    """Too few rows can be used; nothing but the rejects and the report was written.

    told: the report with exact counts.
    """

    code = "import_refused"

    def __init__(self, message: str, told: dict[str, Any]) -> None:
        super().__init__(message)
        self.told = told


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """What is asked for.

    source: file, folder or database's address. most_rejects: the largest share of rows that may
    make no record, in [0, 1]. pool: public samples to compare with. cap: records of one unit that
    a plan takes. step: counts in the report are rounded up to it. near: whether near duplicates are
    looked for.
    """

    source: str
    mapping: Path
    out: Path
    most_rejects: float = 0.01
    pool: Path | None = None
    cap: int | None = None
    step: int = DEFAULT_STEP
    near: bool = True


def run_import(request: ImportRequest, *, progress: Progress) -> dict[str, Any]:
    """Import a source by a mapping.

    Returns: JSON-ready: the report with exact counts, for the screen of whoever imports, and how
        many people of the folder's earlier held-out file are held out no more.
    Raises: ParameterError: mapping, source or pool are not as they must be. ImportRefused: too many
        rejects, or no record; carries the report. TransportError: disk or database
        failed. After any of them no records file has changed.
    """
    _check_apart(request)
    raw = read_file(request.mapping, what="mapping ")
    mapping = parse_mapping(raw, where=str(request.mapping))
    check_constants(mapping.record)
    pool = () if request.pool is None else read_pool(request.pool)
    source = open_source(request.source, mapping.source)
    rows = rows_with(
        source,
        mapping.columns(),
        spared=mapping.spared(),
        only=mapping.source.only,
        where=shown_source(request.source),
    )
    salt = read_salt(salt_path(request.mapping))
    moved = _held_out_no_more(
        request.out / HELD_OUT, salt, share=mapping.split.held_out, progress=progress
    )
    with OutputFolder(request.out) as out, Seen(out.part(INDEX)) as seen:
        # In the order in which they take their names: the records last.
        out.open(REPORT, mode=0o644)
        for name in (REJECTS, DUPLICATES, HELD_OUT, RECORDS):
            out.open(name)
        writing = _Writing(mapping, salt, out, seen, progress)
        writing.take(rows)
        out.flush()
        near = None
        if request.near:
            near = count_near(out, pool, records=writing.records, progress=progress)
        figures = writing.figures(cap=request.cap, near=near)
        refused = _refusal(figures, request)

        def told(step: int) -> dict[str, Any]:
            found: dict[str, Any] = report(
                figures,
                said=source.said,
                mapping_sha256=sha256_hex(raw),
                step=step,
                refused=refused is not None,
            )
            return found

        _finish(out, figures, told(request.step), request)
        if refused is not None:
            raise ImportRefused(refused, told(1))
        return told(1) | {"held_out_no_more": moved}


def _held_out_no_more(earlier: Path, salt: bytes, *, share: float, progress: Progress) -> int:
    """How many people an earlier import has held out and this one trains on, if they come again."""
    digests = set()
    try:
        with earlier.open("rb") as file:
            # Line by line: such a file may be as large as an import.
            for at, line in enumerate(file):
                if at % _CHUNK == 0:
                    progress(at, "earlier held-out records looked at")
                with contextlib.suppress(*_NO_RECORD):
                    digests.add(unit_digest(canonical_unit(json.loads(line)["unit"]), salt=salt))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        # What is in the way of writing is told when it comes to that.
        return 0
    except OSError as error:
        raise TransportError(f"cannot read {earlier}: {error.strerror}") from error
    return sum(not is_held_out(one, share=share) for one in digests)


def _check_apart(request: ImportRequest) -> None:
    read = {"the source": Path(request.source), "the mapping": request.mapping}
    if request.pool is not None:
        read["the pool"] = request.pool
    check_apart(request.out, read, written=(RECORDS, HELD_OUT, REJECTS, DUPLICATES, REPORT))


def shown_source(source: str) -> str:
    """A source's name for messages; an address may hold a password."""
    return "the query" if is_database(source) else source


def too_many_rejected(
    rejected: int, rows: int, *, most: float, made: tuple[str, str], file: Path, earlier: Path
) -> str | None:
    """Why an import with so many rejected rows fails; None where it does not.

    Args: made: what a row makes, and what all of them would. file: which names the rejected.
        earlier: what an import before has made, if it is there.
    """
    share = rejected / rows if rows else 0.0
    if share <= most:
        return None
    one, all_ = made
    return (
        f"{rejected:,} of {rows:,} rows make no {one} ({share:.2%}), at most {most:.2%} may "
        f"(--most-rejects); no {all_} was written. {file} names line, reason and column"
        f"{beside(earlier)}"
    )


def beside(earlier: Path) -> str:
    """What else a refused import says, so that nobody takes its files for those of `earlier`."""
    if not earlier.exists():
        return ""
    return f". They are of this refused import; {earlier} is of an earlier one, and unchanged"


def _refusal(figures: Figures, request: ImportRequest) -> str | None:
    told = too_many_rejected(
        figures.rejected,
        figures.rows - figures.passed_over,
        most=request.most_rejects,
        made=("record", "records file"),
        file=request.out / REJECTS,
        earlier=request.out / RECORDS,
    )
    if told is not None:
        return told
    if not figures.records:
        return (
            f"no record to train on in {figures.rows:,} rows, {figures.held_out:,} are held out; "
            f"no records file was written{beside(request.out / RECORDS)}"
        )
    return None


def _finish(
    out: OutputFolder, figures: Figures, rounded: dict[str, Any], request: ImportRequest
) -> None:
    outdated = []
    # What no import has written is somebody's own.
    imported = (request.out / REPORT).exists() and (request.out / RECORDS).exists()
    if _refusal(figures, request) is not None:
        for name in (RECORDS, HELD_OUT, DUPLICATES):
            out.drop(name)
    else:
        if not figures.held_out:
            out.drop(HELD_OUT)
            outdated += [HELD_OUT] if imported else []
        if figures.near is None or not figures.near.of_all:
            out.drop(DUPLICATES)
            outdated += [DUPLICATES] if imported else []
    out.write(REPORT, json.dumps(rounded, indent=2, sort_keys=True).encode("utf-8") + b"\n")
    out.commit(outdated=outdated)


class _Writing:
    """The one pass over all rows."""

    def __init__(
        self, mapping: Settings, salt: bytes, out: OutputFolder, seen: Seen, progress: Progress
    ) -> None:
        self._mapping, self._salt, self._out, self._seen = mapping, salt, out, seen
        self._progress = progress
        self._converter = Converter(mapping, key=salt)
        self._rows = self._passed_over = self.records = self._held_out = 0
        self._reasons: Counter[str] = Counter()
        self._looks: Counter[str] = Counter()

    def take(self, rows: Iterator[Row | Reject]) -> None:
        self._out.write(REJECTS, csv_line(("line", "reason", "column")))
        while chunk := list(islice(rows, _CHUNK)):
            self._rows += len(chunk)
            self._take_chunk([row for row in chunk if self._wanted(row)])
            self._progress(self._rows)

    def figures(self, *, cap: int | None, near: NearCounts | None) -> Figures:
        return Figures(
            rows=self._rows,
            passed_over=self._passed_over,
            records=self.records,
            held_out=self._held_out,
            reasons=dict(self._reasons),
            held_out_share=self._mapping.split.held_out,
            units=self._seen.units(cap=cap, held_out=self._mapping.split.held_out),
            looks=dict(self._looks),
            near=near,
        )

    def _wanted(self, row: Row | Reject) -> bool:
        if isinstance(row, Reject) or is_wanted(row, self._mapping.source.only):
            return True
        self._passed_over += 1
        return False

    def _take_chunk(self, chunk: Sequence[Row | Reject]) -> None:
        found = [one if isinstance(one, Reject) else self._converter.convert(one) for one in chunk]
        lines = {
            at: record_line(one.record)
            for at, one in enumerate(found)
            if isinstance(one, Candidate)
        }
        refused = _refused_lines(lines)
        known: set[str] = set()
        for at, one in enumerate(found):
            if isinstance(one, Reject):
                self._reject(one)
                continue
            repeated = one.record.record_id in known
            known.add(one.record.record_id)
            # The parser has only this chunk in view: an id that repeats there may be new here.
            if at in refused and (not repeated or parse_records(lines[at], where="").faults):
                long = len(lines[at]) > MAX_LINE_BYTES
                self._reject(Reject(one.line, "record-too-long" if long else "not-a-record"))
            else:
                self._write(one, lines[at])

    def _write(self, one: Candidate, line: bytes) -> None:
        fields = self._mapping.record
        digest = unit_digest(one.canonical, salt=self._salt)
        first, new = self._seen.add_unit(digest, one.record.unit)
        if new:
            whole, last = likeness(one.canonical)
            self._seen.add_likeness(
                digest,
                unit_digest(whole, salt=self._salt),
                unit_digest(last, salt=self._salt),
                placeholder=is_placeholder(one.canonical),
            )
        reason, column = "", ""
        if first != one.record.unit and fields.unit.spellings != "different_people":
            if fields.unit.spellings == "refuse":
                reason, column = "unit-spelled-otherwise", " ".join(fields.unit.columns())
            line = record_line(replace(one.record, unit=first))
            # The other spelling may be the longer one.
            if len(line) > MAX_LINE_BYTES + 1 and not reason:
                reason = "record-too-long"
        if not reason and not self._seen.add_id(one.record.record_id.encode("utf-8")):
            reason, column = (
                "row-repeated",
                "" if fields.id is None else " ".join(fields.id.columns()),
            )
        if reason:
            self._seen.take_back(digest)
            self._reject(Reject(one.line, reason, column))
            return
        if is_held_out(digest, share=self._mapping.split.held_out):
            self._out.write(HELD_OUT, line)
            self._held_out += 1
        else:
            self._out.write(RECORDS, line)
            self.records += 1
        self._look(one.record)

    def _look(self, record: Record) -> None:
        text = "\n".join((record.question, *record.choices, record.answer, record.rationale or ""))
        for name, sign in _LOOKS.items():
            if sign.search(text):
                self._looks[name] += 1

    def _reject(self, reject: Reject) -> None:
        self._reasons[reject.reason] += 1
        self._out.write(REJECTS, csv_line((str(reject.line), reject.reason, reject.column)))


def _refused_lines(lines: Mapping[int, bytes]) -> frozenset[int]:
    """Which of the lines the form of records refuses, by the parser that a site reads with."""
    if not lines:
        return frozenset()
    places = tuple(lines)
    faults = parse_records(b"".join(lines.values()), where="").faults
    return frozenset(places[fault.line - 1] for fault in faults if fault.line is not None)
