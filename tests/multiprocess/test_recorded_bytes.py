"""What reaches the coordinator and the auditor, byte by byte, in a real study.

Coordinator and auditor run in this process with recorders under their gRPC connections; three
sites are processes of their own, started by the operator's command.
"""

import json
import sqlite3
import threading
from functools import cached_property

import grpc
import numpy as np
import pytest
from alpha import ALPHA
from federation import PreparedFederation
from scipy import stats

from lada_clients.auditor.runner import run_auditor
from lada_clients.net import connection
from lada_lab.mock.supervisor import Supervisor
from lada_protocol.identity.roster import parse_roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import parse_plan
from lada_protocol.rounds.secure_aggregation import purpose_parameters
from lada_protocol.wire.envelope import envelope_from_line
from lada_secure.data.records import inspect_records, read_pool
from lada_secure.encryption.aggregate_key import AggregateKey
from lada_secure.privacy.ledger.entries import CommitEntry, parse_ledger_lines
from lada_server.rpc import service
from lada_server.runner import run_server


class Recorder:
    """Keeps every message that one party received, before it was parsed."""

    def __init__(self):
        self.received = []
        self._lock = threading.Lock()

    def wrap(self, parse):
        def recorded(raw):
            with self._lock:
                self.received.append(bytes(raw))
            return parse(raw)

        return recorded

    @cached_property
    def everything(self):
        return b"\n".join(self.received)


class ServerRecorder(grpc.ServerInterceptor):
    """Under the coordinator: requests as they came off the wire."""

    def __init__(self, recorder):
        self._recorder = recorder

    def intercept_service(self, continuation, details):
        handler = continuation(details)
        return handler._replace(
            request_deserializer=self._recorder.wrap(handler.request_deserializer)
        )


class RecordedChannel:
    """Under the auditor: replies as they came off the wire."""

    def __init__(self, channel, recorder):
        self._channel, self._recorder = channel, recorder

    def __getattr__(self, name):
        member = getattr(self._channel, name)
        if name not in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            return member

        def make(method, **options):
            options["response_deserializer"] = self._recorder.wrap(options["response_deserializer"])
            return member(method, **options)

        return make


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A finished one-round study with the recordings of both parties."""
    prepared = PreparedFederation(tmp_path_factory.mktemp("recorded") / "run")
    layout = prepared.layout
    at_coordinator, at_auditor = Recorder(), Recorder()
    plain_server, plain_channel = grpc.server, grpc.secure_channel
    patch = pytest.MonkeyPatch()
    patch.setattr(
        service.grpc,
        "server",
        lambda *a, **k: plain_server(*a, interceptors=[ServerRecorder(at_coordinator)], **k),
    )
    patch.setattr(
        connection.grpc,
        "secure_channel",
        lambda *a, **k: RecordedChannel(plain_channel(*a, **k), at_auditor),
    )
    failures = []

    def party(run, settings):
        try:
            run(settings)
        except BaseException as error:
            failures.append(error)
            raise

    try:
        threads = [
            threading.Thread(target=party, args=(run_server, layout.coordinator.settings)),
            threading.Thread(target=party, args=(run_auditor, layout.auditor.settings)),
        ]
        for thread in threads:
            thread.start()
        with Supervisor() as supervisor:
            supervisor.run_all([prepared.child(site) for site in layout.site_ids])
        for thread in threads:
            thread.join(timeout=120)
    finally:
        patch.undo()
    assert failures == []
    return layout, at_coordinator, at_auditor


def released_vector(site):
    """The noised vector as the site's ledger stores it."""
    (path,) = site.state.glob("ledger-*.sqlite")
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as ledger:
        rows = ledger.execute("SELECT line FROM entries ORDER BY number")
        lines = b"".join(row[0] + b"\n" for row in rows)
        outputs = dict(ledger.execute("SELECT reserve_hash, payload FROM outputs"))
    (commit,) = (
        one
        for one in parse_ledger_lines(lines)
        if isinstance(one, CommitEntry) and one.purpose == "statistics"
    )
    return np.array(json.loads(outputs[commit.reserve_hash])["vector"], dtype=np.int64)


def spellings(vector):
    """Ways in which a vector could stand in bytes in the clear."""
    yield ",".join(str(one) for one in vector).encode()
    yield ", ".join(str(one) for one in vector).encode()
    for kind in ("<i8", ">i8", "<i4", ">i4", "<f8", "<f4"):
        yield vector.astype(kind).tobytes()


