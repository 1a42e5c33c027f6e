"""Whether an open answer is right: its text against the gold one's, by the rule a plan names.

Multiple choice needs no rule: the answer is one of the options or it is not. All rules are total:
whatever two texts hold, they agree or they do not.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal, TypeAlias

from lada_secure.errors import ParameterError

Rule: TypeAlias = Literal["exact", "normalised", "numeric"]

# A sign, digits with or without commas between groups of three, decimals, an exponent.
_NUMBER: Final = re.compile(
    r"[+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:e[+-]?[0-9]{1,4})?"
)
# What a unit begins with besides letters, and what may stand in front of that. Digits behind a
# number are a part of it that was not read, as in 1,5 or 5-6.
_UNIT_SIGNS: Final = frozenset("%‰°€£¥$")
_BEFORE_A_UNIT: Final = frozenset("/([{")
_AT_THE_EDGES: Final = " .,;:!?\"'`*$"
_BEFORE_A_NUMBER: Final = " \"'`*$"
_UNUSUAL_SIGNS: Final = str.maketrans({"\u2212": "-", "\u2013": "-"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier:
    """How open answers are compared with gold ones.

    rule: `exact` is equality. `normalised` ignores case, spacing, Unicode variants and punctuation
    at both ends. `numeric` reads a number at the start of both and compares what stands behind it,
    a unit, as `normalised` does; where one of the two is no number, or has behind it what is no
    unit, it is `normalised`.
    tolerance: of `numeric` alone, relative to the gold number, or absolute where that is 0.

    Raises: ParameterError: a tolerance below 0 or not finite, or one of another rule.
    """

    rule: Rule = "exact"
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0.0):
            raise ParameterError(
                f"verifier: expected a finite tolerance of 0 or more, got {self.tolerance}"
            )
        if self.tolerance > 0.0 and self.rule != "numeric":
            raise ParameterError(
                f"verifier: the rule {self.rule} has no tolerance, got {self.tolerance}; "
                "name numeric, or leave the tolerance out"
            )

    def right(self, given: str, gold: str) -> bool:
        """Whether an answer that was read out of a path is the gold one."""
        if self.rule == "exact":
            return given == gold
        if self.rule == "numeric":
            read, wanted = read_number(given), read_number(gold)
            if read is not None and wanted is not None:
                return read[1] == wanted[1] and self._near(read[0], wanted[0])
        return normalised(given) == normalised(gold)

    def _near(self, read: Decimal, wanted: Decimal) -> bool:
        # Without a tolerance digits count, also those that no float holds.
        if read == wanted or self.tolerance == 0.0:
            return read == wanted
        difference = abs(float(read) - float(wanted))
        scale = abs(float(wanted)) or 1.0
        # Infinite or no number at all where the texts were beyond a float: not near.
        return math.isfinite(difference) and difference <= self.tolerance * scale


EXACT: Final = Verifier()


def folded(text: str) -> str:
    """Compatibility form, without case, with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def normalised(text: str) -> str:
    """A text without case, Unicode variants, double spaces, and punctuation at both ends."""
    return folded(text).strip(_AT_THE_EDGES)


def read_number(text: str) -> tuple[Decimal, str] | None:
    """The number that a text starts with, and the unit behind it as `normalised` has it.

    Returns: None where there is no number, or what stands behind it begins as no unit does.
    """
    plain = folded(text).translate(_UNUSUAL_SIGNS).lstrip(_BEFORE_A_NUMBER)
    found = _NUMBER.match(plain)
    if found is None:
        return None
    unit = plain[found.end() :].strip(_AT_THE_EDGES)
    first = unit[1:2] if unit[:1] in _BEFORE_A_UNIT else unit[:1]
    if unit and not (first.isalpha() or first in _UNIT_SIGNS):
        return None
    return Decimal(found.group().replace(",", "")), unit
