"""Which code of the closed list the others are told when this party ends by an error.

The rule: a code may depend on plan, pool, model, settings, disk, ledger and messages, and on no
record. After its acceptance a site's steps fail because of no record, so there whatever is on no
list is `untold`; before it such a site sends nothing, as one that was never started.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lada_clients.net.connection import NotNow
from lada_clients.net.participant import GOODBYE_S, Participant, joined_study
from lada_protocol.events import EventLog
from lada_protocol.failure_codes import FailureCode
from lada_protocol.kinds import Kind
from lada_protocol.party_files import DiallingSettings
from lada_protocol.run_loop import StudyFailed
from lada_secure.errors import (
    DiskError,
    LadaError,
    LedgerError,
    ParameterError,
    PeerError,
    PrivacyBudgetExceeded,
    TrainingFailed,
)
from lada_secure.storage.state_folder import held_state_folder, shared_state_folder

LOG = logging.getLogger(__name__)


class UnfitStudy(ParameterError):
    """What this party has does not fit the study, found without a look at a record."""

    def __init__(self, message: str, *, told: FailureCode) -> None:
        super().__init__(message)
        self.told = told


@contextmanager
def told_as(code: FailureCode) -> Iterator[None]:
    """What is refused within is told to the others by this code. Nothing within reads a record.

    Raises: UnfitStudy: for every ParameterError.
    """
    try:
        yield
    except ParameterError as error:
        raise UnfitStudy(str(error), told=code) from error


def told_by(error: Exception) -> FailureCode | None:
    """The code for an error; None where the others know already, or nobody can be told."""
    if isinstance(error.__cause__, NotNow):
        # The board was tried for long enough.
        return None
    if isinstance(error, StudyFailed | UnfitStudy):
        return error.told
    for kind, code in (
        (DiskError, FailureCode.DISK),
        (PrivacyBudgetExceeded, FailureCode.OVER_BUDGET),
        (LedgerError, FailureCode.LEDGER),
        (TrainingFailed, FailureCode.TRAINING),
        (PeerError, FailureCode.BAD_MESSAGE),
    ):
        if isinstance(error, kind):
            return code
    if isinstance(error, LadaError) and error.code == FailureCode.MODEL_CHANGED:
        return FailureCode.MODEL_CHANGED
    return FailureCode.UNTOLD


@contextmanager
def written_state(
    settings: DiallingSettings, *, role: str, pinned: str, work: str | None = None
) -> Iterator[None]:
    """The party's state folder, held; where its disk refuses that, the others are told so.

    Args: work: see `shared_state_folder`; by default the folder is this process's alone.
    Raises: see `held_state_folder`.
    """
    folder, party = settings.state_dir, settings.party
    if work is None:
        held = held_state_folder(folder, party=party, role=role)
    else:
        held = shared_state_folder(folder, party=party, role=role, work=work)
    with ExitStack() as ends:
        try:
            ends.enter_context(held)
        except DiskError:
            _tell_without_a_disk(settings, pinned=pinned)
            raise
        yield


def _tell_without_a_disk(settings: DiallingSettings, *, pinned: str) -> None:
    silent = EventLog(party=settings.party, sink=lambda _line: None, clock=time.time)
    hurried = settings.model_copy(update={"wait_s": min(settings.wait_s, GOODBYE_S)})
    try:
        with joined_study(hurried, pinned=pinned, events=silent) as participant:
            participant.tell_failed(FailureCode.DISK)
    except LadaError as error:
        LOG.info("nobody was told that this party ends (disk): %s", error)


def tell_failed(participant: Participant, error: Exception) -> None:
    """Tell the others that this party ends by an error, as far as they may know."""
    code = told_by(error)
    me = participant.party
    accepted = participant.index.find(Kind.ACCEPTANCE, sender=me) is not None
    promised = accepted or me == participant.roster.auditor.id
    if code is not None and (promised or code is not FailureCode.UNTOLD):
        participant.tell_failed(code)
