"""The board: idempotent, durable, shown only to those who may read, woken by news."""

import threading
import time
from contextlib import contextmanager

import pytest

from lada_protocol.wire.limits import MAX_LIST_ENTRIES
from lada_secure.errors import ParameterError, PeerError, TransportError
from lada_server.board.store import BoardStore


@pytest.fixture(params=["sqlite", "postgresql"])
def board_in(request, tmp_path):
    """Opens the board of a folder; every test runs on both databases."""
    urls = {}

    @contextmanager
    def open_board(folder, study, **options):
        if folder not in urls:
            urls[folder] = (
                f"sqlite:///{folder / 'board.sqlite'}"
                if request.param == "sqlite"
                else request.getfixturevalue("postgres").new_database()
            )
        store = BoardStore(
            urls[folder], payload_dir=folder / "payloads", roster=study.roster, **options
        )
        try:
            yield store
        finally:
            store.close()

    return open_board


@pytest.fixture
def store(board_in, tmp_path, study):
    with board_in(tmp_path, study) as one:
        yield one


def payload_files(folder):
    return [
        p for p in (folder / "payloads").rglob("*") if p.is_file() and p.parent.name != "payloads"
    ]


def test_messages_get_rising_sequences_and_come_back_as_they_were_posted(store, study):
    first = study.envelope("plan", "coordinator", b"the plan")
    second = study.envelope("acceptance", "bank", body={"answer": [1, 2]})
    assert [store.post(first, b"the plan"), store.post(second)] == [1, 2]
    shown = store.visible("hospital-a", 0)
    assert [(sequence, one.message_hash) for sequence, one in shown] == [
        (1, first.message_hash),
        (2, second.message_hash),
    ]
    assert shown[1][1].header.body == {"answer": [1, 2]}
    assert [sequence for sequence, _ in store.visible("hospital-a", 1)] == [2]
    assert store.payload(first.message_hash) == b"the plan"


def test_posting_a_message_again_gives_the_same_sequence(store, study):
    envelope = study.envelope("contribution", "bank", b"x" * 1000)
    assert store.post(envelope, b"x" * 1000) == store.post(envelope, b"x" * 1000) == 1
    assert len(store.visible("auditor", 0)) == 1


def test_another_message_in_the_same_place_is_an_equivocation_and_changes_nothing(
    store, study, tmp_path
):
    store.post(study.envelope("contribution", "bank", b"first"), b"first")
    for payload, body in ((b"other", {}), (b"first", {"x": 1})):
        with pytest.raises(PeerError, match="a retry sends the same bytes") as refused:
            store.post(study.envelope("contribution", "bank", payload, body=body), payload)
        assert (refused.value.reason, refused.value.peer) == ("equivocation", "bank")
    assert len(store.visible("auditor", 0)) == 1
    assert len(payload_files(tmp_path)) == 1


@pytest.mark.parametrize(
    "change",
    [{"round_id": 1}, {"attempt": 1}, {"purpose": "demand"}, {"to": "hospital-a"}],
    ids=lambda change: f"another {next(iter(change))}",
)
def test_another_place_takes_another_message(store, study, change):
    store.post(study.envelope("mask_key", "bank"))
    assert store.post(study.envelope("mask_key", "bank", **change)) == 2


def test_concurrent_posts_of_one_place_end_with_one_message(store, study, tmp_path):
    envelopes = [study.envelope("contribution", "bank", bytes([n]) * 10) for n in range(8)]
    outcomes = []

    def post(number):
        try:
            outcomes.append(store.post(envelopes[number], bytes([number]) * 10))
        except PeerError as error:
            outcomes.append(error.reason)

    threads = [threading.Thread(target=post, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcomes)) == ["1"] + ["equivocation"] * 7
    assert len(payload_files(tmp_path)) == 1


