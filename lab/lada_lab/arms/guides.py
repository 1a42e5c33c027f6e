"""Everything that a simulated site releases, made once per site and epsilon for all arms.

Allocation is post-processing of these releases. Letting all arms of one world share them makes
their differences differences of allocation, not of two draws of noise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_lab.arms.coordinator import Coordinator
from lada_lab.arms.plain_training import train_without_privacy
from lada_lab.arms.study import (
    Noise,
    StudySettings,
    private_rate,
    statistics_parameters,
    training_parameters,
)
from lada_lab.worlds.study_data import BenchSite
from lada_secure.allocation.cluster_estimates import ClusterEstimates
from lada_secure.allocation.measured_statistics import measured_statistics
from lada_secure.allocation.statistics import (
    UnitStatistics,
    release_statistics,
    statistics_spec,
)
from lada_secure.dpsgd.distillation import distil, training_spec
from lada_secure.dpsgd.parameters import TrainerSettings
from lada_secure.dpsgd.private_examples import private_unit
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import AdapterWeights, adapter_weights, load_adapters
from lada_secure.models.embedding import HASHED_NGRAMS, embedder
from lada_secure.models.examples import PrivateUnit
from lada_secure.models.loading import LanguageModel
from lada_secure.models.loss import LossSettings
from lada_secure.models.self_rationales import self_generated_rationales
from lada_secure.privacy.ledger.book import BudgetCaps
from lada_secure.privacy.ledger.entries import LedgerIdentity
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.release.units import Unit, bound_units

PLAN_HASH = "00" * 32
STUDY = "bench"
_EXACT_SCALE = 120


def memory_ledger(*, name: str, cap: float, delta: float) -> MemoryLedger:
    """A ledger of a simulated site that has approved the study."""
    book = MemoryLedger(
        identity=LedgerIdentity.new(site=name, population=f"{name}.records"),
        signing_key=Ed25519PrivateKey.generate(),
        caps=BudgetCaps(target_delta=delta, total_epsilon=cap, study_epsilon=cap),
        clock=lambda: datetime.now(UTC),
    )
    book.decide(
        "approve",
        study_id=STUDY,
        plan_hash=PLAN_HASH,
        expires=datetime(2999, 1, 1, tzinfo=UTC),
        decided_by="benchmark",
    )
    return book


@dataclass(slots=True, kw_only=True)
class SiteReleases:
    """One site's releases at one epsilon: noised statistics and the guide, round by round.

    noise None: without privacy, exact in both. `lm` is the site's own copy, adapters attached.
    cpu_s: what they took so far.
    """

    site: BenchSite
    settings: StudySettings
    noise: Noise | None
    lm: LanguageModel
    coordinator: Coordinator
    seed: int
    units: tuple[Unit, ...]
    book: MemoryLedger | None
    reference: AdapterWeights
    cpu_s: float = 0.0
    _guides: list[AdapterWeights] = field(default_factory=list)
    _statistics: dict[int, ClusterEstimates] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        site: BenchSite,
        settings: StudySettings,
        noise: Noise | None,
        lm: LanguageModel,
        coordinator: Coordinator,
        *,
        seed: int,
    ) -> SiteReleases:
        """Bound the records by privacy unit, and open a ledger where there is noise.

        Raises: ParameterError: no record.
        """
        if not site.train:
            raise ParameterError(f"{site.name}: expected at least one record, got none")
        book = None
        if noise is not None:
            # A hair above, so that the calibrated total is not refused for its rounding.
            cap = noise.epsilon * 1.001
            book = memory_ledger(name=site.name, cap=cap, delta=settings.target_delta)
        return cls(
            site=site,
            settings=settings,
            noise=noise,
            lm=lm,
            coordinator=coordinator,
            seed=seed,
            units=bound_units(site.train, max_records_per_unit=settings.max_records_per_unit),
            book=book,
            reference=adapter_weights(lm),
        )

    def guide(self, round_id: int) -> AdapterWeights:
        """Adapters after the private steps of rounds 0 to `round_id`."""
        while len(self._guides) <= round_id:
            started = time.process_time()
            self._train(len(self._guides))
            self.cpu_s += time.process_time() - started
        return self._guides[round_id]

    def _train(self, round_id: int) -> None:
        start = self._guides[-1] if self._guides else self.reference
        self._guides.append(self.trained(start, round_id=round_id, book=self.book))

    def trained(
        self, start: AdapterWeights, *, round_id: int, book: MemoryLedger | None
    ) -> AdapterWeights:
        """Go on from given adapters by the private steps that the study has for a round.

        From the second round on, records without reasons take part with what the adapters write.
        """
        settings = self.settings
        load_adapters(self.lm, start)
        trainer = TrainerSettings(
            device="cpu",
            threads=1,
            physical_batch_size=settings.batch_size,
            pool_batch_size=0,
            learning_rate=private_rate(settings, self.noise, round_id=round_id),
            steps_per_reservation=settings.private_steps[round_id],
            seed=self.seed + round_id,
            loss=LossSettings(contrastive_weight=0.0),
        )
        write = bool(round_id) and settings.own_reasons
        if self.noise is None or book is None:
            train_without_privacy(
                self.lm,
                units=self._private_units(write=write),
                pool=(),
                steps=settings.private_steps[round_id],
                expected_units=settings.expected_units,
                settings=trainer,
            )
            return adapter_weights(self.lm)
        privacy = training_parameters(
            settings, self.noise, steps=settings.private_steps[round_id], pool_gradients="public"
        )
        return distil(
            self.lm,
            units=lambda _paid: self._private_units(write=write),
            pool=(),
            privacy=privacy,
            settings=trainer,
            book=book,
            spec=training_spec(privacy, study_id=STUDY, plan_hash=PLAN_HASH, round_id=round_id),
        ).adapters.value

    def _private_units(self, *, write: bool) -> tuple[PrivateUnit, ...]:
        """What the private steps read, with the present adapters' own reasons if `write`."""
        written = self._written() if write else [()] * len(self.units)
        return tuple(
            private_unit(unit, with_reasons_only=True, written=own)
            for unit, own in zip(self.units, written, strict=True)
        )

    def _written(self) -> list[tuple[str | None, ...]]:
        return self_generated_rationales(
            self.lm,
            self.units,
            batch_size=self.settings.batch_size,
            max_new_tokens=self.settings.max_new_tokens,
        )

    def arm_ledger(self, arm: str) -> MemoryLedger | None:
        """A ledger for what one arm alone takes of the site's records; None without privacy."""
        if self.noise is None:
            return None
        return memory_ledger(
            name=f"{self.site.name}-{arm}",
            cap=self.noise.epsilon * 1.001,
            delta=self.settings.target_delta,
        )

    def statistics(self, round_id: int) -> ClusterEstimates:
        """Estimates of the site's own masses and losses, under the guide of the round before."""
        if round_id not in self._statistics:
            last = self.settings.guide_round(round_id - 1)
            under = self.guide(last) if round_id else self.reference
            started = time.process_time()
            self._statistics[round_id] = self.measured(
                round_id, under=under, noise=self.noise, book=self.book
            )
            self.cpu_s += time.process_time() - started
        return self._statistics[round_id]

    def measured(
        self,
        round_id: int,
        *,
        under: AdapterWeights,
        noise: Noise | None,
        book: MemoryLedger | None,
    ) -> ClusterEstimates:
        """Release a round's statistics under given adapters; exact without noise or ledger."""
        load_adapters(self.lm, under)
        clusters = self.coordinator.clusters.count
        if noise is None or book is None:
            numbers = self._exact(scale=_EXACT_SCALE).vector / _EXACT_SCALE
            masses, losses = numbers[:clusters], numbers[clusters:]
            mean = losses.sum() / max(float(masses.sum()), 1e-9)
            ratios = np.where(masses > 0, losses / np.where(masses > 0, masses, 1.0), mean)
            return ClusterEstimates(
                masses=masses, mean_losses=self.settings.loss_clip * ratios, mass_std=0.0
            )
        parameters = statistics_parameters(
            self.settings, noise, clusters=clusters, units=len(self.units)
        )
        spec = statistics_spec(parameters, study_id=STUDY, plan_hash=PLAN_HASH, round_id=round_id)
        return release_statistics(
            lambda _paid: self._exact(scale=parameters.scale),
            parameters=parameters,
            book=book,
            spec=spec,
        ).value.estimates()

    def _exact(self, *, scale: int) -> UnitStatistics:
        return measured_statistics(
            self.lm,
            self.units,
            clusters=self.coordinator.clusters,
            embedder=embedder(HASHED_NGRAMS),
            loss_clip=self.settings.loss_clip,
            scale=scale,
            batch_size=self.settings.batch_size,
        )

    def spent(self) -> float:
        """Epsilon that the ledger says is spent; infinite without privacy."""
        if self.book is None:
            return float("inf")
        return self.book.epsilon_spent(self.settings.target_delta)
