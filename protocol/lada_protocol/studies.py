"""What a party says of the studies that it knows, and the note that one of them is over."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lada_secure.canonical import canonical_json
from lada_secure.errors import ParameterError

# In a party's state folder, and below an export folder: one folder for each study.
STUDIES: Final = "studies"
OUTCOME_FILE: Final = "outcome.json"
MAX_OUTCOME_BYTES: Final = 16 * 1024
MAX_MESSAGE: Final = 1000

# How a study ended for this party.
Ending: TypeAlias = Literal["finished", "failed", "refused", "withdrawn"]
# interrupted: it is not over, and nobody works at it; the same command goes on.
StudyState: TypeAlias = Ending | Literal["running", "interrupted"]


class StudyOutcome(BaseModel):
    """`outcome.json` in a party's folder of a study: it is over here, how and when.

    A party that follows its coordinator takes no part in such a study again. ended: UTC, to the
    second.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Ending
    ended: Annotated[str, Field(max_length=32)]
    message: Annotated[str, Field(max_length=MAX_MESSAGE)] = ""

    def to_bytes(self) -> bytes:
        """The file's content."""
        return canonical_json(self.model_dump()) + b"\n"


def parse_outcome(raw: bytes, *, where: str) -> StudyOutcome:
    """Read `outcome.json`. Raises: ParameterError: damaged; says which file."""
    try:
        if len(raw) > MAX_OUTCOME_BYTES:
            raise ValueError(f"{len(raw)} bytes")
        return StudyOutcome.model_validate(json.loads(raw))
    except (ValueError, ValidationError) as error:
        raise ParameterError(
            f"{where} is damaged; if the study is not over, delete this one file"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownStudy:
    """One study as a party knows it, whether its process runs or not.

    Args:
        plan_hash: SHA-256 of the plan, empty where the party never saw one.
        rounds_done: closed by this party. rounds: of the plan; None where there is none any more.
        epsilon: spent under it, at the plan's delta; None for a party that cannot know.
        epsilon_promised: of it while it runs, what it has spent included; None where nothing is.
        by_site: epsilon of each site, at a party that has copies of several ledgers.
        begun, ended: UTC to the second; None where it is not known, or not over.
        folder: where the party's files of it lie. export: where its evidence lies.
        message: why it ended before its end.
    """

    study_id: str
    plan_hash: str
    state: StudyState
    rounds_done: int
    rounds: int | None
    epsilon: float | None
    epsilon_promised: float | None = None
    by_site: Mapping[str, float] = field(default_factory=dict)
    begun: str | None
    ended: str | None
    folder: str | None
    export: str | None = None
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        """One object for machines."""
        return asdict(self)

    def sentence(self) -> str:
        """One line for people."""
        of = "?" if self.rounds is None else str(self.rounds)
        told = [f"{self.state}, {self.rounds_done} of {of} rounds"]
        if self.epsilon is not None:
            most = " at most" if len(self.by_site) > 1 else ""
            told.append(f"epsilon {self.epsilon:.4f}{most}")
        if self.epsilon_promised is not None:
            told.append(f"promised {self.epsilon_promised:.4f}")
        if self.begun is not None:
            told.append(f"{self.begun} to {self.ended or 'now'}")
        where = [one for one in (self.folder, self.export) if one is not None]
        because = f". {self.message}" if self.message else ""
        named = f"{self.study_id} ({self.plan_hash[:12] or 'no plan'})"
        return f"{named}: {', '.join(told)}; {' and '.join(where) or 'no folder'}{because}"


def studies_json(party: str, studies: Iterable[KnownStudy]) -> dict[str, Any]:
    """`lada site studies --json` and its like."""
    return {"party": party, "studies": [study.to_json() for study in studies]}


def studies_sentences(studies: Iterable[KnownStudy]) -> tuple[str, ...]:
    """The same for people, oldest first."""
    return tuple(study.sentence() for study in studies) or ("No study is known here yet.",)
