"""Ledgers of simulated sites: every arm pays for itself, and equal releases are computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_secure.method.plan import STATISTICS, TRAINING, MethodPlan
from lada_secure.privacy.ledger.entries import LedgerIdentity
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.ledger.terms import BudgetCaps, ReleaseSpec, Reservation
from lada_secure.privacy.released import Released

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedReleases:
    """Outputs of one site's releases that several arms make from the same public inputs.

    Those are the statistics of round 0, before any training, and, with a DP reference model, all
    DP-SGD that reads the records alone. Arms that share them are compared on the same noise.
    """

    outputs: dict[tuple[str, int, str, int], bytes] = field(default_factory=dict)

    def knows(self, plan: MethodPlan, spec: ReleaseSpec) -> bool:
        """Whether a release depends on nothing that arms differ in."""
        if spec.purpose == STATISTICS:
            return spec.round_id == 0
        return (
            spec.purpose == TRAINING and plan.guide is not None and not plan.finishes(spec.round_id)
        )


class ArmLedger(MemoryLedger):
    """What one arm at one site pays for. Reserved and committed as ever; see `SharedReleases`."""

    def __init__(self, plan: MethodPlan, *, site: str, shared: SharedReleases, group: str) -> None:
        cap = plan.privacy.epsilon_cap
        super().__init__(
            identity=LedgerIdentity.new(site=site, population=f"{site}.records"),
            signing_key=Ed25519PrivateKey.generate(),
            caps=BudgetCaps(
                target_delta=plan.privacy.target_delta, total_epsilon=cap, study_epsilon=cap
            ),
            clock=lambda: datetime.now(UTC),
        )
        self._plan, self._shared, self._group = plan, shared, group
        self.decide(
            "approve",
            study_id=plan.study_id,
            plan_hash=plan.hash,
            expires=datetime(2999, 1, 1, tzinfo=UTC),
            decided_by="benchmark",
        )

    def release(
        self,
        spec: ReleaseSpec,
        *,
        compute: Callable[[Reservation], T],
        encode: Callable[[T], bytes],
        decode: Callable[[bytes], T],
        after: Sequence[Released[object]] = (),
    ) -> Released[T]:
        """As every ledger; what another arm has computed already is not computed again."""
        if not self._shared.knows(self._plan, spec):
            return super().release(spec, compute=compute, encode=encode, decode=decode, after=after)
        key = (self._group, spec.round_id, spec.purpose, spec.chunk)

        def once(paid: Reservation) -> T:
            outputs = self._shared.outputs
            if key not in outputs:
                outputs[key] = encode(compute(paid))
            return decode(outputs[key])

        return super().release(spec, compute=once, encode=encode, decode=decode, after=after)
