"""Times: coarse in entries, precise where the clock itself is checked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from ledger_world import (
    CAPS,
    IDENTITY,
    SITE,
    SITE_KEY,
    START,
    TIME_STEP_S,
    Clock,
    approve,
    memory_ledger,
    statistics_spec,
    training_spec,
)

from lada_secure.errors import LedgerError, ParameterError
from lada_secure.privacy.ledger.entries import parse_entry
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.ledger.times import LedgerClock, format_time, parse_time
from lada_secure.privacy.ledger.verification import verify_ledger


def kept_for(records_took_s: float) -> list[tuple[str, str]]:
    """Kinds and times of a ledger whose computations took this long."""
    clock = Clock()
    clock.advance(7.123456)
    ledger = memory_ledger(clock)
    approve(ledger)
    paid = ledger.reserve(statistics_spec())
    clock.advance(records_took_s)
    ledger.commit(paid, b"noised")
    verify_ledger(ledger.entries(), public_key=SITE, caps=CAPS)
    return [(entry.kind, entry.time) for entry in ledger.entries()]


def test_no_entry_says_how_long_the_records_took() -> None:
    assert kept_for(0.3) == kept_for(4.0) == kept_for(3600.0)


def test_every_time_is_a_multiple_of_the_step() -> None:
    clock = Clock()
    ledger = memory_ledger(clock)
    for round_id in range(5):
        clock.advance(47.654321)
        approve(ledger)
        ledger.reserve(statistics_spec(round_id))
        ledger.commit(ledger.reserve(statistics_spec(round_id)), b"noised")
    for entry in ledger.entries():
        assert parse_time(entry.time).timestamp() % TIME_STEP_S == 0
    assert len({entry.time for entry in ledger.entries()}) > 3


def test_a_commit_after_a_later_decision_keeps_the_time_of_its_try() -> None:
    clock = Clock()
    ledger = memory_ledger(clock)
    approve(ledger)
    paid = ledger.reserve(statistics_spec())
    clock.advance(600)
    approve(ledger, "second")
    entry = ledger.keep(paid, b"noised")
    assert entry.time == paid.entry.time < ledger.entries()[-2].time
    clock.advance(600)
    ledger.reserve(training_spec())
    verify_ledger(ledger.entries(), public_key=SITE, caps=CAPS)


def test_a_clock_set_back_is_refused_and_a_small_step_is_not() -> None:
    clock = Clock()
    ledger = memory_ledger(clock)
    clock.advance(30)
    approve(ledger)
    clock.advance(-1.5)
    ledger.reserve(statistics_spec())
    # Within one step of the entries' times, so only the precise clock tells.
    clock.advance(-20)
    head = ledger.entries()[-1]
    with pytest.raises(LedgerError, match="clock was set back by 22 s"):
        ledger.reserve(statistics_spec(1))
    assert ledger.entries()[-1] == head


def test_a_small_step_back_over_the_edge_of_a_time_step_does_not_turn_times_back() -> None:
    clock = Clock()
    clock.advance(60)
    ledger = memory_ledger(clock)
    clock.advance(-1)
    approve(ledger)
    times = [entry.time for entry in ledger.entries()]
    assert times[0] == times[1] == format_time(START + timedelta(seconds=60))


def test_a_plan_expires_by_the_precise_clock() -> None:
    clock = Clock()
    ledger = memory_ledger(clock)
    expires = START + timedelta(seconds=90)
    ledger.decide(
        "approve", study_id="study", plan_hash="a" * 64, expires=expires, decided_by="policy"
    )
    clock.advance(90)
    ledger.reserve(statistics_spec())
    clock.advance(1)
    with pytest.raises(LedgerError, match="expired on"):
        ledger.reserve(statistics_spec(1))
    with pytest.raises(LedgerError, match="the plan expired on"):
        ledger.decide(
            "approve", study_id="study", plan_hash="a" * 64, expires=expires, decided_by="policy"
        )


def test_another_step_from_one_study_to_the_next_never_turns_times_back() -> None:
    last = format_time(START + timedelta(minutes=50))
    coarse = LedgerClock(read=lambda: START + timedelta(minutes=55), time_step_s=3600)
    moment = coarse.moment(last_entry=last, last_write=last)
    assert moment.coarse == last
    later = LedgerClock(read=lambda: START + timedelta(minutes=65), time_step_s=3600)
    assert later.moment(last_entry=last, last_write=last).coarse == format_time(
        START + timedelta(hours=1)
    )


def test_without_a_note_of_the_last_write_the_entries_still_bound_the_clock() -> None:
    clock = LedgerClock(read=lambda: START, time_step_s=60)
    later = format_time(START + timedelta(seconds=60))
    with pytest.raises(LedgerError, match="set back by 60 s"):
        clock.moment(last_entry=later, last_write=None)


def test_a_clock_without_a_zone_is_refused() -> None:
    with pytest.raises(ParameterError, match="time zone"):
        MemoryLedger(
            identity=IDENTITY,
            signing_key=SITE_KEY,
            caps=CAPS,
            clock=lambda: datetime(2026, 1, 31),
        )


@pytest.mark.parametrize("step", [0, -1, 86_401, 1.0, True])
def test_a_step_out_of_range_is_refused(step: int) -> None:
    with pytest.raises(ParameterError, match=r"^time_step_s: expected a whole number"):
        LedgerClock(read=lambda: datetime.now(UTC), time_step_s=step)


def test_an_entry_with_a_part_of_a_second_is_refused() -> None:
    line = memory_ledger().entries()[0].line().replace(b":00.000000Z", b":00.000001Z")
    with pytest.raises(LedgerError, match="time: expected whole seconds"):
        parse_entry(line, where="entry 0")
