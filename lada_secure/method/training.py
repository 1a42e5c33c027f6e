"""What a site trains with: the plan in the trainer's own terms, and what DP-SGD reads of a unit.

One place for the site and for the audit of its training, so that both train the same private
stream: the same records of each unit, with the same rationales, at the same rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lada_secure.data.records import Record
from lada_secure.dpsgd.parameters import TrainerSettings
from lada_secure.method.execution import Execution
from lada_secure.method.mechanisms import loss_settings, private_learning_rate
from lada_secure.method.plan import MethodPlan, ReferenceModelPlan
from lada_secure.models.evaluation import ANSWER_TOKENS
from lada_secure.models.examples import PrivateUnit, private_unit
from lada_secure.models.loading import LanguageModel
from lada_secure.models.loss import LossSettings
from lada_secure.models.rationales import self_generated_rationales
from lada_secure.models.tuning import TuningSettings
from lada_secure.privacy.release.units import Unit

# The number of steps is the plan's, however few samples there are.
_MANY_EPOCHS = 10**6
_VALUATION_EPOCHS = 16


def trainer_settings(plan: MethodPlan, execution: Execution, *, round_id: int) -> TrainerSettings:
    """Optimiser, loss, speed and memory of a round's DP-SGD.

    With a DP reference model it reads private records alone.
    """
    shape = plan.distillation
    return TrainerSettings(
        threads=execution.threads,
        physical_batch_size=execution.batch_size,
        pool_batch_size=shape.pool_batch_size if plan.guide is None else 0,
        private_weight=shape.private_weight,
        learning_rate=private_learning_rate(plan, round_id),
        seed=plan.seed + round_id,
        loss=loss_settings(shape),
    )


def pool_tuning(
    plan: MethodPlan,
    guide: ReferenceModelPlan,
    *,
    round_id: int,
    steps: int,
    loss: LossSettings,
) -> TuningSettings:
    """How models learn from pool samples alone, after or beside a DP reference model."""
    return TuningSettings(
        steps=steps,
        batch_size=plan.distillation.pool_batch_size,
        replay_batch_size=guide.replay_batch_size or 0,
        learning_rate=guide.pool_learning_rate,
        max_epochs=_MANY_EPOCHS,
        seed=plan.seed + round_id,
        loss=loss,
    )


def valuation_tuning(
    plan: MethodPlan, guide: ReferenceModelPlan, *, round_id: int
) -> TuningSettings:
    """How a student of one cluster's rationales learns, whose effect on the records is asked for.

    As the site's own does, but it sees no rationale more than 16 times: a handful over and over
    says nothing more of what they teach, and most of the time of a round went into it.
    """
    tuning = pool_tuning(
        plan,
        guide,
        round_id=round_id,
        steps=guide.pool_steps,
        loss=LossSettings(contrastive_weight=0.0),
    )
    return replace(tuning, max_epochs=_VALUATION_EPOCHS)


def held_out_tokens(plan: MethodPlan, record: Record) -> int:
    """What a model may write to answer a held-out record; 0 where it only chooses an option."""
    if not plan.form.writes_first(record.choices):
        return 0
    return written_tokens(plan)


def written_tokens(plan: MethodPlan) -> int:
    """What a model may write to answer a question: a whole path, and room for short answers."""
    most = plan.paths.max_new_tokens
    return most if plan.answer_form == "reasoned" else max(most, ANSWER_TOKENS)


def private_units(
    plan: MethodPlan, lm: LanguageModel, units: Sequence[Unit], *, round_id: int, batch_size: int
) -> list[PrivateUnit]:
    """What a round's DP-SGD reads of each unit, with the model as it is when the round starts.

    With a DP reference model and the plan's `records_with_reasons`, bare answers take no part, but
    for those that the model itself writes rationales for (`own_reasons`, from the second round on).
    That model is public or released, so that a rationale depends on one record beside it, and a
    unit's part in a step stays bounded by the clipping norm. Total: whatever a record holds, it
    gives something or nothing, and ends nothing.
    """
    guide = plan.guide
    if guide is None:
        return [private_unit(unit, lm.form) for unit in units]
    written: Sequence[Sequence[str | None]] = [()] * len(units)
    if guide.own_reasons and round_id > 0:
        written = self_generated_rationales(
            lm, units, batch_size=batch_size, max_new_tokens=plan.paths.max_new_tokens
        )
    only = guide.records_with_reasons
    return [
        private_unit(unit, lm.form, with_reasons_only=only, written=own)
        for unit, own in zip(units, written, strict=True)
    ]
