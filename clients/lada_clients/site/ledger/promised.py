"""How long a study keeps what it was promised of the budget, and when a ledger ends a study."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from lada_clients.net.outcomes import LeftStudy
from lada_clients.site.ledger.population import LedgerReplaced
from lada_protocol.failure_codes import FailureCode
from lada_protocol.plan import StudyPlan, parse_time
from lada_protocol.run_loop import StudyFailed
from lada_secure.errors import LadaError, LedgerError
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.entries import DecisionEntry


@contextmanager
def promised_until_over(
    book: LedgerBook,
    plan: StudyPlan,
    *,
    now: Callable[[], datetime],
    over: tuple[type[LadaError], ...],
) -> Iterator[None]:
    """End the study's promise once it is over; an interrupted study keeps it and goes on later.

    Args: over: errors after which it is over.
    Raises: LeftStudy, StudyFailed: in place of the ledger's refusal where people have withdrawn,
        or where the plan has expired: the ledger has no fault then.
    """
    try:
        yield
    except over:
        book.end_promise(plan.hash)
        raise
    except LedgerError as error:
        ended = _end_of_study(book, plan, now())
        if ended is None or isinstance(error, LedgerReplaced):
            raise
        book.end_promise(plan.hash)
        raise ended from error
    book.end_promise(plan.hash)


def _end_of_study(book: LedgerBook, plan: StudyPlan, now: datetime) -> StudyFailed | None:
    """Why the ledger pays nothing more under a plan; None where that is not the reason."""
    decided = [
        entry
        for entry in book.entries()
        if isinstance(entry, DecisionEntry) and entry.study_id == plan.study_id
    ]
    if decided and decided[-1].decision != "approve":
        last = decided[-1]
        return LeftStudy(f"{last.decided_by} decided {last.decision!r} on study {plan.study_id}")
    if parse_time(plan.expires) < now:
        said = f"the plan of study {plan.study_id} expired at {plan.expires}"
        return StudyFailed(said, told=FailureCode.LEDGER)
    return None
