"""SPEC.md, section 11: every line of the three state tables, played against the rules.

A study's messages are written down once, in their order. Each line of a table is a cut of them,
with something left out or added, and the task that the line promises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from protocol_world import SLM, UPLINK, make_cast, make_plan, signed

from lada_protocol.failure_codes import FailureCode
from lada_protocol.kinds import Kind
from lada_protocol.rounds.auditor import next_auditor_task
from lada_protocol.rounds.coordinator import next_coordinator_task
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.secure_aggregation import purposes_of
from lada_protocol.rounds.site import next_site_task
from lada_protocol.rounds.tasks import Done, GiveUp, Post, Task, Wait
from lada_protocol.wire.envelope import Envelope
from lada_secure.errors import PeerError
from lada_secure.method.plan import CONFIDENCE_EXCESS, DEMAND, STATISTICS, TRAINING

SPEC = Path(__file__).parents[4] / "protocol" / "SPEC.md"
PLAN = make_plan(uplink=UPLINK, max_cohort=4)
CAST = make_cast(("site-a", "site-b", "site-c", "site-d"))
A, C = "auditor", "coordinator"
COHORT, LATE = ("site-a", "site-b", "site-c"), "site-d"

# What goes with the message that a party owes, as the right column of the tables names it.
SENDS: dict[Kind, tuple[str, ...]] = {
    Kind.ACCEPTANCE: ("ledger", "acceptance", "refusal"),
    Kind.QUERY: ("query",),
    Kind.TRAINED: ("ledger", "trained"),
    Kind.SITE_PATHS: ("site_paths",),
    Kind.LEDGER: ("ledger",),
    Kind.ADMISSION: ("admission",),
    Kind.PLAN: ("plan", "pool", "clusters"),
    Kind.COHORT: ("cohort",),
    Kind.ABORT: ("abort",),
    Kind.SUM: ("sum",),
    Kind.MATRIX: ("matrix",),
    Kind.SCORES: ("scores",),
    Kind.INQUIRY: ("inquiry",),
    Kind.LLM_UPDATE: ("llm_update",),
    Kind.TRANSCRIPT: ("transcript",),
    Kind.FINISHED: ("finished",),
    Kind.FAILED: ("failed",),
}


ACCEPTED: dict[str, Any] = {
    "certificate": "PEM",
    "population": "patients",
    "ledger_id": "0" * 64,
    "head_index": 1,
    "head_hash": "0" * 64,
    "new_ledger": True,
    "slm": SLM.model_dump(),
}


def message(kind: Kind, sender: str, body: dict[str, Any] | None = None, **place: Any) -> Envelope:
    return signed(CAST.roster, CAST.keys[sender], PLAN, kind, sender, body, **place)


def story() -> Iterator[Envelope]:
    """All messages of a study of two rounds among three of four sites."""
    for kind in (Kind.PLAN, Kind.POOL, Kind.CLUSTERS):
        yield message(kind, C)
    for purpose in purposes_of(PLAN):
        yield message(Kind.OPENING_KEY, A, purpose=purpose)
    acceptances = {site: message(Kind.ACCEPTANCE, site, ACCEPTED) for site in (*COHORT, LATE)}
    for site, acceptance in acceptances.items():
        yield message(Kind.LEDGER, site, {"first_index": 0, "head_index": 1, "head_hash": "0" * 64})
        yield acceptance
    for site, acceptance in acceptances.items():
        yield message(Kind.RECEIPT, A, to=site)
        body = {"acceptance": acceptance.message_hash, "known_entries": 0}
        yield message(Kind.ADMISSION, A, body, to=site)
    for round_id in range(PLAN.rounds):
        yield from a_round(round_id)
    yield message(Kind.FINISHED, C)


def a_round(round_id: int) -> Iterator[Envelope]:
    here: dict[str, Any] = {"round_id": round_id}
    yield from an_opening(STATISTICS, round_id)
    yield message(Kind.MATRIX, C, **here)
    yield from (message(Kind.QUERY, site, to=C, **here) for site in COHORT)
    yield from (message(Kind.SCORES, C, to=site, **here) for site in COHORT)
    yield from an_opening(DEMAND, round_id)
    yield message(Kind.PATHS, C, **here)
    yield from (message(Kind.TRAINED, site, **here) for site in COHORT)
    yield from an_opening(CONFIDENCE_EXCESS, round_id)
    yield message(Kind.INQUIRY, C, {"opened": "0" * 64, "samples": 1}, **here)
    yield from (message(Kind.SITE_PATHS, site, to=C, **here) for site in COHORT)
    yield message(Kind.LLM_UPDATE, C, **here)
    transcript = message(Kind.TRANSCRIPT, C, **here)
    yield transcript
    signature = {"transcript_sha256": transcript.header.payload_sha256}
    yield from (message(Kind.CLOSE, party, signature, **here) for party in (C, A, *COHORT))


def an_opening(purpose: str, round_id: int, attempt: int = 0) -> Iterator[Envelope]:
    at: dict[str, Any] = {"purpose": purpose, "round_id": round_id, "attempt": attempt}
    yield message(Kind.COHORT, C, {"sites": list(COHORT)}, **at)
    for kind in (Kind.MASK_KEY, Kind.CONTRIBUTION):
        yield from (message(kind, site, **at) for site in COHORT)
    yield message(Kind.SUM, C, **at)
    yield message(Kind.OPENED, A, **at)


STORY = tuple(story())
FIRST = Attempt(round_id=0, purpose=STATISTICS, number=0)
SECOND = Attempt(round_id=0, purpose=STATISTICS, number=1)
AT: dict[str, Any] = {"purpose": STATISTICS}


def cut(kind: Kind, purpose: str | None = None, *, round_id: int = 0) -> list[Envelope]:
    """Everything before the first message of that kind."""
    for number, one in enumerate(STORY):
        head = one.header
        if (one.kind, head.round_id) == (kind, round_id) and purpose in (None, head.purpose):
            return list(STORY[:number])
    raise AssertionError(kind)


def without(messages: list[Envelope], kind: Kind, *senders: str) -> list[Envelope]:
    return [one for one in messages if one.kind is not kind or one.header.sender not in senders]


def waits(step: str, awaited: str, *parties: str, attempt: Attempt | None = None) -> Task:
    return Wait(step=step, round_id=0, awaited=awaited, parties=parties, attempt=attempt)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a table: what was sent, and what follows. None: an adapter does it, not the
    rules; a text: the rules stop with that code."""

    seen: list[Envelope]
    task: Task | str | None
    party: str = "site-a"
    given_up: frozenset[tuple[int, str]] = frozenset()
    unshown: int | None = None


