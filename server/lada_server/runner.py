"""Wires the coordinator together from its settings and runs one study."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lada_protocol.events import EVENTS_FILE, Failed
from lada_protocol.party_files import LiveIdentity, open_event_log, read_roster, read_settings
from lada_protocol.run_loop import StudyFailed
from lada_protocol.studies import KnownStudy
from lada_secure.data.records import read_pool
from lada_secure.errors import LadaError, ParameterError
from lada_secure.logs import configure_logs
from lada_secure.storage.state_folder import check_state_folder, held_state_folder
from lada_server.board.store import BoardStore
from lada_server.rpc.service import start_server
from lada_server.settings import ServerSettings, StudySettings
from lada_server.study.monitor import Monitored, monitoring
from lada_server.study.places import (
    check_others_over,
    keep_outcome,
    known_studies,
    settings_of_study,
)
from lada_server.study.status import STATUS_FILE, Status, keep_status_file, read_status


def run_server(settings_path: Path) -> None:
    """Propose the study and serve it until it ends.

    Raises: ParameterError: settings, study, pool, roster or identity are wrong, or the port is
        taken. StudyFailed: the study could not reach its last round.
    """
    settings = read_settings(settings_path, ServerSettings)
    configure_logs(settings.log)
    study_settings = read_settings(settings.study, StudySettings)
    roster = read_roster(settings.roster)
    identity = LiveIdentity(
        settings.identity, party_id=settings.party, roster=roster, passphrase=settings.passphrase
    )
    # The folder as a whole is ours, and so is the study's in it.
    check_state_folder(settings.state_dir, party=settings.party, role="coordinator")
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
            with _served(settings, store, identity):
                # Imported here: libraries of models take seconds, and callers are heard by now.
                from lada_server.study.coordinator import run_study

                credentials = identity.credentials()
                run_study(
                    settings,
                    study_settings,
                    pool,
                    store=store,
                    credentials=credentials,
                    events=events,
                )
            keep_outcome(settings.state_dir, "finished")
        except LadaError as error:
            events.write(Failed, round_id=0, step="close", message=str(error)[:1000])
            if isinstance(error, StudyFailed):
                keep_outcome(settings.state_dir, "failed", str(error))
            raise
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
def _served(settings: ServerSettings, store: BoardStore, identity: LiveIdentity) -> Iterator[None]:
    """Answer callers, and show what others may see: the status file, and the monitor if named."""
    folder = settings.state_dir
    with ExitStack() as ends:
        running = start_server(
            settings.listen,
            identity=identity,
            store=store,
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
