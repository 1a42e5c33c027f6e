"""The board's SQLite file: of another version, foreign, damaged, locked, and on a full disk."""

import errno
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lada_secure.errors import ParameterError, TransportError
from lada_server.board import schema
from lada_server.board.store import BoardStore
from lada_server.board.uploads import Uploads
from lada_server.settings import ServerSettings
from lada_server.study.status import read_status


@contextmanager
def board_in(folder, study, *, payloads=None):
    store = BoardStore(
        f"sqlite:///{folder / 'board.sqlite'}",
        payload_dir=payloads or folder / "payloads",
        roster=study.roster,
    )
    try:
        yield store
    finally:
        store.close()


def opened(folder, study, **options):
    with board_in(folder, study, **options):
        pass


def ask(folder, question, *values):
    with closing(sqlite3.connect(folder / "board.sqlite")) as connection, connection:
        return connection.execute(question, values).fetchall()


def metadata_of(folder):
    return dict(ask(folder, "SELECT name, value FROM board_metadata"))


def test_the_status_of_a_board_of_another_version_is_refused(tmp_path, study):
    files = dict.fromkeys(("roster", "study", "pool", "cache_dir"), tmp_path)
    settings = ServerSettings(
        party="coordinator",
        listen="localhost:1",
        identity=tmp_path / "identity",
        state_dir=tmp_path,
        llm="none",
        **files,
    )
    with board_in(tmp_path, study) as store:
        store.post(study.envelope("contribution", "bank", b"kept"), b"kept")
    found = read_status(settings, study.roster, now_s=0.0)
    assert {one.id: one.messages for one in found.parties if one.messages} == {"bank": 1}
    assert ask(tmp_path, "PRAGMA application_id") == [(schema.APPLICATION_ID,)]
    ask(tmp_path, "UPDATE board_metadata SET value = '3' WHERE name = 'schema_version'")
    with pytest.raises(ParameterError, match="schema version 3"):
        read_status(settings, study.roster, now_s=0.0)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ("3", "schema version 3, this software reads up to 2"),
        ("1", "schema version 1, this software reads from 2"),
        ("0", "'0'"),
        ("later", "'later'"),
    ],
    ids=["newer", "older", "none", "no number"],
)
def test_a_database_of_another_version_is_refused_and_left_alone(tmp_path, study, stored, said):
    opened(tmp_path, study)
    ask(tmp_path, "UPDATE board_metadata SET value = ? WHERE name = 'schema_version'", stored)
    with pytest.raises(ParameterError, match=said):
        opened(tmp_path, study)
    assert metadata_of(tmp_path)["schema_version"] == stored


@pytest.mark.parametrize(
    "content",
    [b"not a database at all" * 100, hashlib.sha256(b"noise").digest() * 300],
    ids=["text", "noise"],
)
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path, study, content):
    (tmp_path / "board.sqlite").write_bytes(content)
    with pytest.raises(TransportError, match=r"damaged or not a board.*restore"):
        opened(tmp_path, study)
    assert (tmp_path / "board.sqlite").read_bytes() == content


def test_a_database_of_something_else_is_not_made_into_a_board(tmp_path, study):
    ask(tmp_path, "CREATE TABLE entries (number INTEGER)")
    with pytest.raises(ParameterError, match="the file holds the tables entries"):
        opened(tmp_path, study)
    assert ask(tmp_path, "SELECT name FROM sqlite_master") == [("entries",)]


def test_a_damaged_page_is_noticed_when_the_board_is_opened(tmp_path, study):
    with board_in(tmp_path, study) as store:
        for attempt in range(40):
            store.post(study.envelope("mask_key", "bank", attempt=attempt, body={"x": "y" * 3000}))
    file = tmp_path / "board.sqlite"
    raw = bytearray(file.read_bytes())
    middle = len(raw) // 2 // 4096 * 4096
    raw[middle : middle + 4096] = os.urandom(4096)
    file.write_bytes(raw)
    with pytest.raises(TransportError, match=r"damaged.*restore"):
        opened(tmp_path, study)
    assert file.read_bytes() == raw


def test_a_file_that_was_cut_off_is_refused(tmp_path, study):
    with board_in(tmp_path, study) as store:
        for attempt in range(40):
            store.post(study.envelope("mask_key", "bank", attempt=attempt, body={"x": "y" * 3000}))
    file = tmp_path / "board.sqlite"
    raw = file.read_bytes()
    file.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(TransportError, match=r"damaged.*restore"):
        opened(tmp_path, study)


def test_payloads_of_another_board_are_refused_and_kept(tmp_path, study):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        with board_in(folder, study) as store:
            store.post(study.envelope("contribution", "bank", b"x"), b"x")
    with pytest.raises(ParameterError, match="that belong together"):
        opened(one, study, payloads=other / "payloads")
    with board_in(other, study) as store:
        assert len(store.visible("auditor", 0)) == 1