def line(seen: list[Envelope], task: Task | str | None, **more: Any) -> Line:
    return Line(seen=seen, task=task, **more)


TWO_SITES = message(Kind.COHORT, C, {"sites": ["site-a", "site-b"]}, **AT)
BEHIND = [*cut(Kind.COHORT), *an_opening(STATISTICS, 0)]
SITE = [
    line([*STORY, message(Kind.REFUSAL, A, to="site-a")], Done(failure="auditor gave no")),
    line(
        [*cut(Kind.TRAINED), message(Kind.FAILED, C)],
        Post(kind=Kind.LEDGER, attempt=Attempt(purpose=TRAINING)),
        unshown=0,
    ),
    line([*cut(Kind.COHORT), message(Kind.FAILED, C)], Done(failure="coordinator gave no")),
    line(
        list(STORY),
        Done(
            failure="the study went through 2 of its 2 rounds without site-d (round 0, 1)",
            told=FailureCode.MISSED_ROUND,
        ),
        party=LATE,
    ),
    line(
        [*cut(Kind.ACCEPTANCE), message(Kind.REFUSAL, "site-a")],
        Done(failure="site-a takes no part: site-a gave no"),
    ),
    line(cut(Kind.MASK_KEY), None),
    line(cut(Kind.ACCEPTANCE), Post(kind=Kind.ACCEPTANCE)),
    line(cut(Kind.ADMISSION), waits("plan", "the admission", A)),
    line(
        cut(Kind.COHORT, round_id=1),
        Wait(step="opening", round_id=1, awaited="the cohort", parties=(C,)),
    ),
    line(
        without(cut(Kind.CLOSE), Kind.TRAINED, "site-a"),
        Post(kind=Kind.LEDGER, attempt=Attempt(purpose=TRAINING)),
        unshown=0,
    ),
    line(cut(Kind.CLOSE), Post(kind=Kind.CLOSE)),
    line(cut(Kind.COHORT), waits("opening", "the cohort", C)),
    line([*BEHIND, *list(an_opening(STATISTICS, 0, 1))[:1]], "already_opened"),
    line([*cut(Kind.COHORT), TWO_SITES], "cohort_too_small"),
    line(cut(Kind.MASK_KEY), waits("opening", "the next round (not in this", C), party=LATE),
    line(BEHIND, Post(kind=Kind.QUERY, to=C)),
    line([*cut(Kind.SUM), message(Kind.ABORT, C, **AT)], waits("opening", "a new attempt", C)),
    line(cut(Kind.MASK_KEY), Post(kind=Kind.MASK_KEY, attempt=FIRST, sites=COHORT)),
    line(
        without(cut(Kind.CONTRIBUTION), Kind.MASK_KEY, "site-c"),
        waits("opening", "mask keys", "site-c", attempt=FIRST),
    ),
    line(cut(Kind.CONTRIBUTION), Post(kind=Kind.CONTRIBUTION, attempt=FIRST, sites=COHORT)),
    line(cut(Kind.OPENED), waits("opening", "the opened sum", A)),
    line(cut(Kind.QUERY), Post(kind=Kind.QUERY, to=C)),
    line(cut(Kind.SCORES), waits("scoring", "blind scores", C)),
    line(cut(Kind.PATHS), waits("paths", "reasoning paths", C)),
    line(cut(Kind.TRAINED), Post(kind=Kind.TRAINED)),
    line(cut(Kind.COHORT, CONFIDENCE_EXCESS), waits("opening", "the cohort", C)),
    line(cut(Kind.INQUIRY), waits("uplink", "the inquiry", C)),
    line(cut(Kind.SITE_PATHS), Post(kind=Kind.SITE_PATHS, to=C)),
    line(cut(Kind.TRANSCRIPT), waits("close", "the transcript", C)),
]
TOO_FEW = GiveUp(code="cohort_too_small", message="")
GONE = frozenset({(0, "site-a")})
UNTRAINED = without(cut(Kind.TRANSCRIPT), Kind.TRAINED, "site-a")
COORDINATOR = [
    line([*cut(Kind.COHORT), message(Kind.FAILED, C)], Done(failure="coordinator gave no")),
    line(cut(Kind.CLUSTERS), Post(kind=Kind.PLAN)),
    line(
        [*cut(Kind.OPENING_KEY), message(Kind.REFUSAL, A)],
        GiveUp(code="refused", message="auditor refuses the plan"),
    ),
    line(cut(Kind.OPENING_KEY), waits("plan", "opening keys", A)),
    line(
        [*cut(Kind.ACCEPTANCE), *(message(Kind.REFUSAL, one) for one in ("site-a", "site-b"))],
        TOO_FEW,
    ),
    line(
        without(cut(Kind.RECEIPT), Kind.ACCEPTANCE, LATE),
        waits("plan", "answers to the plan", LATE),
    ),
    line(cut(Kind.ADMISSION), waits("plan", "admissions", A)),
    line(
        without(cut(Kind.RECEIPT), Kind.ACCEPTANCE, "site-c", LATE),
        TOO_FEW,
        given_up=frozenset({(-1, "site-c"), (-1, LATE), (-1, A)}),
    ),
    line(cut(Kind.COHORT), Post(kind=Kind.COHORT, attempt=FIRST, sites=(*COHORT, LATE))),
    line(BEHIND, Post(kind=Kind.MATRIX)),
    line(
        [*cut(Kind.OPENED), message(Kind.OPENING_REFUSED, A, **AT)],
        GiveUp(code="opening_refused", message="auditor gave no"),
    ),
    line(cut(Kind.OPENED), waits("opening", "the opened sum", A, attempt=FIRST)),
    line(cut(Kind.SUM), Post(kind=Kind.ABORT, attempt=FIRST, sites=("site-a",)), given_up=GONE),
    line(cut(Kind.CONTRIBUTION), waits("opening", "contributions", *COHORT, attempt=FIRST)),
    line(cut(Kind.SUM), None),
    line(cut(Kind.SUM), Post(kind=Kind.SUM, attempt=FIRST, sites=COHORT)),
    line(cut(Kind.MATRIX), Post(kind=Kind.MATRIX)),
    line(cut(Kind.SCORES), Post(kind=Kind.SCORES, to="site-a")),
    line(cut(Kind.QUERY), waits("scoring", "queries", *COHORT)),
    line(
        cut(Kind.COHORT, DEMAND),
        Post(kind=Kind.COHORT, attempt=Attempt(round_id=0, purpose=DEMAND, number=0), sites=COHORT),
    ),
    line(cut(Kind.PATHS), Post(kind=Kind.PATHS)),
    line(cut(Kind.TRAINED), waits("distillation", "training", *COHORT)),
    line(UNTRAINED, TOO_FEW, given_up=GONE),
    line(
        cut(Kind.COHORT, CONFIDENCE_EXCESS),
        Post(
            kind=Kind.COHORT,
            attempt=Attempt(round_id=0, purpose=CONFIDENCE_EXCESS, number=0),
            sites=COHORT,
        ),
    ),
    line(cut(Kind.INQUIRY), Post(kind=Kind.INQUIRY)),
    line(cut(Kind.SITE_PATHS), waits("uplink", "site paths", *COHORT)),
    line(cut(Kind.LLM_UPDATE), Post(kind=Kind.LLM_UPDATE)),
    line(cut(Kind.TRANSCRIPT), Post(kind=Kind.TRANSCRIPT)),
    line(cut(Kind.CLOSE), Post(kind=Kind.CLOSE)),
    line(
        without(cut(Kind.COHORT, round_id=1), Kind.CLOSE, "site-c"),
        waits("close", "signatures", "site-c"),
    ),
    line(without(cut(Kind.COHORT, round_id=1), Kind.CLOSE, "site-a"), TOO_FEW, given_up=GONE),
    line(cut(Kind.FINISHED), Post(kind=Kind.FINISHED)),
]
AUDITOR = [
    line(cut(Kind.OPENING_KEY), None),
    line(cut(Kind.OPENING_KEY), Post(kind=Kind.OPENING_KEY, attempt=Attempt(purpose=STATISTICS))),
    line(cut(Kind.ADMISSION), Post(kind=Kind.ADMISSION, to="site-a")),
    line(cut(Kind.RECEIPT), Post(kind=Kind.RECEIPT, to="site-a")),
    line(cut(Kind.OPENED), Post(kind=Kind.OPENED, attempt=FIRST)),
    line(cut(Kind.CLOSE), Post(kind=Kind.CLOSE)),
    line([*cut(Kind.COHORT), message(Kind.FAILED, C)], Done(failure="coordinator gave no")),
    line(cut(Kind.COHORT), waits("opening", "contributions", C)),
]


