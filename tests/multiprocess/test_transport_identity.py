"""Certificates that end, are renewed or are taken back while both ends run."""

import shutil
import threading
import time
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from served_board import HOSTS, coordinator_identity, opening, raw_stub, refusal, serving

from lada_clients.ca.authority import issue_party, renew_party, revoke
from lada_clients.ca.enrolment import install
from lada_clients.net.transport import BoardClient, RefusedByBoard
from lada_protocol.identity.certificates import PartyName, certificate_fingerprint
from lada_protocol.identity.credentials import Passphrase
from lada_protocol.identity.issuance import issue_certificate
from lada_protocol.kinds import Role
from lada_protocol.wire import lada_pb2
from lada_secure.errors import TransportError

SOON_S = 5.0


@pytest.fixture
def own_study(make_study):
    """A study of this test alone: its certificates change."""
    return make_study()


def renewed(study, party, folder):
    """What an operator does: renew at the CA, install at the party."""
    renew_party(study.folder / "ca", party_id=party, days=10, out=folder, now=datetime.now(UTC))
    return install(
        folder,
        identity=study.identity(party),
        ca_sha256=None,
        passphrase=None,
        now=datetime.now(UTC),
    )


def put_revocations_into_force(study, party="coordinator"):
    # As `cp` does it: first an empty file, then its content.
    shutil.copy(study.folder / "ca" / "ca.crl", study.identity(party) / "ca.crl")


def test_both_ends_take_renewed_certificates_while_they_run(own_study, tmp_path):
    with serving(own_study, tmp_path) as served, served.client("bank") as bank:
        assert bank.list(0) == []
        for number, party in enumerate(("coordinator", "bank")):
            before = own_study.credentials(party).tls_certificate
            after = renewed(own_study, party, tmp_path / f"answer-{number}").tls_certificate
            assert before.serial_number != after.serial_number
            assert bank.post(own_study.envelope("acceptance", "bank", round_id=number)) > number
        with served.client("auditor") as auditor:
            assert len(auditor.list(0)) == 2
            shown = auditor._endpoint.identity.credentials().ca
            assert certificate_fingerprint(shown) == own_study.roster.study_ca


def test_a_renewed_certificate_of_the_server_is_what_new_connections_see(own_study, tmp_path):
    import ssl

    def serial(port):
        with raw_tls(own_study, port) as tls:
            der = tls.getpeercert(binary_form=True)
        return ssl.DER_cert_to_PEM_cert(der)

    with serving(own_study, tmp_path) as served:
        before = serial(served.server.port)
        fresh = renewed(own_study, "coordinator", tmp_path / "answer")
        assert serial(served.server.port) == fresh.tls_certificate_pem.decode()
        assert before != fresh.tls_certificate_pem.decode()


def raw_tls(study, port):
    import socket
    import ssl

    context = ssl.create_default_context(cafile=str(study.identity("bank") / "ca.crt"))
    context.check_hostname = False
    context.load_cert_chain(study.identity("bank") / "tls.crt", study.identity("bank") / "tls.key")
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=10))


def test_a_damaged_renewal_leaves_the_old_certificate_in_force(own_study, tmp_path):
    with serving(own_study, tmp_path) as served, served.client("bank") as bank:
        bank.list(0)
        (own_study.identity("coordinator") / "tls.crt").write_bytes(b"half a certifi")
        with served.client("hospital-a") as other:
            assert other.list(0) == []


def test_a_revoked_party_is_refused_within_seconds_and_others_go_on(own_study, tmp_path):
    with (
        serving(own_study, tmp_path) as served,
        served.client("bank") as bank,
        served.client("auditor") as auditor,
    ):
        assert bank.list(0) == []
        assert revoke(own_study.folder / "ca", party_id="bank", now=own_study.now) == 2
        assert bank.list(0) == []
        put_revocations_into_force(own_study)
        with pytest.raises(RefusedByBoard, match="was revoked") as refused:
            bank.list(0)
        assert refused.value.reason == "revoked"
        with served.client("bank") as again, pytest.raises(RefusedByBoard, match="was revoked"):
            again.post(own_study.envelope("acceptance", "bank"))
        assert auditor.list(0) == []
    assert served.server.gate.activity()["bank"].refusals == {"revoked": 2}


