"""A state folder belongs to one party, and one process at a time works in it."""

import errno
import fcntl
import json
import multiprocessing
import threading

import pytest

from lada_secure.errors import ParameterError, TransportError
from lada_secure.storage.state_folder import (
    LOCK_FILE,
    check_schema_version,
    check_state_folder,
    held_folder,
    held_state_folder,
    is_held,
    shared_state_folder,
)


def hold(folder, party="hospital-a", role="site"):
    return held_state_folder(folder, party=party, role=role)


def test_the_first_party_makes_the_folder_its_own_and_comes_back(tmp_path):
    folder = tmp_path / "new" / "state"
    for _ in range(2):
        with hold(folder):
            pass
    assert json.loads((folder / "owner.json").read_bytes()) == {
        "party": "hospital-a",
        "role": "site",
        "version": 1,
    }
    assert check_state_folder(folder, party="hospital-a", role="site")


def test_a_folder_from_before_there_were_names_is_taken_over(tmp_path):
    (tmp_path / "ledger-patients.sqlite").write_bytes(b"")
    assert not check_state_folder(tmp_path, party="hospital-a", role="site")
    with hold(tmp_path):
        pass
    assert check_state_folder(tmp_path, party="hospital-a", role="site")


@pytest.mark.parametrize(
    ("party", "role"), [("hospital-b", "site"), ("hospital-a", "auditor")], ids=["party", "role"]
)
def test_another_party_is_refused_and_changes_nothing(tmp_path, party, role):
    with hold(tmp_path):
        pass
    before = (tmp_path / "owner.json").read_bytes()
    with pytest.raises(ParameterError, match="is the state of site hospital-a"):
        hold(tmp_path, party, role).__enter__()
    with pytest.raises(ParameterError, match="is the state of site hospital-a"):
        check_state_folder(tmp_path, party=party, role=role)
    assert (tmp_path / "owner.json").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"party": 1, "role": 2}'])
def test_a_damaged_note_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "owner.json").write_bytes(content)
    with pytest.raises(ParameterError, match="is damaged"), hold(tmp_path):
        pass
    assert (tmp_path / "owner.json").read_bytes() == content


def test_a_newer_version_is_refused(tmp_path):
    (tmp_path / "owner.json").write_text('{"party":"hospital-a","role":"site","version":2}')
    with pytest.raises(ParameterError, match="schema version 2"), hold(tmp_path):
        pass


def test_two_processes_cannot_work_in_one_folder(tmp_path):
    with hold(tmp_path), pytest.raises(ParameterError, match="in use by another"), hold(tmp_path):
        pass
    with hold(tmp_path):
        pass


def share(folder, work, party="hospital-a"):
    return shared_state_folder(folder, party=party, role="site", work=work)


def test_processes_with_different_work_share_a_folder(tmp_path):
    with share(tmp_path, "one"), share(tmp_path, "two"):
        with pytest.raises(ParameterError, match="in use by another"), share(tmp_path, "one"):
            pass
        # What needs the folder alone, as a renewed key does, is refused meanwhile.
        with pytest.raises(ParameterError, match="in use by another"), hold(tmp_path):
            pass
    refused = pytest.raises(ParameterError, match="in use by another")
    with hold(tmp_path), refused, share(tmp_path, "one"):
        pass
    with share(tmp_path, "one"):
        pass
    with pytest.raises(ParameterError, match="is the state of site hospital-a"):
        share(tmp_path, "one", "hospital-b").__enter__()


def test_only_the_first_of_several_processes_clears_away_unfinished_parts(tmp_path):
    # In a container all processes may have one number: this part may be another's at work.
    part = tmp_path / ".state.json.999999"
    part.write_bytes(b"")
    with share(tmp_path, "one"):
        assert not part.exists()
        part.write_bytes(b"")
        with share(tmp_path, "two"):
            assert part.exists()


def test_a_held_folder_is_seen_and_looking_changes_nothing(tmp_path):
    folder = tmp_path / "study"
    assert not is_held(folder)
    with held_folder(folder):
        assert is_held(folder)
        with pytest.raises(ParameterError, match="in use by another"), held_folder(folder):
            pass
    assert not is_held(folder)
    assert [one.name for one in folder.iterdir()] == ["lock"]


def hold_until_killed(folder, ready):
    with held_state_folder(folder, party="hospital-a", role="site"):
        ready.put(True)
        threading.Event().wait()


def test_the_lock_dies_with_a_killed_process(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    process = context.Process(target=hold_until_killed, args=(tmp_path, ready))
    process.start()
    try:
        assert ready.get(timeout=60)
        with pytest.raises(ParameterError, match="in use by another"), hold(tmp_path):
            pass
    finally:
        process.kill()
        process.join()
    with hold(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "state").write_text("a file")
    with pytest.raises(TransportError, match="cannot write"), hold(tmp_path / "state"):
        pass


@pytest.mark.parametrize("stored", [None, "", "0", "-1", "1.5", "\u00b2", "2", "4"])
def test_another_version_or_none_is_refused(stored):
    with pytest.raises(ParameterError, match="file: "):
        check_schema_version(stored, current=3, where="file", refusal=ParameterError)
    check_schema_version("3", current=3, where="file", refusal=ParameterError)


def test_a_file_system_without_locks_is_named_as_such(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(TransportError, match="cannot be locked: No locks available"):
        hold(tmp_path).__enter__()


def test_somebody_who_only_looks_keeps_nobody_from_preparing_the_folder(tmp_path):
    (tmp_path / LOCK_FILE).touch()
    with (tmp_path / LOCK_FILE).open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        timer = threading.Timer(0.3, lambda: fcntl.flock(looking, fcntl.LOCK_UN))
        timer.start()
        with shared_state_folder(tmp_path, party="bank", role="site", work="a"):
            assert check_state_folder(tmp_path, party="bank", role="site")
        timer.join()
