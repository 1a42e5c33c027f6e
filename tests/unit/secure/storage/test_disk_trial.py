"""What a disk is asked before a run, and that nothing of it stays."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from lada_secure.errors import ParameterError
from lada_secure.storage.disk_trial import try_disk
from lada_secure.storage.state_folder import held_state_folder


def test_a_folder_that_will_be_made_is_tried_where_it_will_lie(tmp_path: Path) -> None:
    before = os.stat(tmp_path).st_mtime_ns
    found = try_disk(tmp_path / "not" / "yet", key="state_dir")
    assert found.free_bytes > 0
    assert not found.in_use
    assert list(tmp_path.iterdir()) == []
    assert os.stat(tmp_path).st_mtime_ns == before


def test_a_process_that_works_there_is_seen_and_not_disturbed(tmp_path: Path) -> None:
    with held_state_folder(tmp_path, party="bank", role="site"):
        assert try_disk(tmp_path, key="state_dir").in_use
    assert not try_disk(tmp_path, key="state_dir").in_use
    # And a check lets the next process have it.
    with held_state_folder(tmp_path, party="bank", role="site"):
        pass


def test_where_no_nameless_file_can_be_made_only_what_is_there_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "open", refuse)
    assert not try_disk(tmp_path, key="state_dir").tried


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "no room is left"),
        (errno.EDQUOT, "no room is left"),
        (errno.EROFS, "it is read-only"),
        (errno.EACCES, "cannot be written to by this user"),
        (errno.EIO, "it cannot be used"),
    ],
)
def test_a_disk_that_refuses_is_told_with_what_to_do(
    number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(ParameterError, match=said):
        try_disk(tmp_path, key="state_dir")


def test_locks_that_a_share_does_not_have_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ParameterError, match="cannot be locked"):
        try_disk(tmp_path, key="state_dir")
