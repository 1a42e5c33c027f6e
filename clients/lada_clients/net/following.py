"""A party that stays: it takes part in one study after the other, until somebody stops it.

Every study begins with the checks of a fresh start: settings, policy and records are read again,
and nothing of the study before is kept in memory. A study that failed, or that this party refused,
does not end it; what would fail again in every study does.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import ClassVar, Final, TypeAlias

from lada_clients.net.outcomes import Outdated, Turn, read_outcome
from lada_clients.net.participant import Participant
from lada_clients.net.study_folder import study_folder
from lada_clients.net.transport import RefusedByBoard
from lada_protocol.run_loop import StudyFailed
from lada_secure.encryption.workers.process import shared_worker
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

LOG = logging.getLogger(__name__)
# Between two looks for the next study, and between two tries of one that could not go on. A try may
# read all records and load a model, so it is not repeated every few seconds. At a study's end the
# coordinator waits a minute; whoever sleeps through that keeps what the study was promised.
FIRST_LOOK_S: Final = 2.0
LONGEST_LOOK_S: Final = 30.0
FIRST_TRY_S: Final = 5.0
LONGEST_TRY_S: Final = 45.0
# Refusals of this party's certificate. Whoever renews it starts the party again.
_UNWANTED: Final = frozenset({"revoked", "expired", "bad_certificate", "unknown_party"})

TakePart: TypeAlias = Callable[[Turn], None]


class _Stopped(BaseException):
    """Somebody asked this party to end while it had nothing under way."""


class _OverHere(LadaError):
    """The board still shows a study that is over for this party."""

    code = "over_here"


@dataclass(slots=True)
class _Following:
    """What a follower is doing. study: that it takes part in now; empty while it waits."""

    study: str = ""
    waiting: bool = False
    _pause_s: float = 0.0
    _of: str = ""

    def pause_s(self, why: str, *, first_s: float, longest_s: float) -> float:
        """How long to wait now: twice as long as before, as long as it is for the same reason."""
        fresh = why != self._of
        self._pause_s = first_s if fresh else min(2 * self._pause_s, longest_s)
        self._of = why
        return self._pause_s


@dataclass(frozen=True, slots=True)
class _FollowedTurn(Turn):
    """One study of a follower.

    Started by hand, a study that a message of others has stopped waits for a person who looks at
    it. A follower has nobody: it leaves such a study and stays for the next one.
    """

    over: ClassVar[tuple[type[LadaError], ...]] = (
        StudyFailed,
        PeerError,
        PrivacyBudgetExceeded,
        LocalProtocolError,
        TrainingFailed,
    )
    doing: _Following = field(compare=False)

    def begin(self, participant: Participant, *, outdated: Callable[[], bool]) -> None:
        """Raises: _OverHere: this party has ended the study already. Outdated."""
        plan = participant.plan
        folder = study_folder(participant.outbox.folder, plan.study_id, plan.hash)
        ended = read_outcome(folder)
        if ended is not None:
            # A coordinator that was started again waits for everybody to have read its board.
            participant.say_goodbye()
            raise _OverHere(f"study {plan.study_id} is over here: {ended.state}")
        Turn.begin(self, participant, outdated=outdated)
        self.doing.study, self.doing.waiting = plan.study_id, False
        LOG.info("study %s, plan %s: taking part", plan.study_id, plan.hash[:12])


def take_part_once(take_part: TakePart) -> None:
    """Take part in the coordinator's study, as somebody starts it by hand.

    Args: take_part: as for `follow`, with what it raises.
    """
    while True:
        try:
            return take_part(Turn())
        except Outdated as error:
            LOG.warning("%s; they are read again", error)


def follow(take_part: TakePart) -> None:
    """Take part in one study after the other. Returns when SIGTERM comes between two of them.

    Within a study SIGTERM ends the process at once, as it ever did; the same command goes on.

    Args: take_part: reads the settings and takes part in the coordinator's study as a fresh start
        does.
    Raises: ParameterError: settings, identity, roster or records are wrong. LedgerError: the
        ledger is. RefusedByBoard: the party's certificate was revoked, or has ended.
    """
    if LOG.getEffectiveLevel() == logging.WARNING:
        # What a service does between studies is told without being asked for.
        LOG.setLevel(logging.INFO)
    doing = _Following()
    try:
        with _stopped_between_studies(doing):
            while True:
                pause_s = _one_turn(take_part, doing)
                doing.study = ""
                _release()
                time.sleep(pause_s)
    except _Stopped:
        LOG.info("stopped between two studies")


def _one_turn(take_part: TakePart, doing: _Following) -> float:
    """One study, or one look for one; the seconds to wait after it."""
    if not doing.waiting:
        LOG.info("waiting for the next study")
        doing.waiting = True
    doing.study = ""
    try:
        take_part(_FollowedTurn(doing))
    except Outdated as error:
        LOG.info("%s; they are read again", error)
        return 0.0
    except _OverHere as error:
        return doing.pause_s(str(error), first_s=FIRST_LOOK_S, longest_s=LONGEST_LOOK_S)
    except _FollowedTurn.over as error:
        if not doing.study:
            if isinstance(error, LocalProtocolError):
                raise
            return _unreachable(error, doing)
        # Records of a log must not keep an error, which keeps everything that its study held.
        LOG.error("study %s is over here (%s): %s", doing.study, error.code, str(error))
        return FIRST_LOOK_S
    except LadaError as error:
        if _stays(error, in_study=bool(doing.study)):
            raise
        if not doing.study:
            return _unreachable(error, doing)
        return _interrupted(error, doing)
    LOG.info("study %s is finished", doing.study)
    return FIRST_LOOK_S


def _stays(error: LadaError, *, in_study: bool) -> bool:
    """Whether the same would happen again whatever the coordinator proposes next."""
    if isinstance(error, LedgerError):
        return True
    if isinstance(error, FolderInUse):
        # Somebody decides about a study by hand, which may take as long as the board is slow.
        return False
    if isinstance(error, RefusedByBoard):
        return error.reason in _UNWANTED
    return isinstance(error, ParameterError) and not in_study


def _unreachable(error: LadaError, doing: _Following) -> float:
    """There is no coordinator, or nothing that can be read as its plan."""
    level = logging.INFO if isinstance(error, TransportError) else logging.ERROR
    LOG.log(level, "no study yet (%s): %s", error.code, str(error))
    return doing.pause_s(error.code, first_s=FIRST_LOOK_S, longest_s=LONGEST_LOOK_S)


def _interrupted(error: LadaError, doing: _Following) -> float:
    """A fault of this machine or of the line; somebody may mend it while the study waits."""
    why = f"{doing.study} {error.code}"
    pause_s = doing.pause_s(why, first_s=FIRST_TRY_S, longest_s=LONGEST_TRY_S)
    doing.waiting = True
    LOG.error(
        "study %s cannot go on (%s), tried again in %.0f s: %s",
        doing.study,
        error.code,
        pause_s,
        str(error),
    )
    return pause_s


def _release() -> None:
    """Give back what a study held: models, devices' memory, worker processes, open files."""
    shared_worker.cache_clear()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _stopped_between_studies(doing: _Following) -> Iterator[None]:
    def stop(number: int, _frame: FrameType | None) -> None:
        if not doing.study:
            raise _Stopped
        # As without a handler: everything that matters is on disk at any moment.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
