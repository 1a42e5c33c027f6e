"""The board over real connections: what arrives, and what survives broken links and kills."""

import multiprocessing
import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager

import pytest
from served_board import (
    FIVE_MB,
    coordinator_identity,
    serving,
    told_waits,
)
from tunnel import connect_proxy

from lada_clients.net import connection
from lada_clients.net.transport import BoardClient, RefusedByBoard
from lada_protocol.identity.roster import parse_roster
from lada_protocol.party_files import LiveIdentity
from lada_protocol.wire.transport_settings import TransportSettings
from lada_secure.errors import TransportError
from lada_server.board.store import BoardStore
from lada_server.rpc.service import start_server


@pytest.fixture
def served(study, tmp_path):
    with serving(study, tmp_path) as one:
        yield one


def test_five_megabytes_go_up_and_come_down_unchanged_and_are_counted(served, study):
    envelope = study.envelope("contribution", "bank", FIVE_MB)
    with served.client("bank") as bank, served.client("auditor") as auditor:
        assert bank.post(envelope, FIVE_MB) == 1
        ((sequence, shown),) = auditor.list(0)
        assert (sequence, shown.message_hash) == (1, envelope.message_hash)
        assert auditor.fetch(shown) == FIVE_MB
        header = len(envelope.header_bytes) + 64
        assert bank.traffic.up_bytes == auditor.traffic.down_bytes == len(FIVE_MB) + header


def test_posting_again_gives_the_same_receipt(served, study):
    envelope = study.envelope("contribution", "bank", FIVE_MB)
    with served.client("bank") as bank:
        assert bank.post(envelope, FIVE_MB) == bank.post(envelope, FIVE_MB) == 1
    assert len(served.store.visible("auditor", 0)) == 1


def test_a_message_without_payload_needs_no_fetch(served, study):
    with served.client("bank") as bank:
        bank.post(study.envelope("acceptance", "bank"))
        ((_, shown),) = bank.list(0)
        assert bank.fetch(shown) == b""


def test_another_message_in_the_same_place_is_refused_as_an_equivocation(served, study):
    with served.client("bank") as bank:
        bank.post(study.envelope("contribution", "bank", b"first"), b"first")
        with pytest.raises(RefusedByBoard, match="a retry sends the same bytes") as refused:
            bank.post(study.envelope("contribution", "bank", b"second"), b"second")
    assert refused.value.reason == "equivocation"


def test_a_waiting_list_returns_when_the_coordinator_posts(served, study):
    with served.client("bank") as bank:
        bank.list(0)
        posted = []

        def post():
            posted.append(time.monotonic())
            served.store.post(study.envelope("abort", "coordinator"))

        timer = threading.Timer(0.4, post)
        timer.start()
        ((_, shown),) = bank.list(0, wait_s=15)
        assert shown.header.kind == "abort"
        assert time.monotonic() - posted[0] < 2
        timer.join()


def test_a_site_does_not_get_what_is_meant_for_another(served, study):
    secret = study.envelope("scores", "coordinator", b"s", to="bank")
    served.store.post(secret, b"s")
    with served.client("hospital-a") as other, served.client("bank") as bank:
        assert other.list(0) == []
        with pytest.raises(RefusedByBoard) as refused:
            other.fetch(secret)
        assert refused.value.reason == "not_found"
        assert bank.fetch(bank.list(0)[0][1]) == b"s"


def test_fifty_waiting_lists_do_not_block_a_post(served, study, tmp_path):
    settings = TransportSettings(concurrent_calls=20)
    served.server.stop()
    served.server = start_server(
        "127.0.0.1:0",
        identity=coordinator_identity(study),
        store=served.store,
        upload_dir=tmp_path / "more-uploads",
        settings=settings,
    )
    parties = ("bank", "hospital-a", "hospital-b")
    with served.client("bank") as poster:
        clients = [served.client(parties[n % 3]) for n in range(50)]
        found = []
        waiters = [
            threading.Thread(target=lambda one=one: found.append(len(one.list(0, wait_s=20))))
            for one in clients
        ]
        for waiter in waiters:
            waiter.start()
        time.sleep(1.0)
        started = time.monotonic()
        poster.post(study.envelope("acceptance", "bank"))
        for waiter in waiters:
            waiter.join(10)
        assert found == [1] * 50
        assert time.monotonic() - started < 5
        for one in clients:
            one.close()


def serve(identity, roster_file, folder, port, ready):
    """Body of a coordinator process that can be killed."""
    roster = parse_roster(roster_file.read_bytes())
    store = BoardStore(
        f"sqlite:///{folder / 'board.sqlite'}", payload_dir=folder / "payloads", roster=roster
    )
    server = start_server(
        f"127.0.0.1:{port}",
        identity=LiveIdentity(identity, party_id="coordinator", roster=roster),
        store=store,
        upload_dir=folder / "uploads",
    )
    ready.put(server.port)
    threading.Event().wait()