def table(party: str) -> list[tuple[str, str]]:
    """The lines of a state table of the specification: when, and the task."""
    section = SPEC.read_text("utf-8").split(f"**{party}**")[1].split("\n\n")[1]
    cells = [one.strip("| ").split(" | ") for one in section.splitlines()[2:]]
    return [(when, task) for when, task in cells]


CASES = [
    pytest.param(party, text, one, id=f"{party}: {when}")
    for party, lines in (("Site", SITE), ("Coordinator", COORDINATOR), ("Auditor", AUDITOR))
    for (when, text), one in zip(table(party), lines, strict=True)
]


def next_task(party: str, case: Line) -> Task:
    index = MessageIndex(PLAN, CAST.roster)
    for one in case.seen:
        index.add(one)
    if party == "Site":
        return next_site_task(index, site=case.party, unshown=case.unshown)
    if party == "Auditor":
        return next_auditor_task(index)
    return next_coordinator_task(index, given_up=case.given_up)


@pytest.mark.parametrize(("party", "text", "case"), CASES)
def test_every_line_of_the_state_tables_is_what_the_rules_do(
    party: str, text: str, case: Line
) -> None:
    expected = case.task
    if expected is None:
        return
    if isinstance(expected, str):
        assert text.startswith("stop")
        with pytest.raises(PeerError) as caught:
            next_task(party, case)
        assert caught.value.reason == expected
        return
    found = next_task(party, case)
    assert type(found) is type(expected), found
    for name in getattr(expected, "__dataclass_fields__", {}):
        wanted = getattr(expected, name)
        if isinstance(wanted, str):
            # Sentences of peers are given by their beginnings.
            assert getattr(found, name).startswith(wanted), found
        else:
            assert getattr(found, name) == wanted, found
    if text.startswith(("..", "go ", "next step", "post it")):
        return
    assert ("wait" in re.split(r"[;,]", text)[0]) == isinstance(expected, Wait)
    if isinstance(expected, Post):
        assert all(f"`{kind}`" in text for kind in SENDS.get(expected.kind, ())), text
    assert not isinstance(expected, GiveUp) or f"`{expected.code}`" in text


