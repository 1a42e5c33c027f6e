"""Wires the coordinator together from its settings and runs one study."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lada_protocol.events import EVENTS_FILE, EventLog, Failed
from lada_protocol.party_files import LiveIdentity, open_event_log, read_roster, read_settings
from lada_protocol.plan import StudyPlan
from lada_protocol.run_loop import StudyFailed
from lada_protocol.studies import KnownStudy
from lada_secure.data.records import PoolSample, read_pool
from lada_secure.errors import LadaError, ParameterError
from lada_secure.logs import begin_logs
from lada_secure.storage.state_folder import check_state_folder, held_state_folder
from lada_server.board.store import BoardStore
from lada_server.rpc.service import start_server
from lada_server.settings import ServerSettings, StudySettings
from lada_server.study.monitor import Monitored, monitoring
from lada_server.study.places import (
    check_others_over,
    keep_outcome,
    known_studies,
    settings_of_open_study,
    settings_of_study,
)
from lada_server.study.status import STATUS_FILE, Status, keep_status_file, read_status

if TYPE_CHECKING:
    from lada_server.study.running import CoordinatorParts


def run_server(settings_path: Path) -> None:
    """Propose the study and serve it until it ends.

    Raises: ParameterError: settings, study, pool, roster or identity are wrong, or the port is
        taken. StudyFailed: the study could not reach its last round.
    """
    begin_logs(settings_path)
    settings = read_settings(settings_path, ServerSettings)
    with _opened(settings) as opened:
        try:
            with opened.telling(), _served(opened):
                # Imported here: libraries of models take seconds, and callers are heard by now.
                from lada_server.study.running import run_study

                run_study(opened.parts())
                keep_outcome(opened.settings.state_dir, "finished")
        except StudyFailed as error:
            study = opened.study_settings.study_id
            raise StudyFailed(
                f"{error}. Study {study} is over: for the next one set another study_id in "
                f"{settings.study}, and start this command again"
            ) from error


def propose(settings_path: Path, *, new: bool) -> tuple[StudyPlan | None, StudyPlan]:
    """Propose the study, so that it waits on the board until `run_server` serves it.

    Args: new: take the study that was proposed before back first.
    Returns: the plan that was taken back, if any, and the one that is proposed now.
    Raises: ParameterError: as `run_server`, or it cannot be taken back.
    """
    begin_logs(settings_path)
    settings = read_settings(settings_path, ServerSettings)
    with _opened(settings, new=new) as opened:
        from lada_server.study.running import propose_instead, propose_study

        parts = opened.parts()
        return propose_instead(parts) if new else (None, propose_study(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """A coordinator's files, held by this process."""

    settings: ServerSettings
    study_settings: StudySettings
    pool: tuple[PoolSample, ...]
    store: BoardStore
    identity: LiveIdentity
    events: EventLog

    @contextmanager
    def telling(self) -> Iterator[None]:
        """An error within is told to the event log, and so to `lada server status`."""
        try:
            yield
        except LadaError as error:
            self.events.write(
                Failed, round_id=0, step="close", message=str(error)[:1000], code=error.code
            )
            if isinstance(error, StudyFailed):
                keep_outcome(self.settings.state_dir, "failed", str(error))
            raise

    def parts(self) -> CoordinatorParts:
        from lada_server.study.running import CoordinatorParts

        return CoordinatorParts(
            settings=self.settings,
            study_settings=self.study_settings,
            pool=self.pool,
            store=self.store,
            credentials=self.identity.credentials(),
            events=self.events,
        )


@contextmanager
def _opened(settings: ServerSettings, *, new: bool = False) -> Iterator[_Opened]:
    """Read and hold what a coordinator works with."""
    study_settings = read_settings(settings.study, StudySettings)
    roster = read_roster(settings.roster)
    identity = LiveIdentity(
        settings.identity, party_id=settings.party, roster=roster, passphrase=settings.passphrase
    )
    # The folder as a whole is ours, and so is the study's in it.
    check_state_folder(settings.state_dir, party=settings.party, role="coordinator")
    if new:
        settings = settings_of_open_study(settings, study_settings.study_id)
    else:
        check_others_over(settings.state_dir, study_settings.study_id)
        settings = settings_of_study(settings, study_settings.study_id)
    with held_state_folder(settings.state_dir, party=settings.party, role="coordinator"):
        pool = read_pool(settings.pool)
        events = open_event_log(settings.party, settings.state_dir)
        store = BoardStore(
            settings.database_url,
            payload_dir=settings.state_dir / "payloads",
            roster=roster,
            stored_bytes_per_party=settings.transport.stored_bytes,
        )
        try:
            yield _Opened(
                settings=settings,
                study_settings=study_settings,
                pool=pool,
                store=store,
                identity=identity,
                events=events,
            )
        finally:
            store.close()


def server_status(settings_path: Path) -> Status:
    """Where the study of a settings file stands, whether a coordinator runs or not.

    Raises: ParameterError: the settings or the roster cannot be read. TransportError: database.
    """
    settings = read_settings(settings_path, ServerSettings)
    roster = read_roster(settings.roster)
    try:
        study_id = read_settings(settings.study, StudySettings).study_id
    except ParameterError:
        # Somebody may be writing the next one; what can be told is where the last one stands.
        known = known_studies(settings.state_dir)
        study_id = known[-1].study_id if known else ""
    if study_id:
        settings = settings_of_study(settings, study_id)
    return read_status(settings, roster, now_s=time.time())


def server_studies(settings_path: Path) -> tuple[str, tuple[KnownStudy, ...]]:
    """The coordinator's id, and every study that was proposed from its state folder.

    Raises: ParameterError: the settings, a plan or an outcome cannot be read.
    """
    settings = read_settings(settings_path, ServerSettings)
    return settings.party, known_studies(settings.state_dir)


@contextmanager
def _served(opened: _Opened) -> Iterator[None]:
    """Answer callers, and show what others may see: the status file, and the monitor if named."""
    # The study's own: from the second study on it is not the state folder itself.
    settings = opened.settings
    folder = settings.state_dir
    with ExitStack() as ends:
        running = start_server(
            settings.listen,
            identity=opened.identity,
            store=opened.store,
            upload_dir=folder / "uploads",
            settings=settings.transport,
        )
        status = keep_status_file(folder / STATUS_FILE, running)
        ends.callback(status.join)
        ends.callback(running.stop)
        if settings.monitor is not None:
            monitored = Monitored(server=running, events=folder / EVENTS_FILE)
            ends.enter_context(monitoring(settings.monitor, monitored))
        yield
