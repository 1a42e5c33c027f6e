"""What a trainer learns from: examples, units of examples, their token rows, and their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lada_secure.data.forms import AnswerForm
from lada_secure.data.records import Record
from lada_secure.models.text_model import TextModel
from lada_secure.privacy.release.private_records import for_each_unit
from lada_secure.privacy.release.units import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class RationaleExample:
    """One thing to learn: after `prompt`, write `path`, rather than `rejected`.

    `path` is the LLM's rationale (pool) or the record's own rationale or answer (private);
    `rejected` is what the small model wrote before, or None, which leaves cross-entropy alone.
    """

    example_id: str
    prompt: str
    path: str
    rejected: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateUnit:
    """All examples of one privacy unit (a patient, a customer), in a fixed order.

    The caller bounds their number by a rule that looks at this unit alone
    (`lada_secure.privacy.release.units.bound_units`).
    """

    unit_id: str
    examples: tuple[RationaleExample, ...]

    def __repr__(self) -> str:
        """Without content: a representation ends up in messages and tracebacks."""
        return f"PrivateUnit(..., {len(self.examples)} examples)"


def record_example(
    record: Record, form: AnswerForm, *, path: str | None = None
) -> RationaleExample:
    """A private record as something to learn: a path, or its own answer with what reasons it has.

    Args: form: the study's. path: stands in for the record's own.
    """
    return RationaleExample(
        example_id=record.record_id,
        prompt=form.prompt(record.question, record.choices),
        path=form.target(record.answer, record.choices, record.rationale) if path is None else path,
        rejected=None,
    )


def private_unit(
    unit: Unit,
    form: AnswerForm,
    *,
    with_reasons_only: bool = False,
    written: Sequence[str | None] = (),
) -> PrivateUnit:
    """A bounded privacy unit with all its records, or those that have reasons.

    A bare answer can teach a model to skip its reasoning. A unit without any reasons stays a unit,
    with nothing to add to a sum: who has reasons is private, too.

    Args: written: paths by the records' places that stand in for those of records without reasons,
        see `rationales.self_generated_rationales`; empty for none.
    """
    return PrivateUnit(
        unit_id=unit.unit_id,
        examples=tuple(
            record_example(record, form, path=path)
            for record, path in zip(
                unit.records, written or (None,) * len(unit.records), strict=True
            )
            if not with_reasons_only or record.rationale is not None or path is not None
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """Prompt and target tokens of one sequence; the target starts at `target_start` >= 1."""

    tokens: tuple[int, ...]
    target_start: int

    @property
    def target_length(self) -> int:
        """Number of tokens that are scored, >= 1."""
        return len(self.tokens) - self.target_start


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedExample:
    """A `RationaleExample` in tokens; `rejected` is None where there is none to contrast with."""

    example_id: str
    path: TokenRow
    rejected: TokenRow | None


def rows_of(examples: Sequence[EncodedExample]) -> list[TokenRow]:
    """All sequences of examples: the paths, and the own paths after them."""
    own_paths = [example.rejected for example in examples if example.rejected is not None]
    return [example.path for example in examples] + own_paths


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedUnit:
    """A `PrivateUnit` in tokens."""

    unit_id: str
    examples: tuple[EncodedExample, ...]

    @property
    def longest_row(self) -> int:
        """Tokens of the unit's longest sequence."""
        return max((len(row.tokens) for row in rows_of(self.examples)), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicOrder:
    """Which pool samples a step reads: epochs of permutations, a function of seed and step alone.

    The pool is public, so a seed is enough here, and a resumed run goes on where it was.
    """

    count: int
    batch_size: int
    seed: int

    def batch(self, step: int) -> tuple[int, ...]:
        """Indices of step `step` (from 0), exactly `batch_size` of them."""
        if self.count == 0 or self.batch_size == 0:
            return ()
        first, last = step * self.batch_size, (step + 1) * self.batch_size
        epochs = range(first // self.count, (last - 1) // self.count + 1)
        order = np.concatenate(
            [np.random.default_rng([self.seed, epoch]).permutation(self.count) for epoch in epochs]
        )
        start = first - epochs[0] * self.count
        return tuple(order[start : start + self.batch_size].tolist())


def encode_row(lm: TextModel, prompt: str, target: str) -> TokenRow:
    """Prompt and target in tokens, as `TextModel.encode_pair` joins and cuts them.

    A prompt without tokens is replaced by the end token.
    """
    context, path = lm.encode_pair(prompt, target)
    return TokenRow(tokens=(*context, *path), target_start=len(context))


def encode_example(lm: TextModel, example: RationaleExample, *, contrast: bool) -> EncodedExample:
    """Encode an example; `contrast` False or an own path equal to the path drops the own path."""
    own = example.rejected if contrast and example.rejected != example.path else None
    return EncodedExample(
        example_id=example.example_id,
        path=encode_row(lm, example.prompt, example.path),
        rejected=encode_row(lm, example.prompt, own) if own else None,
    )


def encode_units(
    lm: TextModel, units: Sequence[PrivateUnit], *, contrast: bool
) -> tuple[EncodedUnit, ...]:
    """Encode units in the given order; one that cannot be encoded stays, without examples.

    Units with one id become one: apart, their joint influence would pass the bound of one.
    """
    examples: dict[str, list[RationaleExample]] = {}
    for unit in units:
        examples.setdefault(unit.unit_id, []).extend(unit.examples)

    def encoded(part: Sequence[str]) -> list[tuple[EncodedExample, ...]]:
        return [
            tuple(encode_example(lm, one, contrast=contrast) for one in examples[unit_id])
            for unit_id in part
        ]

    nothing: tuple[EncodedExample, ...] = ()
    found = for_each_unit(tuple(examples), encoded, otherwise=nothing, what="encoding")
    return tuple(
        EncodedUnit(unit_id=unit_id, examples=kept)
        for unit_id, kept in zip(examples, found, strict=True)
    )
