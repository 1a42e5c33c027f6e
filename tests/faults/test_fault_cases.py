"""The list of faults: what it must contain, whatever else changes."""

from collections import Counter

from .__main__ import ENOUGH
from .cases import SITES, role_of, scenarios
from .moments import MOMENTS
from .strikes import STRIKES

ALL = [case for scenario in scenarios() for case in scenario.cases]


def test_there_are_enough_cases_and_no_two_of_one_name():
    names = [one.name for one in ALL]
    assert len(names) >= 1.2 * ENOUGH
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_every_party_is_killed_in_every_moment_that_its_role_has():
    killed = {(one.party, one.moment.name) for one in ALL if one.strike == "kill"}
    for party in ("coordinator", "auditor", "site-a"):
        missing = [one.name for one in MOMENTS[role_of(party)] if (party, one.name) not in killed]
        assert missing == []
    for site in SITES:
        late = {one.name for one in MOMENTS["site"] if not one.once}
        assert len({name for party, name in killed if party == site} & late) >= len(late) / 2


def test_every_fault_strikes_and_every_role_meets_the_ones_that_can_hit_it():
    struck = {(role_of(one.party), one.strike) for one in ALL}
    for role in MOMENTS:
        wanted = set(STRIKES) - (
            {"repeated", "slow", "overtaken", "silence"} if role == "coordinator" else set()
        )
        if role == "auditor":
            wanted -= {"overtaken"}
        assert {strike for one, strike in struck if one == role} >= wanted


def test_a_moment_belongs_to_its_party_and_its_round():
    for one in ALL:
        assert one.moment.role == role_of(one.party)
        assert one.round_id == 0 or not one.moment.once
    for scenario in scenarios():
        assert all(one.round_id < scenario.rounds for one in scenario.cases)