def test_concurrent_posts_of_one_message_get_one_receipt(store, study):
    envelope = study.envelope("contribution", "bank", b"same")
    outcomes = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(store.post(envelope, b"same")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [1] * 8
    assert store.payload(envelope.message_hash) == b"same"


def test_readers_see_only_what_their_role_or_address_entitles_them_to(store, study):
    posts = {
        "to all": study.envelope("abort", "coordinator"),
        "to the auditor": study.envelope("contribution", "bank", b"sealed"),
        "to the coordinator": study.envelope("query", "bank", b"q", to="coordinator"),
        "to one site": study.envelope("scores", "coordinator", b"s", to="bank"),
        "paths": study.envelope("site_paths", "bank", b"p", to="coordinator"),
        "matrix": study.envelope("matrix", "coordinator", b"m"),
    }
    payloads = (b"", b"sealed", b"q", b"s", b"p", b"m")
    for envelope, payload in zip(posts.values(), payloads, strict=True):
        store.post(envelope, payload)
    expected = {
        "hospital-a": ["to all"],
        "bank": ["to all", "to the auditor", "to the coordinator", "to one site", "paths"],
        "auditor": ["to all", "to the auditor", "to the coordinator", "to one site", "matrix"],
        "coordinator": list(posts),
    }
    for reader, names in expected.items():
        shown = [one.message_hash for _, one in store.visible(reader, 0)]
        assert shown == [posts[name].message_hash for name in names], reader


def test_the_payload_of_another_party_is_not_found_rather_than_forbidden(store, study):
    secret = study.envelope("scores", "coordinator", b"s", to="bank")
    store.post(secret, b"s")
    answers = []
    for message_hash in (secret.message_hash, "0" * 64):
        with pytest.raises(PeerError) as refused:
            store.payload_chunks(message_hash, reader="hospital-a", offset=0)
        answers.append((refused.value.reason, str(refused.value).replace(message_hash[:16], "")))
    assert answers[0] == answers[1]
    assert answers[0][0] == "not_found"


def test_a_payload_is_read_from_any_offset(store, study):
    payload = bytes(range(256)) * 4000
    envelope = study.envelope("contribution", "bank", payload)
    store.post(envelope, payload)
    for offset in (0, 1, 256 * 1024, len(payload) - 1, len(payload)):
        chunks = store.payload_chunks(envelope.message_hash, reader="auditor", offset=offset)
        assert b"".join(chunks) == payload[offset:]
    with pytest.raises(PeerError, match="offset"):
        store.payload_chunks(envelope.message_hash, reader="auditor", offset=len(payload) + 1)


@pytest.mark.parametrize("payload", [b"", b"short", b"wrong hash!!", b"much longer than said"])
def test_a_payload_that_is_not_the_announced_one_is_refused_and_removed(
    store, study, tmp_path, payload
):
    envelope = study.envelope("contribution", "bank", b"the true one")
    with pytest.raises(PeerError) as refused:
        store.post(envelope, payload)
    assert refused.value.reason in ("payload_mismatch", "too_large")
    assert payload_files(tmp_path) == []
    assert store.post(envelope, b"the true one") == 1


def test_a_message_for_an_unlisted_party_or_for_nobody_is_refused(store, study):
    for to in ("outsider", ""):
        with pytest.raises(PeerError) as refused:
            store.post(study.envelope("scores", "coordinator", b"s", to=to), b"s")
        assert refused.value.reason == "bad_addressee"


def test_a_role_that_may_not_send_a_kind_is_refused_in_process_too(store, study):
    with pytest.raises(PeerError) as refused:
        store.post(study.envelope("plan", "bank", b"p"), b"p")
    assert refused.value.reason == "wrong_role"


def test_a_message_of_another_roster_is_refused(store, make_study):
    with pytest.raises(PeerError) as refused:
        store.post(make_study().envelope("abort", "coordinator"))
    assert refused.value.reason == "wrong_roster"


def test_a_party_cannot_fill_the_disk(board_in, tmp_path, study):
    with board_in(tmp_path, study, stored_bytes_per_party=3000) as store:
        store.post(study.envelope("contribution", "bank", b"x" * 2000), b"x" * 2000)
        with pytest.raises(PeerError) as refused:
            store.post(study.envelope("contribution", "bank", b"y" * 2000, attempt=1), b"y" * 2000)
        assert refused.value.reason == "quota"
        assert store.post(study.envelope("contribution", "hospital-a", b"z" * 2000), b"z" * 2000)


def test_a_long_list_comes_in_parts_without_gaps(store, study):
    count = MAX_LIST_ENTRIES + 5
    for attempt in range(count):
        store.post(study.envelope("mask_key", "bank", attempt=attempt))
    first = store.entries("auditor", 0)
    rest = store.entries("auditor", first[-1].sequence)
    assert len(first) == MAX_LIST_ENTRIES
    assert [one.sequence for one in first + rest] == list(range(1, count + 1))


def test_a_list_is_cut_by_bytes_too(store, study):
    for attempt in range(12):
        store.post(study.envelope("mask_key", "bank", attempt=attempt, body={"x": "y" * 60_000}))
    assert len(store.entries("auditor", 0)) == 8


def test_a_wait_ends_when_a_message_for_the_reader_comes_and_not_before(store, study):
    arrived = []

    def wait():
        found = store.visible("hospital-a", 0, wait_s=20)
        arrived.append((time.monotonic(), [one.header.kind for _, one in found]))

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.1)
    store.post(study.envelope("scores", "coordinator", b"s", to="bank"), b"s")
    time.sleep(0.2)
    assert not arrived
    posted = time.monotonic()
    store.post(study.envelope("abort", "coordinator"))
    waiter.join(5)
    assert arrived[0][1] == ["abort"]
    assert arrived[0][0] - posted < 2


