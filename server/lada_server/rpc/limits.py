"""What one party may ask of the coordinator, so that nobody wears out the others, and what it did.

What it did is ids and counts only, for the status file and the metrics. Counts start at zero with
the process; what a party has said stands on the board.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from lada_protocol.wire.transport_settings import TransportSettings
from lada_secure.errors import PeerError

# Requests that no working client sends before a party is cut off, and for how long it then is.
FAULTS_PER_MINUTE: Final = 20
CUT_OFF_S: Final = 60.0
# A site that waits calls at least once in this time, its long poll and its longest pause included.
AWAY_AFTER_S: Final = 60.0

# Codes of requests that no working client sends; a few may be an accident, many are not.
INVALID_REQUESTS: Final = frozenset(
    {
        "malformed",
        "payload_mismatch",
        "too_large",
        "bad_signature",
        "wrong_sender",
        "wrong_role",
        "wrong_roster",
        "bad_addressee",
    }
)


@dataclass(slots=True, kw_only=True)
class PartyActivity:
    """What one party did since the coordinator's process started.

    Args: last_call_s: end of its last call, or now while one is open; seconds since the epoch, 0
      for never. refusals: by error code.
    """

    last_call_s: float = 0.0
    open_calls: int = 0
    calls: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    refusals: dict[str, int] = field(default_factory=Counter)


@dataclass(slots=True, kw_only=True)
class _Bucket:
    """Tokens that come back at a rate; may go below zero where the caller waits for it."""

    per_s: float
    most: float
    filled_at_s: float
    tokens: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.most

    def fill(self, now: float) -> None:
        self.tokens = min(self.most, self.tokens + (now - self.filled_at_s) * self.per_s)
        self.filled_at_s = now


class _Account:
    """What one party did, and what it has used up."""

    def __init__(self, limits: TransportSettings, now: float) -> None:
        self.did = PartyActivity()
        self.calls = _Bucket(per_s=limits.calls_per_s, most=limits.burst_calls, filled_at_s=now)
        # A second's worth of payload, up and down together, may come at once.
        self.payload = _Bucket(per_s=limits.bytes_per_s, most=limits.bytes_per_s, filled_at_s=now)
        # The first fault leaves most - 1: cut off once all are used up.
        self.faults = _Bucket(per_s=FAULTS_PER_MINUTE / 60, most=FAULTS_PER_MINUTE, filled_at_s=now)
        self.cut_off_until_s = 0.0


class CallGate:
    """Counts calls, bytes and faults of every party. Thread-safe.

    Args: limits: of each party. parties: ids that may call. clock: monotonic seconds.
      wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        limits: TransportSettings,
        parties: Iterable[str],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        now = clock()
        self._accounts = {party: _Account(limits, now) for party in parties}
        self._strangers: Counter[str] = Counter()

    @contextmanager
    def call(self, party: str) -> Iterator[None]:
        """Hold one call of this party open; an invalid request counts as a fault.

        Raises: PeerError: too many at once or too fast (reason "rate_limited"; later is fine), or
          cut off after too many invalid requests (reason "cut_off").
        """
        account = self._accounts[party]
        with self._lock:
            self._enter(party, account)
        try:
            yield
        except PeerError as error:
            if error.reason in INVALID_REQUESTS:
                with self._lock:
                    self._fault(account)
            raise
        finally:
            with self._lock:
                account.did.open_calls -= 1
                account.did.last_call_s = self._wall_clock()

    def moved(self, party: str, *, up_bytes: int = 0, down_bytes: int = 0) -> float:
        """Count bytes of payload. Returns: seconds that this call has to rest before it goes on."""
        account = self._accounts[party]
        with self._lock:
            account.did.up_bytes += up_bytes
            account.did.down_bytes += down_bytes
            account.payload.fill(self._clock())
            account.payload.tokens -= up_bytes + down_bytes
            return max(0.0, -account.payload.tokens / account.payload.per_s)

    def refused(self, party: str | None, reason: str) -> None:
        """A call was refused; `party` None where nobody of the roster made it."""
        account = self._accounts.get(party or "")
        with self._lock:
            counts = self._strangers if account is None else account.did.refusals
            counts[reason] += 1

    def activity(self) -> dict[str, PartyActivity]:
        """What every party did, by id."""
        with self._lock:
            now = self._wall_clock()
            return {
                party: replace(
                    account.did,
                    last_call_s=now if account.did.open_calls else account.did.last_call_s,
                    refusals=dict(account.did.refusals),
                )
                for party, account in self._accounts.items()
            }

    def strangers(self) -> dict[str, int]:
        """Refused calls of callers who are not in the roster, by error code."""
        with self._lock:
            return dict(self._strangers)

    def _fault(self, account: _Account) -> None:
        now = self._clock()
        account.faults.fill(now)
        account.faults.tokens -= 1
        if account.faults.tokens < 1:
            account.cut_off_until_s = now + CUT_OFF_S

    def _enter(self, party: str, account: _Account) -> None:
        limits, now = self._limits, self._clock()
        if now < account.cut_off_until_s:
            raise PeerError(
                f"{party} sent more than {FAULTS_PER_MINUTE} requests in a minute that "
                "no working client sends, and is cut off for "
                f"{account.cut_off_until_s - now:.0f} s more; see its log",
                reason="cut_off",
                peer=party,
            )
        if account.did.open_calls >= limits.concurrent_calls:
            raise PeerError(
                f"{party} has {account.did.open_calls} calls open, at most "
                f"{limits.concurrent_calls} allowed; wait for one to end",
                reason="rate_limited",
                peer=party,
            )
        account.calls.fill(now)
        if account.calls.tokens < 1:
            raise PeerError(
                f"{party} calls more than {limits.calls_per_s:g} times a second; slow down",
                reason="rate_limited",
                peer=party,
            )
        account.calls.tokens -= 1
        account.did.calls += 1
        account.did.open_calls += 1
