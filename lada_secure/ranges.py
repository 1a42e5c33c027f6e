"""Checks of settings: a value out of its range is refused by name."""

from __future__ import annotations

from collections.abc import Sequence

from lada_secure.errors import ParameterError


def at_least(least: int, **values: int) -> None:
    """Raises: ParameterError: a value below `least`."""
    for name, value in values.items():
        if value < least:
            raise ParameterError(f"{name}: expected at least {least}, got {value}")


def within(low: float, high: float, **values: float) -> None:
    """Raises: ParameterError: a value outside [low, high], or NaN."""
    for name, value in values.items():
        if not low <= value <= high:
            raise ParameterError(f"{name}: expected {low} to {high}, got {value}")


def above_zero(**values: float) -> None:
    """Raises: ParameterError: a value that is 0, negative, infinite or NaN."""
    for name, value in values.items():
        if not 0.0 < value < float("inf"):
            raise ParameterError(f"{name}: expected a finite number above 0, got {value}")


def zero_or_more(**values: float) -> None:
    """Raises: ParameterError: a value that is negative, infinite or NaN."""
    for name, value in values.items():
        if not 0.0 <= value < float("inf"):
            raise ParameterError(f"{name}: expected a finite number >= 0, got {value}")


def one_of(allowed: Sequence[str], **values: str) -> None:
    """Raises: ParameterError: a value that is none of the allowed ones."""
    for name, value in values.items():
        if value not in allowed:
            raise ParameterError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
