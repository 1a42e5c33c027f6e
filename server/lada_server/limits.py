"""What one peer may ask of the coordinator at once, so that nobody starves the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lada_secure.errors import ParameterError, PeerError


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLimits:
    """Limits of one party. Sizes of messages are in `lada_protocol.kinds`.

    Args: calls_per_s: sustained rate. burst_calls: calls that may come at once after a pause.
      concurrent_calls: calls open at the same time, a waiting list included.
    Raises: ParameterError: one of them is below 1.
    """

    calls_per_s: float = 50.0
    burst_calls: int = 200
    concurrent_calls: int = 4

    def __post_init__(self) -> None:
        if min(self.calls_per_s, self.burst_calls, self.concurrent_calls) < 1:
            raise ParameterError("limits of a peer: each must be at least 1")


@dataclass(slots=True)
class _Account:
    tokens: float
    filled_at_s: float
    open_calls: int = 0


class CallGate:
    """Counts the calls of every party: a token bucket for the rate, a counter for open calls.

    Args: parties: ids that may call. clock: monotonic seconds.
    """

    def __init__(
        self, limits: PeerLimits, parties: Iterable[str], clock: Callable[[], float]
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        now = clock()
        self._accounts = {
            party: _Account(tokens=float(limits.burst_calls), filled_at_s=now) for party in parties
        }

    @contextmanager
    def call(self, party: str) -> Iterator[None]:
        """Hold one call of this party open.

        Raises: PeerError: too many at once or too fast (reason "rate_limited"); later is fine.
        """
        self._enter(party)
        try:
            yield
        finally:
            with self._lock:
                self._accounts[party].open_calls -= 1

    def _enter(self, party: str) -> None:
        limits = self._limits
        with self._lock:
            account, now = self._accounts[party], self._clock()
            account.tokens = min(
                float(limits.burst_calls),
                account.tokens + (now - account.filled_at_s) * limits.calls_per_s,
            )
            account.filled_at_s = now
            if account.open_calls >= limits.concurrent_calls:
                raise PeerError(
                    f"{party} has {account.open_calls} calls open, at most "
                    f"{limits.concurrent_calls} allowed; wait for one to end",
                    reason="rate_limited",
                    peer=party,
                )
            if account.tokens < 1:
                raise PeerError(
                    f"{party} calls more than {limits.calls_per_s:g} times a second; slow down",
                    reason="rate_limited",
                    peer=party,
                )
            account.tokens -= 1
            account.open_calls += 1
