"""What a site trains with: the plan's and the site's settings in the trainer's own terms.

One place for the site and for the audit of its training, so that both mean the same run.
"""

from __future__ import annotations

from lada_clients.site.settings import SiteSettings
from lada_protocol.plan import StudyPlan
from lada_secure.distillation.adapters import AdapterSettings
from lada_secure.distillation.loss import LossSettings
from lada_secure.distillation.parameters import DpSgdParameters, TrainerSettings


def adapter_settings(plan: StudyPlan, *, layers: int) -> AdapterSettings:
    """The adapters of the plan on a model of so many layers."""
    shape = plan.distillation
    return AdapterSettings(
        rank=shape.adapter_rank,
        alpha=2.0 * shape.adapter_rank,
        target_modules=shape.adapter_targets,
        last_layers=min(shape.adapter_layers, layers),
        train_a=shape.train_a,
        seed=plan.seed,
    )


def privacy_parameters(plan: StudyPlan) -> DpSgdParameters:
    """Sampling, clipping, noise and steps of one round; the plan alone decides them."""
    training = plan.training
    return DpSgdParameters(
        noise_multiplier=training.noise_multiplier,
        l2_clip_norm=training.l2_clip_norm,
        sampling_probability=training.sampling_probability,
        expected_units=training.expected_units,
        steps=training.steps_per_round,
        pool_gradients=training.pool_gradients,
    )


def trainer_settings(plan: StudyPlan, settings: SiteSettings, *, round_id: int) -> TrainerSettings:
    """Optimiser, loss, speed and memory of one round."""
    shape = plan.distillation
    return TrainerSettings(
        device=settings.device,
        threads=settings.threads,
        physical_batch_size=settings.physical_batch_size,
        pool_batch_size=shape.pool_batch_size,
        private_weight=shape.private_weight,
        learning_rate=shape.learning_rate,
        seed=plan.seed + round_id,
        loss=LossSettings(
            contrastive_form="dpo" if shape.contrastive_form == "dpo" else "margin",
            contrastive_weight=shape.contrastive_weight,
        ),
    )
