"""TOML files as tables, and keys in them that nobody knows."""

from __future__ import annotations

import codecs
import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, get_args

from lada_secure.errors import ParameterError

if TYPE_CHECKING:
    # Whoever only reads a table need not load it.
    from pydantic import BaseModel

MAX_SETTINGS_BYTES = 256 * 1024
# More would hide the first.
_SHOWN: Final = 3


def parse_table(raw: bytes, *, where: str) -> dict[str, Any]:
    """Parse one TOML file.

    Args: where: the file's name, for messages.
    Raises: ParameterError: too long, a byte-order mark, not UTF-8, or not TOML, with the line.
    """
    if len(raw) > MAX_SETTINGS_BYTES:
        raise ParameterError(f"{where}: {len(raw)} bytes, at most {MAX_SETTINGS_BYTES}")
    if raw.startswith(codecs.BOM_UTF8):
        raise ParameterError(
            f"{where}: the file starts with a byte-order mark; save it as UTF-8 without one"
        )
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ParameterError(f"{where}: the file is UTF-16; save it as UTF-8 without a mark")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ParameterError(
            f"{where}: not TOML: line {line} is not UTF-8; save the file as UTF-8"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ParameterError(
            f"{where}: not TOML: {error}; a text stands in double quotes, and one with a "
            "backslash in single ones"
        ) from error
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or lists within lists.
        raise ParameterError(
            f"{where}: not TOML that can be read: {type(error).__name__}"
        ) from error


def unknown_keys(keys: Sequence[str], table: Sequence[str], model: type[BaseModel]) -> str:
    """What to write in place of keys that one table does not have.

    Args: table: where they stand, a name a level. model: of the whole file.
    """
    fields = _table_model(model, table).model_fields
    known = sorted(field.alias or name for name, field in fields.items())
    path = "".join(f"{part}." for part in table)
    shown = ", ".join(repr(path + key) for key in keys[:_SHOWN])
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    near = {one: None for key in keys for one in get_close_matches(key, known, n=1)}
    meant = f"; did you mean {', '.join(path + one for one in near)}?" if near else ""
    return (
        f"unknown key{'s' if len(keys) > 1 else ''} {shown}{more}; known keys are "
        f"{', '.join(known)}{meant}"
    )


def _table_model(model: type[BaseModel], table: Sequence[str]) -> type[BaseModel]:
    """The model of a table within a settings file; of the nearest one around it that is known."""
    for name in table:
        field = model.model_fields.get(name)
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        inner = [kind for kind in kinds if hasattr(kind, "model_fields")]
        if not inner:
            break
        model = inner[0]
    return model
