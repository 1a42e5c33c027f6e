"""Which faults strike whom when: the cases, by scenario. One scenario is one run of the study."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .moments import MOMENTS, Moment, Role

SITES = ("site-a", "site-b", "site-c")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One fault, once, at one party in one moment of one round."""

    scenario: str
    strike: str
    party: str
    round_id: int
    moment: Moment

    @property
    def name(self) -> str:
        """For people and for --only."""
        return f"{self.scenario}/{self.party}/{self.round_id}/{self.moment.name}/{self.strike}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One run. phase_timeout_s: the plan's. clock: parties get a wall clock that can be wrong.
    own_disks: every state folder is a disk of its own that can be full."""

    name: str
    what: str
    rounds: int
    cases: tuple[Case, ...]
    sites: int = 3
    phase_timeout_s: float = 900.0
    clock: bool = False
    own_disks: bool = False


def role_of(party: str) -> Role:
    """The role that a party of our study has."""
    if party == "coordinator":
        return "coordinator"
    return "auditor" if party == "auditor" else "site"


def _cases(
    scenario: str,
    strikes: Sequence[str],
    party: str,
    round_id: int,
    *,
    every: int = 1,
    first: int = 0,
) -> Iterator[Case]:
    """The moments of a party in a round, every n-th from the first; strikes take turns."""
    found = [one for one in MOMENTS[role_of(party)] if round_id == 0 or not one.once]
    for number, moment in enumerate(found[first::every]):
        yield Case(
            scenario=scenario,
            strike=strikes[number % len(strikes)],
            party=party,
            round_id=round_id,
            moment=moment,
        )


def _all(*parts: Iterable[Case]) -> tuple[Case, ...]:
    return tuple(one for part in parts for one in part)


def _coordinator() -> Scenario:
    name = "coordinator"
    return Scenario(
        name=name,
        what="the coordinator is killed in the middle of every step",
        rounds=1,
        cases=_all(_cases(name, ["kill"], "coordinator", 0)),
    )


def _killed() -> Scenario:
    name, kill = "killed", ["kill"]
    return Scenario(
        name=name,
        what="every site and the auditor are killed in the middle of every step",
        rounds=2,
        cases=_all(
            _cases(name, kill, "site-a", 0),
            _cases(name, kill, "site-b", 0, every=2),
            _cases(name, kill, "auditor", 0),
            _cases(name, kill, "site-b", 1, every=2),
            _cases(name, kill, "site-c", 1),
            _cases(name, kill, "auditor", 1, every=2),
        ),
    )


def _stopped() -> Scenario:
    name, stop = "stopped", ["stop"]
    return Scenario(
        name=name,
        what="parties are stopped for longer than every time limit of a connection",
        rounds=2,
        cases=_all(
            _cases(name, stop, "site-a", 0, every=3),
            _cases(name, stop, "site-b", 0, every=3, first=1),
            _cases(name, stop, "site-c", 0, every=3, first=2),
            _cases(name, stop, "auditor", 0, every=4),
            _cases(name, stop, "coordinator", 1, every=3),
        ),
    )


def _links() -> Scenario:
    name = "links"
    turns = ["cut", "slow", "overtaken"]
    return Scenario(
        name=name,
        what="links are cut, slow, silent, and overtaken by others",
        rounds=2,
        cases=_all(
            _cases(name, turns, "site-a", 0),
            _cases(name, [*turns[1:], turns[0]], "site-b", 0),
            _cases(name, ["cut", "slow"], "auditor", 0),
            _cases(name, ["silence"], "site-c", 0, every=4),
            _cases(name, ["cut"], "coordinator", 1),
            _cases(name, ["silence"], "auditor", 1, every=5),
            _cases(name, [*turns[2:], *turns[:2]], "site-c", 1, every=2),
        ),
    )


def _repeated() -> Scenario:
    name, again = "repeated", ["repeated"]
    return Scenario(
        name=name,
        what="all messages of a party are posted again, doubled and out of order",
        rounds=1,
        cases=_all(
            *(_cases(name, again, site, 0, every=2, first=n % 2) for n, site in enumerate(SITES)),
            _cases(name, again, "auditor", 0, every=2, first=1),
        ),
    )


def _disk() -> Scenario:
    name, full = "disk", ["disk full"]
    return Scenario(
        name=name,
        what="the disk of a party is full",
        rounds=2,
        own_disks=True,
        cases=_all(
            _cases(name, full, "site-a", 0, every=2),
            _cases(name, full, "site-b", 0, every=2, first=1),
            _cases(name, full, "auditor", 0, every=2),
            _cases(name, full, "auditor", 1, every=2, first=1),
            _cases(name, full, "coordinator", 1, every=2),
        ),
    )


def _clock() -> Scenario:
    name, clock = "clock", ["clock"]
    return Scenario(
        name=name,
        what="the wall clock of a party jumps and is set right again",
        rounds=1,
        clock=True,
        cases=_all(
            _cases(name, clock, "site-a", 0, every=3),
            _cases(name, clock, "site-b", 0, every=3, first=1),
            _cases(name, clock, "auditor", 0, every=3),
            _cases(name, clock, "coordinator", 0, every=2),
        ),
    )


def undisturbed() -> Scenario:
    """The same study as the coordinator's scenario, with nothing done to anybody."""
    return Scenario(name="undisturbed", what="nothing happens", rounds=1, cases=())


def scenarios() -> tuple[Scenario, ...]:
    """All scenarios, the undisturbed one first: the others are compared with it."""
    return (
        undisturbed(),
        _coordinator(),
        _killed(),
        _stopped(),
        _links(),
        _repeated(),
        _disk(),
        _clock(),
    )
