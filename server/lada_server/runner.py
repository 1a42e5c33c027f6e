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
from lada_secure.data.records import PoolSample, read_pool
from lada_secure.errors import LadaError
from lada_secure.logs import configure_logs
from lada_secure.storage.state_folder import held_state_folder
from lada_server.board.store import BoardStore
from lada_server.rpc.service import start_server
from lada_server.settings import ServerSettings, StudySettings
from lada_server.study.monitor import Monitored, monitoring
from lada_server.study.status import STATUS_FILE, Status, keep_status_file, read_status

if TYPE_CHECKING:
    from lada_server.study.running import CoordinatorParts


def run_server(settings_path: Path) -> None:
    """Propose the study and serve it until it ends.

    Raises: ParameterError: settings, study, pool, roster or identity are wrong, or the port is
        taken. StudyFailed: the study could not reach its last round.
    """
    settings = read_settings(settings_path, ServerSettings)
    with _opened(settings) as opened, opened.telling(), _served(settings, opened):
        # Imported here: libraries of models take seconds, and callers are heard by now.
        from lada_server.study.running import run_study

        run_study(opened.parts())


def propose(settings_path: Path, *, new: bool) -> tuple[StudyPlan | None, StudyPlan]:
    """Propose the study, so that it waits on the board until `run_server` serves it.

    Args: new: take the study that was proposed before back first.
    Returns: the plan that was taken back, if any, and the one that is proposed now.
    Raises: ParameterError: as `run_server`, or it cannot be taken back.
    """
    settings = read_settings(settings_path, ServerSettings)
    with _opened(settings) as opened:
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
def _opened(settings: ServerSettings) -> Iterator[_Opened]:
    """Read and hold what a coordinator works with."""
    configure_logs(settings.log)
    study_settings = read_settings(settings.study, StudySettings)
    roster = read_roster(settings.roster)
    identity = LiveIdentity(
        settings.identity, party_id=settings.party, roster=roster, passphrase=settings.passphrase
    )
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
    return read_status(settings, read_roster(settings.roster), now_s=time.time())


@contextmanager
def _served(settings: ServerSettings, opened: _Opened) -> Iterator[None]:
    """Answer callers, and show what others may see: the status file, and the monitor if named."""
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
