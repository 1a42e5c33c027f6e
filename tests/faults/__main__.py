"""The command line of the fault-injection run; `python -m tests.faults --help`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .cases import Scenario, scenarios
from .disks import MountedDisks, can_mount
from .drive import Driven, Driver, Struck
from .federation import prepare
from .overhead import overhead_of
from .processes import Processes
from .relay import Relay
from .sight import Sight
from .strikes import World
from .verdict import faults_of

CLOCK = Path(__file__).with_name("clock")
ENOUGH = 150


def main() -> int:
    """Run the scenarios; the exit status says whether everything survived."""
    options = _options()
    chosen = _chosen(options.only)
    if options.list:
        for scenario in chosen:
            print(f"{scenario.name}: {scenario.what}; {len(scenario.cases)} cases")
            for case in scenario.cases:
                print(f"  {case.name}")
        return 0
    if not chosen:
        print(f"--only {options.only}: no such scenario or case; see --list", file=sys.stderr)
        return 2
    if options.scenario:
        (scenario,) = (one for one in chosen if one.name == options.scenario)
        return _inside(scenario, options)
    return _all(chosen, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description="Kill, stop, cut, starve and confuse every party in every step of a round, "
        "and check that nothing is lost. Progress on standard error, one JSON line at the end.",
        epilog="Example: python -m tests.faults --only killed --keep /tmp/killed",
    )
    parser.add_argument(
        "--only", default="", help="cases whose name starts like one of these: killed,disk/site-a"
    )
    parser.add_argument("--list", action="store_true", help="list the cases and run nothing")
    parser.add_argument("--seed", type=int, default=7, help="of data and first weights")
    parser.add_argument("--jobs", type=int, default=1, help="scenarios at the same time")
    parser.add_argument("--keep", type=Path, help="keep all files of the runs in this folder")
    parser.add_argument("--scenario", default="", help=argparse.SUPPRESS)
    parser.add_argument("--at", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _chosen(only: str) -> tuple[Scenario, ...]:
    starts = tuple(only.split(","))
    found = []
    for scenario in scenarios():
        cases = tuple(one for one in scenario.cases if one.name.startswith(starts))
        if cases or scenario.name in starts or not only:
            found.append(replace(scenario, cases=cases))
    return tuple(found)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _all(chosen: tuple[Scenario, ...], options: argparse.Namespace) -> int:
    """Run every scenario in a process of its own, and add up."""
    began_s = time.monotonic()
    root = options.keep or Path(tempfile.mkdtemp(prefix="lada-faults-"))
    root.mkdir(parents=True, exist_ok=True)

    def run(scenario: Scenario) -> dict[str, Any]:
        return _in_own_process(scenario, root / scenario.name, options)

    try:
        with ThreadPoolExecutor(max(1, options.jobs)) as pool:
            results = list(pool.map(run, chosen))
    finally:
        if options.keep is None:
            shutil.rmtree(root, ignore_errors=True)
    failures = [one for result in results for one in result["failures"]]
    missed = [one for result in results for one in result["missed"]]
    summary = {
        "cases": sum(result["cases"] for result in results),
        "survived": sum(result["survived"] for result in results),
        "missed": len(missed),
        "by_fault": _added(results, "by_fault"),
        "by_party": _added(results, "by_party"),
        "scenarios": {
            result["scenario"]: {
                key: result[key] for key in ("cases", "survived", "wall_s", "outcome")
            }
            for result in results
        },
        "disk_full_by": next(
            (one["full_by"] for one in results if one["scenario"] == "disk"), None
        ),
        "coordinator_overhead": overhead_of(results),
        "seed": options.seed,
        "wall_s": round(time.monotonic() - began_s, 1),
    }
    for one in missed:
        _say(f"missed, not counted: {one}")
    for one in failures:
        _say(f"FAILED {one}")
    overhead = summary["coordinator_overhead"]
    whole = bool(options.only) or (
        summary["cases"] >= ENOUGH and overhead is not None and overhead["within_bound"]
    )
    good = whole and not failures and summary["cases"] == summary["survived"]
    print(json.dumps(summary, sort_keys=True), flush=True)
    return 0 if good else 1


def _added(results: list[dict[str, Any]], key: str) -> dict[str, int]:
    total: dict[str, int] = {}
    for result in results:
        for name, count in result[key].items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))


def _in_own_process(scenario: Scenario, root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One scenario as its own program, with its own mounts where its disks are to be full."""
    command = [sys.executable, "-m", __package__, "--seed", str(options.seed)]
    command += ["--only", options.only or scenario.name, "--scenario", scenario.name]
    command += ["--at", str(root)]
    prefix = can_mount() if scenario.own_disks else ()
    _say(f"{scenario.name}: {scenario.what} ({len(scenario.cases)} cases)")
    done = subprocess.run(
        [*prefix, *command], stdout=subprocess.PIPE, text=True, check=False, cwd=Path.cwd()
    )
    try:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        result = {
            "scenario": scenario.name,
            "cases": len(scenario.cases),
            "survived": 0,
            "missed": [],
            "failures": [f"{scenario.name}: the run ended with status {done.returncode}"],
            "by_fault": {},
            "by_party": {},
            "wall_s": 0.0,
            "full_by": None,
            "outcome": "broken",
            "struck": [],
        }
    root.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    verdict = f"{result['survived']} of {result['cases']} survived, {result['wall_s']:.0f} s"
    _say(f"{scenario.name}: {verdict}")
    return result


