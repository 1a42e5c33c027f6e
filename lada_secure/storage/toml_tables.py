"""TOML files as tables, before anybody says what their keys mean."""

from __future__ import annotations

import codecs
import tomllib
from typing import Any

from lada_secure.errors import ParameterError

MAX_SETTINGS_BYTES = 256 * 1024


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
