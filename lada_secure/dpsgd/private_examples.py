"""Private records as examples: what training reads of a record, and of a bounded privacy unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lada_secure.data.prompts import prompt_of, rationale_of
from lada_secure.data.records import Record
from lada_secure.models.examples import PrivateUnit, RationaleExample
from lada_secure.privacy.release.units import Unit


def record_example(record: Record, *, reasons: bool = True) -> RationaleExample:
    """A private record as something to learn, with its reasons where it has some."""
    return RationaleExample(
        example_id=record.record_id,
        prompt=prompt_of(record.question, record.choices),
        path=rationale_of(record.answer, record.choices, record.rationale if reasons else None),
        rejected=None,
    )


def private_unit(
    unit: Unit, *, with_reasons_only: bool = False, written: Sequence[str | None] = ()
) -> PrivateUnit:
    """A bounded privacy unit with all its records, or those that have reasons.

    A bare answer can teach a model to skip its reasoning. A unit without any reasons stays a unit,
    with nothing to add to a sum: who has reasons is private, too.

    Args: written: paths by the records' places that stand in for those of records without reasons,
        see `own_reasons.self_generated_rationales`; empty for none.
    """
    paths = written or (None,) * len(unit.records)
    return PrivateUnit(
        unit_id=unit.unit_id,
        examples=tuple(
            record_example(one) if path is None else replace(record_example(one), path=path)
            for one, path in zip(unit.records, paths, strict=True)
            if not with_reasons_only or one.rationale is not None or path is not None
        ),
    )
