"""Arms without a guide: private records and pool paths train one model together, by DP-SGD.

These arms release more models than the guide's, so that their statistics and their training have a
ledger and a noise of their own: the whole arm costs the epsilon that it is compared at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lada_lab.arms.guides import (
    PLAN_HASH,
    STUDY,
    SiteReleases,
    memory_ledger,
)
from lada_lab.arms.study import (
    Noise,
    StudySettings,
    study_noise,
    training_parameters,
)
from lada_secure.allocation.cluster_estimates import ClusterEstimates
from lada_secure.dpsgd.distillation import distil, training_spec
from lada_secure.dpsgd.parameters import TrainerSettings
from lada_secure.dpsgd.private_examples import private_unit
from lada_secure.models.adapters import AdapterWeights, load_adapters
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel
from lada_secure.models.loss import LossSettings
from lada_secure.privacy.ledger.memory import MemoryLedger

PoolGradients = Literal["public", "private"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JointTraining:
    """One site's releases in an arm without a guide."""

    releases: SiteReleases
    settings: StudySettings
    pool_gradients: PoolGradients
    noise: Noise
    book: MemoryLedger

    @classmethod
    def open(
        cls,
        releases: SiteReleases,
        settings: StudySettings,
        *,
        epsilon: float,
        pool_gradients: PoolGradients,
    ) -> JointTraining:
        """Calibrate the noise for all of the arm's releases, and open a ledger."""
        noise = study_noise(settings, epsilon=epsilon, units=len(releases.units), joint=True)
        return cls(
            releases=releases,
            settings=settings,
            pool_gradients=pool_gradients,
            noise=noise,
            book=memory_ledger(
                name=f"{releases.site.name}-joint",
                # A hair above, so that the calibrated total is not refused for its rounding.
                cap=noise.epsilon * 1.001,
                delta=settings.target_delta,
            ),
        )

    def statistics(self, round_id: int, student: AdapterWeights) -> ClusterEstimates:
        """Estimates of the site's masses and losses under its own student."""
        return self.releases.measured(round_id, under=student, noise=self.noise, book=self.book)

    def train(
        self,
        lm: LanguageModel,
        student: AdapterWeights,
        pool: Sequence[RationaleExample],
        *,
        round_id: int,
        loss: LossSettings,
    ) -> AdapterWeights:
        """Go on from a student on both gradient streams for one round's steps."""
        settings = self.settings
        load_adapters(lm, student)
        privacy = training_parameters(
            settings, self.noise, steps=settings.joint_steps, pool_gradients=self.pool_gradients
        )
        done = distil(
            lm,
            units=lambda _paid: [
                private_unit(unit, with_reasons_only=True) for unit in self.releases.units
            ],
            pool=pool,
            privacy=privacy,
            settings=TrainerSettings(
                device="cpu",
                threads=1,
                physical_batch_size=settings.batch_size,
                pool_batch_size=settings.pool_batch_size,
                private_weight=settings.joint_weight,
                learning_rate=settings.joint_learning_rate,
                steps_per_reservation=settings.joint_steps,
                seed=self.releases.seed + round_id,
                loss=loss,
            ),
            book=self.book,
            spec=training_spec(privacy, study_id=STUDY, plan_hash=PLAN_HASH, round_id=round_id),
        )
        return done.adapters.value
