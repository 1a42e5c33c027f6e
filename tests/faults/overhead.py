"""What killing the coordinator costs: the time of a run with kills over one without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

# A kill is noticed by sites within one pause of theirs; clocks and polling take their part.
TOLERANCE_S_PER_KILL: Final = 2.5


def overhead_of(results: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Overhead of the scenario "coordinator" over "undisturbed"; None where one is missing.

    Per kill: `restart_s` is from the start of the new process to its first word, `lost_s` how long
    the step under way had run when it was killed. What is left of the difference of both runs
    after all restarts must be at most what was lost, and a tolerance per kill.
    """
    by_name = {one["scenario"]: one for one in results}
    killed, calm = by_name.get("coordinator"), by_name.get("undisturbed")
    if not killed or not calm or not killed["struck"] or not calm["wall_s"]:
        return None
    restart_s = sum(one["recovered_s"] - one["began_s"] for one in killed["struck"])
    lost_s = sum(lost_by(one["began_s"], killed["steps"]) for one in killed["struck"])
    kills = len(killed["struck"])
    over_s = killed["wall_s"] - calm["wall_s"]
    beyond_s = over_s - restart_s
    return {
        "kills": kills,
        "undisturbed_s": calm["wall_s"],
        "with_kills_s": killed["wall_s"],
        "restarts_s": round(restart_s, 1),
        "steps_lost_s": round(lost_s, 1),
        "beyond_restarts_s": round(beyond_s, 1),
        "within_bound": beyond_s <= lost_s + kills * TOLERANCE_S_PER_KILL,
    }


def lost_by(at_s: float, steps: Sequence[dict[str, Any]]) -> float:
    """Seconds that the step under way at `at_s` had run by then; 0 between two steps."""
    started: dict[tuple[str, int], float] = {}
    for one in steps:
        if one["time_s"] > at_s:
            break
        key = (one["step"], one["round"])
        if one["event"] == "step_started":
            started[key] = one["time_s"]
        elif one["event"] == "step_finished":
            started.pop(key, None)
    return max((at_s - one for one in started.values()), default=0.0)