def test_a_lost_database_is_not_begun_anew_over_its_payloads(tmp_path, study):
    envelope = study.envelope("contribution", "bank", b"x")
    with board_in(tmp_path, study) as store:
        store.post(envelope, b"x")
    kept = (tmp_path / "board.sqlite").rename(tmp_path / "elsewhere.sqlite")
    with pytest.raises(ParameterError, match="is it the right database"):
        opened(tmp_path, study)
    (tmp_path / "board.sqlite").unlink(missing_ok=True)
    kept.rename(tmp_path / "board.sqlite")
    with board_in(tmp_path, study) as store:
        assert store.payload(envelope.message_hash) == b"x"


def test_lost_payloads_are_noticed_when_the_board_is_opened(tmp_path, study):
    with board_in(tmp_path, study) as store:
        store.post(study.envelope("contribution", "bank", b"x"), b"x")
    shutil.rmtree(tmp_path / "payloads")
    with pytest.raises(TransportError, match="the payloads of 1 messages are missing"):
        opened(tmp_path, study)


def test_two_coordinators_cannot_hold_one_database_from_two_folders(tmp_path, study):
    with (
        board_in(tmp_path, study),
        pytest.raises(ParameterError, match="in use by another coordinator"),
    ):
        opened(tmp_path, study, payloads=tmp_path / "others")
    opened(tmp_path, study)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("nonsense", "expected an SQLAlchemy URL"),
        ("mysql://x/y", "expected sqlite or postgresql"),
        ("sqlite://", "name a file"),
        ("postgresql+asyncpg://x/y", "begins with postgresql://"),
    ],
)
def test_an_unusable_database_url_is_refused_and_the_folder_stays_free(tmp_path, study, url, text):
    with pytest.raises(ParameterError, match=text):
        BoardStore(url, payload_dir=tmp_path / "payloads", roster=study.roster)
    opened(tmp_path, study)


def test_an_upload_reaches_the_board_from_another_disk(tmp_path, study, monkeypatch):
    rename = os.rename

    def refuse(source, target, **options):
        if Path(source).is_relative_to(tmp_path / "uploads"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(source, target, **options)

    monkeypatch.setattr(os, "rename", refuse)
    payload = bytes(300_000)
    envelope = study.envelope("contribution", "bank", payload)
    with (
        board_in(tmp_path, study) as store,
        Uploads(tmp_path / "uploads").begin("bank", envelope) as upload,
    ):
        upload.write(0, payload)
        store.receive(envelope, upload.move)
        assert store.payload(envelope.message_hash) == payload
        assert not upload.path.exists()


def test_a_chunk_that_a_full_disk_cut_is_written_again_in_its_place(tmp_path, study):
    payload = bytes(range(200)) * 10
    envelope = study.envelope("contribution", "bank", payload)
    with (
        board_in(tmp_path, study) as store,
        Uploads(tmp_path / "uploads").begin("bank", envelope) as upload,
    ):
        upload.write(0, payload[:1000])
        # As much of the second chunk as there was room for; its writer was told of a full disk.
        with upload.path.open("ab") as file:
            file.write(payload[1000:1300])
        upload.write(1000, payload[1000:])
        store.receive(envelope, upload.move)
        assert store.payload(envelope.message_hash) == payload


def test_the_database_holds_no_payload(tmp_path, study):
    payload = hashlib.sha256(b"marker").digest() * 100
    with board_in(tmp_path, study) as store:
        store.post(study.envelope("contribution", "bank", payload), payload)
        for name in ("board.sqlite", "board.sqlite-wal"):
            assert payload[:32] not in (tmp_path / name).read_bytes()


# Runs in a mount namespace of its own, on a disk of 1 MiB that it fills.
FULL_DISK = """
import os, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
from conftest import Study
from lada_server.board.storage_errors import StorageUnavailable
from lada_server.board.store import BoardStore

study = Study(Path(sys.argv[3]))
def board():
    return BoardStore(
        f"sqlite:///{disk / 'board.sqlite'}", payload_dir=disk / "payloads", roster=study.roster
    )
store, posted, refusals = board(), [], []
payload = bytes(range(256)) * 4
reserve = disk / "reserve"
reserve.write_bytes(b"x" * 300_000)
for attempt in range(900):
    envelope = study.envelope("contribution", "bank", payload, attempt=attempt)
    try:
        store.post(envelope, payload)
    except StorageUnavailable as error:
        refusals.append(str(error))
        if len(refusals) == 3:
            break
        continue
    posted.append(envelope)
assert len(refusals) == 3, len(posted)
for text in refusals:
    assert "free some space" in text or "is full" in text, text
reserve.unlink()
assert store.post(envelope, payload) == len(posted) + 1
store.close()
store = board()
known, after = [], 0
while found := store.visible("auditor", after):
    known += [one.message_hash for _, one in found]
    after = found[-1][0]
assert known == [one.message_hash for one in [*posted, envelope]]
assert all(store.payload(one) == payload for one in known)
store.close()
print("kept", len(known))
"""


def test_a_full_disk_is_said_clearly_and_loses_nothing(tmp_path):
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a small disk needs root and unshare")
    possible = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", tmp_path],
        capture_output=True,
        check=False,
    )
    if possible.returncode != 0:
        pytest.skip(f"cannot mount here: {possible.stderr.decode()[-200:]}")
    disk, identities = tmp_path / "disk", tmp_path / "study"
    disk.mkdir()
    identities.mkdir()
    tests = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", FULL_DISK, disk, tests, identities],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("kept ")
