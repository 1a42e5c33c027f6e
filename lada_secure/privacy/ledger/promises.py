"""What running studies may still spend: promised to each as a whole when it is joined.

A ledger counts releases one by one. Two studies that run side by side over one population would
each fit alone, and the one whose releases come later would die half-way. So a site promises a
study the whole of its plan in the transaction in which it looks whether that fits beside
everything that was spent and everything that is promised to others; from then on nobody else is
paid out of it.

A promise is the site's own note beside the ledger: it is in no entry and no export, and nothing
is spent by it. What is spent is decided by the entries alone, as ever; promises can only refuse
more.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from lada_secure.canonical import canonical_json
from lada_secure.errors import LedgerError, PrivacyBudgetExceeded
from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.accounting.events import (
    DpSgdEvent,
    EventField,
    GaussianEvent,
    PrivacyEvent,
    check_target_delta,
    event_parts,
)
from lada_secure.privacy.accounting.fields import check_hash, check_name
from lada_secure.privacy.ledger.entries import ReserveEntry

if TYPE_CHECKING:
    from lada_secure.privacy.ledger.replay import LedgerReplay
    from lada_secure.privacy.ledger.terms import BudgetCaps, ReleaseSpec

# A setting of noise and sampling, and how many releases or steps of it.
_Setting: TypeAlias = tuple[str, float, float]
_Parts: TypeAlias = "Counter[_Setting]"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPromise:
    """Everything that one study may still need.

    Args:
        study_id, plan_hash: of the plan. expires: of the plan, after which nothing is reserved.
        made_at: how many entries the ledger had. A later decision against the study ends the
            promise.
        target_delta: at which the study counts.
        events: of the whole plan, what the study has spent of it included.
    """

    study_id: str
    plan_hash: str
    expires: str
    made_at: int
    target_delta: float
    events: tuple[PrivacyEvent, ...]

    def __post_init__(self) -> None:
        check_name("study_id", self.study_id)
        check_hash("plan_hash", self.plan_hash)
        check_target_delta(self.target_delta)

    def line(self) -> bytes:
        """The promise as it is kept."""
        return canonical_json(
            {
                "study_id": self.study_id,
                "plan_hash": self.plan_hash,
                "expires": self.expires,
                "made_at": self.made_at,
                "target_delta": self.target_delta,
                "events": [event.to_json() for event in self.events],
            }
        )


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    study_id: str
    plan_hash: str
    expires: str
    made_at: int
    target_delta: float
    events: list[EventField]


def parse_promise(line: bytes) -> BudgetPromise:
    """Read what `BudgetPromise.line` wrote. Raises: LedgerError: it was changed on disk."""
    try:
        kept = _Kept.model_validate(json.loads(line))
    except (ValueError, ValidationError) as error:
        raise LedgerError(f"a promise beside the ledger is damaged: {error}") from error
    return BudgetPromise(**(dict(kept) | {"events": tuple(kept.events)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class PromisedBudget:
    """Promises beside a ledger, as they stand at one moment.

    Args: replay: the ledger. kept: promises that were made and not ended. now: the precise clock.
    """

    replay: LedgerReplay
    kept: Sequence[BudgetPromise]
    now: str

    def open(self) -> tuple[BudgetPromise, ...]:
        """Those that still bind: not expired, and nobody has decided against the study since."""
        return tuple(promise for promise in self.kept if self._binds(promise))

    def others(self, plan_hash: str) -> tuple[BudgetPromise, ...]:
        """Those that still bind for the sake of other plans."""
        return tuple(promise for promise in self.open() if promise.plan_hash != plan_hash)

    def outstanding(self, promise: BudgetPromise) -> tuple[PrivacyEvent, ...]:
        """What of a promise was not reserved yet."""
        return _events(_parts(promise.events) - self._reserved(promise))

    def covers(self, spec: ReleaseSpec) -> bool:
        """Whether a release is part of what its study was promised and has not reserved yet."""
        wanted = _parts([spec.event])
        for promise in self.open():
            if (promise.study_id, promise.plan_hash) == (spec.study_id, spec.plan_hash):
                return wanted <= _parts(promise.events) - self._reserved(promise)
        return False

    def check_release(self, spec: ReleaseSpec, *, caps: BudgetCaps, where: str) -> None:
        """Check that a release takes nothing of what other studies were promised.

        What its own study was promised fits by the check that came before the promise. Anything
        else must fit beside all promises, its own study's included: else the rest of that one would
        be paid out of another's.

        Raises: PrivacyBudgetExceeded.
        """
        if self.covers(spec):
            return
        own = [one for one in self.open() if one.plan_hash == spec.plan_hash]
        rest = [event for promise in own for event in self.outstanding(promise)]
        self._check_beside([spec.event, *rest], plan_hash=spec.plan_hash, caps=caps, where=where)

    def check_whole(self, promise: BudgetPromise, *, caps: BudgetCaps) -> None:
        """Check that a study could be carried out to its end, whatever the others do.

        Raises: PrivacyBudgetExceeded.
        """
        where = f"promise study {promise.study_id}"
        rest = self.outstanding(promise)
        self._check_beside(rest, plan_hash=promise.plan_hash, caps=caps, where=where)
        whole = epsilon([*self._spent(), *rest], target_delta=caps.target_delta)
        if not whole <= caps.total_epsilon:
            raise PrivacyBudgetExceeded(
                f"{where}: with the whole of this study epsilon of all studies together would be "
                f"{whole:.6g} at delta {caps.target_delta:g}, the site's cap is "
                f"{caps.total_epsilon:.6g}; nothing was spent and no record was read"
            )

    def _check_beside(
        self, events: Sequence[PrivacyEvent], *, plan_hash: str, caps: BudgetCaps, where: str
    ) -> None:
        """Check that further events fit beside what is spent and what others were promised."""
        others = self.others(plan_hash)
        if not others:
            return
        delta = min((caps.target_delta, *(promise.target_delta for promise in others)))
        promised = [event for promise in others for event in self.outstanding(promise)]
        needed = epsilon([*self._spent(), *promised, *events], target_delta=delta)
        # Not `needed > cap`: a NaN must refuse too.
        if not needed <= caps.total_epsilon:
            studies = ", ".join(promise.study_id for promise in others)
            raise PrivacyBudgetExceeded(
                f"{where}: with what is promised to {studies} epsilon of all studies together "
                f"would be {needed:.6g} at delta {delta:g}, the site's cap is "
                f"{caps.total_epsilon:.6g}; nothing was spent and no record was read. Wait until "
                "that study is over, or let the site raise its cap"
            )

    def _binds(self, promise: BudgetPromise) -> bool:
        decided = self.replay.decisions.get(promise.study_id)
        against = decided is not None and (
            decided.index >= promise.made_at
            and (decided.decision != "approve" or decided.plan_hash != promise.plan_hash)
        )
        return self.now <= promise.expires and not against

    def _reserved(self, promise: BudgetPromise) -> _Parts:
        return _parts(
            entry.event
            for entry in self.replay.reserved.values()
            if (entry.study_id, entry.plan_hash) == (promise.study_id, promise.plan_hash)
        )

    def _spent(self) -> tuple[PrivacyEvent, ...]:
        carried = () if self.replay.grant is None else self.replay.grant.events
        reserved = (one for one in self.replay.entries if isinstance(one, ReserveEntry))
        return (*carried, *(entry.event for entry in reserved))


def _parts(events: Iterable[PrivacyEvent]) -> _Parts:
    """How many releases or steps there are of each setting; only these decide what it costs."""
    found: _Parts = Counter()
    for part in (part for event in events for part in event_parts(event)):
        if isinstance(part, GaussianEvent):
            found["gaussian", part.noise_multiplier, 1.0] += part.count
        else:
            found["dp_sgd", part.noise_multiplier, part.sampling_probability] += part.steps
    return found


def _events(parts: _Parts) -> tuple[PrivacyEvent, ...]:
    return tuple(
        GaussianEvent(noise, count=count)
        if kind == "gaussian"
        else DpSgdEvent(noise_multiplier=noise, sampling_probability=probability, steps=count)
        for (kind, noise, probability), count in parts.items()
    )
