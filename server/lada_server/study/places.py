"""Where the coordinator keeps a study: the first one in its state folder itself, others below it.

A board, a plan and payloads belong to one study. `lada server run` finds the place by the study's
id, so that the next study needs another id and no other folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from lada_protocol.events import EVENTS_FILE, Failed, Finished, StepFinished, parse_event
from lada_protocol.plan import StudyPlan, parse_plan
from lada_protocol.run_loop import StudyFailed
from lada_protocol.studies import (
    MAX_MESSAGE,
    MAX_OUTCOME_BYTES,
    OUTCOME_FILE,
    STUDIES,
    Ending,
    KnownStudy,
    StudyOutcome,
    StudyState,
    parse_outcome,
)
from lada_secure.errors import ParameterError, PeerError
from lada_secure.storage.state_folder import is_held
from lada_secure.storage.whole_files import read_at_most, read_if_there, write_atomically
from lada_server.settings import ServerSettings

PLAN_FILE: Final = "plan.json"
# In the URL of a database: the study's id.
STUDY_MARK: Final = "{study}"
# Of a `failed` event; what stopped the process alone, as a port that was taken, ends no study.
# Earlier versions wrote no code.
_ENDS: Final = frozenset({"", StudyFailed.code})
_NOT_OVER: Final = frozenset({"running", "interrupted"})


def settings_of_study(settings: ServerSettings, study_id: str) -> ServerSettings:
    """The same settings with the folder, and the database, of one study.

    Raises: ParameterError: a plan cannot be read, or the database is for one study alone.
    """
    place = study_place(settings.state_dir, study_id)
    database = settings.database
    if database is not None:
        if place != settings.state_dir and STUDY_MARK not in database:
            raise ParameterError(
                f"database: {settings.state_dir} holds another study already, and a database is "
                f"for one; write {STUDY_MARK} in its URL, as in sqlite:////var/lib/lada/"
                f"{STUDY_MARK}.sqlite or options=-csearch_path%3D{STUDY_MARK}, or name another one"
            )
        database = database.replace(STUDY_MARK, study_id)
    return settings.model_copy(update={"state_dir": place, "database": database})


def study_place(state_dir: Path, study_id: str) -> Path:
    """The folder of a study, which need not be there yet.

    Raises: ParameterError: the plan that lies in the state folder is damaged.
    """
    # A proposal that was taken back has left its folder to the next one, whatever its name is.
    for folder in _folders(state_dir):
        plan = kept_plan(folder)
        if plan is not None and plan.study_id == study_id:
            return folder
    return state_dir if kept_plan(state_dir) is None else state_dir / STUDIES / study_id


def settings_of_open_study(settings: ServerSettings, study_id: str) -> ServerSettings:
    """The same settings with the folder of the study that is not over, to take it back.

    Args: study_id: of the one that is proposed instead; its own folder where all others are over.
    Raises: ParameterError: the database is named by the study that would be taken back.
    """
    every = known_studies(settings.state_dir)
    known = [one for one in every if one.state in _NOT_OVER]
    if not known or known[-1].folder is None:
        return settings_of_study(settings, study_id)
    if any(one.study_id == study_id for one in every if one != known[-1]):
        raise ParameterError(
            f"--new: study_id {study_id} is that of an earlier study in {settings.state_dir}, and "
            "ledgers name studies by it; set another one. Nothing was changed"
        )
    if settings.database is not None and STUDY_MARK in settings.database:
        raise ParameterError(
            f"--new: the board of study {known[-1].study_id} lies in a database of its name, and "
            "would have to serve the new one as well; stop it, and propose the new study with a "
            "state_dir of its own. Nothing was changed"
        )
    return settings.model_copy(update={"state_dir": Path(known[-1].folder)})


def check_others_over(state_dir: Path, study_id: str) -> None:
    """Refuse to begin a study while another one of the folder is not over.

    A study id that was changed by mistake would leave sites waiting that have promised and spent.

    Raises: ParameterError: names the study, and what to do.
    """
    if kept_plan(study_place(state_dir, study_id)) is not None:
        return
    for study in known_studies(state_dir):
        if study.state in _NOT_OVER:
            raise ParameterError(
                f"study {study.study_id} in {study.folder} is not over ({study.state}), so "
                f"{study_id} is not begun. Put study_id back to go on with it; or take it back by "
                "`lada server propose --new` while no site has spent anything; or name a state_dir "
                "of its own for the new study, and another listen where both are to run"
            )


def kept_plan(folder: Path) -> StudyPlan | None:
    """The plan that was proposed from a folder; None before. Raises: ParameterError: damaged."""
    return read_kept_plan(folder / PLAN_FILE)


def read_kept_plan(path: Path) -> StudyPlan | None:
    """The plan in a file; None where there is no file. Raises: ParameterError: damaged."""
    raw = read_if_there(path, what="the kept plan ", refusal=ParameterError)
    try:
        return None if raw is None else parse_plan(raw)
    except PeerError as error:
        raise ParameterError(f"cannot read the kept plan {path}: {error}") from error


def keep_outcome(folder: Path, state: Ending, message: str = "") -> None:
    """Note that a study is over; the first note stays. Raises: TransportError."""
    if (folder / OUTCOME_FILE).exists() or kept_plan(folder) is None:
        return
    ended = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    found = StudyOutcome(state=state, ended=ended, message=message[:MAX_MESSAGE])
    write_atomically(folder / OUTCOME_FILE, found.to_bytes())


def known_studies(state_dir: Path) -> tuple[KnownStudy, ...]:
    """Every study that was proposed from a state folder, oldest first; needs no database.

    Raises: ParameterError: a plan or an outcome is damaged.
    """
    found = [(one, plan) for one in _folders(state_dir) if (plan := kept_plan(one)) is not None]
    found.sort(key=lambda one: (one[0] / PLAN_FILE).stat().st_mtime)
    return tuple(_known(folder, plan) for folder, plan in found)


def _folders(state_dir: Path) -> list[Path]:
    return [state_dir, *sorted((state_dir / STUDIES).glob("*/"))]


def _known(folder: Path, plan: StudyPlan) -> KnownStudy:
    path = folder / OUTCOME_FILE
    raw = read_at_most(path, MAX_OUTCOME_BYTES) if path.exists() else None
    ended = None if raw is None else parse_outcome(raw, where=str(path))
    closed, told = _told_by_events(folder / EVENTS_FILE)
    proposed = datetime.fromtimestamp((folder / PLAN_FILE).stat().st_mtime, UTC)
    state: StudyState = "running" if is_held(folder) else told
    if ended is not None:
        state = ended.state
    return KnownStudy(
        study_id=plan.study_id,
        plan_hash=plan.hash,
        state=state,
        rounds_done=plan.rounds if state == "finished" else closed,
        rounds=plan.rounds,
        epsilon=None,
        begun=proposed.strftime("%Y-%m-%dT%H:%M:%SZ"),
        ended=None if ended is None else ended.ended,
        folder=str(folder),
        message="" if ended is None else ended.message,
    )


def _told_by_events(path: Path) -> tuple[int, StudyState]:
    """Rounds that were closed, and how a study of an earlier version ended."""
    closed: set[int] = set()
    state: StudyState = "interrupted"
    for line in _lines(path):
        try:
            event = parse_event(line)
        except ParameterError:
            # Cut by a crash, or of other software.
            continue
        if isinstance(event, StepFinished):
            # It has gone on since.
            state = "interrupted"
            if event.step == "close":
                closed.add(event.round_id)
        if isinstance(event, Finished):
            state = "finished"
        elif isinstance(event, Failed) and event.code in _ENDS:
            state = "failed"
    return len(closed), state


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError:
        return
