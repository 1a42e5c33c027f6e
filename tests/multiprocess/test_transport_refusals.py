"""The board over real connections: who and what is refused, on both ends."""

import http.server
import socket
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

import grpc
import pytest
from served_board import (
    COORDINATOR_HOST,
    HOSTS,
    chunk,
    coordinator_identity,
    opening,
    raw_stub,
    refusal,
    serving,
    told_waits,
)
from tunnel import Tunnel

from lada_clients.ca.authority import issue_party
from lada_clients.net import connection
from lada_clients.net.transport import BoardClient, RefusedByBoard
from lada_protocol.party_files import LiveIdentity
from lada_protocol.wire import lada_pb2
from lada_protocol.wire.lada_pb2_grpc import BoardStub
from lada_protocol.wire.limits import CHUNK_BYTES
from lada_protocol.wire.transport_settings import TransportSettings
from lada_secure.errors import LocalProtocolError, ParameterError, PeerError, TransportError
from lada_server.rpc import limits
from lada_server.rpc.service import start_server


@pytest.fixture
def served(study, tmp_path):
    with serving(study, tmp_path) as one:
        yield one


def test_our_processes_speak_tls_1_3(served, study):
    context = ssl.create_default_context(cafile=str(study.identity("bank") / "ca.crt"))
    context.load_cert_chain(study.identity("bank") / "tls.crt", study.identity("bank") / "tls.key")
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", served.server.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=COORDINATOR_HOST) as tls,
    ):
        assert tls.version() == "TLSv1.3"
        assert tls.recv(1)


def test_client_and_server_of_ours_negotiate_tls_1_3(served, study):
    """What both send is sniffed: gRPC does not tell the version of its own connections."""
    with (
        Tunnel(served.server.port) as tunnel,
        BoardClient(
            tunnel.address,
            identity=study.identity("bank"),
            roster=study.roster,
            party_id="bank",
            patience_s=5,
        ) as bank,
    ):
        assert bank.list(0) == []
        hellos = tunnel.first_down
    # supported_versions (43) of a ServerHello: two bytes, 0x0304. In 1.2 there is none.
    chosen = bytes.fromhex("002b00020304")
    assert len(hellos) == 2
    for one in hellos:
        record = one[5 : 5 + int.from_bytes(one[3:5], "big")]
        assert (one[0], record[0]) == (22, 2)
        assert chosen in record


