"""Ids of privacy units: the spelling by which they are compared, and what is no id at all."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

Spellings: TypeAlias = Literal["refuse", "one_person", "different_people"]
MissingLike: TypeAlias = Literal["refuse", "meant"]

# What spreadsheets, databases and data frames write where a value is missing, in canonical form.
MISSING_LIKE: Final = frozenset(
    {
        *("", "nan", "null", "none", "nil", "na", "n/a", "#n/a", "n.a.", "<na>", "nat", "unknown"),
        *("unbekannt", "missing", "undefined", "-", "--", "?", ".", "<null>", "(null)"),
        *("not available", "not applicable", "keine angabe", "k.a.", "inf", "#getting_data"),
        *("#n/a n/a", "#na", "#nv", "-nan", "\\n", "n/v", "n.a", "n. a."),
        *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "k. a.", "k.a", "[null]", "<none>", "empty"),
        *("(blank)", "(leer)", "leer", "inconnu", "desconocido", "sconosciuto", "onbekend"),
    }
)
# What forms hold for a person whom nobody knows, in canonical form. An answer may mean such a word.
_NOBODY: Final = frozenset(
    {
        *("nn", "n.n.", "n.n", "n. n.", "anonymous", "anonym", "anonymus", "nobody", "niemand"),
        *("no name", "noname", "kein name", "nomen nescio", "not known", "nicht bekannt", "unk"),
        *("infinity", "-infinity", "-inf"),
        *("unknown patient", "patient unknown", "unbekannter patient", "patient unbekannt"),
    }
)
# As #VALUE! and #NAME?, in whatever language the spreadsheet speaks.
_SPREADSHEET_ERROR: Final = re.compile(r"#\S{2,18}[!?]")
# The longest word for a missing value has fewer characters.
_LONGEST_WORD: Final = 24
# Somebody may have one of these, or one digit repeated; with very many records hardly anybody.
_PLACEHOLDERS: Final = frozenset(
    {
        *("test", "tests", "dummy", "test patient", "testpatient", "max mustermann", "john doe"),
        *("jane doe", "1234", "12345", "123456", "1234567", "12345678", "123456789", "0815"),
    }
)
_FAR_MORE: Final = 5
# The type and id of a resource, whatever server and version stand around it.
_RESOURCE: Final = re.compile(r"(?:.*/)?([a-z]+/[^/]+?)(?:/_history/[^/]+)?")
_LEADING_ZEROS: Final = re.compile(r"(?<![0-9.,])0+(?=[0-9])")
_TRAILING_ZEROS: Final = re.compile(r"(?<=[0-9])\.0+\Z")
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
    return (
        canonical in MISSING_LIKE
        or is_spreadsheet_error(canonical)
        or not any(one.isalnum() for one in canonical)
    )


def is_spreadsheet_error(text: str) -> bool:
    """Whether a text is what a spreadsheet shows where a formula has failed."""
    return _SPREADSHEET_ERROR.fullmatch(text.strip()) is not None


def is_missing_word(text: str) -> bool:
    """Whether a text of any length, in any spelling, is a word for a missing value."""
    short = text.strip()
    # As most ids are; no word that is meant here has accents.
    if short.isascii() and short.isalnum():
        return short.lower() in MISSING_LIKE
    return len(short) <= _LONGEST_WORD and looks_missing(canonical_unit(short))


def names_nobody(canonical: str) -> bool:
    """A unit that is no person: a missing value, or a word for a person whom nobody knows."""
    return looks_missing(canonical) or canonical in _NOBODY


def is_placeholder(canonical: str) -> bool:
    """One sign again and again, as 0, 000 and 9999999, or what forms are tried with."""
    return len(set(canonical)) == 1 or canonical in _PLACEHOLDERS


def has_far_more(records: int, *, of_all: int, units: int) -> bool:
    """Whether a unit has five times the records that the other ones have on average, 5 at least."""
    return records >= _FAR_MORE and records * (units - 1) >= _FAR_MORE * (of_all - records) > 0


def plain_id(text: str) -> str:
    """An id without what stands before its last "/", leading zeros, and a ".0" at its end."""
    last = text.strip().rpartition("/")[2]
    return _LEADING_ZEROS.sub("", _TRAILING_ZEROS.sub("", last))


def likeness(canonical: str) -> tuple[str, str]:
    """By what units that may be one person are found.

    Returns: what is the same for two of them, and what the first of another one is that lacks all
        before its last "/". 123/2024 and 124/2024 are not alike, Patient/14 and 14 are.
    """
    found = _RESOURCE.fullmatch(canonical)
    whole = canonical if found is None else found[1]
    before, slash, _ = whole.rpartition("/")
    last = plain_id(whole)
    return before + slash + last, last


def alike_units(canonicals: Iterable[str]) -> frozenset[str]:
    """Those of some units that may be one person with another one of them, see `likeness`."""
    members: defaultdict[str, set[str]] = defaultdict(set)
    wholes = set()
    for one in canonicals:
        whole, last = likeness(one)
        wholes.add(whole)
        members[whole].add(one)
        members[last].add(one)
    return frozenset(one for key in wholes if len(members[key]) > 1 for one in members[key])
