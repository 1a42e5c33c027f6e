"""A coordinator that dies in the LLM transfer goes on where it was, with one decision."""

import json
import time

import pytest
from federation import PreparedFederation

from lada_clients.audit.folder import read_evidence
from lada_protocol.evidence.study import verify_evidence

DEADLINE_S = 300


def has_begun(events, step):
    if not events.exists():
        return False
    lines = events.read_bytes().rpartition(b"\n")[0].splitlines()
    return any(
        (one["event"], one["step"]) == ("step_started", step) for one in map(json.loads, lines)
    )


@pytest.mark.slow
def test_a_coordinator_killed_in_the_uplink_goes_on_and_decides_once(tmp_path):
    prepared = PreparedFederation(tmp_path / "run", rounds=1)
    layout = prepared.layout
    others = {party: prepared.start(party) for party in ("auditor", *layout.site_ids)}
    coordinator = prepared.start("coordinator")
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not has_begun(layout.coordinator.events, "uplink"):
            assert time.monotonic() < deadline
            assert coordinator.poll() is None
            time.sleep(0.01)
        coordinator.kill()
        coordinator.wait(timeout=30)
        coordinator = prepared.start("coordinator")
        for party, process in {**others, "coordinator": coordinator}.items():
            said, _ = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 0, (party, said)
    finally:
        for process in (*others.values(), coordinator):
            process.kill()
    verdict = verify_evidence(read_evidence(layout.export))
    assert verdict.faults == ()
    assert verdict.openings == 3
    messages = (layout.export / "messages.jsonl").read_bytes()
    for kind in (b"inquiry", b"llm_update"):
        assert messages.count(b'\\"kind\\":\\"' + kind + b'\\"') == 1
