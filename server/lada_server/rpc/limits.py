"""What one peer may ask of the coordinator, so that nobody starves or wears out the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from typing import Final

from lada_secure.errors import ParameterError, PeerError

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


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLimits:
    """Limits of one party. Sizes of messages are in `lada_protocol.kinds`.

    Args: calls_per_s: sustained rate. burst_calls: calls that may come at once after a pause.
      concurrent_calls: calls open at the same time, a waiting list included. bytes_per_s: of
      payloads, up and down together; a second's worth may come at once. faults_per_minute:
      requests that no working client sends before the party is cut off. cut_off_s: for how long.
    Raises: ParameterError: one of them is below 1.
    """

    calls_per_s: float = 50.0
    burst_calls: int = 200
    concurrent_calls: int = 4
    bytes_per_s: float = 256.0 * (1 << 20)
    faults_per_minute: int = 20
    cut_off_s: float = 60.0

    def __post_init__(self) -> None:
        if min(astuple(self)) < 1:
            raise ParameterError("limits of a peer: each must be at least 1")


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
    """What one party has used up."""

    def __init__(self, limits: PeerLimits, now: float) -> None:
        self.calls = _Bucket(per_s=limits.calls_per_s, most=limits.burst_calls, filled_at_s=now)
        self.payload = _Bucket(per_s=limits.bytes_per_s, most=limits.bytes_per_s, filled_at_s=now)
        # The first fault leaves most - 1: cut off once `faults_per_minute` are used up.
        self.faults = _Bucket(
            per_s=limits.faults_per_minute / 60, most=limits.faults_per_minute, filled_at_s=now
        )
        self.open_calls = 0
        self.cut_off_until_s = 0.0


class CallGate:
    """Counts the calls, bytes and faults of every party.

    Args: parties: ids that may call. clock: monotonic seconds.
    """

    def __init__(
        self, limits: PeerLimits, parties: Iterable[str], clock: Callable[[], float]
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        now = clock()
        self._accounts = {party: _Account(limits, now) for party in parties}

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
                account.open_calls -= 1

    def pause_s(self, party: str, size_bytes: int) -> float:
        """Count bytes of payload; for how long this call has to rest before it goes on."""
        with self._lock:
            bucket = self._accounts[party].payload
            bucket.fill(self._clock())
            bucket.tokens -= size_bytes
            return max(0.0, -bucket.tokens / bucket.per_s)

    def _fault(self, account: _Account) -> None:
        now = self._clock()
        account.faults.fill(now)
        account.faults.tokens -= 1
        if account.faults.tokens < 1:
            account.cut_off_until_s = now + self._limits.cut_off_s

    def _enter(self, party: str, account: _Account) -> None:
        limits, now = self._limits, self._clock()
        if now < account.cut_off_until_s:
            raise PeerError(
                f"{party} sent more than {limits.faults_per_minute} requests in a minute that "
                "no working client sends, and is cut off for "
                f"{account.cut_off_until_s - now:.0f} s more; see its log",
                reason="cut_off",
                peer=party,
            )
        if account.open_calls >= limits.concurrent_calls:
            raise PeerError(
                f"{party} has {account.open_calls} calls open, at most "
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
        account.open_calls += 1
