"""The ledger of a site's population: opened for a study, continued with a new key, restarted.

It is one file in the state folder, whatever study, state folder or key: the budget of people.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_clients.site.gates.policy import study_caps
from lada_clients.site.ledger.store import SqliteLedger, open_ledger_reader
from lada_clients.site.settings import SitePolicy, SiteSettings, read_site_settings
from lada_protocol.kinds import Kind
from lada_protocol.party_files import load_signing_key, read_roster
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.index import MessageIndex
from lada_secure.errors import LedgerError, ParameterError
from lada_secure.method.plan import LEDGER_TIME_STEP_S
from lada_secure.privacy.accounting.events import PrivacyEvent
from lada_secure.privacy.accounting.fields import check_name
from lada_secure.privacy.ledger.carried_budget import spending
from lada_secure.privacy.ledger.entries import (
    DecisionEntry,
    LedgerEntry,
    ReserveEntry,
    RestartEntry,
)
from lada_secure.privacy.ledger.promises import BudgetPromise
from lada_secure.privacy.ledger.restart import RestartGrant, check_grant, parse_grant
from lada_secure.privacy.ledger.terms import BudgetCaps
from lada_secure.storage.state_folder import held_state_folder
from lada_secure.storage.whole_files import read_file

LOG = logging.getLogger(__name__)


def ledger_path(settings: SiteSettings, policy: SitePolicy) -> Path:
    """Where the ledger of the policy's population is kept."""
    return settings.state_dir / f"ledger-{policy.population}.sqlite"


@contextmanager
def open_own_ledger(
    settings: SiteSettings, policy: SitePolicy, plan: StudyPlan, *, signing_key: Ed25519PrivateKey
) -> Iterator[SqliteLedger]:
    """The population's ledger, held to the stricter of the plan and the policy.

    Where there is none, one begins with the whole budget, and a warning says so.
    """
    path = ledger_path(settings, policy)
    with SqliteLedger(
        path,
        site=settings.party,
        population=policy.population,
        signing_key=signing_key,
        caps=study_caps(plan, policy),
        clock=_now,
        time_step_s=plan.privacy.ledger_time_step_s,
    ) as ledger:
        if ledger.started_now:
            LOG.warning("%s", new_ledger_sentence(path, policy))
        yield ledger


def new_ledger_sentence(path: Path, policy: SitePolicy) -> str:
    """What it means that there was no ledger."""
    return (
        f"A NEW LEDGER starts for the population {policy.population} in {path}, with the whole "
        f"budget of epsilon {policy.epsilon_cap_total:g}. If any of these people were in an "
        "earlier study, stop and put their ledger file back; the auditor refuses a site whose "
        "older ledger it knows"
    )


def is_new(entries: Sequence[LedgerEntry]) -> bool:
    """Whether a ledger says that nothing was spent on its people so far."""
    return not any(isinstance(one, ReserveEntry | RestartEntry) for one in entries)


def read_spending(path: Path) -> tuple[tuple[str, PrivacyEvent], ...]:
    """What a ledger file has paid for, see `spending`; nothing where there is none yet."""
    if not path.exists():
        return ()
    with open_ledger_reader(path) as ledger:
        return spending(ledger.entries())


def read_latest_decision(path: Path, study_id: str) -> DecisionEntry | None:
    """The newest decision on a study in a ledger file; None where there is no file or no decision.

    Nobody waits for it.
    """
    if not path.exists():
        return None
    with open_ledger_reader(path) as ledger:
        return ledger.latest_decision(study_id)


def read_promises(path: Path, *, now: datetime, besides: str) -> tuple[BudgetPromise, ...]:
    """What a ledger file has promised to running studies other than the plan `besides`."""
    if not path.exists():
        return ()
    with open_ledger_reader(path) as ledger:
        return ledger.promised(now=now, besides=besides)


def reused_name_faults(entries: Sequence[LedgerEntry], plan: StudyPlan) -> tuple[str, ...]:
    """Whether another plan has spent under this study's name; the ledger would pay no second one.

    Found here, before the acceptance: a round of one study has one output, and one name.
    """
    reserved = [entry for entry in entries if isinstance(entry, ReserveEntry)]
    others = {entry.plan_hash for entry in reserved if entry.study_id == plan.study_id}
    others.discard(plan.hash)
    if not others:
        return ()
    return (
        f"the name {plan.study_id} was used for another plan ({min(others)[:12]}...), which this "
        "site's ledger has paid for; give the new study another study_id",
    )


