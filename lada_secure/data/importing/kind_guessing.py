"""Which kind of task a column of answers looks like, as comments for a first mapping."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

from lada_secure.data.prompts import MAX_CHOICES
from lada_secure.data.verification import normalised, read_number

# A label comes again: of fewer answers a label the set is no fixed one.
_OFTEN: Final = 5
_YES: Final = frozenset({"yes", "ja", "oui", "si", "true", "1"})
_UNKNOWN: Final = frozenset(
    {"unknown", "maybe", "unclear", "undetermined", "not known", "unbekannt", "unklar", "inconnu"}
)


def kind_remarks(answers: Sequence[str]) -> Iterator[str]:
    """What could stand in the mapping of open questions, if that is what their answers are.

    Args: answers: of the first rows, empty ones left out.
    """
    labels = sorted(set(answers))
    numbers = bool(answers) and all(read_number(one) is not None for one in answers)
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
    if numbers:
        yield "# The answers are numbers, perhaps. Then, as a table of its own, for evaluations:"
        yield "#   [task]"
        yield '#   kind = "number"'
        yield "#   tolerance = 0.05  # how far off is right, as a share of the gold number"