@pytest.mark.parametrize("end", [Kind.FAILED, Kind.FINISHED])
def test_what_was_spent_on_a_missed_round_is_shown_once(end: Kind) -> None:
    body = {"first_index": 2, "head_index": 3, "head_hash": "0" * 64}
    shown = message(Kind.LEDGER, "site-a", body, purpose=TRAINING)
    seen = [*cut(Kind.TRAINED), message(end, C)]
    assert next_task("Site", line(seen, None, unshown=0)) == Post(
        kind=Kind.LEDGER, attempt=Attempt(purpose=TRAINING)
    )
    assert isinstance(next_task("Site", line([*seen, shown], None, unshown=0)), Done)


def test_a_site_that_signed_every_round_has_missed_none() -> None:
    assert next_task("Site", line(list(STORY), None)) == Done()


def test_a_site_that_refused_and_comes_back_hears_that_it_refused() -> None:
    seen = [*STORY, message(Kind.REFUSAL, LATE)]
    found = next_task("Site", line(seen, None, party=LATE))
    assert found == Done(failure="site-d refused the plan")


@pytest.mark.parametrize(
    "kind", [Kind.COHORT, Kind.MASK_KEY, Kind.OPENED, Kind.TRAINED, Kind.CLOSE]
)
@pytest.mark.parametrize("who", ["site-b", A])
def test_that_a_party_has_ended_changes_what_nobody_does_next(kind: Kind, who: str) -> None:
    ended = message(Kind.FAILED, who, {"code": "disk", "message": ""}, purpose=STATISTICS)
    for party in ("Site", "Coordinator", "Auditor"):
        before, after = line(cut(kind), None), line([*cut(kind), ended], None)
        assert next_task(party, before) == next_task(party, after)
