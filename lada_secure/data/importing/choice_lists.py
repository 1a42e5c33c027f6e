"""All choices of a question in one cell: a JSON list, or texts with a separator between them."""

from __future__ import annotations

import json
import re
from functools import lru_cache


def listed(cell: str) -> list[str]:
    """The texts of a JSON list. Raises: ValueError, RecursionError: something else."""
    found = json.loads(cell, parse_float=str, parse_int=str)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError
    return found


def separated(cell: str, separator: str) -> list[str]:
    """The texts between separators, without the white space around them.

    Quotes around a text are as in CSV. Raises: ValueError: something stands behind a closing one.
    """
    part, parts, at = _part_before(separator), [], 0
    while True:
        found = part.match(cell, at)
        if found is None:
            raise ValueError
        quoted, plain, ended = found.groups()
        parts.append((plain if quoted is None else quoted.replace('""', '"')).strip())
        if not ended:
            return parts
        at = found.end()


@lru_cache(maxsize=8)
def _part_before(separator: str) -> re.Pattern[str]:
    """A part: a quoted text or a plain one, and the separator behind it, empty at the end."""
    sign = re.escape(separator)
    # A separator may be white space itself.
    space = rf"(?:(?!{sign})\s)*+"
    quoted, plain = r'"((?:[^"]|"")*+)"', r'((?!").*?)'
    return re.compile(rf"{space}(?:{quoted}{space}|{plain})({sign}|\Z)", re.DOTALL)
