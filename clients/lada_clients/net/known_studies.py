"""The studies in a dialling party's state folder, read beside its process or without one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lada_clients.net.outcomes import read_outcome
from lada_protocol.evidence.export import PLAN_FILE
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan, parse_plan
from lada_protocol.studies import STUDIES, StudyOutcome, StudyState
from lada_secure.errors import ParameterError, PeerError
from lada_secure.storage.state_folder import is_held
from lada_secure.storage.whole_files import read_file


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFolder:
    """One study's folder. outcome: None where it is not over, or began under an earlier version."""

    folder: Path
    plan: StudyPlan
    outcome: StudyOutcome | None

    @property
    def closed_rounds(self) -> int:
        """Rounds whose transcript this party has signed."""
        closed = (self.folder / "outbox").glob(f"{Kind.CLOSE.value}-*.message")
        return len({path.name.split("-")[1] for path in closed})

    @property
    def state(self) -> StudyState:
        """Where the study stands, as far as its folder says it."""
        if self.outcome is not None:
            return self.outcome.state
        if is_held(self.folder):
            return "running"
        return "finished" if self.closed_rounds == self.plan.rounds else "interrupted"

    @property
    def begun(self) -> str:
        """When this party first saw the plan, UTC to the second."""
        seen = datetime.fromtimestamp((self.folder / PLAN_FILE).stat().st_mtime, UTC)
        return seen.strftime("%Y-%m-%dT%H:%M:%SZ")


def study_folders(state_dir: Path) -> Iterator[StudyFolder]:
    """All studies of a state folder, in the order in which their plans were first seen.

    Raises: ParameterError: a plan or an outcome is damaged; says which.
    """
    plans = [path for path in (state_dir / STUDIES).glob(f"*/{PLAN_FILE}") if path.is_file()]
    for path in sorted(plans, key=lambda one: (one.stat().st_mtime, one.parent.name)):
        try:
            plan = parse_plan(read_file(path))
        except PeerError as error:
            raise ParameterError(f"{path}: {error}; restore it from its backup") from error
        yield StudyFolder(folder=path.parent, plan=plan, outcome=read_outcome(path.parent))
