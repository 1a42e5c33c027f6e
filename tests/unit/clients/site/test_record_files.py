"""Private files that change while a study runs are noticed before they are read again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lada_clients.site.gates.files import (
    NOTE_FILE,
    RecordFiles,
    RecordsChanged,
    file_digests,
)
from lada_clients.site.settings import SiteSettings
from lada_secure.errors import ParameterError

SECRET = '{"question": "does Frau Maier cough?"}\n'


def _settings(folder: Path, *, held_out: bool = True) -> SiteSettings:
    return SiteSettings(
        party="hospital-a",
        coordinator="coordinator.example:7443",
        identity=folder / "identity",
        roster=folder / "roster.json",
        policy=folder / "policy.toml",
        state_dir=folder / "state",
        records=folder / "records.jsonl",
        held_out=folder / "held-out.jsonl" if held_out else None,
        cache_dir=folder / "cache",
    )


@pytest.fixture
def files(tmp_path: Path) -> RecordFiles:
    """Two files that the gate has read, and the study's folder."""
    (tmp_path / "records.jsonl").write_text(SECRET)
    (tmp_path / "held-out.jsonl").write_text("{}\n")
    settings = _settings(tmp_path)
    return RecordFiles(
        settings=settings, digests=file_digests(settings), folder=tmp_path, key=b"k" * 32
    )


@pytest.mark.parametrize("name", ["records", "held-out"])
def test_a_change_is_an_error_until_the_file_is_put_back(files: RecordFiles, name: str) -> None:
    files.keep()
    files.check()
    path = files.folder / f"{name}.jsonl"
    before = path.read_bytes()
    path.write_bytes(before + b"\n")
    with pytest.raises(RecordsChanged) as caught:
        files.check()
    assert caught.value.exit_status == 1
    assert f"{name.replace('-', '_')}: {path} has changed since this study began" in str(
        caught.value
    )
    assert "Put the file back and start again" in str(caught.value)
    assert "Maier" not in str(caught.value)
    path.write_bytes(before)
    files.check()


def test_what_changed_between_the_gate_and_the_acceptance_is_not_accepted(
    files: RecordFiles,
) -> None:
    (files.folder / "records.jsonl").write_text("{}\n")
    with pytest.raises(RecordsChanged, match="since this process started"):
        files.keep()
    assert not (files.folder / NOTE_FILE).exists()


def test_a_restarted_site_checks_against_the_file_that_it_accepted_with(
    files: RecordFiles,
) -> None:
    files.keep()
    (files.folder / "records.jsonl").write_text("{}\n")
    again = RecordFiles(
        settings=files.settings,
        digests=file_digests(files.settings),
        folder=files.folder,
        key=files.key,
    )
    with pytest.raises(RecordsChanged, match="since this study began"):
        again.check()


def test_held_out_records_that_appear_later_are_a_change(files: RecordFiles) -> None:
    settings = _settings(files.folder, held_out=False)
    digests = file_digests(settings)
    RecordFiles(settings=settings, digests=digests, folder=files.folder, key=files.key).keep()
    with pytest.raises(RecordsChanged, match="held_out"):
        files.check()


def test_the_note_tells_nothing_without_the_key(files: RecordFiles) -> None:
    files.keep()
    note = files.folder / NOTE_FILE
    assert note.stat().st_mode & 0o077 == 0
    for digest in files.digests.values():
        assert digest not in note.read_text()
    with pytest.raises(RecordsChanged):
        RecordFiles(
            settings=files.settings, digests=files.digests, folder=files.folder, key=b"l" * 32
        ).check()


def test_a_missing_file_or_note_is_named(files: RecordFiles) -> None:
    with pytest.raises(ParameterError, match=NOTE_FILE):
        files.check()
    files.keep()
    (files.folder / "records.jsonl").unlink()
    with pytest.raises(ParameterError, match="records: cannot read"):
        files.check()


def test_a_folder_or_a_pipe_is_no_file_of_records(tmp_path: Path) -> None:
    settings = _settings(tmp_path, held_out=False)
    settings.records.mkdir()
    with pytest.raises(ParameterError, match="is no regular file"):
        file_digests(settings)
    settings.records.rmdir()
    os.mkfifo(settings.records)
    with pytest.raises(ParameterError, match="is no regular file"):
        file_digests(settings)
