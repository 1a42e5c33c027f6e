"""A site's check of its ledger: whose it is, whether it can go on, and what a plan would leave.

The file is read from a copy, so that nothing is written beside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from lada_clients.site.check.reading import SiteReading
from lada_clients.site.gates.policy import planned_budget, study_caps
from lada_clients.site.ledger.population import ledger_path, reused_name_faults
from lada_clients.site.ledger.store import SqliteLedgerReader, open_ledger_reader
from lada_protocol.identity.credentials import Credentials
from lada_secure.check.running import Found, fault, fine, warn
from lada_secure.errors import LedgerError, ParameterError
from lada_secure.privacy.accounting.events import PrivacyEvent
from lada_secure.privacy.ledger.carried_budget import spending
from lada_secure.privacy.ledger.promises import BudgetPromise

_PREFIX: Final = "ledger-"
_SUFFIX: Final = ".sqlite"


def ledger_findings(site: SiteReading) -> Iterator[Found]:
    """The ledger of the policy's population, with a plan what that would make of its budget.

    Raises: LedgerError: damaged, of another party or key, or newer than this machine's clock.
      ParameterError, TransportError: it cannot be read.
    """
    settings, policy = site.settings, site.policy
    path = ledger_path(settings, policy)
    spent: tuple[tuple[str, PrivacyEvent], ...] = ()
    promised: tuple[BudgetPromise, ...] = ()
    plan = site.known_plan
    if not path.exists():
        yield _begun_later(path, policy.population, cap=policy.epsilon_cap_total)
    else:
        with _copied(path) as ledger:
            _check_own(ledger, path, site.known_credentials, population=policy.population)
            now = datetime.now(UTC)
            ledger.check_clock(now)
            entries = ledger.entries()
            promised = ledger.promised(now=now, besides="" if plan is None else plan.hash)
        spent = spending(entries)
        for one in () if plan is None else reused_name_faults(entries, plan):
            yield fault(one)
        yield fine(
            f"{path}: {len(entries)} entries, {len(spent)} of them paid for", entries=len(entries)
        )
    if plan is None:
        return
    over = planned_budget(plan, policy, spent=spent, promised=promised).fault()
    if over:
        yield fault(f"{over}. This site would refuse the plan; ask the coordinator for another")
    else:
        delta = study_caps(plan, policy).target_delta
        yield fine(f"its budget has room for the whole of study {plan.study_id} at delta {delta:g}")


def _begun_later(path: Path, population: str, *, cap: float) -> Found:
    """There is no ledger of these people yet; a warning where others have one here."""
    files = sorted(path.parent.glob(f"{_PREFIX}*{_SUFFIX}"))
    others = [one.name.removeprefix(_PREFIX).removesuffix(_SUFFIX) for one in files]
    whole = f"the whole budget of epsilon {cap:g}"
    if not others:
        return fine(f"{path}: there is none yet; the first study begins one with {whole}")
    near = get_close_matches(population, others, n=1) or others
    return warn(
        f"{path}: there is none of the population {population}, and one of "
        f"{', '.join(others)}; a study would begin a new ledger with {whole}. If these are the "
        f'same people, write population = "{near[0]}" in the policy',
        others=list(others),
    )


@contextmanager
def _copied(path: Path) -> Iterator[SqliteLedgerReader]:
    with TemporaryDirectory(prefix="lada-ledger-") as folder:
        log = path.with_name(f"{path.name}-wal")
        try:
            # The log first: what is moved from it into the file meanwhile is then in both.
            if log.exists():
                shutil.copyfile(log, Path(folder, log.name))
            shutil.copyfile(path, Path(folder, path.name))
        except OSError as error:
            raise ParameterError(f"ledger {path}: cannot be read: {error.strerror}") from error
        try:
            with open_ledger_reader(Path(folder, path.name)) as ledger:
                yield ledger
        except LedgerError as error:
            # Not the copy's name: nobody has seen that.
            raise LedgerError(str(error).replace(folder, str(path.parent))) from error


def _check_own(
    ledger: SqliteLedgerReader, path: Path, own: Credentials | None, *, population: str
) -> None:
    """Raises: LedgerError: of other people, of another site, or under another key."""
    if ledger.identity.population != population:
        raise LedgerError(
            f"ledger {path}: it is of the population {ledger.identity.population}, its name says "
            f"{population}; put back the file of these people"
        )
    if own is None:
        return
    if ledger.identity.site != own.name.id:
        raise LedgerError(
            f"ledger {path}: it is of the site {ledger.identity.site}, these are the settings of "
            f"{own.name.id}; put back this site's own file"
        )
    if ledger.public_key != own.signing_key.public_key().public_bytes_raw():
        raise LedgerError(
            f"ledger {path}: it goes on under another key than sign.key; `lada site renew-key` "
            "continues it with a new key"
        )
