"""The cost of restarts, from the times of two runs."""

import pytest

from .overhead import TOLERANCE_S_PER_KILL, lost_by, overhead_of


def step(event, name, time_s, round_id=0):
    return {"event": event, "step": name, "round": round_id, "time_s": time_s}


STEPS = [
    step("step_started", "plan", 10.0),
    step("step_finished", "plan", 12.0),
    step("step_started", "paths", 20.0),
    step("step_started", "paths", 40.0),
    step("step_finished", "paths", 45.0),
]


@pytest.mark.parametrize(
    ("at_s", "lost_s"), [(9.0, 0.0), (11.5, 1.5), (15.0, 0.0), (26.0, 6.0), (44.0, 4.0)]
)
def test_what_is_lost_is_the_time_since_the_step_under_way_began(at_s, lost_s):
    assert lost_by(at_s, STEPS) == lost_s


def results(*, with_kills_s, struck):
    return [
        {"scenario": "undisturbed", "wall_s": 100.0, "struck": [], "steps": []},
        {"scenario": "coordinator", "wall_s": with_kills_s, "struck": struck, "steps": STEPS},
    ]


def test_the_step_under_way_and_the_restart_are_what_a_kill_may_cost():
    kill = {"began_s": 26.0, "recovered_s": 33.0}
    bound_s = 100.0 + 7.0 + 6.0 + TOLERANCE_S_PER_KILL
    found = overhead_of(results(with_kills_s=bound_s, struck=[kill]))
    assert found["within_bound"]
    assert (found["restarts_s"], found["steps_lost_s"]) == (7.0, 6.0)
    assert not overhead_of(results(with_kills_s=bound_s + 0.1, struck=[kill]))["within_bound"]


def test_without_both_runs_there_is_no_figure():
    assert overhead_of(results(with_kills_s=1.0, struck=[])) is None
    assert overhead_of([]) is None
