"""What a plan may say and a study may run on, and that is still hardly meant."""

from __future__ import annotations

from lada_secure.method.plan import MethodPlan
from lada_secure.privacy.accounting.planning import delta_warnings


def plan_advice(plan: MethodPlan) -> tuple[str, ...]:
    """Values that nobody refuses and that do not do what they look like; empty where all is well.

    Each names its key as study.toml does, and what to write there.
    """
    privacy, training, allocation = plan.privacy, plan.training, plan.allocation
    told = [
        f"[privacy] {said}, as [privacy] max_units = {privacy.max_units} allows"
        for said in delta_warnings(target_delta=privacy.target_delta, units=privacy.max_units)
    ]
    # Fixed by the plan, never counted: a step divides by it, whoever was drawn.
    most_drawn = training.sampling_probability * privacy.max_units
    if training.expected_units > most_drawn:
        told.append(
            f"[training] expected_units is {training.expected_units:g}, and the largest site draws "
            f"{most_drawn:g} a step (sampling_probability x [privacy] max_units): every step is "
            "divided by more people than there are. Take sampling_probability x the people of a "
            "typical site"
        )
    if allocation.quota > plan.pool_size:
        told.append(
            f"[allocation] quota is {allocation.quota}, the pool has {plan.pool_size} samples: a "
            "site asks for all that pass, so nothing is chosen. Lower the quota, or enlarge the "
            "pool"
        )
    return tuple(told)
