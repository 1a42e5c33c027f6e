"""Reasons for private records that have an answer alone: the site's own model writes them.

A path that the model writes and that ends in the record's answer is more likely to be right than
one that does not, and becomes something to learn (Zelikman et al. 2022, arXiv 2203.14465). A model
that has learned most of a domain from pool paths explains most of the site's records, and so learns
the rest from records that could teach it nothing before.
"""

from __future__ import annotations

from collections.abc import Sequence

from lada_secure.data.prompts import answer_of, prompt_of, rationale_of
from lada_secure.data.records import Record
from lada_secure.models.evaluation import greedy_rationales
from lada_secure.models.loading import LanguageModel
from lada_secure.privacy.release.unit_by_unit import for_each_unit
from lada_secure.privacy.release.units import Unit


def self_generated_rationales(
    lm: LanguageModel, units: Sequence[Unit], *, batch_size: int, max_new_tokens: int
) -> list[tuple[str | None, ...]]:
    """What the model as it is now writes for each record without reasons, if that answers it.

    Each path is a function of one record and the model. With a released model, training on them
    therefore bounds a unit's part as training on the record itself does. The paths are private. A
    unit for whose records the model cannot write, whatever they hold, gets no paths.

    Returns: per unit, one entry per record: None for a record that has reasons, for another answer
        than the record's, and for a bare answer.
    """

    def write(part: Sequence[Unit], batch: int) -> list[tuple[str | None, ...]]:
        bare = [one for unit in part for one in unit.records if one.rationale is None]
        paths = iter(
            greedy_rationales(
                lm,
                [prompt_of(one.question, one.choices) for one in bare],
                batch_size=batch,
                max_new_tokens=max_new_tokens,
            )
        )
        return [
            tuple(
                None if one.rationale is not None else _reasons(next(paths), one)
                for one in unit.records
            )
            for unit in part
        ]

    return for_each_unit(
        units,
        lambda part: write(part, batch_size),
        alone=lambda unit: write([unit], 1)[0],
        otherwise=(),
        what="own reasons",
    )


def _reasons(path: str, record: Record) -> str | None:
    stated = rationale_of(record.answer, record.choices, None)
    right = answer_of(path, record.choices) == record.answer
    return path if right and path.strip() != stated.strip() else None
