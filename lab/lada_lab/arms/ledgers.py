"""Ledgers of simulated sites: every arm pays for itself, and equal releases are computed once."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_secure.method.plan import STATISTICS, TRAINING, MethodPlan
from lada_secure.privacy.ledger.entries import CommitEntry, LedgerIdentity, ReserveEntry
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.ledger.terms import BudgetCaps, ReleaseSpec, Reservation

# What tells a release apart: a digest of all that decides it, round, purpose, chunk.
ReleaseKey: TypeAlias = tuple[str, int, str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRelease:
    """What was released, and how many seconds of computing it took."""

    output: bytes
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedReleases:
    """Outputs of one site's releases that several arms make from the same public inputs.

    Those are the statistics of round 0, before any training, and, with a DP reference model, all
    DP-SGD that reads the records alone. Arms that share them are compared on the same noise.
    """

    outputs: dict[ReleaseKey, SharedRelease] = field(default_factory=dict)

    def knows(self, plan: MethodPlan, paid: ReserveEntry) -> bool:
        """Whether a release depends on nothing that arms differ in."""
        if paid.purpose == STATISTICS:
            return paid.round_id == 0
        return (
            paid.purpose == TRAINING and plan.guide is not None and not plan.finishes(paid.round_id)
        )


class ArmLedger(MemoryLedger):
    """What one arm at one site pays for. Reserved and committed as ever; see `SharedReleases`.

    spared_s: seconds of computing that other arms had spent on what this one used again.
    """

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
        self.spared_s = 0.0
        self._started: dict[ReleaseKey, float] = {}
        self.decide(
            "approve",
            study_id=plan.study_id,
            plan_hash=plan.hash,
            expires=datetime(2999, 1, 1, tzinfo=UTC),
            decided_by="benchmark",
        )

    def reserve(self, spec: ReleaseSpec) -> Reservation:
        """As every ledger; what another arm has kept of an equal release is not made again."""
        paid = super().reserve(spec)
        key = self._key(paid.entry)
        shared = self._shared.outputs.get(key)
        if paid.stored_output is not None or shared is None:
            self._started[key] = time.process_time()
            return paid
        self.spared_s += shared.cpu_s
        return replace(paid, stored_output=shared.output)

    def keep(self, paid: Reservation, output: bytes) -> CommitEntry:
        """As every ledger; what depends on nothing that arms differ in is there for all."""
        key = self._key(paid.entry)
        if self._shared.knows(self._plan, paid.entry) and key not in self._shared.outputs:
            self._shared.outputs[key] = SharedRelease(
                output=output, cpu_s=time.process_time() - self._started[key]
            )
        return super().keep(paid, output)

    def _key(self, entry: ReserveEntry) -> ReleaseKey:
        return self._group, entry.round_id, entry.purpose, entry.chunk