class LedgerReplaced(LedgerError):
    """A ledger that does not hold what was shown of it."""


def check_shown(entries: Sequence[LedgerEntry], index: MessageIndex, *, party: str) -> None:
    """Check that the ledger still holds what this site has shown of it in the study.

    Raises: LedgerReplaced: by an older copy, or by another one, while the study ran.
    """
    for message in index:
        shows = message.kind in (Kind.ACCEPTANCE, Kind.LEDGER)
        if not shows or message.header.sender != party:
            continue
        head = int(message.header.body["head_index"])
        found = entries[head].entry_hash if head < len(entries) else ""
        if found != message.header.body["head_hash"]:
            raise LedgerReplaced(
                f"the ledger here has {len(entries)} entries and not the entry {head} that this "
                "site has shown in this study; an old copy was put back. Nothing was spent; put "
                "the newest ledger file back and start again"
            )


def renew_key(settings_path: Path, *, old_identity: Path, by: str) -> str:
    """Continue the population's ledger with the key of the identity that the settings name.

    Args: old_identity: the folder with the key that has signed so far; its certificates may have
        expired. by: who decides; stands in the ledger.
    Returns: the new key, hex. Raises: ParameterError, LedgerError: says what is wrong.
    """
    settings, policy = read_site_settings(settings_path)
    check_name("--by", by)
    path = ledger_path(settings, policy)
    if not path.exists():
        raise ParameterError(f"no ledger of population {policy.population} at {path}")
    new = settings.credentials()
    old = load_signing_key(old_identity, passphrase=settings.passphrase)
    with (
        held_state_folder(settings.state_dir, party=settings.party, role="site"),
        open_ledger_between_studies(settings, policy, signing_key=old) as ledger,
    ):
        return ledger.renew_key(new.signing_key, decided_by=by).new_public_key


def restart(settings_path: Path, *, grant_file: Path, by: str) -> RestartGrant:
    """Begin the ledger that the auditor has granted in place of one that is lost for good.

    Args: by: the person at this site who has asked for it.
    Raises: ParameterError: there is a ledger, or the grant is for somebody else. LedgerError: it
        was not signed by the roster's auditor, or is for another key.
    """
    settings, policy = read_site_settings(settings_path)
    check_name("--by", by)
    path = ledger_path(settings, policy)
    if path.exists():
        raise ParameterError(
            f"there is a ledger of population {policy.population} at {path}; a restart is only for "
            "one that is lost for good. If this file is damaged or older than what the auditor "
            "has seen, and there is no newer copy, move it away first and keep it"
        )
    grant = parse_grant(read_file(grant_file))
    for what, found, expected in (
        ("site", grant.site, settings.party),
        ("population", grant.population, policy.population),
        ("person at the site (--by)", grant.requested_by, by),
    ):
        if found != expected:
            raise ParameterError(
                f"the grant is for another {what}: expected {expected}, it says {found}; ask the "
                "auditor for a grant of your own. Nothing was written"
            )
    roster = read_roster(settings.roster, pinned=policy.roster_sha256)
    auditor_key = bytes.fromhex(roster.auditor.signing_key)
    check_grant(grant, where="restart", auditor_key=auditor_key)
    signing_key = settings.credentials().signing_key
    with held_state_folder(settings.state_dir, party=settings.party, role="site"):
        open_ledger_between_studies(settings, policy, signing_key=signing_key, grant=grant).close()
    return grant


def open_ledger_between_studies(
    settings: SiteSettings,
    policy: SitePolicy,
    *,
    signing_key: Ed25519PrivateKey,
    grant: RestartGrant | None = None,
    time_step_s: int = LEDGER_TIME_STEP_S,
) -> SqliteLedger:
    """The population's ledger for somebody who reserves nothing in it."""
    return SqliteLedger(
        ledger_path(settings, policy),
        site=settings.party,
        population=policy.population,
        signing_key=signing_key,
        caps=BudgetCaps(
            target_delta=policy.target_delta,
            total_epsilon=policy.epsilon_cap_total,
            study_epsilon=policy.epsilon_cap_per_study,
        ),
        clock=_now,
        time_step_s=time_step_s,
        grant=grant,
    )


def _now() -> datetime:
    return datetime.now(UTC)
