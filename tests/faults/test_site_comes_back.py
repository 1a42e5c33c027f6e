"""A site that vanishes in a round is not waited for in vain, and takes part again in the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lada_clients.audit.folder import read_evidence
from lada_protocol.evidence.study import verify_evidence
from lada_protocol.identity.roster import parse_roster
from lada_protocol.kinds import Kind
from lada_protocol.wire.envelope import envelope_from_line
from lada_protocol.wire.messages import CohortBody, parse_body

from .federation import Federation, prepare
from .processes import Processes
from .sight import Sight, ledger_lines

GONE = "site-d"
OTHERS = ["site-a", "site-b", "site-c"]
PATIENCE_S = 400.0


@dataclass(slots=True, kw_only=True)
class Run:
    """A federation of four sites, of which one may be killed."""

    federation: Federation
    processes: Processes
    sight: Sight

    def wait(self, what: str, seen: Callable[[], bool]) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not seen():
            assert time.monotonic() < until_s, f"never seen: {what}"
            time.sleep(0.02)
            self.sight.look()

    def ended(self) -> bool:
        return not any(self.processes.running(one) for one in self.federation.parties)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    # Far above what a step takes here, and all that a vanished site can cost the others.
    federation = prepare(tmp_path / "run", sites=4, rounds=2, seed=7, phase_timeout_s=60.0)
    processes = Processes(federation, {})
    try:
        yield Run(federation=federation, processes=processes, sight=Sight(layout=federation.layout))
    finally:
        processes.end_all()


def cohorts(export: Path) -> dict[tuple[int, int], list[str]]:
    """The sites of each cohort for statistics, by round and attempt."""
    roster = parse_roster((export / "roster.json").read_bytes())
    lines = (export / "messages.jsonl").read_bytes().splitlines()
    found = [envelope_from_line(line, roster=roster) for line in lines]
    return {
        (one.header.round_id, one.header.attempt): list(parse_body(one, CohortBody).sites)
        for one in found
        if one.kind is Kind.COHORT and one.header.purpose == "statistics"
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_site_that_returns_after_the_deadline_joins_the_next_round(run: Run) -> None:
    for party in run.federation.parties:
        run.processes.start(party)
    run.wait(
        "the first cohort",
        lambda: run.sight.has("cohort", purpose="statistics", sender="coordinator"),
    )
    run.processes.kill(GONE)
    run.wait("the end of round 0", lambda: run.sight.has("transcript", sender="coordinator"))
    run.processes.start(GONE)
    run.wait("the end of all processes", run.ended)

    words = {one: run.processes.last_words(one) for one in run.federation.parties}
    # Whoever has missed a round says so, and does not end as if all were well.
    assert {one for one, status in run.processes.ended.items() if status} == {GONE}, words
    assert run.processes.ended[GONE] == 1
    assert "1 of its 2 rounds without site-d (round 0)" in words[GONE]
    assert run.sight.has("abort", sender="coordinator", purpose="statistics")
    assert not run.sight.has("trained", sender=GONE, round_id=0)
    assert all(run.sight.has("trained", sender=one, round_id=0) for one in OTHERS)
    assert all(run.sight.has("trained", sender=one, round_id=1) for one in [*OTHERS, GONE])
    layout = run.federation.layout
    assert verify_evidence(read_evidence(layout.root)).good
    assert cohorts(layout.export) == {
        (0, 0): [*OTHERS, GONE],
        (0, 1): OTHERS,
        (1, 0): [*OTHERS, GONE],
    }
    # Nothing was trained, so nothing was paid for training, in the round that it missed.
    paid = ledger_lines(layout.site(GONE).state)
    assert {one["round_id"] for one in paid if one.get("purpose") == "training"} == {1}
