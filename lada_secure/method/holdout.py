"""When the LLM may keep what it has learned from the sites: a public hold-out decides.

Whoever checks a study's messages applies the same rule, without any model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutScore:
    """How well an LLM does on the hold-out.

    right: samples answered rightly. confidence: sum over them of floor(integer_scale x confidence).
    """

    right: int
    confidence: int


def holdout_agrees(before: HoldoutScore, after: HoldoutScore) -> bool:
    """The one rule: surer of the right answers than before, and no fewer of them."""
    return after.right >= before.right and after.confidence > before.confidence
