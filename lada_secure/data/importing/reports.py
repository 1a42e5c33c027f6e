"""What an import tells: counts, exact for its own people and rounded for others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lada_secure.data.importing.near_duplicates import MANY_ALIKE
from lada_secure.data.importing.rows import REASONS
from lada_secure.data.importing.seen import UnitCounts

FORMAT: Final = "lada-import-report/1"
# Below it a count could be about a single person.
DEFAULT_STEP: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class NearCounts:
    """Near duplicates. across: training records near a held-out one. pool: records near a sample of
    the pool. compared: held-out records and samples that were looked for; of_all: there are. cut:
    records with more texts like them than are compared, and none near among these."""

    across: int = 0
    pool: int = 0
    compared: int = 0
    of_all: int = 0
    cut: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Counts of an import. passed_over: rows that [source] only leaves out. held_out_share: as the
    mapping says it. reasons: rejects by
    code. looks: records whose text may not be meant so, by what it looks like."""

    rows: int
    passed_over: int
    records: int
    held_out: int
    held_out_share: float
    reasons: Mapping[str, int]
    units: UnitCounts
    looks: Mapping[str, int]
    near: NearCounts | None

    @property
    def rejected(self) -> int:
        """Rows that make no record."""
        return sum(self.reasons.values())


def report(
    figures: Figures, *, said: tuple[str, ...], mapping_sha256: str, step: int, refused: bool
) -> Any:
    """JSON-ready: every count rounded up to a multiple of `step`, so that 0 alone stays 0.

    Args: refused: whether no records were written, and those beside it are of another import.
    """

    def up(count: int) -> int:
        return -(-count // step) * step

    units = figures.units
    near = figures.near
    found = {
        "format": FORMAT,
        "refused": refused,
        "counts_rounded_up_to": step,
        "source": list(said),
        "mapping_sha256": mapping_sha256,
        "rows": up(figures.rows),
        "passed_over": up(figures.passed_over),
        "records": up(figures.records),
        "held_out": up(figures.held_out),
        "rejected": up(figures.rejected),
        "rejected_by_reason": {name: up(count) for name, count in sorted(figures.reasons.items())},
        "units": {
            "units": up(units.units),
            "by_records": {name: up(count) for name, count in units.by_size},
            "most_records_of_one": up(units.most),
            "in_several_spellings": up(units.spelled_otherwise),
            "may_be_one_person": up(units.alike),
            "may_be_nobody": up(units.placeholders),
            "cut_by_cap": up(units.cut_units),
            "records_cut_by_cap": up(units.cut_records),
        },
        "looks_like": {name: up(count) for name, count in sorted(figures.looks.items())},
        "near_duplicates": None
        if near is None
        else {
            "training_near_held_out": up(near.across),
            "records_near_pool": up(near.pool),
            "compared_with": up(near.compared),
            "out_of": up(near.of_all),
            "not_compared_with_all": up(near.cut),
        },
    }
    return found | {"warnings": list(_warnings(found, held_out_share=figures.held_out_share))}


def _warnings(told: Mapping[str, Any], *, held_out_share: float) -> Iterator[str]:
    """What the guarantee or a test may miss, and what to do."""
    units = told["units"]
    if units["may_be_one_person"]:
        yield (
            f"{units['may_be_one_person']:,} units may be one person with another one: they differ "
            'by leading zeros, a ".0" at the end, or what stands before the last "/" alone. Each '
            "is protected as a person of its own, and may be held out while the other is trained "
            "on. If they are one person, take the filter plain_id in [record.unit], as template = "
            "\"{{ row['the column'] | plain_id }}\" (reference for references of FHIR)"
        )
    if units["may_be_nobody"]:
        yield (
            f"{units['may_be_nobody']:,} unit(s) look like a placeholder (as 0, 9999999, test) and "
            "have far more records than others: people who share one are protected as one. Name "
            "the person of each record, or reject such rows in [record.unit], as template = "
            "\"{% if row['the column'] != '0' %}{{ row['the column'] }}{% endif %}\""
        )
    if held_out_share and told["records"] and not told["held_out"]:
        yield (
            f"nobody of {units['units']:,} unit(s) is held out, though [split] held_out is "
            f"{held_out_share:g}, so there is no held-out.jsonl: a keyed hash decides for each "
            "unit alone. Name a larger share, or import more people"
        )


def sentences(told: Mapping[str, Any]) -> Iterator[str]:
    """The same for people. told: of `report`."""
    yield from (f"source: {line}" for line in told["source"])
    yield (
        f"{told['rows']:,} rows: {told['records']:,} records to train on, {told['held_out']:,} "
        f"held out, {told['rejected']:,} rejected, {told['passed_over']:,} passed over"
    )
    for name, count in told["rejected_by_reason"].items():
        yield f"  {count:,} {name}: {REASONS[name]}"
    units = told["units"]
    sizes = ", ".join(f"{size}: {count:,}" for size, count in units["by_records"].items() if count)
    yield f"{units['units']:,} units; by their number of records {sizes or 'none'}"
    if units["in_several_spellings"]:
        yield f"{units['in_several_spellings']:,} unit(s) came in several spellings"
    if units["cut_by_cap"]:
        yield (
            f"the cap cuts {units['cut_by_cap']:,} unit(s) to train on; "
            f"{units['records_cut_by_cap']:,} record(s) would not be used"
        )
    for name, count in told["looks_like"].items():
        yield f"{count:,} record(s) {name}; they are kept as they are"
    near = told["near_duplicates"]
    if near is not None and near["out_of"]:
        yield (
            f"near duplicates: {near['training_near_held_out']:,} training record(s) of a held-out "
            f"one, {near['records_near_pool']:,} record(s) of a sample of the pool (looked for "
            f"{near['compared_with']:,} of {near['out_of']:,})"
        )
        if near["not_compared_with_all"]:
            yield f"{near['not_compared_with_all']:,} record(s) {MANY_ALIKE}"
