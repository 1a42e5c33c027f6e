"""Writing settings files: the small part of TOML that our own settings models read.

The standard library reads TOML and does not write it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from lada_secure.errors import ParameterError

Scalar: TypeAlias = str | bool | int | float | Path
Value: TypeAlias = Scalar | Sequence[Scalar]
Table: TypeAlias = Mapping[str, "Value | Table"]


def toml_text(table: Table, *, comment: str = "") -> str:
    """Render a table whose values are scalars, lists of scalars or such tables.

    Raises: ParameterError: a key that is not a bare TOML key, or a value TOML does not have.
    """
    lines = [f"# {line}" for line in comment.splitlines()]
    return "\n".join([*lines, *_lines(table, inside="")]) + "\n"


def _lines(table: Table, *, inside: str) -> list[str]:
    """Values first: whatever follows a heading belongs to it."""
    lines = [
        f"{_bare(key)} = {_literal(value)}"
        for key, value in table.items()
        if not isinstance(value, Mapping)
    ]
    for key, value in table.items():
        if isinstance(value, Mapping):
            name = f"{inside}{_bare(key)}"
            lines += ["", f"[{name}]", *_lines(value, inside=f"{name}.")]
    return lines


def _bare(key: str) -> str:
    if not key or not all(
        letter.isascii() and (letter.isalnum() or letter in "_-") for letter in key
    ):
        raise ParameterError(f"{key!r} is not a bare TOML key; use letters, digits, - and _")
    return key


def _literal(value: Value) -> str:
    # bool before int: True is an int in Python and would be written as 1.
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | Path):
        # A JSON string is a TOML basic string, but for U+007F, which TOML wants escaped.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, Sequence):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    raise ParameterError(f"a value of type {type(value).__name__} has no TOML form")


def _float(value: float) -> str:
    if value != value or value in (float("inf"), float("-inf")):
        raise ParameterError(f"{value} does not belong into a settings file; give a finite number")
    return repr(value)
