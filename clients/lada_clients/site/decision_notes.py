"""What stays at the site of its people's decisions: what they were shown, and their reasons.

Nothing of it stands in the ledger, which the auditor reads, or in a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from lada_protocol.plan import StudyPlan, format_time
from lada_secure.canonical import canonical_json
from lada_secure.errors import ParameterError
from lada_secure.privacy.ledger.entries import Decision
from lada_secure.storage.whole_files import write_atomically

FOLDER: Final = "decisions"
MAX_REASON: Final = 2000
_SHOWN: Final = "shown.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionNotes:
    """Files decisions/STUDY/PLAN-HASH-WHAT.json in the site's state folder, for its owner only."""

    state_dir: Path

    def note_shown(self, plan: StudyPlan, *, at: datetime) -> None:
        """Note that a person was shown this very plan. Raises: TransportError."""
        self._write(self._path(plan.study_id, plan.hash, _SHOWN), at=format_time(at))

    def was_shown(self, plan: StudyPlan) -> bool:
        """Whether a person was shown this very plan."""
        return self._path(plan.study_id, plan.hash, _SHOWN).exists()

    def other_shown(self, plan: StudyPlan) -> str:
        """Hash of another plan of the same study that was shown last; empty where there is none."""
        others = [
            (path.stat().st_mtime_ns, path.name.partition("-")[0])
            for path in (self.state_dir / FOLDER / plan.study_id).glob(f"*-{_SHOWN}")
            if not path.name.startswith(plan.hash)
        ]
        return max(others)[1] if others else ""

    def note_reason(
        self, study: str, plan_hash: str, decision: Decision, *, by: str, why: str, at: datetime
    ) -> None:
        """Keep why somebody decided so. Raises: TransportError."""
        path = self._path(study, plan_hash, f"{decision}.json")
        self._write(path, at=format_time(at), by=by, why=why)

    def _path(self, study: str, plan_hash: str, name: str) -> Path:
        return self.state_dir / FOLDER / study / f"{plan_hash}-{name}"

    @staticmethod
    def _write(path: Path, **fields: str) -> None:
        write_atomically(path, canonical_json(dict(fields)), mode=0o600)


def check_reason(why: str) -> str:
    """A person's reason in their own words, without spaces around it.

    Raises: ParameterError: longer than 2,000 characters, or with control or format characters.
    """
    text = why.strip()
    if len(text) > MAX_REASON:
        raise ParameterError(f"--why: expected at most {MAX_REASON} characters, got {len(text)}")
    for character in text:
        if not character.isprintable() and character not in "\n\t":
            raise ParameterError(f"--why: the character {character!a} is not taken; write text")
    return text
