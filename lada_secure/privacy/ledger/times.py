"""Times in a ledger: coarse in what leaves the site, precise where a clock is to be trusted.

Entries with microseconds would publish how long the records of a site took, and one person can
take ten times as long as all others. So every time in an entry is the clock rounded down to a
step of the plan. The precise clock of the last write stays at the site.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from lada_secure.errors import LedgerError, ParameterError

TIME = re.compile(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z\Z")
# Time services step a clock back by fractions of a second; more than this is somebody's doing.
CLOCK_TOLERANCE = timedelta(seconds=2)
MAX_TIME_STEP_S = 24 * 3600
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def format_time(moment: datetime) -> str:
    """UTC with microseconds, of fixed width, so that text order is time order.

    Raises: ParameterError: a time without a zone.
    """
    if moment.tzinfo is None:
        raise ParameterError("time: expected a datetime with a time zone, got a naive one")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    """The inverse of `format_time`. Raises: ParameterError: any other form."""
    try:
        if TIME.match(text) is None:
            raise ValueError("wrong form")
        # Not strptime: it reads the locale under a lock, and is ten times slower.
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise ParameterError(
            f"time: expected the form 2026-01-31T12:00:00.000000Z, got {text[:40]!r}"
        ) from error


def _existing(text: str) -> str:
    """Raises: ValueError: no such date and time."""
    datetime.fromisoformat(text)
    return text


def _whole_seconds(text: str) -> str:
    if not text.endswith(".000000Z"):
        raise ValueError("expected whole seconds; finer ones tell how long records took")
    return text


# What the fields of signed objects hold, kept as text.
Time = Annotated[str, StringConstraints(pattern=TIME), AfterValidator(_existing)]
WholeSeconds = Annotated[Time, AfterValidator(_whole_seconds)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One reading of a site's clock, in the text form of `format_time`.

    `coarse` goes into entries. `precise` decides about expiry and never leaves the site; it is
    never before what was read earlier.
    """

    coarse: str
    precise: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerClock:
    """Reads a clock for a ledger.

    Args:
        read: the current time with a zone.
        time_step_s: entries' times are multiples of it, in seconds since 1970; 1 to 86,400. A
            constant of the plan, never chosen in view of how long anything took.
    Raises: ParameterError: step out of range.
    """

    read: Callable[[], datetime]
    time_step_s: int

    def __post_init__(self) -> None:
        step = self.time_step_s
        if type(step) is not int or not 1 <= step <= MAX_TIME_STEP_S:
            raise ParameterError(
                f"time_step_s: expected a whole number from 1 to {MAX_TIME_STEP_S}, got {step!r}"
            )

    def moment(self, *, last_entry: str | None, last_write: str | None) -> Moment:
        """Now, never before the ledger's last entry and last write.

        Args: last_entry: newest time in an entry. last_write: the precise clock of the last
            write, if this site's file still knows it.
        Raises: LedgerError: the clock was set back. ParameterError: a clock without a zone.
        """
        now = self.read()
        precise = format_time(now)
        known = max(last_entry or "", last_write or "")
        if precise < known:
            behind = parse_time(known) - parse_time(precise)
            if behind > CLOCK_TOLERANCE:
                raise LedgerError(
                    f"clock: it shows {precise}, but the ledger was last written at {known}; "
                    f"the clock was set back by {behind.total_seconds():.0f} s. Nothing was "
                    "written; correct the clock"
                )
            precise = known
        step = timedelta(seconds=self.time_step_s)
        coarse = format_time(_EPOCH + (now - _EPOCH) // step * step)
        return Moment(coarse=max(coarse, last_entry or ""), precise=precise)