def test_the_recorders_saw_the_whole_study(recorded):
    layout, at_coordinator, at_auditor = recorded
    assert len(at_coordinator.everything) > 3 * 400_000
    assert b'"kind":"contribution"' in at_coordinator.everything
    assert b'"kind":"contribution"' in at_auditor.everything
    assert b'"kind":"opened"' in at_coordinator.everything
    assert layout.export.is_dir()


def test_no_private_text_and_no_unit_reaches_coordinator_or_auditor(recorded):
    layout, at_coordinator, at_auditor = recorded
    public = {one.question for one in read_pool(layout.coordinator.root / "pool.jsonl")}
    looked_for = 0
    for site_id in layout.site_ids:
        folder = layout.site(site_id)
        for name in ("records.jsonl", "held-out.jsonl"):
            for record in inspect_records(folder.root / name).records:
                # Questions of this preset are a few letters long: in quotes, as JSON spells
                # them, they cannot occur in a ciphertext by chance.
                secrets = [json.dumps(record.record_id), json.dumps(record.unit)]
                secrets += [json.dumps(record.question)] if record.question not in public else []
                for secret in secrets:
                    looked_for += 1
                    assert secret.encode() not in at_coordinator.everything
                    assert secret.encode() not in at_auditor.everything
    assert looked_for > 500


def test_no_statistic_stands_in_the_clear_but_the_opened_sum(recorded):
    layout, at_coordinator, at_auditor = recorded
    vectors = [released_vector(layout.site(one)) for one in layout.site_ids]
    total = np.sum(vectors, axis=0)
    assert any(one in at_coordinator.everything for one in spellings(total))
    for vector in vectors:
        for spelled in spellings(vector):
            assert spelled not in at_coordinator.everything
            assert spelled not in at_auditor.everything


def test_picks_of_a_site_stand_nowhere(recorded):
    layout, at_coordinator, at_auditor = recorded
    for site_id in layout.site_ids:
        picks = json.loads((layout.site(site_id).study / "site-state.json").read_text())["picks"][
            "0"
        ]
        plan = parse_plan((layout.export / "plan.json").read_bytes())
        wanted = np.zeros(plan.pool_size, dtype=np.int64)
        wanted[picks] = 1
        for spelled in (*spellings(wanted), *spellings(np.array(picks))):
            assert spelled not in at_coordinator.everything
            assert spelled not in at_auditor.everything


def test_no_private_key_reaches_anybody(recorded):
    layout, at_coordinator, at_auditor = recorded
    keys = list(layout.root.glob("*/identity/*.key")) + list(
        layout.root.glob("auditor/state/keys/*")
    )
    assert len(keys) >= 2 * 5 + 2
    for path in keys:
        raw = path.read_bytes()
        # The public half of an aggregate key stands at the front of its file, the secret behind it.
        middle = raw[-600:-200] if path.suffix == ".key" and b"PRIVATE" not in raw else raw[40:120]
        assert middle not in at_coordinator.everything
        assert middle not in at_auditor.everything


def test_the_auditor_alone_sees_a_uniform_mask_where_a_vector_was(recorded):
    """Chi-square over 16 bins of 3 x 192 entries: at ALPHA it would show a mask that leaves half
    of the entries within half of the range."""
    layout, _, _ = recorded
    plan = parse_plan((layout.export / "plan.json").read_bytes())
    roster = parse_roster(layout.roster.read_bytes())
    parameters = purpose_parameters(plan, "demand")
    (path,) = layout.root.glob("auditor/state/keys/*-demand.key")
    key = AggregateKey.from_bytes(path.read_bytes())
    payloads = layout.coordinator.state / "payloads"
    opened = []
    for line in (layout.export / "messages.jsonl").read_bytes().splitlines():
        envelope = envelope_from_line(line, roster=roster)
        if envelope.kind is Kind.CONTRIBUTION and envelope.header.purpose == "demand":
            (file,) = payloads.rglob(f"*{envelope.message_hash}*")
            opened.append(key.open(file.read_bytes()))
    assert len(opened) == 3
    entries = np.mod(np.concatenate(opened), parameters.plain_modulus)
    assert not np.isin(entries, (0, 1)).all()
    counts = np.bincount((entries * 16 // parameters.plain_modulus).astype(int), minlength=16)
    assert stats.chisquare(counts).pvalue > ALPHA
    total = np.mod(np.sum(opened, axis=0), parameters.plain_modulus)
    assert total.max() <= 3
