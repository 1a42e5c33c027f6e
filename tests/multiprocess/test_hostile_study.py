"""A site with records that try to stop it says what it says without them, and nothing else.

Both studies are real: five processes, mutual TLS, real keys. The hostile records are put in behind
the checks of a site's files, where only total steps protect.
"""

import json
import os
import sqlite3
from pathlib import Path

import pytest
from federation import PreparedFederation

from lada_clients.audit.folder import read_evidence
from lada_lab.mock.supervisor import Supervisor
from lada_protocol.evidence.study import verify_evidence

SEED = 20
SITE = "site-b"
# What these hold depends on noise that is drawn anew in every run, and on nothing else.
NOISY = frozenset({"opened", "paths", "inquiry", "transcript", "llm_update"})
# Asked for only where the opened confidence excesses, which are noisy, say that sites know
# something.
SOMETIMES = "site_paths"


def finished(root, **environment):
    """A prepared federation after its study, all parties having ended well."""
    prepared = PreparedFederation(root)
    prepared.environment = {**prepared.environment, **environment}
    with Supervisor() as supervisor:
        supervisor.run_all(
            [
                prepared.child(party)
                for party in ("coordinator", "auditor", *prepared.layout.site_ids)
            ]
        )
    return prepared


def messages(prepared):
    """Every message: its place, the names in its body, and its size where noise does not decide."""
    board = prepared.layout.coordinator.state / "board.sqlite"
    with sqlite3.connect(f"file:{board}?mode=ro", uri=True) as connection:
        rows = connection.execute("select header from board_messages").fetchall()
    found = []
    for (raw,) in rows:
        head = json.loads(raw)
        if head["kind"] == SOMETIMES:
            continue
        size = None if head["kind"] in NOISY else head["payload_bytes"]
        place = [head[name] for name in ("kind", "round_id", "attempt", "purpose", "sender", "to")]
        found.append((*place, tuple(sorted(head["body"])), size))
    return sorted(found, key=repr)


@pytest.mark.slow
def test_hostile_records_change_no_kind_number_or_size_of_any_message(tmp_path):
    here = Path(__file__).parent
    note = tmp_path / "note"
    plain = finished(tmp_path / "plain")
    hostile = finished(
        tmp_path / "hostile",
        PYTHONPATH=os.pathsep.join(
            (str(here / "behind_the_gate"), str(here), os.environ.get("PYTHONPATH", ""))
        ),
        LADA_HOSTILE_SITE=SITE,
        LADA_HOSTILE_SEED=str(SEED),
        LADA_HOSTILE_NOTE=str(note),
    )
    assert note.read_text() == "30\n", "the records were put in, once and at one site"
    assert messages(hostile) == messages(plain)
    assert verify_evidence(read_evidence(hostile.layout.export)).good
