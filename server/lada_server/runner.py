"""Wires the coordinator together from its settings and runs one study."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from lada_protocol.events import EventLog
from lada_protocol.identity.certificates import certificate_pem
from lada_protocol.identity.renewal import LiveIdentity
from lada_protocol.identity.roster import Roster, parse_roster
from lada_protocol.settings import Settings, parse_settings
from lada_secure.data.records import pool_bytes, read_pool
from lada_secure.errors import LadaError, ParameterError, PeerError
from lada_secure.logs import configure_logs
from lada_secure.storage.line_file import open_line_file
from lada_secure.storage.state_folder import held_state_folder
from lada_server.board.store import BoardStore
from lada_server.rpc.credentials import live_identity, read_passphrase
from lada_server.rpc.service import RunningServer, start_server
from lada_server.settings import ServerSettings, StudySettings
from lada_server.study.coordinator import Coordinator
from lada_server.study.inference_cache import InferenceCache
from lada_server.study.llm_files import LlmFiles
from lada_server.study.monitor import Monitored, start_monitor
from lada_server.study.pool_gate import check_study
from lada_server.study.proposal import keep_plan, prepare_study
from lada_server.study.status import EVENTS_FILE, Status, read_status
from lada_server.study.status_file import STATUS_FILE, StatusFile
from lada_server.study.teacher import Teacher

S = TypeVar("S", bound=Settings)

# How long the board stays up at most after the study, so that everybody reads the last message.
FAREWELL_S = 60.0
# gRPC has handed the last reply to the network by then.
LINGER_S = 0.5


def run_server(settings_path: Path) -> None:
    """Propose the study and serve it until it ends.

    Raises: ParameterError: settings, study, pool, roster or identity are wrong, or the port is
        taken. StudyFailed: the study could not reach its last round.
    """
    settings = _read(settings_path, ServerSettings)
    configure_logs(settings.log)
    study_settings = _read(settings.study, StudySettings)
    roster = _read_roster(settings.roster)
    identity = live_identity(
        settings.identity,
        party_id=settings.party,
        roster=roster,
        passphrase=read_passphrase(settings.passphrase_file),
    )
    with held_state_folder(settings.state_dir, party=settings.party, role="coordinator"):
        _serve(settings, study_settings, roster, identity)


def _serve(
    settings: ServerSettings, study_settings: StudySettings, roster: Roster, identity: LiveIdentity
) -> None:
    credentials = identity.credentials()
    pool = read_pool(settings.pool)
    events = _event_log(settings)
    kept_plan = settings.state_dir / "plan.json"
    store = BoardStore(
        settings.database or f"sqlite:///{settings.state_dir / 'board.sqlite'}",
        payload_dir=settings.state_dir / "payloads",
        roster=roster,
        stored_bytes_per_party=settings.transport.stored_bytes,
    )
    try:
        with (
            start_server(
                settings.listen,
                identity=identity,
                store=store,
                upload_dir=settings.state_dir / "uploads",
                settings=settings.transport,
            ) as running,
            _observed(settings, running, identity, store),
        ):
            study = prepare_study(
                study_settings,
                pool=pool,
                pool_bytes=pool_bytes(pool),
                roster=roster,
                now=datetime.now(UTC),
                kept_plan=kept_plan,
            )
            teacher = Teacher(
                settings.llm,
                cache_dir=settings.cache_dir,
                threads=settings.threads,
                files=LlmFiles(folder=settings.state_dir / "llm"),
                looks=InferenceCache(folder=settings.state_dir / "llm"),
            )
            if study.is_new:
                check_study(study, teacher, pool_file=settings.pool)
                keep_plan(kept_plan, study.plan)
            coordinator = Coordinator(
                study=study,
                roster=roster,
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
    except LadaError as error:
        events.write("failed", round_id=0, step="close", message=str(error)[:1000])
        raise
    finally:
        store.close()


def server_status(settings_path: Path) -> Status:
    """Where the study of a settings file stands, whether a coordinator runs or not.

    Raises: ParameterError: the settings or the roster cannot be read. TransportError: database.
    """
    settings = _read(settings_path, ServerSettings)
    return read_status(settings, _read_roster(settings.roster), now_s=time.time())


@contextmanager
def _observed(
    settings: ServerSettings, running: RunningServer, identity: LiveIdentity, store: BoardStore
) -> Iterator[None]:
    """What others may see of a running server: its status file, and the monitor if it is named."""
    status = StatusFile(
        path=settings.state_dir / STATUS_FILE,
        presence=running.presence,
        listen=running.address,
        clock=time.time,
    ).keep(running.stopped)
    monitored = Monitored(
        presence=running.presence,
        identity=identity,
        events=settings.state_dir / EVENTS_FILE,
        check=store.check,
    )
    try:
        if settings.monitor is None:
            yield
        else:
            with start_monitor(settings.monitor, monitored):
                yield
    finally:
        running.stop()
        status.join()


def _read(path: Path, model: type[S]) -> S:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ParameterError(f"cannot read {path}: {error.strerror}") from error
    return parse_settings(raw, model, where=str(path)).beside(path.resolve().parent)


def _read_roster(path: Path) -> Roster:
    try:
        return parse_roster(path.read_bytes())
    except OSError as error:
        raise ParameterError(f"cannot read roster {path}: {error.strerror}") from error
    except PeerError as error:
        raise ParameterError(f"roster {path}: {error}") from error


def _event_log(settings: ServerSettings) -> EventLog:
    sink = open_line_file(settings.state_dir / EVENTS_FILE)
    return EventLog(party=settings.party, sink=sink, clock=time.time)
