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
from lada_secure.models.endpoint.opening import ServedFolder
from lada_server.board.store import BoardStore
from lada_server.settings import ServerSettings, StudySettings
from lada_server.study.coordinator import Coordinator
from lada_server.study.inference_cache import InferenceCache
from lada_server.study.llm_files import LlmFiles
from lada_server.study.local_llm import LocalLlm
from lada_server.study.pool_gate import check_study
from lada_server.study.proposal import keep_plan, prepare_study
from lada_server.study.served_llm import ServedLlm
from lada_server.study.teacher import Teacher

# How long the board stays up at most after the study, so that everybody reads the last message.
FAREWELL_S: Final = 60.0
# gRPC has handed the last reply to the network by then.
LINGER_S: Final = 0.5


def open_llm(settings: ServerSettings) -> LocalLlm | ServedLlm:
    """The LLM of the settings; nothing is loaded and nobody is asked yet.

    Raises: ParameterError: the key file or the URL of a served one.
    """
    if isinstance(settings.llm, str):
        return LocalLlm(
            settings.llm,
            cache_dir=settings.cache_dir,
            threads=settings.threads,
            calling=settings.model.calling,
        )
    return ServedLlm(
        settings.llm.address(),
        tokenizer=settings.llm.tokenizer,
        adapters=settings.llm.adapters,
        kept=ServedFolder(folder=settings.state_dir / "llm"),
        threads=settings.threads,
        calling=settings.model.calling,
    )


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
        open_llm(settings),
        files=LlmFiles(folder=settings.state_dir / "llm"),
        looks=InferenceCache(folder=settings.state_dir / "llm"),
    )
    if study.is_new:
        check_study(study, teacher, pool_file=settings.pool)
        keep_plan(kept_plan, study.plan)
    coordinator = Coordinator(
        study=study,
        roster=store.roster,
        store=store,
        signing_key=credentials.signing_key,
        certificate=certificate_pem(credentials.signing_certificate).decode("ascii"),
        teacher=teacher,
        events=events,
    )
    try:
        coordinator.run()
    finally:
        store.wait_until_read(
            coordinator.board.last_sequence,
            timeout_s=FAREWELL_S,
            expected=coordinator.board.participants(),
            without=coordinator.board.refusers(),
        )
        time.sleep(LINGER_S)
