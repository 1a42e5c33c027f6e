"""Wires a site together from its settings: identity, board, ledger, model; runs one study."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lada_clients.net.failures import tell_failed, written_state
from lada_clients.net.following import follow, take_part_once
from lada_clients.net.outcomes import Outdated, Turn, working_folder
from lada_clients.net.participant import Participant, joined_study
from lada_clients.net.study_folder import SecretFolder
from lada_clients.site.gates.files import RecordFiles, SiteFiles, check_files, file_digests
from lada_clients.site.ledger.population import open_own_ledger
from lada_clients.site.ledger.promised import promised_until_over
from lada_clients.site.ledger.store import SqliteLedger
from lada_clients.site.settings import SitePolicy, SiteSettings, read_site_settings
from lada_protocol.events import Joined, Traffic
from lada_protocol.plan import StudyPlan
from lada_protocol.run_loop import StudyFailed
from lada_secure.errors import LadaError
from lada_secure.logs import begin_logs, progress_console
from lada_secure.privacy.release.units import population_fingerprint
from lada_secure.storage.state_folder import check_state_folder

LOG = logging.getLogger(__name__)
FINGERPRINT_KEY_BYTES = 32


def run_site(settings_path: Path) -> None:
    """Take part in the coordinator's study until it ends.

    Raises: ParameterError: settings, policy, roster, identity or records are wrong.
        StudyFailed: refused, or given up by the coordinator.
    """
    begin_logs(settings_path)
    take_part_once(lambda turn: _one_study(settings_path, turn))


def follow_site(settings_path: Path) -> None:
    """Take part in one study after the other; see `following.follow`."""
    begin_logs(settings_path)
    follow(lambda turn: _one_study(settings_path, turn))


def _one_study(settings_path: Path, turn: Turn) -> None:
    settings, policy = read_site_settings(settings_path)
    digests = file_digests(settings)
    files = check_files(settings, policy)

    def outdated() -> bool:
        return read_site_settings(settings_path) != (settings, policy)

    # A folder is marked as ours only where the certificates say that we are who the settings name.
    settings.credentials()
    with (
        written_state(settings, role="site", pinned=policy.roster_sha256, work=settings.work),
        _joined(settings, policy) as participant,
    ):
        turn.begin(participant, outdated=outdated)
        try:
            _take_part(participant, settings, policy, files, digests, turn, outdated)
        except Outdated:
            raise
        except Exception as error:
            # A defect as well: the others wait for this site, and may know that it is gone.
            if isinstance(error, LadaError):
                participant.say_failed(error)
            tell_failed(participant, error)
            if isinstance(error, StudyFailed):
                participant.say_goodbye()
            raise
        participant.say_goodbye()


def _take_part(
    participant: Participant,
    settings: SiteSettings,
    policy: SitePolicy,
    files: SiteFiles,
    digests: Mapping[str, str],
    turn: Turn,
    outdated: Callable[[], bool],
) -> None:
    # Imported here: the libraries of models take seconds, and a refusal should not.
    from lada_clients.site.memory import SiteMemory
    from lada_clients.site.service import Site
    from lada_clients.site.training_display import TrainingDisplay

    key, plan = fingerprint_key(settings), participant.plan
    cap = min(plan.privacy.epsilon_cap, policy.epsilon_cap_per_study)
    with (
        working_folder(participant, turn) as folder,
        open_own_ledger(settings, policy, plan, signing_key=participant.signing_key) as book,
        promised_until_over(book, plan, now=_now, over=turn.over),
        TrainingDisplay(progress_console(), epsilon_cap=cap) as display,
    ):
        participant.events.write(
            Joined, round_id=0, step="plan", study_id=plan.study_id, plan_hash=plan.hash
        )
        _tell_data(book, files, plan, key=key)
        Site(
            participant=participant,
            settings=settings,
            policy=policy,
            files=files,
            record_files=RecordFiles(settings=settings, digests=digests, folder=folder, key=key),
            book=book,
            secrets=SecretFolder(folder=folder / "secrets"),
            memory=SiteMemory(folder=folder),
            now=_now,
            outdated=outdated,
            display=display,
        ).run()
        _tell_traffic(participant)


def _tell_traffic(participant: Participant) -> None:
    """What the study has cost this site's line, for reports; TLS and HTTP/2 come on top."""
    traffic = participant.client.traffic
    sent = sum(one.header.sender == participant.party for one in participant.index)
    participant.events.write(
        Traffic,
        round_id=participant.plan.rounds - 1,
        step="close",
        messages_up=sent,
        messages_down=sum(1 for _ in participant.index) - sent,
        bytes_up=traffic.up_bytes,
        bytes_down=traffic.down_bytes,
    )


def _now() -> datetime:
    return datetime.now(UTC)


def fingerprint_key(settings: SiteSettings) -> bytes:
    """The site's own key for fingerprints of its data; it outlives studies, and is made once."""
    return SecretFolder(folder=settings.state_dir / "secrets").once(
        "fingerprint.key", lambda: secrets.token_bytes(FINGERPRINT_KEY_BYTES)
    )


def _tell_data(book: SqliteLedger, files: SiteFiles, plan: StudyPlan, *, key: bytes) -> None:
    """Say on the site's own screen that the data set is another one than in the study before."""
    fingerprint = population_fingerprint(files.records.records, key=key)
    before = book.note_data(plan.study_id, fingerprint)
    if before is not None and before.fingerprint != fingerprint:
        LOG.warning(
            "the records are not those that study %s began with; that is fine between studies",
            before.study_id,
        )


@contextmanager
def _joined(settings: SiteSettings, policy: SitePolicy) -> Iterator[Participant]:
    check_state_folder(settings.state_dir, party=settings.party, role="site")
    with joined_study(settings, pinned=policy.roster_sha256) as participant:
        yield participant
