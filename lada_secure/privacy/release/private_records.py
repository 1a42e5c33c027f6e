"""A site's private records behind one door: they are handed out against a reservation only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from lada_secure.errors import LocalProtocolError
from lada_secure.privacy.ledger.terms import Reservation
from lada_secure.privacy.release.units import Unit


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
