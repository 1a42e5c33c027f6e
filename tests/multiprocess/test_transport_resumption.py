"""Payloads over links that break: both ways they go on where they stopped, in little memory."""

import hashlib
import multiprocessing
import resource
import sys
import threading

import pytest
from served_board import FIVE_MB, chunk, opening, raw_stub, refusal, serving
from tunnel import Tunnel

from lada_clients.net.transport import BoardClient
from lada_protocol.kinds import Kind, KindRules
from lada_protocol.wire import lada_pb2
from lada_protocol.wire.limits import CHUNK_BYTES, WINDOW_BYTES
from lada_protocol.wire.transport_settings import TransportSettings

MB = 1_000_000
CUTS = 5
# What TLS, HTTP/2 and gRPC add, and what may be under way when a link breaks: sent, not confirmed.
OVERHEAD = 1.02
UNDER_WAY = WINDOW_BYTES + 4 * CHUNK_BYTES


def client_through(tunnel, study, party, **options):
    return BoardClient(
        tunnel.address,
        identity=study.identity(party),
        roster=study.roster,
        party_id=party,
        patience_s=60,
        settings=TransportSettings(longest_pause_s=1.0),
        **options,
    )


def random_bytes(size):
    """Not compressible, and other bytes at every offset."""
    return b"".join(
        hashlib.shake_256(number.to_bytes(4, "big")).digest(MB) for number in range(size // MB)
    )


@pytest.fixture
def wide_limit(monkeypatch):
    """Contributions of any size, so that the largest message is what the test says."""
    rules = Kind.CONTRIBUTION.rules
    wide = KindRules(senders=rules.senders, audience=rules.audience, max_payload_bytes=1 << 30)
    monkeypatch.setattr(Kind.CONTRIBUTION, "rules", wide)


class Tries:
    """Where each try at a large payload began, and what lay on the server's disk at that moment."""

    def __init__(self, monkeypatch, folder):
        self.began_at = []
        self.on_disk = []
        original = BoardClient._arrived

        def arrived(client, stub, envelope, payload):
            offset = original(client, stub, envelope, payload)
            path = folder / "uploads" / "bank" / envelope.message_hash
            self.began_at.append(offset)
            self.on_disk.append(path.stat().st_size if path.exists() else 0)
            return offset

        monkeypatch.setattr(BoardClient, "_arrived", arrived)


def upload_over_a_breaking_link(study, folder, monkeypatch, size):
    payload = random_bytes(size)
    envelope = study.envelope("contribution", "bank", payload)
    cuts = [(number + 1) * size // (CUTS + 1) for number in range(CUTS)]
    tries = Tries(monkeypatch, folder)
    with (
        serving(study, folder) as served,
        Tunnel(served.server.port, cuts_up=cuts) as tunnel,
        client_through(tunnel, study, "bank") as bank,
    ):
        assert bank.post(envelope, payload) == 1
        assert tunnel.cut == CUTS
        stored = served.store.payload(envelope.message_hash)
        assert hashlib.sha256(stored).digest() == hashlib.sha256(payload).digest()
        assert size < tunnel.up_bytes < OVERHEAD * size + CUTS * UNDER_WAY
    # What the server had confirmed is never sent again: a try begins exactly where it stood, and
    # the server takes no other offset. Only what was under way when a link broke goes twice.
    assert tries.began_at == tries.on_disk == sorted(tries.on_disk)
    assert CUTS <= len(tries.began_at) <= CUTS + 1
    assert tries.began_at[-1] > cuts[-1] - CUTS * UNDER_WAY
    assert list((folder / "uploads").rglob("?" * 64)) == []


def test_eight_megabytes_arrive_over_a_link_that_is_cut_five_times(study, tmp_path, monkeypatch):
    upload_over_a_breaking_link(study, tmp_path, monkeypatch, 8 * MB)


@pytest.mark.slow
def test_300_megabytes_arrive_over_a_link_that_is_cut_five_times(
    study, tmp_path, monkeypatch, wide_limit
):
    upload_over_a_breaking_link(study, tmp_path, monkeypatch, 300 * MB)


def test_a_download_goes_on_where_the_link_broke_each_time(study, tmp_path):
    payload = random_bytes(8 * MB)
    envelope = study.envelope("contribution", "bank", payload)
    cuts = [(number + 1) * len(payload) // (CUTS + 1) for number in range(CUTS)]
    with (
        serving(study, tmp_path) as served,
        Tunnel(served.server.port, cuts_down=cuts) as tunnel,
        client_through(tunnel, study, "auditor") as auditor,
    ):
        served.store.post(envelope, payload)
        assert auditor.fetch(envelope) == payload
        # What a client counts is what it took: every byte of the payload once, none twice.
        assert auditor.traffic.down_bytes == len(payload)
        assert tunnel.cut == CUTS
        assert tunnel.down_bytes < OVERHEAD * len(payload) + CUTS * UNDER_WAY


def test_what_a_killed_coordinator_left_of_an_upload_goes_when_it_is_posted_again(study, tmp_path):
    envelope = study.envelope("contribution", "bank", FIVE_MB)
    with serving(study, tmp_path) as served, served.client("bank") as bank:
        assert bank.post(envelope, FIVE_MB) == 1
        # As after a kill between taking the message over and dropping its upload.
        left = tmp_path / "uploads" / "bank" / envelope.message_hash
        left.write_bytes(FIVE_MB)
        assert bank.post(envelope, FIVE_MB) == 1
        assert not left.exists()


def test_the_board_waits_until_everybody_has_said_that_the_end_was_read(study, tmp_path):
    with serving(study, tmp_path) as served, served.client("bank") as bank:
        last = served.store.post(study.envelope("finished", "coordinator", body={"rounds": 1}))
        assert [sequence for sequence, _ in bank.list(0)] == [last]
        assert served.store.wait_until_read(last, timeout_s=0.05) == ("bank",)
        bank.list(last, patience_s=5.0)
        assert served.store.wait_until_read(last, timeout_s=5.0) == ()


def partial_upload(served, study, envelope, chunks):
    """Send a few chunks and then hang until the call is cut."""
    hang = threading.Event()

    def frames():
        yield opening(envelope)
        for number in range(chunks):
            offset = number * CHUNK_BYTES
            yield chunk(FIVE_MB[offset : offset + CHUNK_BYTES], offset)
        hang.wait(20)

    with raw_stub(served, study.identity("bank"), study.identity("bank")) as stub:
        refusal(lambda: stub.Post(frames(), timeout=1.0))
    hang.set()


def progress_of(served, study, envelope, party="bank"):
    request = lada_pb2.ProgressRequest(message_sha256=bytes.fromhex(envelope.message_hash))
    with raw_stub(served, study.identity(party), study.identity(party)) as stub:
        return stub.Progress(request, timeout=10)


def test_an_upload_goes_on_after_both_ends_were_started_again(study, tmp_path):
    envelope = study.envelope("contribution", "bank", FIVE_MB)
    with serving(study, tmp_path) as served:
        partial_upload(served, study, envelope, 3)
    with serving(study, tmp_path) as served, served.client("bank") as bank:
        assert progress_of(served, study, envelope).offset == 3 * CHUNK_BYTES
        # Whether another party has begun a message is nobody else's business.
        assert progress_of(served, study, envelope, "hospital-a").offset == 0
        assert bank.post(envelope, FIVE_MB) == 1
        rest = len(FIVE_MB) - 3 * CHUNK_BYTES
        assert bank.traffic.up_bytes == rest + len(envelope.header_bytes) + 64
        assert served.store.payload(envelope.message_hash) == FIVE_MB
        assert progress_of(served, study, envelope).on_board


def test_pieces_that_were_damaged_on_disk_are_sent_again(study, tmp_path):
    envelope = study.envelope("contribution", "bank", FIVE_MB)
    with serving(study, tmp_path) as served, served.client("bank") as bank:
        partial_upload(served, study, envelope, 2)
        (path,) = (tmp_path / "uploads" / "bank").iterdir()
        path.write_bytes(bytes(path.stat().st_size))
        assert bank.post(envelope, FIVE_MB) == 1
        assert served.store.payload(envelope.message_hash) == FIVE_MB


def test_a_piece_that_does_not_follow_is_refused_and_nothing_is_lost(study, tmp_path):
    envelope = study.envelope("contribution", "bank", FIVE_MB)
    with serving(study, tmp_path) as served:
        partial_upload(served, study, envelope, 2)
        with raw_stub(served, study.identity("bank"), study.identity("bank")) as stub:
            for offset in (CHUNK_BYTES, 3 * CHUNK_BYTES, 1):
                sent = [opening(envelope), chunk(FIVE_MB[:CHUNK_BYTES], offset)]
                _, reason = refusal(lambda sent=sent: stub.Post(iter(sent), timeout=10))
                assert reason == "malformed"
        assert progress_of(served, study, envelope).offset == 2 * CHUNK_BYTES


def test_unfinished_uploads_of_a_party_are_few(study, tmp_path):
    with serving(study, tmp_path, settings=TransportSettings(burst_calls=1000)) as served:
        for number in range(6):
            payload = bytes([number]) + FIVE_MB[1:]
            envelope = study.envelope("contribution", "bank", payload, round_id=number)
            sent = [opening(envelope), chunk(payload[:CHUNK_BYTES]), chunk(b"x", 7)]
            with raw_stub(served, study.identity("bank"), study.identity("bank")) as stub:
                assert refusal(lambda sent=sent: stub.Post(iter(sent), timeout=10))[1]
        assert len(list((tmp_path / "uploads" / "bank").iterdir())) == 4


def send_and_measure(address, identity, roster, envelope, size, queue):
    """Body of a process: its peak memory while it sends and fetches, above that of the payload."""
    from lada_protocol.kinds import Kind, KindRules

    rules = Kind.CONTRIBUTION.rules
    Kind.CONTRIBUTION.rules = KindRules(
        senders=rules.senders, audience=rules.audience, max_payload_bytes=1 << 30
    )
    payload = random_bytes(size)
    with BoardClient(address, identity=identity, roster=roster, party_id="bank") as bank:
        bank.list(0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        bank.post(envelope, payload)
        posted = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        del payload
        assert len(bank.fetch(envelope)) == size
        fetched = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue.put((posted - before, fetched - before))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_memory_of_both_ends_is_bounded_by_the_message_or_less(study, tmp_path, wide_limit):
    size = 200 * MB
    envelope = study.envelope("contribution", "bank", random_bytes(size))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with serving(study, tmp_path) as served:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        process = context.Process(
            target=send_and_measure,
            args=(
                served.server.address,
                study.identity("bank"),
                study.roster,
                envelope,
                size,
                queue,
            ),
        )
        process.start()
        posted, fetched = queue.get(timeout=250)
        process.join()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # KiB: the payload that the caller holds is not counted, and is in memory once when fetched.
    assert posted < 48 * 1024
    assert fetched < size // 1024 + 48 * 1024
    assert grown < 48 * 1024


@pytest.mark.slow
def test_the_defaults_hold_over_a_slow_link(study, tmp_path):
    payload = random_bytes(2 * MB)
    envelope = study.envelope("contribution", "bank", payload)
    with (
        serving(study, tmp_path) as served,
        Tunnel(served.server.port, bits_per_s=1_000_000, delay_s=0.15) as tunnel,
        BoardClient(
            tunnel.address,
            identity=study.identity("bank"),
            roster=study.roster,
            party_id="bank",
            patience_s=5,
        ) as bank,
    ):
        assert bank.post(envelope, payload) == 1
        assert bank.fetch(bank.list(0)[0][1]) == payload
        assert tunnel.connections == 2
