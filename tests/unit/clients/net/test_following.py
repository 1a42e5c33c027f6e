"""A party that follows: what ends it, what does not, how long it waits, and how it is stopped."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from protocol_world import MemoryBoard, make_cast, make_participant, make_plan, signed

from lada_clients.net import following
from lada_clients.net.following import follow, take_part_once
from lada_clients.net.outcomes import Turn, read_outcome, working_folder
from lada_clients.net.participant import Participant
from lada_clients.net.transport import RefusedByBoard
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.run_loop import StudyFailed
from lada_secure.errors import (
    LadaError,
    LedgerError,
    LocalProtocolError,
    ParameterError,
    PeerError,
    PrivacyBudgetExceeded,
    TrainingFailed,
    TransportError,
)
from lada_secure.storage.state_folder import FolderInUse

FORK = multiprocessing.get_context("fork")
BEFORE, WITHIN = False, True


class _Enough(Exception):
    """Ends a test's follower; no error of the project's."""


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The pauses that a follower makes, without waiting for them."""
    pauses: list[float] = []
    clock = SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic)
    monkeypatch.setattr(following, "time", clock)
    level = following.LOG.level
    yield pauses
    following.LOG.setLevel(level)


class Studies:
    """A coordinator's boards, one after the other, and a party that looks at the newest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cast = make_cast()
        self.plan = make_plan()
        self.taken: list[str] = []
        self.outdated = 0

    def participant(self) -> Participant:
        board = MemoryBoard(self.cast.roster)
        body = {"certificate": self.cast.certificates["coordinator"]}
        raw = self.plan.to_bytes()
        key = self.cast.keys["coordinator"]
        message = signed(self.cast.roster, key, self.plan, Kind.PLAN, "coordinator", body, raw)
        board.post(message, raw)
        me = make_participant(self.cast, board, "site-a", self.folder)
        me.join(wait_s=5.0)
        return me

    def take_part(self, turn: Turn, during: Callable[[], None] = lambda: None) -> None:
        """As a party does: the plan, then the study in its folder."""
        me = self.participant()
        turn.begin(me, outdated=self._outdated)
        with working_folder(me, turn):
            self.taken.append(me.plan.study_id)
            during()

    def _outdated(self) -> bool:
        self.outdated -= 1
        return self.outdated >= 0

    def outcome(self, plan: StudyPlan) -> str | None:
        found = read_outcome(self.folder / "studies" / f"{plan.study_id}-{plan.hash[:16]}")
        return None if found is None else found.state


ENDS: dict[str, tuple[LadaError, bool]] = {
    "settings that are wrong": (ParameterError("unknown key"), BEFORE),
    "a ledger that is damaged": (LedgerError("damaged"), WITHIN),
    "a ledger that cannot be opened": (LedgerError("damaged"), BEFORE),
    "a revoked certificate": (RefusedByBoard("no", reason="revoked"), BEFORE),
    "a certificate that is revoked within": (RefusedByBoard("no", reason="revoked"), WITHIN),
    "an expired certificate": (RefusedByBoard("no", reason="expired"), BEFORE),
    "a defect before any study": (LocalProtocolError("defect"), BEFORE),
}
# Error, whether a study was under way, how it is noted, and the pauses of five turns.
STAYS: dict[str, tuple[LadaError, bool, str | None, list[float]]] = {
    "no coordinator": (TransportError("refused"), BEFORE, None, [2, 4, 8, 16, 30]),
    "somebody decides by hand": (FolderInUse("in use"), BEFORE, None, [2, 4, 8, 16, 30]),
    "a plan that cannot be read": (PeerError("bad plan"), BEFORE, None, [2, 4, 8, 16, 30]),
    "a study that failed": (StudyFailed("too few"), WITHIN, "failed", [2, 2, 4, 8, 16]),
    "a coordinator that lies": (PeerError("wrong sum"), WITHIN, "failed", [2, 2, 4, 8, 16]),
    "a budget that is gone": (PrivacyBudgetExceeded("cap"), WITHIN, "failed", [2, 2, 4, 8, 16]),
    "a training that failed": (TrainingFailed("nan"), WITHIN, "failed", [2, 2, 4, 8, 16]),
    "a coordinator that is away": (TransportError("away"), WITHIN, None, [5, 10, 20, 40, 45]),
    "a board that is full": (RefusedByBoard("no", reason="quota"), WITHIN, None, [5, 10, 20]),
    "records that changed": (ParameterError("changed"), WITHIN, None, [5, 10, 20, 40, 45]),
}


def failing(
    studies: Studies, error: LadaError, *, within: bool, times: int
) -> Callable[[Turn], None]:
    """Fails always in the same way, for so many turns."""
    turns = iter(range(times))

    def fail() -> None:
        raise error

    def take_part(turn: Turn) -> None:
        if next(turns, None) is None:
            raise _Enough
        if not within:
            fail()
        studies.take_part(turn, fail)

    return take_part


@pytest.mark.parametrize(("error", "within"), ENDS.values(), ids=ENDS)
def test_what_would_happen_in_every_study_ends_it(
    tmp_path: Path, paused: list[float], error: LadaError, within: bool
) -> None:
    with pytest.raises(type(error)) as raised:
        follow(failing(Studies(tmp_path), error, within=within, times=3))
    assert raised.value is error
    assert paused == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(("error", "within", "state", "pauses"), STAYS.values(), ids=STAYS)
def test_what_belongs_to_one_study_or_to_the_line_does_not(
    tmp_path: Path,
    paused: list[float],
    error: LadaError,
    within: bool,
    state: str | None,
    pauses: list[float],
) -> None:
    studies = Studies(tmp_path)
    with pytest.raises(_Enough):
        follow(failing(studies, error, within=within, times=len(pauses)))
    assert paused == pauses
    assert studies.outcome(studies.plan) == state
    # A study that is over is never begun again, one that was interrupted is.
    assert len(studies.taken) == (0 if not within else 1 if state else len(pauses))


class _Said(logging.Handler):
    """What was logged, whoever has set up logs before."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_one_study_after_the_other_each_once(
    tmp_path: Path, paused: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = Studies(tmp_path)
    plans = [make_plan(), make_plan(study_id="study-2"), make_plan(study_id="study-3")]
    # The board of a study that is over stays for a while.
    boards = [plan for plan in plans for _ in range(3)]

    def take_part(turn: Turn) -> None:
        if not boards:
            raise _Enough
        studies.plan = boards.pop(0)
        studies.take_part(turn)

    said = _Said()
    monkeypatch.setattr(following.LOG, "handlers", [said])
    # What a service says is shown where only warnings are.
    following.LOG.setLevel(logging.WARNING)
    with pytest.raises(_Enough):
        follow(take_part)
    assert studies.taken == ["study-1", "study-2", "study-3"]
    assert [studies.outcome(plan) for plan in plans] == ["finished"] * 3
    assert paused == [2, 2, 4] * 3
    assert said.lines[:3] == [
        "waiting for the next study",
        f"study study-1, plan {plans[0].hash[:12]}: taking part",
        "study study-1 is finished",
    ]
    assert len(said.lines) == 10