def test_a_wait_in_vain_ends_in_time(store):
    started = time.monotonic()
    assert store.entries("bank", 0, wait_s=0.3) == []
    assert 0.3 <= time.monotonic() - started < 3


def test_closing_the_board_ends_a_wait(board_in, tmp_path, study):
    with board_in(tmp_path, study) as store:
        waiter = threading.Thread(target=lambda: store.entries("bank", 0, wait_s=20))
        waiter.start()
        time.sleep(0.1)
    waiter.join(5)
    assert not waiter.is_alive()


def test_a_board_opened_again_has_everything_and_goes_on(board_in, tmp_path, study):
    envelope = study.envelope("contribution", "bank", b"kept")
    with board_in(tmp_path, study) as store:
        store.post(envelope, b"kept")
    with board_in(tmp_path, study) as store:
        assert store.payload(envelope.message_hash) == b"kept"
        assert store.post(envelope, b"kept") == 1
        assert store.post(study.envelope("abort", "coordinator")) == 2
        assert [sequence for sequence, _ in store.visible("auditor", 0)] == [1, 2]


def test_what_an_interrupted_upload_left_is_removed_at_the_start(board_in, tmp_path, study):
    with board_in(tmp_path, study) as store:
        envelope = study.envelope("contribution", "bank", b"kept")
        store.post(envelope, b"kept")
    leftovers = (tmp_path / "payloads" / "incoming" / "a.b", tmp_path / "payloads" / "ab" / "abc")
    for path in leftovers:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    with board_in(tmp_path, study) as store:
        assert not any(path.exists() for path in leftovers)
        assert store.payload(envelope.message_hash) == b"kept"


def test_two_processes_cannot_hold_one_board(board_in, tmp_path, study):
    with (
        board_in(tmp_path, study),
        pytest.raises(ParameterError, match="in use by another"),
        board_in(tmp_path, study),
    ):
        pass


def test_a_board_keeps_to_the_roster_it_was_opened_with(board_in, tmp_path, study, make_study):
    with board_in(tmp_path, study):
        pass
    with (
        pytest.raises(ParameterError, match="a new roster needs a new study"),
        board_in(tmp_path, make_study()),
    ):
        pass


def test_a_payload_that_was_changed_on_disk_is_noticed(store, study, tmp_path):
    envelope = study.envelope("contribution", "bank", b"as signed")
    store.post(envelope, b"as signed")
    (path,) = payload_files(tmp_path)
    path.write_bytes(b"as forged")
    with pytest.raises(TransportError, match="damaged on disk"):
        store.payload(envelope.message_hash)
    path.unlink()
    with pytest.raises(TransportError, match="cannot be read"):
        store.payload(envelope.message_hash)


def test_waiting_for_readers_ends_when_everybody_who_reads_has_read_the_message(
    board_in, study, tmp_path
):
    with board_in(tmp_path, study) as store:
        store.post(study.envelope("cohort", "coordinator", body={"sites": []}))
        assert store.entries("bank", 0)
        assert store.entries("coordinator", 0)
        last = store.post(study.envelope("finished", "coordinator", body={"rounds": 1}))
        assert store.wait_until_read(last, timeout_s=0.05) == ("bank",)
        assert store.entries("bank", last - 1)
        assert store.wait_until_read(last, timeout_s=0.05) == ("bank",), "given is not yet read"
        assert store.entries("bank", last) == []
        assert store.wait_until_read(last, timeout_s=5.0) == ()


def test_after_a_restart_those_who_have_not_come_back_are_waited_for(board_in, study, tmp_path):
    with board_in(tmp_path, study) as store:
        last = store.post(study.envelope("finished", "coordinator", body={"rounds": 1}))
    with board_in(tmp_path, study) as store:
        assert store.wait_until_read(last, timeout_s=5.0) == ()
        waited_for = ("auditor", "bank")
        assert store.wait_until_read(last, timeout_s=0.05, expected=waited_for) == waited_for
        assert (
            store.wait_until_read(last, timeout_s=5.0, expected=waited_for, without=waited_for)
            == ()
        )
        for one in waited_for:
            assert store.entries(one, last) == []
        assert store.wait_until_read(last, timeout_s=5.0, expected=waited_for) == ()
