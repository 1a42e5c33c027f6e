"""The moments of a round at which a fault strikes: every step of every party."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .sight import Sight

Role: TypeAlias = Literal["coordinator", "auditor", "site"]
Fact: TypeAlias = Callable[[Sight, str, int], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A state of a run, seen from outside, in which one party can be hit.

    opens: from when on; it takes what is seen, the party and the round. closes: when it is over.
    A fault that comes later has missed it and counts for nothing. once: only in round 0.
    """

    name: str
    role: Role
    opens: Fact
    closes: Fact
    once: bool = False


def _posted(kind: str, purpose: str = "") -> Fact:
    """Somebody's message of this kind is on the board."""
    return lambda sight, _, round_id: sight.has(kind, round_id=round_id, purpose=purpose)


def _own(kind: str, purpose: str = "") -> Fact:
    """The party's own message of this kind is on the board."""
    return lambda sight, party, round_id: sight.has(
        kind, sender=party, round_id=round_id, purpose=purpose
    )


def _started(step: str) -> Fact:
    return lambda sight, party, round_id: sight.happened(party, "step_started", step, round_id) > 0


def _progress(step: str) -> Fact:
    return lambda sight, party, round_id: sight.happened(party, "progress", step, round_id) > 0


def _reserved(purpose: str) -> Fact:
    return lambda sight, party, round_id: sight.unpaid(party, round_id, purpose)


_END: Fact = lambda sight, _party, _round: sight.has("finished")  # noqa: E731


def _site(name: str, opens: Fact, closes: Fact, *, once: bool = False) -> Moment:
    return Moment(name=name, role="site", opens=opens, closes=closes, once=once)


def _auditor(name: str, opens: Fact, closes: Fact, *, once: bool = False) -> Moment:
    return Moment(name=name, role="auditor", opens=opens, closes=closes, once=once)


def _coordinator(name: str, opens: Fact, closes: Fact, *, once: bool = False) -> Moment:
    return Moment(name=name, role="coordinator", opens=opens, closes=closes, once=once)


SITE = (
    _site("plan: reviewing", _started("plan"), _own("acceptance"), once=True),
    _site("plan: accepted", _own("acceptance"), _posted("cohort", "statistics"), once=True),
    _site("statistics: cohort named", _posted("cohort", "statistics"), _own("trained")),
    _site("statistics: key posted", _own("mask_key", "statistics"), _own("trained")),
    _site(
        "statistics: reserved, not committed",
        _reserved("statistics"),
        _own("ledger", "statistics"),
    ),
    _site("statistics: ledger shown", _own("ledger", "statistics"), _own("trained")),
    _site("statistics: contribution sent", _own("contribution", "statistics"), _own("trained")),
    _site("filter: fitting", _started("filter"), _own("trained")),
    _site("scoring: query sent", _own("query"), _own("trained")),
    _site("demand: cohort named", _posted("cohort", "demand"), _own("trained")),
    _site("demand: contribution sent", _own("contribution", "demand"), _own("trained")),
    _site("distillation: paths received", _posted("paths"), _own("trained")),
    _site("distillation: training", _progress("distillation"), _own("trained")),
    _site("distillation: reserved, not committed", _reserved("training"), _own("trained")),
    _site("distillation: ledger shown", _own("ledger", "training"), _own("close")),
    _site("distillation: told", _own("trained"), _own("close")),
    _site("uplink: cohort named", _posted("cohort", "advantage"), _own("close")),
    _site("uplink: contribution sent", _own("contribution", "advantage"), _own("close")),
    _site("uplink: asked", _posted("inquiry"), _own("close")),
    _site("uplink: paths sent", _own("site_paths"), _own("close")),
    _site("close: transcript shown", _posted("transcript"), _END),
    _site("close: signed", _own("close"), _END),
)

AUDITOR = (
    _auditor("plan: making keys", _started("plan"), _posted("cohort", "statistics"), once=True),
    _auditor(
        "plan: first key posted",
        _own("opening_key", "statistics"),
        _posted("sum", "statistics"),
        once=True,
    ),
    _auditor(
        "plan: first site admitted",
        _own("admission"),
        _posted("sum", "statistics"),
        once=True,
    ),
    _auditor("statistics: first ledger shown", _posted("ledger", "statistics"), _own("close")),
    _auditor("statistics: first receipt posted", _own("receipt", "statistics"), _own("close")),
    _auditor("statistics: sum received", _posted("sum", "statistics"), _own("close")),
    _auditor("statistics: opened", _own("opened", "statistics"), _own("close")),
    _auditor("demand: sum received", _posted("sum", "demand"), _own("close")),
    _auditor("demand: opened", _own("opened", "demand"), _own("close")),
    _auditor("distillation: first ledger shown", _posted("ledger", "training"), _own("close")),
    _auditor("uplink: sum received", _posted("sum", "advantage"), _own("close")),
    _auditor("uplink: opened", _own("opened", "advantage"), _own("close")),
    _auditor("close: transcript shown", _posted("transcript"), _END),
    _auditor("close: signed", _own("close"), _END),
)

COORDINATOR = (
    _coordinator("plan: proposing", _started("plan"), _posted("acceptance"), once=True),
    _coordinator("plan: looking at the pool", _started("filter"), _own("scores"), once=True),
    _coordinator("statistics: cohort named", _own("cohort", "statistics"), _own("scores")),
    _coordinator("statistics: first key", _posted("mask_key", "statistics"), _own("scores")),
    _coordinator(
        "statistics: first contribution", _posted("contribution", "statistics"), _own("scores")
    ),
    _coordinator("statistics: sum posted", _own("sum", "statistics"), _own("scores")),
    _coordinator("statistics: opened", _posted("opened", "statistics"), _own("transcript")),
    _coordinator("scoring: working", _started("scoring"), _own("transcript")),
    _coordinator("scoring: matrix posted", _own("matrix"), _own("transcript")),
    _coordinator("scoring: first scores posted", _own("scores"), _own("transcript")),
    _coordinator("demand: cohort named", _own("cohort", "demand"), _own("transcript")),
    _coordinator(
        "demand: first contribution", _posted("contribution", "demand"), _own("transcript")
    ),
    _coordinator("demand: sum posted", _own("sum", "demand"), _own("transcript")),
    _coordinator("demand: opened", _posted("opened", "demand"), _own("transcript")),
    _coordinator("paths: writing", _started("paths"), _own("transcript")),
    _coordinator("paths: posted", _own("paths"), _own("transcript")),
    _coordinator("distillation: first site trained", _posted("trained"), _own("transcript")),
    _coordinator("uplink: cohort named", _own("cohort", "advantage"), _own("transcript")),
    _coordinator("uplink: sum posted", _own("sum", "advantage"), _own("transcript")),
    _coordinator("uplink: opened", _posted("opened", "advantage"), _own("transcript")),
    _coordinator("uplink: choosing samples", _started("uplink"), _own("transcript")),
    _coordinator("uplink: inquiry posted", _own("inquiry"), _own("transcript")),
    _coordinator("uplink: training", _progress("uplink"), _own("transcript")),
    _coordinator("uplink: update posted", _own("llm_update"), _END),
    _coordinator("close: transcript posted", _own("transcript"), _END),
    _coordinator("close: signed", _own("close"), _END),
)

MOMENTS: dict[Role, tuple[Moment, ...]] = {
    "coordinator": COORDINATOR,
    "auditor": AUDITOR,
    "site": SITE,
}