def test_settings_that_changed_while_it_waited_are_read_again_before_a_study(
    tmp_path: Path, paused: list[float]
) -> None:
    studies = Studies(tmp_path)
    studies.outdated = 2

    def take_part(turn: Turn) -> None:
        if studies.taken:
            raise _Enough
        assert not (tmp_path / "studies").exists()
        studies.take_part(turn)

    with pytest.raises(_Enough):
        follow(take_part)
    assert (studies.taken, paused) == (["study-1"], [0, 0, 2])


def test_a_study_started_by_hand_begins_with_the_settings_that_are_there_then(
    tmp_path: Path,
) -> None:
    studies = Studies(tmp_path)
    studies.outdated = 2
    begun: list[Turn] = []

    def take_part(turn: Turn) -> None:
        begun.append(turn)
        studies.take_part(turn)

    take_part_once(take_part)
    assert (len(begun), studies.taken) == (3, ["study-1"])


def test_a_study_started_by_hand_is_not_over_where_others_stopped_it(tmp_path: Path) -> None:
    studies = Studies(tmp_path)
    for error, state in ((PeerError("wrong sum"), None), (StudyFailed("too few"), "failed")):
        with pytest.raises(type(error)):
            failing(studies, error, within=True, times=1)(Turn())
        assert studies.outcome(studies.plan) == state
    # The first note stays, whatever a later look makes of the study.
    studies.take_part(Turn())
    assert studies.outcome(studies.plan) == "failed"


def test_nothing_of_a_study_is_kept_when_it_is_over(tmp_path: Path, paused: list[float]) -> None:
    class Model:
        """Stands for what takes gigabytes; it is in a circle, as models are."""

        def __init__(self) -> None:
            self.own = self

    studies, kept, handles = Studies(tmp_path), [], []

    def fail() -> None:
        model = Model()
        kept.append(weakref.ref(model))
        raise TransportError("away") from ValueError(model)

    def take_part(turn: Turn) -> None:
        handles.append(len(os.listdir("/proc/self/fd")))
        assert all(one() is None for one in kept)
        if len(kept) == 3:
            raise _Enough
        studies.take_part(turn, fail)

    gc.disable()
    try:
        with pytest.raises(_Enough):
            follow(take_part)
    finally:
        gc.enable()
    # The first turn opens what the process keeps for good.
    assert len(set(handles[1:])) == 1


def _follow_until_stopped(folder: str, ready: object, within: bool) -> None:
    studies = Studies(Path(folder))

    def wait() -> None:
        ready.set()  # type: ignore[attr-defined]
        threading.Event().wait()

    def take_part(turn: Turn) -> None:
        if within:
            studies.take_part(turn, wait)
        wait()

    follow(take_part)


@pytest.mark.parametrize(("within", "status"), [(BEFORE, 0), (WITHIN, -signal.SIGTERM)])
def test_sigterm_ends_it_with_0_between_studies_alone(
    tmp_path: Path, within: bool, status: int
) -> None:
    ready = FORK.Event()
    process = FORK.Process(target=_follow_until_stopped, args=(str(tmp_path), ready, within))
    process.start()
    assert ready.wait(timeout=60)
    os.kill(process.pid, signal.SIGTERM)  # type: ignore[arg-type]
    process.join(timeout=60)
    assert process.exitcode == status
