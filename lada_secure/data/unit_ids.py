"""Ids of privacy units: the spelling by which they are compared, and what is no id at all."""

from __future__ import annotations

import unicodedata
from typing import Final, Literal, TypeAlias

Spellings: TypeAlias = Literal["refuse", "one_person", "different_people"]
MissingLike: TypeAlias = Literal["refuse", "meant"]

# What spreadsheets, databases and data frames write where a value is missing, in canonical form.
MISSING_LIKE: Final = frozenset(
    {
        *("", "nan", "null", "none", "nil", "na", "n/a", "#n/a", "n.a.", "<na>", "nat", "unknown"),
        *("unbekannt", "missing", "undefined", "-", "--", "?", ".", "<null>", "(null)", "#null!"),
        *("#value!", "#ref!", "not available", "not applicable", "keine angabe", "k.a.", "inf"),
        *("#n/a n/a", "#na", "#nv", "#name?", "#div/0!", "-nan", "\\n", "n/v", "n.a", "n. a."),
        *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "k. a.", "k.a", "[null]", "<none>", "empty"),
        *("(blank)", "(leer)", "leer", "inconnu", "desconocido", "sconosciuto", "onbekend"),
    }
)
# Characters that nobody sees and that are no format or control characters (Unicode's default
# ignorable ones, and the blank Braille pattern).
_UNSEEN: Final = frozenset(
    {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}
    | {*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
)


def canonical_unit(text: str) -> str:
    """A unit id in the spelling by which units are compared.

    Unicode form NFKC, case folded, every dash as "-", without format, control and other unseen
    characters (zero-width characters and byte-order marks are such), runs of white space as one
    space, none at the ends.
    """
    plain = unicodedata.normalize("NFKC", text)
    visible = "".join(kept for one in plain if (kept := _comparable(one)))
    # Folding can leave a form that is not NFKC again.
    return " ".join(unicodedata.normalize("NFKC", visible.casefold()).split())


def _comparable(character: str) -> str:
    """A character as it is compared; empty for one that nobody sees."""
    # First: a line break is a control character as well as white space, and it separates.
    if character.isspace():
        return " "
    category = unicodedata.category(character)
    if category in ("Cf", "Cc") or ord(character) in _UNSEEN:
        return ""
    return "-" if category == "Pd" or character == "\u2212" else character


def looks_missing(canonical: str) -> bool:
    """A word for a missing value, or no letter and no digit at all, as in "---"."""
    return canonical in MISSING_LIKE or not any(one.isalnum() for one in canonical)
