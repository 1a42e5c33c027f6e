"""Which kind of task a column of answers looks like, as comments for a first mapping."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

from lada_secure.data.importing.templates import NUMERAL, with_plain_number
from lada_secure.data.prompts import MAX_CHOICES
from lada_secure.data.verification import normalised, read_number

# A label comes again: of fewer answers a label the set is no fixed one.
_OFTEN: Final = 5
_YES: Final = frozenset({"yes", "ja", "oui", "si", "true", "1"})
# Decimal and thousands signs, the likeliest first.
_SIGNS: Final = (
    *((".", ""), (",", ""), (",", "."), (".", ","), (",", " "), (".", " "), (".", "'")),
    *((",", "'"), (".", "\u2019"), (",", "\u2019")),
)
_UNKNOWN: Final = frozenset(
    {"unknown", "maybe", "unclear", "undetermined", "not known", "unbekannt", "unklar", "inconnu"}
)


def kind_remarks(answers: Sequence[str]) -> Iterator[str]:
    """What could stand in the mapping of open questions, if that is what their answers are.

    Args: answers: of the first rows, empty ones left out.
    """
    labels = sorted(set(answers))
    if 2 <= len(labels) <= MAX_CHOICES and len(answers) >= _OFTEN * len(labels):
        unknown = [one for one in labels if normalised(one) in _UNKNOWN]
        knows = len(labels) == 3 and len(unknown) == 1 and _YES & set(map(normalised, labels))
        constant = json.dumps(labels, ensure_ascii=False).replace("\x7f", "\\u007f")
        yield f"# Only {len(labels)} different answers so far: labels, perhaps. Then, in [record]:"
        yield f"#   choices = {{ constant = {constant} }}"
        yield "# and as a table of its own, for evaluations:"
        yield "#   [task]"
        if knows:
            quoted = json.dumps(unknown[0], ensure_ascii=False)
            yield f'#   kind = "yes_no_unknown"\n#   unknown = {quoted}'
        else:
            yield '#   kind = "classification"'
    written = _written(answers)
    if written is not None:
        yield "# The answers are numbers, perhaps. Then, as a table of its own, for evaluations:"
        yield "#   [task]"
        yield '#   kind = "number"'
        yield "#   tolerance = 0.05  # how far off is right, as a share of the gold number"
        yield from (f"#   {line}" for line in written)


def _written(answers: Sequence[str]) -> tuple[str, ...] | None:
    """How the numbers are written, as lines of [task]; None where an answer is no number."""
    fits = [
        signs for signs in _SIGNS if answers and all(_is_number(one, *signs) for one in answers)
    ]
    if not fits:
        return None
    numerals = [found.group() for one in answers if (found := NUMERAL.search(one))]
    if all(one.isdigit() for one in numerals):
        return ()
    if len({decimal for decimal, _ in fits}) > 1:
        return (
            'decimal = "."  # OPEN: or decimal = ","? See 1.000 and 1,000 in docs/import-data.md',
        )
    decimal, thousands = fits[0]
    lines = (f'decimal = "{decimal}"', f'thousands = "{thousands}"')
    return lines if thousands else lines[:1]


def _is_number(answer: str, decimal: str, thousands: str) -> bool:
    try:
        return read_number(with_plain_number(answer, decimal, thousands)) is not None
    except ValueError:
        return False
