"""Private records as examples: what training reads of a record, and of a bounded privacy unit."""

from __future__ import annotations

from collections.abc import Mapping

from lada_secure.data.prompts import path_of, prompt_of
from lada_secure.data.records import Record
from lada_secure.distillation.examples import PathExample, PrivateUnit
from lada_secure.privacy.units import Unit


def record_example(record: Record, *, reasons: bool = True) -> PathExample:
    """A private record as something to learn, with its reasons where it has some."""
    return PathExample(
        example_id=record.record_id,
        prompt=prompt_of(record.question, record.choices),
        path=path_of(record.answer, record.choices, record.rationale if reasons else None),
        own_path=None,
    )


def private_unit(
    unit: Unit, *, with_reasons_only: bool = False, written: Mapping[str, str] | None = None
) -> PrivateUnit:
    """A bounded privacy unit with all its records, or those that have reasons.

    A bare answer can teach a model to skip its reasoning. A unit without any reasons stays a unit,
    with nothing to add to a sum: who has reasons is private, too.

    Args: written: paths by record id that stand in for those of records without reasons, see
        `own_reasons.written_reasons`.
    """
    written = written or {}
    return PrivateUnit(
        unit_id=unit.unit_id,
        examples=tuple(
            _example(one, written.get(one.record_id))
            for one in unit.records
            if not with_reasons_only or one.rationale is not None or one.record_id in written
        ),
    )


def _example(record: Record, written: str | None) -> PathExample:
    example = record_example(record)
    if record.rationale is not None or written is None:
        return example
    return PathExample(
        example_id=example.example_id, prompt=example.prompt, path=written, own_path=None
    )