def test_a_running_wait_and_a_running_upload_end_when_their_caller_is_revoked(own_study, tmp_path):
    payload = bytes(2_000_000)
    envelope = own_study.envelope("contribution", "bank", payload)
    go_on = threading.Event()

    def frames():
        yield opening(envelope)
        for offset in (0, 250_000):
            go_on.wait(20) if offset else None
            yield piece(payload, offset)
        time.sleep(20)

    with (
        serving(own_study, tmp_path) as served,
        served.client("bank") as bank,
        raw_stub(served, own_study.identity("bank"), own_study.identity("bank")) as stub,
    ):
        bank.list(0)
        ends = {}

        def wait():
            try:
                bank.list(0, wait_s=20)
            except RefusedByBoard as error:
                ends["list"] = error.reason, time.monotonic()

        def upload():
            ends["post"] = refusal(lambda: stub.Post(frames(), timeout=30)), time.monotonic()

        threads = [threading.Thread(target=one) for one in (wait, upload)]
        for one in threads:
            one.start()
        time.sleep(0.5)
        revoke(own_study.folder / "ca", party_id="bank", now=own_study.now)
        revoked = time.monotonic()
        put_revocations_into_force(own_study)
        go_on.set()
        for one in threads:
            one.join(SOON_S)
    assert ends["list"][0] == "revoked"
    assert ends["post"][0] == (grpc.StatusCode.UNAUTHENTICATED, "revoked")
    assert all(at - revoked < SOON_S for _, at in ends.values())


def piece(payload, offset):
    import hashlib

    data = payload[offset : offset + 250_000]
    return lada_pb2.PostFrame(
        chunk=lada_pb2.Chunk(offset=offset, data=data, sha256=hashlib.sha256(data).digest())
    )


def test_a_site_refuses_a_revoked_coordinator(own_study, tmp_path):
    with serving(own_study, tmp_path) as served, served.client("bank") as bank:
        assert bank.list(0) == []
        revoke(own_study.folder / "ca", party_id="coordinator", now=own_study.now)
        put_revocations_into_force(own_study, "bank")
        with pytest.raises(TransportError, match="coordinator was revoked"):
            bank.list(0)


def test_a_revocation_list_cannot_be_rolled_back_removed_or_forged(own_study, make_study, tmp_path):
    listed = own_study.identity("coordinator") / "ca.crl"
    revoke(own_study.folder / "ca", party_id="outsider", now=own_study.now)
    older = (own_study.folder / "ca" / "ca.crl").read_bytes()
    revoke(own_study.folder / "ca", party_id="bank", now=own_study.now)
    other = make_study()
    revoke(other.folder / "ca", party_id="auditor", now=other.now)
    put_revocations_into_force(own_study)
    identity = coordinator_identity(own_study)
    assert identity.revocations().number == 2
    forged = (other.folder / "ca" / "ca.crl").read_bytes()
    for content in (older, forged, b"rubbish", None):
        listed.unlink() if content is None else listed.write_bytes(content)
        assert identity.revocations().number == 2
        assert len(identity.revocations().revoked) == 4


def issued(study, folder, *, party, begins, ends):
    """An identity folder with bank's own keys and a TLS certificate that the CA really signed."""
    from cryptography.hazmat.primitives import serialization

    from lada_clients.ca.authority import CaFolder
    from lada_protocol.identity.certificates import certificate_pem

    shutil.copytree(study.identity("bank"), folder)
    ca = CaFolder(study.folder / "ca", None)
    key = serialization.load_pem_private_key((folder / "tls.key").read_bytes(), None)
    made = issue_certificate(
        ca=ca.certificate,
        ca_key=ca.key,
        party=party,
        public_key=key.public_key(),
        hosts=(),
        serial=77,
        period=(begins, ends),
    )
    (folder / "tls.crt").write_bytes(certificate_pem(made))
    return folder


