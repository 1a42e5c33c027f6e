"""A site that is killed in its training and comes back when the others have gone on without it."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from federation import PreparedFederation

from lada_lab.mock.presets import preset_for
from lada_lab.worlds.federation import build_federation
from lada_protocol.events import EVENTS_FILE
from lada_secure.privacy.ledger.entries import ReserveEntry, parse_ledger_lines

LADA = str(Path(sys.executable).with_name("lada"))
# Long for whoever trains, short for whoever waits for a site that is gone.
PHASE_TIMEOUT_S = 90.0


def lada(federation, *words):
    done = subprocess.run(
        [LADA, *words], env=federation.environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def standing(federation, party):
    settings = str(federation.layout.coordinator.settings)
    found = lada(federation, "server", "status", "--settings", settings, "--json")
    return next(one for one in found["parties"] if one["id"] == party)


def wait_until(holds, *, timeout_s):
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.slow
def test_it_shows_what_it_spent_says_that_it_missed_a_round_and_fails(tmp_path):
    federation = PreparedFederation(
        tmp_path / "run",
        preset=preset_for("tiny", sites=4, rounds=2, seed=7),
        data=build_federation("tiny", sites=4, seed=7),
    )
    layout, late = federation.layout, "site-d"
    study = layout.coordinator.root / "study.toml"
    text = re.sub(r"(?m)^phase_timeout_s.*\n", "", study.read_text())
    study.write_text(f"phase_timeout_s = {PHASE_TIMEOUT_S}\n{text}")
    others = {
        party: federation.start(party)
        for party in ("coordinator", "auditor", "site-a", "site-b", "site-c")
    }
    running = [*others.values(), killed := federation.start(late)]
    events = layout.site(late).state / EVENTS_FILE
    try:
        wait_until(
            # Its ledger has the reservation of its first steps by then.
            lambda: (
                events.exists()
                and any(
                    b'"event":"epsilon"' in line and b'"step":"distillation"' in line
                    for line in events.read_bytes().splitlines()
                )
            ),
            timeout_s=240,
        )
        killed.kill()
        killed.communicate()
        wait_until(lambda: standing(federation, late)["state"] == "missed round", timeout_s=300)
        running.append(back := federation.start(late))
        said, _ = back.communicate(timeout=400)
        ended = {party: process.communicate(timeout=100)[0] for party, process in others.items()}
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
    assert {party: process.returncode for party, process in others.items()} == dict.fromkeys(
        others, 0
    ), ended
    assert back.returncode == 1, said
    assert "the study went through 1 of its 2 rounds without site-d (round 0)" in said
    assert "what it has spent on them stays spent" in said
    found = standing(federation, late)
    assert (found["state"], found["code"]) == ("ended", "missed_round")
    verified = subprocess.run(
        [LADA, "audit", "verify", str(layout.root)],
        env=federation.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    # The auditor has seen everything that was spent, and its evidence says so.
    own = lada(
        federation,
        "site",
        "ledger",
        "--settings",
        str(layout.site(late).settings),
        "--json",
    )
    copy = (layout.export / "ledgers" / f"{late}.jsonl").read_bytes()
    reserved = [one for one in parse_ledger_lines(copy) if isinstance(one, ReserveEntry)]
    assert {one.round_id for one in reserved if one.purpose == "training"} == {0, 1}
    assert reserved[-1].epsilon_after == pytest.approx(own["epsilon"], rel=1e-3), own
