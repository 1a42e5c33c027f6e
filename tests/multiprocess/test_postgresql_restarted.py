"""PostgreSQL restarts while parties work: nothing is lost, nothing is there twice."""

import json
import signal
import subprocess
import sys
import threading
import time

import pytest
from federation import PreparedFederation
from postgresql_server import name_of
from served_board import serving

from lada_clients.audit.folder import read_evidence
from lada_protocol.evidence.study import verify_evidence

# Generous: the steps themselves take a minute on two idle cores.
DEADLINE_S = 900
CLI = "from lada_secure.cli import main; main()"
DOWN_S = 1.5
# Where the server goes away: while sites contribute, while the coordinator works, and at the end.
STEPS = ("opening", "scoring", "paths", "close")


def test_clients_post_and_read_through_restarts_of_the_database(study, tmp_path, postgres):
    payload = bytes(range(256)) * 1200
    parties = ("bank", "hospital-a", "hospital-b")
    failures = []

    def work(served, party):
        try:
            with served.client(party, patience_s=60) as client:
                for attempt in range(12):
                    envelope = study.envelope("contribution", party, payload, attempt=attempt)
                    receipt = client.post(envelope, payload)
                    assert client.post(envelope, payload) == receipt
                    time.sleep(0.05)
        except BaseException as error:
            failures.append(error)

    with serving(study, tmp_path, database=postgres.new_database()) as served:
        threads = [threading.Thread(target=work, args=(served, party)) for party in parties]
        for thread in threads:
            thread.start()
        for how in (signal.SIGINT, signal.SIGQUIT):
            time.sleep(0.4)
            postgres.restart(how)
        for thread in threads:
            thread.join(100)
        assert not any(thread.is_alive() for thread in threads)
        assert failures == []
        with served.client("auditor", patience_s=30) as auditor:
            found = [envelope for _, envelope in auditor.list(0, wait_s=0)]
            places = [(one.header.sender, one.header.attempt) for one in found]
            assert sorted(places) == [(party, n) for party in parties for n in range(12)]
            assert all(auditor.fetch(one) == payload for one in found[-3:])


def begun(events):
    if not events.exists():
        return set()
    lines = events.read_bytes().rpartition(b"\n")[0].splitlines()
    return {one["step"] for one in map(json.loads, lines) if one["event"] == "step_started"}


@pytest.mark.slow
def test_a_round_goes_on_when_the_database_is_restarted_in_the_middle_of_its_steps(
    tmp_path, postgres
):
    prepared = PreparedFederation(tmp_path / "run", rounds=1)
    layout, url = prepared.layout, postgres.new_database()
    settings = layout.coordinator.settings
    settings.write_text(f'database = "{url}"\n' + settings.read_text())
    running = {
        party: prepared.start(party) for party in ("coordinator", "auditor", *layout.site_ids)
    }
    try:
        deadline, left = time.monotonic() + DEADLINE_S, list(STEPS)
        while left:
            assert time.monotonic() < deadline
            for party, process in running.items():
                assert process.poll() is None, (party, process.communicate()[0])
            if left[0] in begun(layout.coordinator.events):
                postgres.stop(signal.SIGQUIT if len(left) % 2 else signal.SIGINT)
                left.pop(0)
                time.sleep(DOWN_S)
                postgres.start()
            time.sleep(0.01)
        for party, process in running.items():
            said, _ = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 0, (party, said)
    finally:
        for process in running.values():
            process.kill()
    verdict = verify_evidence(read_evidence(layout.export))
    assert verdict.faults == ()
    assert verdict.openings == 3
    assert b'"for":["storage"]' in layout.coordinator.events.read_bytes()
    duplicates = "SELECT message_hash FROM board_messages GROUP BY 1 HAVING count(*) > 1"
    assert postgres.execute(name_of(url), duplicates) == []
    status = subprocess.run(
        [sys.executable, "-c", CLI, *["server", "status", "--json", "--settings"], settings],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(status.stdout)
    assert found["state"] == "finished"
    (stored,) = postgres.execute(
        name_of(url), "SELECT count(*) FROM board_messages WHERE sender <> 'coordinator'"
    )[0]
    assert sum(one["messages"] for one in found["parties"]) == stored
