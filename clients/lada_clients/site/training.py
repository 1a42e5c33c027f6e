"""What a site trains with: the plan's and the site's settings in the trainer's own terms.

One place for the site and for the audit of its training, so that both train the same private
stream: the same records of each unit, with the same reasons, at the same rate.
"""

from __future__ import annotations

from collections.abc import Sequence

from lada_clients.site.settings import SiteSettings
from lada_protocol.plan import StudyPlan
from lada_protocol.plan_mechanisms import loss_settings
from lada_secure.dpsgd.parameters import TrainerSettings
from lada_secure.dpsgd.private_examples import private_unit
from lada_secure.models.adapters import AdapterSettings
from lada_secure.models.examples import PrivateUnit
from lada_secure.models.loading import LanguageModel
from lada_secure.models.self_rationales import self_generated_rationales
from lada_secure.privacy.release.units import Unit


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


def trainer_settings(plan: StudyPlan, settings: SiteSettings, *, round_id: int) -> TrainerSettings:
    """Optimiser, loss, speed and memory of a round's DP-SGD.

    With a guide it reads private records alone, at a rate that falls from round to round.
    """
    shape, guide = plan.distillation, plan.guide
    return TrainerSettings(
        device=settings.device,
        threads=settings.threads,
        physical_batch_size=settings.physical_batch_size,
        pool_batch_size=shape.pool_batch_size if guide is None else 0,
        private_weight=shape.private_weight,
        learning_rate=shape.learning_rate * (1.0 if guide is None else guide.rate_decay**round_id),
        seed=plan.seed + round_id,
        loss=loss_settings(plan),
    )


def private_units(
    plan: StudyPlan, lm: LanguageModel, units: Sequence[Unit], *, round_id: int, batch_size: int
) -> list[PrivateUnit]:
    """What a round's DP-SGD reads of each unit, with the model as it is when the round starts.

    With a guide and the plan's `records_with_reasons`, bare answers take no part, but for those
    that the model itself gives reasons for (`own_reasons`, from the second round on). That model is
    public or released, so that a path depends on one record beside it, and a unit's part in a step
    stays bounded by the clipping norm. Total: whatever a record holds, it gives something or
    nothing, and ends nothing.
    """
    guide = plan.guide
    if guide is None:
        return [private_unit(unit) for unit in units]
    written: Sequence[Sequence[str | None]] = [()] * len(units)
    if guide.own_reasons and round_id > 0:
        written = self_generated_rationales(
            lm, units, batch_size=batch_size, max_new_tokens=plan.paths.max_new_tokens
        )
    only = guide.records_with_reasons
    return [
        private_unit(unit, with_reasons_only=only, written=own)
        for unit, own in zip(units, written, strict=True)
    ]
