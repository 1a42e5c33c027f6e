"""Reading settings files, and making their relative paths relative to the file."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from lada_protocol.settings import Settings, parse_settings
from lada_secure.errors import ParameterError

S = TypeVar("S", bound=Settings)


def read_settings(path: Path, model: type[S]) -> S:
    """Read one TOML settings file.

    Raises: ParameterError: unreadable, not TOML, unknown or missing keys.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ParameterError(f"cannot read {path}: {error.strerror}") from error
    return parse_settings(raw, model, where=str(path)).beside(path.resolve().parent)
