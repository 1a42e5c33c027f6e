"""The outbox: what was signed once is sent again, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lada_clients.net.study_folder import Outbox
from lada_protocol.rounds.index import slot_of
from lada_secure.errors import PeerError, TransportError
from lada_secure.storage.whole_files import write_atomically

KEYS = {"study_id": "study", "plan_hash": "0" * 64}


def test_a_stored_message_comes_back_the_same(tmp_path: Path, study: Any) -> None:
    outbox = Outbox(folder=tmp_path, roster=study.roster)
    message = study.envelope("contribution", "bank", b"sealed", purpose="statistics")
    assert outbox.load(slot_of(message), **KEYS) is None

    outbox.store(message, b"sealed")

    found = Outbox(folder=tmp_path, roster=study.roster).load(slot_of(message), **KEYS)
    assert found is not None
    assert (found[0].header_bytes, found[0].signature) == (message.header_bytes, message.signature)
    assert found[1] == b"sealed"


def test_every_place_has_its_own_message(tmp_path: Path, study: Any) -> None:
    outbox = Outbox(folder=tmp_path, roster=study.roster)
    places: list[dict[str, Any]] = [
        {},
        {"round_id": 1},
        {"attempt": 1},
        {"purpose": "demand"},
        {"to": "auditor"},
    ]
    for number, place in enumerate(places):
        raw = bytes([number])
        outbox.store(study.envelope("contribution", "bank", raw, **place), raw)
    for number, place in enumerate(places):
        slot = slot_of(study.envelope("contribution", "bank", **place))
        found = outbox.load(slot, **KEYS)
        assert found is not None
        assert found[1] == bytes([number])
    assert outbox.load(slot, study_id="study-2", plan_hash="0" * 64) is None
    assert outbox.load(slot, study_id="study", plan_hash="1" * 64) is None


def test_a_payload_without_its_message_does_not_count(tmp_path: Path, study: Any) -> None:
    outbox = Outbox(folder=tmp_path, roster=study.roster)
    message = study.envelope("contribution", "bank", b"sealed")
    outbox.store(message, b"sealed")
    next(tmp_path.rglob("*.message")).unlink()
    assert outbox.load(slot_of(message), **KEYS) is None


def test_a_damaged_message_is_refused(tmp_path: Path, study: Any) -> None:
    outbox = Outbox(folder=tmp_path, roster=study.roster)
    message = study.envelope("contribution", "bank", b"sealed")
    outbox.store(message, b"sealed")
    path = next(tmp_path.rglob("*.message"))
    path.write_bytes(path.read_bytes().replace(b"contribution", b"contributiom"))
    with pytest.raises(PeerError):
        outbox.load(slot_of(message), **KEYS)


def test_writing_replaces_a_file_whole_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_atomically(path, b"old", mode=0o600)
    write_atomically(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written_is_a_transport_error(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(TransportError, match="cannot write"):
        write_atomically(tmp_path / "taken", b"x")
    assert [one.name for one in tmp_path.iterdir()] == ["taken"]
