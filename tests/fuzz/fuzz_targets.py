"""Coordinator, auditor and site, each fed bytes as they come off the wire.

`run` takes a script of edits (`fuzz_edits`), delivers the message, lets the party do everything
that follows from it, and raises `FindingError` where a property does not hold:

- nothing is raised but this project's errors, and nobody leaves the process;
- every input is dealt with within `TIME_LIMIT_S`;
- what is refused changes nothing: no row, no file, no message in the index;
- what a site sends never ends the coordinator's or the auditor's own work.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Final

from fuzz_edits import EDITS, Dice, Draft, bind_ledger, bind_plan
from fuzz_loopback import Row
from fuzz_study import RecordedStudy, Recording

from lada_protocol.kinds import Kind, may_read
from lada_protocol.wire.envelope import Envelope

TIME_LIMIT_S: Final = 20.0
MOST_STEPS: Final = 12
_MOST_EDITS: Final = 3
_MOST_MOMENTS: Final = 4


class FindingError(AssertionError):
    """A property that does not hold, with the input that shows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A valid message of the recording, and when it arrives.

    until: the party has everything that came before this sequence, but for the message itself.
    """

    sequence: int
    envelope: Envelope
    payload: bytes
    until: int


def stages_of(recording: Recording, reader: str) -> list[Stage]:
    """Every message that the reader did not send, on arrival and before each own message later.

    The second kind lets a message take effect where it is used: an aggregate key when the vector
    is sealed, a contribution when the sum is opened.
    """
    party = recording.roster.party(reader)
    own = [number for number, one, _ in recording.rows if one.header.sender == reader]
    stages = []
    for number, one, payload in recording.rows:
        head = one.header
        visible = may_read(
            kind=one.kind, sender=head.sender, to=head.to, reader=reader, role=party.role
        )
        if head.sender == reader or not visible:
            continue
        end = next(
            (
                later
                for later, answer, _ in recording.rows
                if later > number and _names(answer, one)
            ),
            len(recording.rows) + 1,
        )
        moments = [number + 1, *(later for later in own if number + 1 < later <= end)]
        stages += [
            Stage(sequence=number, envelope=one, payload=payload, until=moment)
            for moment in moments[:_MOST_MOMENTS]
        ]
    return stages


def _names(later: Envelope, earlier: Envelope) -> bool:
    """Whether a message holds the hash of an earlier one, and so does not fit a changed one.

    A transcript lists all before it; an admission is of one acceptance.
    """
    admits = later.kind is Kind.ADMISSION and later.header.to == earlier.header.sender
    return later.kind is Kind.TRANSCRIPT or (admits and earlier.kind is Kind.ACCEPTANCE)


class Target(ABC):
    """One party under test. Not thread-safe; use each in one process."""

    party: str

    def __init__(self, study: RecordedStudy) -> None:
        self.recording = study.recording
        self.stages = stages_of(study.recording, self.party)
        self.keys = {name: one.signing_key for name, one in study.recording.credentials.items()}
        self.outcomes: Counter[str] = Counter()

    def run(self, data: bytes) -> str:
        """Deal with one input; what became of it.

        Raises: FindingError.
        """
        # CPU time: a busy machine is no defect. Who hangs without using any is cut from outside.
        began = time.process_time()
        try:
            outcome = self._run(Dice(data))
        except FindingError as error:
            raise FindingError(f"{error}; input {data.hex()}") from error.__cause__
        except Exception as error:
            raise FindingError(f"{type(error).__name__}: {error}; input {data.hex()}") from error
        except SystemExit as error:
            raise FindingError(f"left the process; input {data.hex()}") from error
        spent = time.process_time() - began
        if spent > TIME_LIMIT_S:
            raise FindingError(f"took {spent:.1f} s; input {data.hex()}")
        self.outcomes[outcome] += 1
        return outcome

    def replay(self, stage: int, script: bytes) -> str:
        """Deal with the message of one stage after the edits of a script."""
        width = 1 if len(self.stages) <= 256 else 2
        return self.run(stage.to_bytes(width, "big") + script)

    def _run(self, dice: Dice) -> str:
        stage = dice.pick(self.stages)
        draft = Draft.of(stage.envelope, stage.payload)
        for _ in range(dice.below(_MOST_EDITS + 1)):
            dice.pick(EDITS)(draft, dice)
        bound = dice.below(4) < 3
        if bound and stage.envelope.kind is Kind.LEDGER:
            bind_ledger(draft, self.keys[stage.envelope.header.sender])
        if bound and stage.envelope.kind is Kind.PLAN:
            bind_plan(draft)
        return self.deliver(stage, draft.finish(dice, self.keys), dice)

    @abstractmethod
    def deliver(self, stage: Stage, row: Row, dice: Dice) -> str:
        """Hand the message over and let the party work."""
