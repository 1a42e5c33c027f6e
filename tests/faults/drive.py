"""Drives one scenario: starts the parties, strikes when a moment is seen, waits for the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from .cases import Case, Scenario
from .strikes import STRIKES, Strike, Suffered, TooLate, World, is_clear_error

TICK_S: Final = 0.01
# A party that says nothing for so long after it was left alone has not recovered.
RECOVERY_S: Final = 150.0
# Without any news from anybody, a run has come to a standstill.
STANDSTILL_S: Final = 200.0
RESTARTS: Final = 3
# Faults after which a process has to come back to its work before the next one strikes.
EXCUSING: Final = frozenset({"disk full", "clock"})
# A party may be on its way out when the disk has room again or the clock is right.
EXCUSED_S: Final = 60.0
HALTING: Final = frozenset({"kill", "stop", "disk full", "clock"})

Say = Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class Struck:
    """What became of a case. `during`: what the party was doing when it was hit.

    `faults`: empty where it survived so far. `left_s`: when the party was left alone again,
    `recovered_s`: when it first said something after that; seconds since the epoch.
    """

    case: Case
    during: str = ""
    began_s: float = 0.0
    left_s: float = 0.0
    recovered_s: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Driven:
    """A run after its end. `faults`: what concerns the run as a whole."""

    struck: tuple[Struck, ...]
    missed: tuple[Case, ...]
    faults: tuple[str, ...]
    wall_s: float
    restarts: dict[str, int]


class Driver:
    """One run, from the first process to the last."""

    def __init__(self, scenario: Scenario, world: World, *, say: Say) -> None:
        self._world = world
        self._say = say
        self._pending: dict[str, list[Case]] = {}
        for case in scenario.cases:
            self._pending.setdefault(case.party, []).append(case)
        self._active: dict[str, tuple[Strike, Struck]] = {}
        self._struck: list[Struck] = []
        self._missed: list[Case] = []
        self._faults: list[str] = []
        self._restarts = dict.fromkeys(world.federation.parties, 0)
        self._done: set[str] = set()

    def run(self) -> Driven:
        """Start everybody, strike, and wait until all have ended or nothing moves any more."""
        began_s = time.monotonic()
        for party in self._world.federation.parties:
            self._world.processes.start(party)
        quiet_since_s = time.monotonic()
        facts = -1
        while len(self._done) < len(self._world.federation.parties):
            time.sleep(TICK_S)
            self._world.sight.look()
            found = self._facts()
            if found != facts or self._active:
                quiet_since_s, facts = time.monotonic(), found
            elif time.monotonic() - quiet_since_s > STANDSTILL_S:
                self._faults.append(f"standstill: {self._standing()}")
                break
            self._proceed()
            self._watch_ends()
            self._strike()
        self._missed += [case for queue in self._pending.values() for case in queue]
        for one in self._struck:
            if not one.recovered_s and self._world.processes.ended.get(one.case.party) != 0:
                one.faults.append("the party said nothing any more after it was left alone")
        return Driven(
            struck=tuple(self._struck),
            missed=tuple(self._missed),
            faults=tuple(self._faults),
            wall_s=time.monotonic() - began_s,
            restarts=self._restarts,
        )

    def _facts(self) -> int:
        sight = self._world.sight
        return len(sight.messages) + sum(len(one) for one in sight.events.values())

    def _standing(self) -> str:
        world = self._world
        return "; ".join(f"{one}: {world.sight.doing(one)}" for one in world.federation.parties)

    def _strike(self) -> None:
        world = self._world
        for party, queue in self._pending.items():
            if not queue or party in self._active or party in self._done:
                continue
            if not world.processes.running(party):
                continue
            case = queue[0]
            moment = case.moment
            if moment.closes(world.sight, party, case.round_id):
                self._missed.append(queue.pop(0))
                self._say(f"  missed {case.name}")
                continue
            if not self._recovered(party) or not moment.opens(world.sight, party, case.round_id):
                continue
            queue.pop(0)
            self._begin(case)

    def _recovered(self, party: str) -> bool:
        """Whether the party has spoken since the last strike at it that stopped its process.

        A link may be struck again at once; that the party spoke after that is asked at the end.
        """
        return all(
            one.recovered_s
            for one in self._struck
            if one.case.party == party and one.case.strike in HALTING
        )

    def _begin(self, case: Case) -> None:
        strike = STRIKES[case.strike](world=self._world, party=case.party)
        struck = Struck(case=case, during=self._world.sight.doing(case.party))
        self._struck.append(struck)
        self._active[case.party] = (strike, struck)
        struck.began_s, strike.began_s = time.time(), time.monotonic()
        self._say(f"  {case.name} (during: {struck.during})")
        try:
            self._try(struck, strike.begin)
        except TooLate:
            self._struck.remove(struck)
            self._missed.append(case)
            del self._active[case.party]

    def _proceed(self) -> None:
        for party, (strike, struck) in list(self._active.items()):
            done = self._try(struck, strike.proceed)
            if done is not False:
                struck.left_s = time.time()
                del self._active[party]
        for one in self._struck:
            party = one.case.party
            if one.left_s and not one.recovered_s:
                spoke_s = self._world.sight.last_event_s(party)
                if spoke_s > one.left_s or party in self._done:
                    one.recovered_s = max(spoke_s, one.left_s)
                elif time.time() - one.left_s > RECOVERY_S:
                    one.faults.append(f"silent for {RECOVERY_S:.0f} s after it was left alone")
                    one.recovered_s = time.time()

    def _try(self, struck: Struck, what: Callable[[], bool | None]) -> bool | None:
        try:
            return what()
        except Suffered as error:
            struck.faults.append(str(error))
            self._say(f"  SUFFERED {struck.case.name}: {error}")
            return None

    def _watch_ends(self) -> None:
        world = self._world
        for party in world.federation.parties:
            if party in self._done or party in self._active or world.processes.running(party):
                continue
            status = world.processes.ended.get(party)
            if status is None:
                continue
            if status == 0:
                self._done.add(party)
                continue
            self._end_of(party, status)

    def _is_excused(self, party: str, status: int, words: str) -> bool:
        """Whether a disk or a clock that was wrong a moment ago has ended the party properly."""
        recent = [one for one in self._struck if one.case.party == party and one.left_s]
        return (
            bool(recent)
            and recent[-1].case.strike in EXCUSING
            and time.time() - recent[-1].left_s < EXCUSED_S
            and is_clear_error(status, words)
        )

    def _end_of(self, party: str, status: int) -> None:
        """A party ended by itself: the last fault at it, or at anybody, is not survived."""
        world = self._world
        words = world.processes.last_words(party)
        if self._is_excused(party, status, words):
            self._say(f"  {party} ended with a clear error and is started again: {words}")
            world.processes.start(party)
            return
        what = f"{party} ended with status {status}: {words}"
        self._say(f"  SUFFERED {what}")
        guilty = [one for one in self._struck if one.case.party == party] or self._struck
        if guilty:
            guilty[-1].faults.append(what)
        else:
            self._faults.append(what)
        if self._restarts[party] >= RESTARTS:
            self._faults.append(f"{party} was started again {RESTARTS} times and ended each time")
            self._done.add(party)
            return
        self._restarts[party] += 1
        world.processes.start(party)
