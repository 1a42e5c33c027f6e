"""One study at the coordinator, from its files to the last message that somebody has read.

Whoever imports this imports the libraries of models, which takes seconds.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

from lada_protocol.events import EventLog
from lada_protocol.identity.certificates import certificate_pem
from lada_protocol.identity.credentials import Credentials
from lada_secure.data.records import PoolSample
from lada_server.board.client import LocalBoardClient
from lada_server.board.store import BoardStore
from lada_server.settings import ServerSettings, StudySettings
from lada_server.study.coordinator import Coordinator
from lada_server.study.inference_cache import InferenceCache
from lada_server.study.llm_files import LlmFiles
from lada_server.study.proposal import check_llm, check_plan, keep_plan, prepare_study
from lada_server.study.teacher import Teacher

# How long the board stays up at most after the study, so that everybody reads the last message.
FAREWELL_S: Final = 60.0
# gRPC has handed the last reply to the network by then.
LINGER_S: Final = 0.5


def run_study(
    settings: ServerSettings,
    study_settings: StudySettings,
    pool: tuple[PoolSample, ...],
    *,
    store: BoardStore,
    credentials: Credentials,
    events: EventLog,
) -> None:
    """Propose a study, or go on with it, and carry it out to its end.

    Raises: ParameterError: study and pool do not fit each other or the LLM, and nothing was
        proposed. StudyFailed: the study could not reach its last round.
    """
    kept_plan = settings.state_dir / "plan.json"
    study = prepare_study(
        study_settings,
        pool=pool,
        roster=store.roster,
        now=datetime.now(UTC),
        kept_plan=kept_plan,
    )
    teacher = Teacher(
        study,
        settings.llm,
        cache_dir=settings.cache_dir,
        threads=settings.threads,
        files=LlmFiles(folder=settings.state_dir / "llm"),
        looks=InferenceCache(folder=settings.state_dir / "llm"),
    )
    if study.is_new:
        check_plan(study.plan)
        check_llm(study, teacher.model, pool_file=settings.pool)
        keep_plan(kept_plan, study.plan)
    board = LocalBoardClient(
        plan=study.plan, store=store, signing_key=credentials.signing_key, events=events
    )
    coordinator = Coordinator(
        study=study,
        board=board,
        certificate=certificate_pem(credentials.signing_certificate).decode("ascii"),
        teacher=teacher,
    )
    try:
        coordinator.loop.run()
    finally:
        store.wait_until_read(
            board.last_sequence,
            timeout_s=FAREWELL_S,
            expected=board.participants(),
            without=board.refusers(),
        )
        time.sleep(LINGER_S)