def _inside(scenario: Scenario, options: argparse.Namespace) -> int:
    """Run one scenario here and print its result."""
    root = options.at.absolute()
    if root.exists():
        shutil.rmtree(root)
    root.mkdir(parents=True)
    scratch = root.with_name(f"{root.name}-again")
    shutil.rmtree(scratch, ignore_errors=True)
    federation = prepare(
        root / "run",
        sites=scenario.sites,
        rounds=scenario.rounds,
        seed=options.seed,
        phase_timeout_s=scenario.phase_timeout_s,
    )
    states = [folder.state for folder in federation.layout.parties.values()]
    extra = {"PYTHONPATH": str(CLOCK)} if scenario.clock else {}
    processes = Processes(federation, extra)
    relays = {party: Relay(federation.port) for party in federation.dialling}
    for party, relay in relays.items():
        federation.dial(party, relay.port)
    with MountedDisks(states if scenario.own_disks else []) as disks:
        world = World(
            federation=federation,
            processes=processes,
            relays=relays,
            sight=Sight(layout=federation.layout),
            full_by=disks.full_by,
        )
        try:
            driven = Driver(scenario, world, say=_say).run()
            faults = list(faults_of(federation, processes, driven, scratch))
        finally:
            processes.end_all()
            for relay in relays.values():
                relay.close()
    print(json.dumps(_result(scenario, driven, faults, disks.full_by, world)), flush=True)
    return 0


def _result(
    scenario: Scenario, driven: Driven, faults: list[str], full_by: str, world: World
) -> dict[str, Any]:
    survived = [one for one in driven.struck if not one.faults and not faults]
    failures = [
        f"{one.case.name} (during: {one.during}): {fault}"
        for one in driven.struck
        for fault in one.faults
    ] + [f"{scenario.name}: {fault}" for fault in faults]
    for one in failures:
        _say(f"FAILED {one}")
    return {
        "scenario": scenario.name,
        "cases": len(driven.struck),
        "survived": len(survived),
        "missed": [one.name for one in driven.missed],
        "failures": failures,
        "by_fault": _counted([one.case.strike for one in driven.struck]),
        "by_party": _counted([one.case.party for one in driven.struck]),
        "wall_s": round(driven.wall_s, 1),
        "full_by": full_by if scenario.own_disks else None,
        "outcome": "survived" if not failures else "failed",
        "struck": [_line(one) for one in driven.struck],
        "steps": _steps(world.sight),
    }


def _line(one: Struck) -> dict[str, Any]:
    row = asdict(one)
    row["case"] = one.case.name
    row["strike"], row["party"] = one.case.strike, one.case.party
    return row


def _steps(sight: Sight) -> list[dict[str, Any]]:
    """When the coordinator began and ended what, for the cost of its restarts."""
    return [
        {key: one.get(key) for key in ("event", "step", "round", "time_s", "seconds")}
        for one in sight.events.get("coordinator", [])
    ]


def _counted(names: list[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
