"""Opens a study at the coordinator: checks and proposes a new one, goes on with one, withdraws one.

Whoever imports this imports the libraries of models, which takes seconds.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from lada_protocol.events import EventLog
from lada_protocol.identity.certificates import certificate_pem
from lada_protocol.identity.credentials import Credentials
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.withdrawal import WITHDRAWN, may_have_spent
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.storage.whole_files import write_atomically
from lada_server.board.client import LocalBoardClient
from lada_server.board.store import BoardStore
from lada_server.settings import ServerSettings, StudySettings
from lada_server.study.coordinator import LLM_FOLDER, Coordinator, open_llm
from lada_server.study.llm_files import InferenceCache, LlmFiles
from lada_server.study.places import PLAN_FILE, read_kept_plan
from lada_server.study.proposal import (
    Study,
    check_llm,
    check_plan,
    keep_plan,
    prepare_study,
)
from lada_server.study.teacher import Teacher

LOG = logging.getLogger(__name__)
# In the state folder: plans that were proposed and taken back, by their hashes.
WITHDRAWN_FOLDER: Final = "withdrawn"
# How long the board stays up at most after the study, so that everybody reads the last message.
FAREWELL_S: Final = 60.0
# gRPC has handed the last reply to the network by then.
LINGER_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorParts:
    """What a coordinator works with: its settings, board, identity and log."""

    settings: ServerSettings
    study_settings: StudySettings
    pool: tuple[PoolSample, ...]
    store: BoardStore
    credentials: Credentials
    events: EventLog

    @property
    def kept_plan(self) -> Path:
        """The file of the plan that was proposed."""
        return self.settings.state_dir / PLAN_FILE

    def prepared(self, kept_plan: Path | None) -> Study:
        """See `prepare_study`."""
        return prepare_study(
            self.study_settings,
            pool=self.pool,
            roster=self.store.roster,
            now=datetime.now(UTC),
            kept_plan=kept_plan,
        )

    def board(self, plan: StudyPlan) -> LocalBoardClient:
        """The coordinator's own end of its board, for one study."""
        return LocalBoardClient(
            plan=plan,
            store=self.store,
            signing_key=self.credentials.signing_key,
            events=self.events,
        )

    def coordinator(self, study: Study) -> Coordinator:
        """The coordinator of a study. Nothing of the LLM is loaded yet."""
        board, llm_folder = self.board(study.plan), self.settings.state_dir / LLM_FOLDER
        teacher = Teacher(
            study,
            open_llm(self.settings),
            files=LlmFiles(folder=llm_folder),
            progress=board.say_progress,
            looks=InferenceCache(folder=llm_folder),
        )
        return Coordinator(
            study=study,
            board=board,
            certificate=certificate_pem(self.credentials.signing_certificate).decode("ascii"),
            teacher=teacher,
        )

    def check_new(self, coordinator: Coordinator) -> None:
        """All that is looked at before anybody sees a study; it loads the LLM and calls it.

        Raises: ParameterError: study, pool and LLM do not fit each other; nothing was kept.
        """
        study, teacher = coordinator.study, coordinator.teacher
        check_plan(study.plan, roster=self.store.roster)
        teacher.check_memory()
        check_llm(study, teacher.model, pool_file=self.settings.pool)
        teacher.check_abilities()

    def opened(self) -> Coordinator:
        """The study that was proposed, or a new one that has passed its checks and is kept."""
        coordinator = self.coordinator(self.prepared(self.kept_plan))
        if not self.kept_plan.exists():
            self.check_new(coordinator)
            keep_plan(self.kept_plan, coordinator.study.plan)
        return coordinator


def run_study(parts: CoordinatorParts) -> None:
    """Propose a study, or go on with it, and carry it out to its end.

    Raises: ParameterError: study and pool do not fit each other or the LLM, and nothing was
        proposed. StudyFailed: the study could not reach its last round.
    """
    coordinator = parts.opened()
    board = coordinator.board
    try:
        coordinator.loop.run()
    finally:
        parts.store.wait_until_read(
            board.last_sequence,
            timeout_s=FAREWELL_S,
            expected=board.participants(),
            without=board.refusers(),
        )
        time.sleep(LINGER_S)


def propose_study(parts: CoordinatorParts) -> StudyPlan:
    """Propose the study, so that it waits on the board for whoever serves it.

    Returns: the plan, also where it was proposed before. Raises: as `run_study`.
    """
    coordinator = parts.opened()
    coordinator.propose()
    return coordinator.study.plan


def propose_instead(parts: CoordinatorParts) -> tuple[StudyPlan, StudyPlan]:
    """Take a proposal back and propose the study as its file says it now.

    The new one passes all its checks first: a study file with a fault withdraws nothing.

    Returns: the plan that was withdrawn, and the new one.
    Raises: ParameterError: nothing was proposed, nothing was changed, the study_id was used
        before, the new study does not pass its checks, or a site may have spent something.
    """
    old = read_kept_plan(parts.kept_plan)
    if old is None:
        raise ParameterError(
            f"--new: {parts.kept_plan} is not there, so nothing was proposed; leave out --new"
        )
    before = parts.board(old)
    before.sync(wait_s=0.0)
    spent = may_have_spent(before.index)
    if spent:
        raise ParameterError(
            f"--new: {', '.join(spent)} may have spent privacy budget on study {old.study_id} "
            "already, and what is spent stays spent; it goes on as it was. Once it is over, "
            "give the changed study a study_id of its own. Nothing was changed"
        )
    _check_new_name(parts, old)
    coordinator = parts.coordinator(parts.prepared(None))
    parts.check_new(coordinator)
    _withdraw(before)
    kept = parts.settings.state_dir / WITHDRAWN_FOLDER / f"{old.study_id}-{old.hash[:16]}.json"
    write_atomically(kept, old.to_bytes())
    keep_plan(parts.kept_plan, coordinator.study.plan)
    coordinator.propose()
    return old, coordinator.study.plan


def _check_new_name(parts: CoordinatorParts, old: StudyPlan) -> None:
    """One name is one plan: for ledgers, openings and messages that outlive a withdrawal."""
    name, me = parts.study_settings.study_id, parts.store.roster.coordinator.id
    rows = parts.store.visible(me, 0)
    used = {one.header.study_id for _, one in rows} | {old.study_id}
    if name not in used:
        return
    free = next(one for n in range(2, len(used) + 3) if (one := f"{name[:58]}-{n}") not in used)
    raise ParameterError(
        f"--new: study_id {name} was proposed already, and ledgers and messages name studies by "
        f'it; set study_id = "{free}" in {parts.settings.study}. Nothing was changed'
    )


def _withdraw(board: LocalBoardClient) -> None:
    """Tell whoever has the old plan, unless its study has ended by itself."""
    ended = any(
        board.index.find(kind, sender=board.me) is not None for kind in (Kind.FAILED, Kind.FINISHED)
    )
    proposed = board.index.find(Kind.PLAN, sender=board.me) is not None
    if proposed and not ended:
        said = (
            f"{board.me} has taken study {board.plan.study_id} back before anything was spent, and "
            "proposes another one; whoever follows sees it, others start again"
        )
        board.post(Kind.FAILED, {"code": WITHDRAWN, "message": said})
        LOG.warning("study %s is withdrawn", board.plan.study_id)
