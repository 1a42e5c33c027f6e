"""A site's private records: read against a reservation only, and so that none stops a release.

A release that fails because of what one record holds tells everybody that the record is there, and
a retry pays again. So whatever is computed on units for a sum goes through `for_each_unit`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from lada_secure.errors import LocalProtocolError
from lada_secure.privacy.ledger.terms import Reservation
from lada_secure.privacy.release.units import Unit

T = TypeVar("T")
U = TypeVar("U")

logger = logging.getLogger(__name__)


class PrivateRecords:
    """Bounded privacy units that nobody reads before their budget is spent.

    Whatever computes on records takes the `Reservation` that paid for it and opens this with it;
    there is no other way to the records. Never printed, never pickled.

    Guarantee: holds against mistakes, not against an adversary inside the same process.
    """

    __slots__ = ("_units",)

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units = tuple(units)

    def units(self, paid: Reservation) -> tuple[Unit, ...]:
        """All units, in a fixed order.

        Args: paid: of `LedgerBook.reserve`, for a release whose output is not stored yet.
        Raises: LocalProtocolError: not a reservation, or one whose output is stored.
        """
        if type(paid) is not Reservation:
            raise LocalProtocolError(
                f"records: expected the reservation that pays for reading them, got "
                f"{type(paid).__name__}; reserve first"
            )
        if paid.stored_output is not None:
            raise LocalProtocolError(
                f"records: {paid.entry.key} has its output already; send that one again"
            )
        return self._units

    def __repr__(self) -> str:
        return "PrivateRecords(...)"

    def __reduce__(self) -> NoReturn:
        raise LocalProtocolError("private records are never pickled")


def for_each_unit(
    units: Sequence[U],
    together: Callable[[Sequence[U]], Sequence[T]],
    *,
    alone: Callable[[U], T] | None = None,
    otherwise: T,
    what: str,
) -> list[T]:
    """One result per unit, in order; `otherwise` for a unit that cannot be measured.

    All units are measured together first. Where that fails, halves are measured, and so on down to
    single units, so that a few bad ones cost little.

    Sensitivity: `together` gives each unit what it would get alone, up to rounding in another
    company; a unit that fails alone gets `otherwise`, which adds nothing to any sum. So who is in
    the company of a bad unit keeps its part of the sum, and the bad unit's own part is 0, which is
    within every clipping bound.

    Args: together: results for units; may raise anything. alone: the last try for a single unit,
        record by record where memory is short. what: for the log, which gets counts alone and
        stays at the site.
    """
    failed = 0

    def measured(part: Sequence[U]) -> list[T]:
        nonlocal failed
        try:
            found = list(together(part))
            if len(found) == len(part):
                return found
        # Anything that a record provokes, in our code or in a library's, is this unit's alone. The
        # error's text may quote the record and is dropped, not logged.
        except Exception:  # noqa: S110
            pass
        if len(part) > 1:
            middle = len(part) // 2
            return measured(part[:middle]) + measured(part[middle:])
        if alone is not None:
            try:
                return [alone(part[0])]
            except Exception:  # noqa: S110
                pass
        failed += 1
        return [otherwise]

    results = measured(units) if units else []
    if failed:
        logger.warning(
            "%s: %d of %d units could not be measured and add nothing; this stays here",
            what,
            failed,
            len(units),
        )
    return results
