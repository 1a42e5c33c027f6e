"""How long to pause before a call is repeated, and when to give it up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from secrets import SystemRandom
from typing import Final

from lada_clients.net.connection import HungUp, NotNow
from lada_secure.errors import TransportError

FIRST_PAUSE_S: Final = 0.5
# A server that stops hangs up a few times and then refuses; one that goes on for so long, and has
# never taken us, means it. Behind a tunnel or a load balancer a restart looks the same.
MAX_HANG_UPS: Final = 5
HANG_UPS_BELIEVED_AFTER_S: Final = 30.0


@dataclass(slots=True, kw_only=True)
class BackOff:
    """Pauses with full jitter, each bound twice the one before, until patience is used up.

    Args: what: is repeated, for messages. patience_s: how long nothing may move. longest_pause_s:
      bound of a pause. clock: monotonic seconds. known_there: the other end has served us before,
      so one that hangs up is away rather than unwilling.
    """

    what: str
    patience_s: float
    longest_pause_s: float
    clock: Callable[[], float]
    known_there: bool = False
    since_s: float = 0.0
    _started_s: float = field(init=False)
    _bound_s: float = FIRST_PAUSE_S
    _hung_up: int = 0
    _hanging_since_s: float = 0.0
    _moved: int = 0

    def __post_init__(self) -> None:
        self._started_s = self.clock()

    def pause_s(self, fault: NotNow, *, moved: int) -> float:
        """How long to pause after this fault. `moved`: bytes so far; progress renews patience.

        Raises: TransportError: patience is used up, or the other end keeps hanging up on us.
        """
        if moved > self._moved:
            self._started_s, self._bound_s, self._moved = self.clock(), FIRST_PAUSE_S, moved
        self.since_s = self.clock() - self._started_s
        if not isinstance(fault, HungUp):
            self._hung_up = 0
        elif self._hung_up == 0:
            self._hung_up, self._hanging_since_s = 1, self.clock()
        else:
            self._hung_up += 1
        if self._is_unwilling():
            raise TransportError(f"cannot {self.what}: {fault}") from fault
        if self.since_s + self._bound_s > self.patience_s:
            raise TransportError(
                f"cannot {self.what}: gave up after {self.since_s:.0f} s: {fault}"
            ) from fault
        # Full jitter: 50 sites that lost one link at one instant come back spread out.
        pause_s = SystemRandom().uniform(0.0, self._bound_s)
        self._bound_s = min(2 * self._bound_s, self.longest_pause_s)
        return pause_s

    def _is_unwilling(self) -> bool:
        """Whether the other end hangs up because of who we are."""
        return (
            not self.known_there
            and self._hung_up >= MAX_HANG_UPS
            and self.clock() - self._hanging_since_s >= HANG_UPS_BELIEVED_AFTER_S
        )