def test_tls_1_2_is_what_a_stranger_can_still_ask_our_server_for(served, study):
    """gRPC for Python cannot be told a minimum (grpc/grpc#37305); 1.2 needs a certificate too."""
    context = ssl.create_default_context(cafile=str(study.identity("bank") / "ca.crt"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    address = ("127.0.0.1", served.server.port)
    with (
        socket.create_connection(address, timeout=10) as plain,
        pytest.raises((ssl.SSLError, ConnectionResetError)),
    ):
        # In 1.2 the server judges our certificate within the handshake: none is shown here.
        context.wrap_socket(plain, server_hostname=COORDINATOR_HOST)
    context.load_cert_chain(study.identity("bank") / "tls.crt", study.identity("bank") / "tls.key")
    with (
        socket.create_connection(address, timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=COORDINATOR_HOST) as tls,
    ):
        assert tls.version() == "TLSv1.2"
        assert tls.cipher()[0].startswith("ECDHE-")
        assert tls.cipher()[0].endswith(("-GCM-SHA256", "-GCM-SHA384", "-CHACHA20-POLY1305"))


def test_our_client_refuses_a_server_that_offers_tls_1_2_alone(study):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    folder = study.identity("coordinator")
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            plain, _ = listener.accept()
            with plain, pytest.raises(ssl.SSLError):
                context.wrap_socket(plain, server_side=True)

        thread = threading.Thread(target=accept)
        thread.start()
        client = BoardClient(
            f"127.0.0.1:{listener.getsockname()[1]}",
            identity=study.identity("bank"),
            roster=study.roster,
            party_id="bank",
            patience_s=60,
        )
        with client, pytest.raises(TransportError, match=r"does not speak TLS 1\.3"):
            client.list(0)
        thread.join()


@contextmanager
def accepting_tls_1_1(study):
    """A plain TLS server that still takes version 1.1: the control of the test below."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(study.identity("bank") / "tls.crt", study.identity("bank") / "tls.key")
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            plain, _ = listener.accept()
            with plain, context.wrap_socket(plain, server_side=True) as tls:
                tls.sendall(b"x")

        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_1_1_is_refused_by_our_server_though_this_machine_can_speak_it(served, study):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        accepting_tls_1_1(study) as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain) as tls,
    ):
        assert tls.version() == "TLSv1.1"
        assert tls.recv(1) == b"x"
    with (
        socket.create_connection(("127.0.0.1", served.server.port), timeout=10) as plain,
        pytest.raises((ssl.SSLError, ConnectionResetError)),
    ):
        context.wrap_socket(plain)


def test_no_certificate_gets_no_call_through(served, study):
    with raw_stub(served, None, study.identity("bank")) as stub:
        code, _ = refusal(lambda: stub.List(lada_pb2.ListRequest(), timeout=10))
    assert code is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_of_another_ca_gets_no_call_through(served, study, make_study):
    stranger = make_study().identity("bank")
    with raw_stub(served, stranger, study.identity("bank")) as stub:
        code, _ = refusal(lambda: stub.List(lada_pb2.ListRequest(), timeout=10))
    assert code is grpc.StatusCode.UNAVAILABLE


def test_plain_text_gets_no_call_through(served):
    with grpc.insecure_channel(served.server.address) as channel:
        code, _ = refusal(lambda: BoardStub(channel).List(lada_pb2.ListRequest(), timeout=10))
    assert code is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_of_our_ca_that_is_not_in_the_roster_is_refused(served, study):
    with raw_stub(served, study.identity("outsider"), study.identity("bank")) as stub:
        for call in (
            lambda: stub.List(lada_pb2.ListRequest(), timeout=10),
            lambda: stub.Post(iter([opening(study.envelope("acceptance", "bank"))]), timeout=10),
            lambda: list(stub.Fetch(lada_pb2.FetchRequest(message_sha256=bytes(32)), timeout=10)),
        ):
            assert refusal(call) == (grpc.StatusCode.UNAUTHENTICATED, "unknown_party")
    assert served.store.visible("coordinator", 0) == []


def test_a_message_of_another_party_is_refused_even_with_its_true_signature(served, study):
    envelope = study.envelope("acceptance", "bank")
    with raw_stub(served, study.identity("hospital-a"), study.identity("bank")) as stub:
        found = refusal(lambda: stub.Post(iter([opening(envelope)]), timeout=10))
    assert found == (grpc.StatusCode.PERMISSION_DENIED, "wrong_sender")


def test_a_kind_that_the_role_may_not_send_is_refused(served, study):
    with served.client("bank") as bank, pytest.raises(RefusedByBoard) as refused:
        bank.post(study.envelope("opened", "bank", b"{}"), b"{}")
    assert refused.value.reason == "wrong_role"


def test_a_forged_signature_is_refused(served, study):
    envelope = study.envelope("acceptance", "bank")
    forged = lada_pb2.PostFrame(
        opening=lada_pb2.Opening(header=envelope.header_bytes, signature=bytes(64))
    )
    with raw_stub(served, study.identity("bank"), study.identity("bank")) as stub:
        found = refusal(lambda: stub.Post(iter([forged]), timeout=10))
    assert found == (grpc.StatusCode.UNAUTHENTICATED, "bad_signature")


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        pytest.param([], "malformed", id="nothing"),
        pytest.param([chunk(b"x")], "malformed", id="a chunk before the opening"),
        pytest.param(["opening", "opening"], "malformed", id="two openings"),
        pytest.param(["opening", lada_pb2.PostFrame()], "malformed", id="an empty frame"),
        pytest.param(["opening", chunk(b"x", 5)], "malformed", id="a wrong offset"),
        pytest.param(["opening", chunk(b"")], "malformed", id="an empty chunk"),
        pytest.param(["opening", chunk(b"x" * (CHUNK_BYTES + 1))], "malformed", id="a huge chunk"),
        pytest.param(["opening", chunk(b"x", 0, bytes(32))], "payload_mismatch", id="bad hash"),
        pytest.param(["opening", chunk(b"0123")], "payload_mismatch", id="too short"),
        pytest.param(["opening", chunk(b"0" * 11)], "too_large", id="too long"),
        pytest.param(["opening", chunk(b"9876543210")], "payload_mismatch", id="other bytes"),
        pytest.param([chunk(b"x" * 500_000)], None, id="a frame over the limit"),
    ],
)
def test_rubbish_is_refused_and_others_go_on(served, study, frames, reason):
    envelope = study.envelope("contribution", "bank", b"0123456789")
    sent = [opening(envelope) if one == "opening" else one for one in frames]
    with raw_stub(served, study.identity("bank"), study.identity("bank")) as stub:
        _, found = refusal(lambda: stub.Post(iter(sent), timeout=10))
    assert found == reason
    with served.client("bank") as bank:
        assert bank.post(envelope, b"0123456789") == 1


def test_a_peer_that_keeps_sending_rubbish_is_cut_off_while_others_go_on(
    study, tmp_path, monkeypatch
):
    monkeypatch.setattr(limits, "FAULTS_PER_MINUTE", 5)
    monkeypatch.setattr(limits, "CUT_OFF_S", 2.0)
    with (
        serving(study, tmp_path) as served,
        served.client("hospital-a") as other,
        raw_stub(served, study.identity("bank"), study.identity("bank")) as stub,
    ):
        reasons = []
        for number in range(8):
            _, reason = refusal(lambda: stub.Post(iter([chunk(b"rubbish")]), timeout=10))
            reasons.append(reason)
            assert other.post(study.envelope("acceptance", "hospital-a", round_id=number)) > number
        assert reasons == ["malformed"] * 5 + ["cut_off"] * 3
        with served.client("bank") as bank:
            with pytest.raises(RefusedByBoard, match="cut off") as refused:
                bank.list(0)
            assert refused.value.reason == "cut_off"
            time.sleep(2.1)
            assert len(bank.list(0)) == 8
    assert served.server.gate.activity()["hospital-a"].refusals == {}


def test_bytes_that_are_no_http_2_end_their_own_connection_alone(served, study):
    context = ssl.create_default_context(cafile=str(study.identity("bank") / "ca.crt"))
    context.load_cert_chain(study.identity("bank") / "tls.crt", study.identity("bank") / "tls.key")
    context.set_alpn_protocols(["h2"])
    with served.client("hospital-a") as other:
        other.list(0)
        with (
            socket.create_connection(("127.0.0.1", served.server.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=COORDINATOR_HOST) as tls,
            suppress(ConnectionResetError, BrokenPipeError, ssl.SSLError),
        ):
            tls.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(100_000))
            while tls.recv(65_536):
                pass
        assert other.post(study.envelope("acceptance", "hospital-a")) == 1


def test_a_peer_that_calls_too_often_is_slowed_down_and_then_served(study, tmp_path):
    settings = TransportSettings(calls_per_s=20, burst_calls=1)
    with (
        serving(study, tmp_path, settings=settings) as served,
        served.client("bank") as bank,
        told_waits() as waits,
    ):
        for _ in range(5):
            assert bank.list(0) == []
    assert any("slow down" in why for why in waits)


def test_another_certificate_of_our_ca_cannot_stand_in_for_the_coordinator(served, study, tmp_path):
    """The roster pins the coordinator's certificate, so the CA alone cannot make a second one."""
    other = replace(study.roster.coordinator, tls_fingerprint="0" * 64)
    roster = replace(
        study.roster, parties=(other, *(one for one in study.roster.parties if one.id != other.id))
    )
    client = BoardClient(
        served.server.address,
        identity=study.identity("bank"),
        roster=roster,
        party_id="bank",
        patience_s=60,
    )
    with client, pytest.raises(TransportError, match="somebody may stand between"):
        client.list(0)


def test_the_channel_itself_trusts_one_certificate_and_not_its_ca(served, study, tmp_path):
    """What `connection.py` relies on: a leaf as the only root is a pin in gRPC."""
    party = study.roster.coordinator.name
    issue_party(
        study.folder / "ca", party=party, hosts=HOSTS, days=1, out=tmp_path / "twin", now=study.now
    )
    bank = study.credentials("bank")
    options = [("grpc.ssl_target_name_override", COORDINATOR_HOST)]
    outcomes = []
    for pin in (study.identity("coordinator"), tmp_path / "twin"):
        credentials = grpc.ssl_channel_credentials(
            (pin / "tls.crt").read_bytes(), bank.tls_key_pem, bank.tls_certificate_pem
        )
        with grpc.secure_channel(served.server.address, credentials, options) as channel:
            try:
                BoardStub(channel).List(lada_pb2.ListRequest(), timeout=10)
                outcomes.append("trusted")
            except grpc.RpcError as error:
                outcomes.append(error.code())
    assert outcomes == ["trusted", grpc.StatusCode.UNAVAILABLE]


def test_a_server_of_another_ca_is_refused_at_once(served, study, make_study):
    other = make_study()
    client = BoardClient(
        served.server.address,
        identity=other.identity("bank"),
        roster=other.roster,
        party_id="bank",
        patience_s=60,
    )
    started = time.monotonic()
    with client, pytest.raises(TransportError, match="study's CA does not vouch for"):
        client.list(0)
    assert time.monotonic() - started < 5


def test_a_server_that_does_not_take_our_certificate_is_named_soon(study, make_study, monkeypatch):
    """Right certificate, but it trusts another CA: it hangs up without saying why."""
    # Long enough for several connections to be hung up on; the real limit is for slow links.
    monkeypatch.setattr(connection, "HANG_UPS_BELIEVED_AFTER_S", 3.0)
    coordinator, other = study.credentials("coordinator"), make_study()
    server = grpc.server(None)
    credentials = grpc.ssl_server_credentials(
        [(coordinator.tls_key_pem, coordinator.tls_certificate_pem)],
        other.credentials("bank").ca_pem,
        require_client_auth=True,
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    client = BoardClient(
        f"127.0.0.1:{port}",
        identity=study.identity("bank"),
        roster=study.roster,
        party_id="bank",
        patience_s=60,
    )
    with client, pytest.raises(TransportError, match="does not accept our certificate"):
        client.list(0)
    server.stop(0).wait()


def test_a_port_without_tls_is_named(study):
    class Page(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        client = BoardClient(
            f"127.0.0.1:{web.server_port}",
            identity=study.identity("bank"),
            roster=study.roster,
            party_id="bank",
            patience_s=60,
        )
        with client, pytest.raises(TransportError, match=r"does not speak TLS 1\.3"):
            client.list(0)
        web.shutdown()
        thread.join()


def test_nobody_listening_is_waited_for_and_then_named(study):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        client = BoardClient(
            f"127.0.0.1:{port}",
            identity=study.identity("bank"),
            roster=study.roster,
            party_id="bank",
            patience_s=0.8,
        )
        with (
            client,
            told_waits() as waits,
            pytest.raises(TransportError, match=r"gave up after .* connection refused"),
        ):
            client.list(0)
    assert waits
    assert all("connection refused" in why for why in waits)


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:70000", "::1:80", "h:-1"])
def test_an_address_that_is_none_is_refused(study, address):
    with pytest.raises(ParameterError, match="expected"):
        BoardClient(address, identity=study.identity("bank"), roster=study.roster, party_id="bank")


def test_an_identity_folder_of_another_party_is_refused_before_dialling(study):
    for party, text in (("bank", "settings say party 'bank'"), ("outsider", "not in the roster")):
        with pytest.raises(ParameterError, match=text):
            BoardClient(
                "127.0.0.1:1",
                identity=study.identity("hospital-a" if party == "bank" else party),
                roster=study.roster,
                party_id=party,
            )


def test_our_own_mistakes_are_not_sent(served, study):
    with served.client("bank") as bank:
        with pytest.raises(LocalProtocolError, match="message of hospital-a"):
            bank.post(study.envelope("acceptance", "hospital-a"))
        with pytest.raises(LocalProtocolError, match="not the one in the header"):
            bank.post(study.envelope("contribution", "bank", b"a"), b"b")
        assert bank.traffic.up_bytes == 0


def test_a_payload_that_the_coordinator_changed_is_refused(served, study, tmp_path):
    envelope = study.envelope("contribution", "bank", b"as signed")
    with served.client("bank") as bank:
        bank.post(envelope, b"as signed")
        (path,) = (tmp_path / "payloads").rglob(envelope.message_hash)
        for forged in (b"as forged", b"as signed and more", b"as"):
            path.write_bytes(forged)
            with pytest.raises(PeerError) as refused:
                bank.fetch(envelope)
            assert refused.value.reason == "payload_mismatch"


def test_a_busy_port_is_refused_with_one_clear_message(served, study, tmp_path):
    with pytest.raises(ParameterError, match="Address already in use"):
        start_server(
            served.server.address,
            identity=coordinator_identity(study),
            store=served.store,
            upload_dir=tmp_path / "other",
        )


def test_only_the_coordinators_certificate_serves(served, study, tmp_path):
    with pytest.raises(ParameterError, match="needs the coordinator's"):
        start_server(
            "127.0.0.1:0",
            identity=LiveIdentity(study.identity("bank"), party_id="bank", roster=study.roster),
            store=served.store,
            upload_dir=tmp_path / "other",
        )