def test_an_expired_certificate_gets_no_call_through(study, tmp_path):
    now = datetime.now(UTC)
    expired = issued(
        study,
        tmp_path / "expired",
        party=PartyName(role=Role.SITE, id="bank"),
        begins=now - timedelta(days=2),
        ends=now - timedelta(seconds=1),
    )
    with (
        serving(study, tmp_path) as served,
        raw_stub(served, expired, study.identity("bank")) as stub,
    ):
        code, _ = refusal(lambda: stub.List(lada_pb2.ListRequest(), timeout=10))
    assert code is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_that_ends_during_a_connection_ends_its_calls(study, tmp_path):
    now = datetime.now(UTC)
    short = issued(
        study,
        tmp_path / "short",
        party=PartyName(role=Role.SITE, id="bank"),
        begins=now - timedelta(days=2),
        ends=now + timedelta(seconds=3),
    )
    with serving(study, tmp_path) as served, raw_stub(served, short, short) as stub:
        assert list(stub.List(lada_pb2.ListRequest(), timeout=10).entries) == []
        time.sleep(3.5)
        found = refusal(lambda: stub.List(lada_pb2.ListRequest(), timeout=10))
    assert found == (grpc.StatusCode.UNAUTHENTICATED, "expired")


@pytest.mark.parametrize(
    "party",
    [PartyName(role=Role.AUDITOR, id="bank"), PartyName(role=Role.SITE, id="hospital-a")],
    ids=["another role", "another party"],
)
def test_a_certificate_of_our_key_for_another_name_is_refused(study, tmp_path, party):
    now = datetime.now(UTC)
    wrong = issued(
        study, tmp_path / "wrong", party=party, begins=now, ends=now + timedelta(hours=1)
    )
    with serving(study, tmp_path) as served, raw_stub(served, wrong, wrong) as stub:
        found = refusal(lambda: stub.List(lada_pb2.ListRequest(), timeout=10))
    assert found == (grpc.StatusCode.UNAUTHENTICATED, "bad_certificate")


def test_no_method_lets_in_whoever_dials_with_the_coordinators_key(study, tmp_path):
    folder = study.identity("coordinator")
    with serving(study, tmp_path) as served, raw_stub(served, folder, folder) as stub:
        for call in (
            lambda: stub.List(lada_pb2.ListRequest(), timeout=10),
            lambda: stub.Progress(lada_pb2.ProgressRequest(message_sha256=bytes(32)), timeout=10),
            lambda: stub.Post(iter([opening(study.envelope("abort", "coordinator"))]), timeout=10),
            lambda: list(stub.Fetch(lada_pb2.FetchRequest(message_sha256=bytes(32)), timeout=10)),
        ):
            assert refusal(call) == (grpc.StatusCode.PERMISSION_DENIED, "wrong_role")


def test_a_key_that_the_roster_does_not_list_is_refused_even_for_a_listed_name(study, tmp_path):
    twin = tmp_path / "twin"
    party = PartyName(role=Role.SITE, id="bank")
    issue_party(study.folder / "ca", party=party, hosts=HOSTS, days=1, out=twin, now=study.now)
    with serving(study, tmp_path) as served, raw_stub(served, twin, twin) as stub:
        found = refusal(lambda: stub.List(lada_pb2.ListRequest(), timeout=10))
    assert found == (grpc.StatusCode.UNAUTHENTICATED, "unknown_party")


def test_encrypted_keys_serve_a_connection(study, tmp_path):
    from cryptography.hazmat.primitives import serialization

    from lada_protocol.identity.credentials import private_key_pem

    passphrase = Passphrase(b"a long enough passphrase")
    folder = tmp_path / "bank"
    shutil.copytree(study.identity("bank"), folder)
    for name in ("tls.key", "sign.key"):
        key = serialization.load_pem_private_key((folder / name).read_bytes(), None)
        (folder / name).write_bytes(private_key_pem(key, passphrase))
    with (
        serving(study, tmp_path) as served,
        BoardClient(
            served.server.address,
            identity=folder,
            roster=study.roster,
            party_id="bank",
            patience_s=5,
            passphrase=passphrase,
        ) as bank,
    ):
        assert bank.list(0) == []