@contextmanager
def coordinator_process(study, folder):
    """A coordinator in a process of its own: start, kill and start again on one port."""
    context = multiprocessing.get_context("spawn")
    running = []

    def start(port=0):
        ready = context.Queue()
        process = context.Process(
            target=serve,
            args=(
                study.identity("coordinator"),
                study.folder / "roster.json",
                folder,
                port,
                ready,
            ),
            daemon=True,
        )
        process.start()
        running.append(process)
        return process, ready.get(timeout=60)

    try:
        yield start
    finally:
        for process in running:
            process.kill()
            process.join()


def test_calls_outlive_a_coordinator_that_is_killed_and_started_again(study, tmp_path):
    envelope = study.envelope("contribution", "bank", FIVE_MB)
    with told_waits() as waits, coordinator_process(study, tmp_path) as start:
        process, port = start()
        address = f"127.0.0.1:{port}"
        options = {"roster": study.roster, "patience_s": 60}
        with (
            BoardClient(
                address, identity=study.identity("bank"), party_id="bank", **options
            ) as bank,
            BoardClient(
                address, identity=study.identity("auditor"), party_id="auditor", **options
            ) as auditor,
        ):
            assert bank.post(study.envelope("acceptance", "bank")) == 1
            seen = []

            def watch():
                while len(seen) < 2:
                    seen.extend(auditor.list(seen[-1][0] if seen else 0, wait_s=10))

            watcher = threading.Thread(target=watch)
            watcher.start()
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            poster = threading.Thread(target=bank.post, args=(envelope, FIVE_MB))
            poster.start()
            time.sleep(0.5)
            start(port)
            poster.join(60)
            watcher.join(60)
            assert [one.header.kind for _, one in seen] == ["acceptance", "contribution"]
            assert auditor.fetch(seen[1][1]) == FIVE_MB
            assert bank.post(envelope, FIVE_MB) == 2
    assert any("refused" in why or "closed" in why for why in waits)


def test_a_disk_that_refuses_is_waited_for_with_its_reason(served, study, tmp_path):
    envelope = study.envelope("contribution", "bank", b"payload")
    incoming = tmp_path / "payloads" / "incoming"
    shutil.rmtree(incoming)
    with (
        served.client("bank") as bank,
        told_waits(lambda: incoming.mkdir(exist_ok=True)) as waits,
    ):
        assert bank.post(envelope, b"payload") == 1
    assert "cannot store a payload" in waits[0]


def test_a_proxy_of_the_environment_is_used_except_for_this_machine(served, study, monkeypatch):
    with connect_proxy(served.server.port) as (address, seen):
        monkeypatch.setenv("https_proxy", f"http://{address}")
        with served.client("bank") as direct:
            assert direct.list(0) == []
        assert seen == []
        with BoardClient(
            "coordinator.example:7443",
            identity=study.identity("bank"),
            roster=study.roster,
            party_id="bank",
            patience_s=5,
        ) as tunnelled:
            assert tunnelled.list(0) == []
        # Once for the look at its certificate and once for the channel; nothing goes beside it.
        assert seen == ["coordinator.example:7443"] * 2


def test_a_proxy_that_refuses_is_named_and_not_the_coordinator(study, monkeypatch):
    # Nothing listens on the discard port of this machine.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with (
        BoardClient(
            "192.0.2.2:7443",
            identity=study.identity("bank"),
            roster=study.roster,
            party_id="bank",
            patience_s=0.2,
        ) as client,
        pytest.raises(TransportError) as refused,
    ):
        client.list(0)
    assert "through the proxy 127.0.0.1:9" in str(refused.value)
    assert "add the coordinator to no_proxy" in str(refused.value)
    assert "lada server run" not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "no_proxy", "direct"),
    [
        ("192.0.2.2", "192.0.2.0/24", True),
        ("192.0.2.2", "example.org, 192.0.2.0/30", True),
        ("192.0.2.2", "198.51.100.0/24", False),
        ("2001:db8::7", "[2001:db8::7]", True),
        ("2001:db8::7", "[2001:db8::7]:7443", True),
        ("2001:db8::7", "2001:db8::/32", True),
        ("2001:db8::7", "192.0.2.0/24", False),
        ("coordinator.example", "192.0.2.0/24", False),
        ("coordinator.example", ".example", True),
        ("192.0.2.2", "not/a network,,", False),
    ],
)
def test_networks_and_bracketed_addresses_in_no_proxy_are_honoured(
    host, no_proxy, direct, monkeypatch
):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", no_proxy)
    found = connection.proxy_for(host)
    assert (found is None) is direct
