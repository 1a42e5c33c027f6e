"""An import for the public pool: the same sources and mappings, without people and splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from lada_secure.canonical import sha256_hex
from lada_secure.data.importing.conversion import check_constants
from lada_secure.data.importing.mapping import parse_pool_mapping
from lada_secure.data.importing.outputs import (
    POOL,
    POOL_ALIKE,
    POOL_REJECTS,
    OutputFolder,
    check_apart,
)
from lada_secure.data.importing.overlap import csv_line
from lada_secure.data.importing.pool_alike import (
    NOT_LOOKED_AT,
    AlikeSamples,
    alike_samples,
    alike_sentences,
)
from lada_secure.data.importing.pool_conversion import SampleConverter
from lada_secure.data.importing.progress import LOOKED_AT, Progress
from lada_secure.data.importing.rows import REASONS, Reject, Row
from lada_secure.data.importing.run import ImportRefused, beside, shown_source, too_many_rejected
from lada_secure.data.importing.sources import is_wanted, open_source, rows_with
from lada_secure.data.record_faults import MAX_LINE_BYTES
from lada_secure.data.records import PoolSample, parse_pool, pool_hash, sample_line
from lada_secure.errors import ParameterError
from lada_secure.storage.whole_files import read_file

FORMAT: Final = "lada-pool-import/1"
_CHUNK: Final = 512
_HEADER: Final = ("kind", "sample_id", "other", "answer", "other_answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRequest:
    """What is asked for; fields as in `ImportRequest`."""

    source: str
    mapping: Path
    out: Path
    most_rejects: float = 0.01
    near: bool = True


def run_pool_import(request: PoolRequest, *, progress: Progress) -> dict[str, Any]:
    """Import a source as a public pool.

    Returns: JSON-ready: counts, the pool's hash, and what it says more than once, by sample id.
    Raises: ParameterError: mapping or source are not as they must be. ImportRefused: too many
        rejects, or no sample. TransportError: disk or database failed. After any of them no pool
        has changed.
    """
    read = {"the source": Path(request.source), "the mapping": request.mapping}
    check_apart(request.out, read, written=(POOL, POOL_REJECTS, POOL_ALIKE))
    raw = read_file(request.mapping, what="mapping ")
    mapping = parse_pool_mapping(raw, where=str(request.mapping))
    check_constants(mapping.record)
    source = open_source(request.source, mapping.source)
    only = mapping.source.only
    rows = rows_with(
        source,
        mapping.columns(),
        spared=mapping.spared(),
        only=only,
        where=shown_source(request.source),
    )
    with OutputFolder(request.out) as out:
        # In the order in which they take their names: the pool last.
        for name in (POOL_REJECTS, POOL_ALIKE, POOL):
            out.open(name, mode=0o644)
        taken = _Taking(SampleConverter(mapping), only, out, progress)
        taken.take(rows)
        refused = _refusal(taken, request)
        told = {
            "format": FORMAT,
            "source": list(source.said),
            "mapping_sha256": sha256_hex(raw),
            "pool_sha256": None,
            **taken.counts(),
            **NOT_LOOKED_AT,
        }
        if refused is not None:
            for name in (POOL, POOL_ALIKE):
                out.drop(name)
            out.commit()
            raise ImportRefused(refused, told)
        samples = taken.samples
        alike = alike_samples(
            samples,
            near=request.near,
            told=lambda done: progress(done, LOOKED_AT, len(samples)),
        )
        _write_alike(out, alike, {one.sample_id: one for one in samples})
        out.commit()
        return told | {"pool_sha256": pool_hash(samples)} | alike.to_json()


def _refusal(taken: _Taking, request: PoolRequest) -> str | None:
    told = too_many_rejected(
        taken.rejected,
        taken.rows - taken.passed_over,
        most=request.most_rejects,
        made=("sample", "pool"),
        file=request.out / POOL_REJECTS,
        earlier=request.out / POOL,
    )
    if told is not None:
        return told
    if not taken.samples:
        return f"no sample in {taken.rows:,} rows; no pool was written{beside(request.out / POOL)}"
    return None


class _Taking:
    """The one pass over all rows."""

    def __init__(
        self,
        converter: SampleConverter,
        only: Mapping[str, str],
        out: OutputFolder,
        progress: Progress,
    ) -> None:
        self._converter, self._only, self._out, self._progress = converter, only, out, progress
        self.samples: list[PoolSample] = []
        self.rows = self.passed_over = 0
        self._reasons: Counter[str] = Counter()
        self._ids: set[str] = set()

    @property
    def rejected(self) -> int:
        """Rows that make no sample."""
        return self._reasons.total()

    def take(self, rows: Iterator[Row | Reject]) -> None:
        """Write samples and rejects of all rows."""
        self._out.write(POOL_REJECTS, csv_line(("line", "reason", "column")))
        while chunk := list(islice(rows, _CHUNK)):
            self.rows += len(chunk)
            for row in chunk:
                self._take_row(row)
            self._progress(self.rows)

    def counts(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "rows": self.rows,
            "passed_over": self.passed_over,
            "samples": len(self.samples),
            "rejected": self.rejected,
            "rejected_by_reason": dict(sorted(self._reasons.items())),
        }

    def _take_row(self, row: Row | Reject) -> None:
        if isinstance(row, Reject):
            self._reject(row)
            return
        if not is_wanted(row, self._only):
            self.passed_over += 1
            return
        found = self._converter.convert(row)
        if isinstance(found, Reject):
            self._reject(found)
            return
        line = sample_line(found.sample)
        if len(line) > MAX_LINE_BYTES + 1:
            self._reject(Reject(row.line, "record-too-long"))
        elif found.sample.sample_id in self._ids:
            self._reject(Reject(row.line, "row-repeated"))
        elif not _readable(line):
            self._reject(Reject(row.line, "not-a-record"))
        else:
            self._ids.add(found.sample.sample_id)
            self.samples.append(found.sample)
            self._out.write(POOL, line)

    def _reject(self, reject: Reject) -> None:
        self._reasons[reject.reason] += 1
        self._out.write(POOL_REJECTS, csv_line((str(reject.line), reject.reason, reject.column)))


def _readable(line: bytes) -> bool:
    """By the parser that everybody reads a pool with; it has the last word."""
    try:
        parse_pool(line, where="")
    except ParameterError:
        return False
    return True


def _write_alike(out: OutputFolder, found: AlikeSamples, by_id: Mapping[str, PoolSample]) -> None:
    """Every pair of samples that is to be looked at, a line each."""
    out.write(POOL_ALIKE, csv_line(_HEADER))
    for kind, own, other in found.pairs():
        answers = (by_id[own].answer, by_id[other].answer)
        out.write(POOL_ALIKE, csv_line((kind, own, other, *answers)))


def pool_sentences(told: Mapping[str, Any]) -> Iterator[str]:
    """The same for people. told: of `run_pool_import`."""
    yield from (f"source: {line}" for line in told["source"])
    yield (
        f"{told['rows']:,} rows: {told['samples']:,} samples, {told['rejected']:,} rejected, "
        f"{told['passed_over']:,} passed over"
    )
    for name, count in told["rejected_by_reason"].items():
        yield f"  {count:,} {name}: {REASONS[name]}"
    yield from alike_sentences(told)
    if told["pool_sha256"] is not None:
        yield f"pool_sha256 {told['pool_sha256']}"
