"""The note in a party's folder of a study that it is over here, and what a study's end is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from lada_clients.net.participant import Participant
from lada_protocol.events import EVENTS_FILE, EventLog
from lada_protocol.failure_codes import FailureCode
from lada_protocol.kinds import Kind
from lada_protocol.run_loop import StudyFailed
from lada_protocol.studies import (
    MAX_MESSAGE,
    MAX_OUTCOME_BYTES,
    OUTCOME_FILE,
    Ending,
    StudyOutcome,
    parse_outcome,
)
from lada_secure.errors import LadaError
from lada_secure.storage.line_file import open_line_file
from lada_secure.storage.state_folder import held_folder
from lada_secure.storage.whole_files import read_at_most, write_atomically


class LeftStudy(StudyFailed):
    """This party's own people have taken it out of the study."""


class Outdated(LadaError):
    """The settings that a party began with are not those on disk any more.

    Nothing is wrong, and nothing was spent: it begins again with what is there now.
    """

    code = "outdated"


@dataclass(frozen=True, slots=True)
class Turn:
    """One time of taking part, as somebody starts it by hand: the same command goes on after it.

    A follower has its own, see `following`.

    Attributes: over: errors after which the study is over for this party.
    """

    over: ClassVar[tuple[type[LadaError], ...]] = (StudyFailed,)

    def begin(self, participant: Participant, *, outdated: Callable[[], bool]) -> None:
        """Told once the plan is known, before anything is done about it.

        Args: outdated: whether the party's settings were changed since they were read.
        Raises: Outdated: they may have been read long before this plan came; what people have
            written since, a lower cap say, holds for it.
        """
        if outdated():
            raise Outdated("settings were changed since they were read")


def read_outcome(folder: Path) -> StudyOutcome | None:
    """How a study ended; None where it is not over. Raises: ParameterError: damaged."""
    path = folder / OUTCOME_FILE
    if not path.exists():
        return None
    return parse_outcome(read_at_most(path, MAX_OUTCOME_BYTES), where=str(path))


@contextmanager
def working_folder(participant: Participant, turn: Turn) -> Iterator[Path]:
    """The study's folder, held by this process alone, with its events and how it ends.

    An error that leaves the study as it is, as a coordinator that is away, leaves no note.

    Raises: ParameterError: another process works in it.
    """
    folder = participant.open_folder()
    with held_folder(folder):
        participant.events = _also_in(participant.events, folder)
        try:
            yield folder
        except turn.over as error:
            _keep(folder, _ending(participant, error), str(error))
            raise
        _keep(folder, "finished", "")


def _ending(participant: Participant, error: LadaError) -> Ending:
    if isinstance(error, LeftStudy):
        return "withdrawn"
    refused = participant.index.find(Kind.REFUSAL, sender=participant.party)
    if refused is None:
        return "failed"
    # Also where another process of this party has posted it.
    withdrawn = refused.header.body.get("code") == FailureCode.WITHDRAWN
    return "withdrawn" if withdrawn else "refused"


def _keep(folder: Path, state: Ending, message: str) -> None:
    """Note it, but never over an end that was noted before: whoever comes again sees only a part.

    Raises: TransportError: it cannot be written.
    """
    if (folder / OUTCOME_FILE).exists():
        return
    ended = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    found = StudyOutcome(state=state, ended=ended, message=message[:MAX_MESSAGE])
    write_atomically(folder / OUTCOME_FILE, found.to_bytes())


def _also_in(events: EventLog, folder: Path) -> EventLog:
    """The same log, and beside it one of this study alone: studies may run side by side."""
    everywhere, here = events.sink, open_line_file(folder / EVENTS_FILE)

    def sink(line: bytes) -> None:
        everywhere(line)
        here(line)

    return replace(events, sink=sink)
