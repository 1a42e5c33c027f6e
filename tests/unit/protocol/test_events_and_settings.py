"""Progress events, patience, and settings files: small, and read by people."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lada_protocol.events import LONGEST_GAP_S, WAITING_INTERVAL_S, Epsilon, EventLog, StallTimer
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.tasks import Wait
from lada_protocol.settings import Settings, parse_settings
from lada_secure.errors import ParameterError
from lada_secure.storage.toml_tables import MAX_SETTINGS_BYTES


class Ticker:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _wait(awaited: str = "keys") -> Wait:
    return Wait(step="opening", round_id=1, awaited=awaited, parties=("site-a", "site-b"))


def test_an_event_is_one_canonical_line() -> None:
    lines: list[bytes] = []
    log = EventLog(party="site-a", sink=lines.append, clock=lambda: 1.5)
    log.write(Epsilon, round_id=2, step="statistics", epsilon=0.25, cap=8.0)
    assert lines == [
        b'{"cap":8.0,"epsilon":0.25,"event":"epsilon","party":"site-a","round":2,'
        b'"step":"statistics","time_s":1.5}\n'
    ]


def test_waiting_is_told_at_once_and_then_at_intervals() -> None:
    lines: list[bytes] = []
    clock = Ticker()
    log = EventLog(party="c", sink=lines.append, clock=clock)
    timer = StallTimer(clock=clock)
    for _ in range(25):
        timer.wait(_wait(), log)
        clock.now += 1.0
    told = [json.loads(line) for line in lines]
    assert [one["since_s"] for one in told] == [0.0, WAITING_INTERVAL_S, 2 * WAITING_INTERVAL_S]
    assert told[0]["for"] == ["site-a", "site-b"]
    assert told[0]["because"] == "keys not here yet"


def test_patience_starts_over_for_another_thing() -> None:
    clock = Ticker()
    log = EventLog(party="c", sink=lambda _line: None, clock=clock)
    timer = StallTimer(clock=clock)
    timer.wait(_wait(), log)
    clock.now += 7.0
    assert timer.wait(_wait(), log) == 7.0
    assert timer.wait(_wait("contributions"), log) == 0.0


def test_a_new_attempt_has_all_of_the_time_again() -> None:
    """Else those who are left would be given up in the moment in which they are asked."""
    clock = Ticker()
    log = EventLog(party="c", sink=lambda _line: None, clock=clock)
    timer = StallTimer(clock=clock)
    first, second = (
        replace(_wait(), attempt=Attempt(round_id=1, purpose="statistics", number=number))
        for number in range(2)
    )
    timer.wait(first, log)
    clock.now += 20.0
    assert timer.wait(replace(first, parties=("site-b",)), log) == 20.0
    assert timer.wait(second, log) == 0.0


def test_patience_counts_neither_jumps_of_the_wall_clock_nor_time_in_suspension() -> None:
    wall, steady = Ticker(), Ticker()
    log = EventLog(party="c", sink=lambda _line: None, clock=wall)
    timer = StallTimer(clock=steady)
    timer.wait(_wait(), log)
    wall.now += 3600.0
    steady.now += 5.0
    assert timer.wait(_wait(), log) == 5.0
    wall.now -= 7200.0
    steady.now += 5.0
    assert timer.wait(_wait(), log) == 10.0
    steady.now += 3600.0
    assert timer.wait(_wait(), log) == 10.0 + LONGEST_GAP_S


class Example(Settings):
    """Settings for tests."""

    name: str
    folder: Path
    size: int = 3
    share: float = 0.5


def test_settings_are_read_and_paths_are_beside_the_file() -> None:
    found = parse_settings(b'name = "x"\nfolder = "here"\n', Example, where="a.toml")
    assert found.beside(Path("/base")).folder == Path("/base/here")
    assert found.size == 3


def test_a_tilde_is_the_home_folder_and_never_a_folder_of_that_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/mira")
    for written, found in (
        ("~/state", "/home/mira/state"),
        ("~", "/home/mira"),
        ("a~", "/base/a~"),
    ):
        settings = Example(name="x", folder=Path(written))
        assert settings.beside(Path("/base")).folder == Path(found)


def test_a_tilde_of_nobody_is_refused() -> None:
    settings = Example(name="x", folder=Path("~no-such-person/state"))
    with pytest.raises(ParameterError, match=r"folder: .*no home folder for ~no-such-person"):
        settings.beside(Path("/base"))


@pytest.mark.parametrize("written", ["$HOME/state", "${HOME}/state", "%USERPROFILE%/state"])
def test_a_variable_in_a_path_is_refused_and_never_a_folder_of_that_name(written: str) -> None:
    settings = Example(name="x", folder=Path(written))
    with pytest.raises(ParameterError, match=r"folder: .*not expanded here; write the whole path"):
        settings.beside(Path("/base"))


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b'name = "x"\nfolder = "y"\nnmae = 1\n', "unknown key 'nmae'; known keys are"),
        (b'folder = "y"\n', "the key 'name' is missing"),
        (b'name = "x"\nfolder = "y"\nsize = "big"\n', "size:"),
        (b'name = "x"\nfolder = "y"\nsize = true\n', "size: Input should be a valid"),
        (b'name = "x"\nfolder = "y"\nshare = inf\n', "share: Input should be a finite number"),
        (b'name = "x"\nfolder = 2026-12-01\n', "holds a date or a time, and no setting is one"),
        (b"name = \n", "not TOML"),
        (b"\xff", "not TOML"),
        (b'\xef\xbb\xbfname = "site"\n', "byte-order mark"),
        (b"#" * (MAX_SETTINGS_BYTES + 1), "at most"),
    ],
)
def test_a_settings_file_with_a_fault_names_file_and_key(raw: bytes, sentence: str) -> None:
    with pytest.raises(ParameterError) as caught:
        parse_settings(raw, Example, where="a.toml")
    assert str(caught.value).startswith("a.toml: ")
    assert sentence in str(caught.value)
