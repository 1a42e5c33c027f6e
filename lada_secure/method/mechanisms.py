"""A plan in the mechanisms' own terms: what each would be given, what it spends, what it refuses.

One place for the coordinator, which checks a plan before it proposes it, and for the sites, which
run it. The mechanisms themselves say what they refuse; nothing is checked twice here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from lada_secure.allocation.cells import CellGrid
from lada_secure.allocation.gap import SampleValue
from lada_secure.allocation.statistics_parameters import StatisticsParameters
from lada_secure.allocation.strategies import STRATEGIES, strategy
from lada_secure.allocation.valuation_gains import ValuationParameters
from lada_secure.errors import ParameterError
from lada_secure.method.plan import (
    STATISTICS,
    TRAINING,
    VALUATION,
    DistillationPlan,
    MethodPlan,
    TransferPlan,
)
from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.accounting.events import DpSgdEvent, GaussianEvent, PrivacyEvent
from lada_secure.privacy.ledger.terms import ReleaseSpec

if TYPE_CHECKING:
    from lada_secure.dpsgd.parameters import DpSgdParameters
    from lada_secure.models.adapters import AdapterSettings
    from lada_secure.models.loading import LanguageModel
    from lada_secure.models.loss import LossSettings


def cell_grid(plan: MethodPlan) -> CellGrid:
    """The cells of the plan: public clusters by difficulty for the LLM."""
    return CellGrid(clusters=plan.allocation.clusters, bins=plan.allocation.difficulty_bins)


def statistics_parameters(plan: MethodPlan) -> StatisticsParameters:
    """Clipping, scale, noise and bound of the statistics."""
    return StatisticsParameters(
        clusters=plan.allocation.clusters,
        loss_clip=plan.statistics.loss_clip,
        noise_multiplier=plan.statistics.noise_multiplier,
        max_units=plan.privacy.max_units,
        scale=plan.statistics.integer_scale,
    )


def sample_value(plan: MethodPlan) -> SampleValue:
    """What a sample is worth to a site."""
    return plan.allocation.sample_value or "score"


def reads_slm(plan: MethodPlan) -> bool:
    """Whether what a site asks for follows from what its SLM makes of the pool."""
    known = STRATEGIES.get(plan.allocation.strategy)
    return sample_value(plan) != "score" or (known is not None and known.reads_slm)


def valuation_parameters(plan: MethodPlan) -> ValuationParameters | None:
    """Clipping and noise of DP data valuation; None where the plan or its strategy has none."""
    trials = None if plan.guide is None else plan.guide.trials
    # A strategy that nobody knows is refused elsewhere; here it is taken to cost what it may.
    rule = STRATEGIES.get(plan.allocation.strategy)
    if trials is None or (rule is not None and not rule.judged):
        return None
    return ValuationParameters(
        clusters=plan.allocation.clusters,
        gain_clip=trials.gain_clip,
        noise_multiplier=trials.noise_multiplier,
    )


def privacy_parameters(plan: MethodPlan) -> DpSgdParameters:
    """Sampling, clipping, noise and steps of one round's DP-SGD."""
    # Imported here: it brings torch, which a refusal should not wait for.
    from lada_secure.dpsgd.parameters import DpSgdParameters

    training = plan.training
    return DpSgdParameters(
        noise_multiplier=training.noise_multiplier,
        l2_clip_norm=training.l2_clip_norm,
        sampling_probability=training.sampling_probability,
        expected_units=training.expected_units,
        steps=training.steps_per_round,
        pool_gradients=training.pool_gradients,
    )


def loss_settings(part: DistillationPlan | TransferPlan) -> LossSettings:
    """The loss of SLM or LLM. Raises: ParameterError: an unknown contrastive form."""
    from lada_secure.models.loss import LossSettings

    return LossSettings(
        contrastive_form=part.contrastive_form, contrastive_weight=part.contrastive_weight
    )


def adapter_settings(
    part: DistillationPlan | TransferPlan, lm: LanguageModel, *, seed: int
) -> AdapterSettings:
    """The adapters of SLM or LLM, on no more layers than the model has."""
    return adapter_shape(part, layers=int(lm.model.config.num_hidden_layers), seed=seed)


def adapter_shape(
    part: DistillationPlan | TransferPlan, *, layers: int, seed: int
) -> AdapterSettings:
    """The same for a model of so many layers."""
    from lada_secure.models.adapters import AdapterSettings

    return AdapterSettings(
        rank=part.adapter_rank,
        alpha=2.0 * part.adapter_rank,
        target_modules=part.adapter_targets,
        last_layers=min(part.adapter_layers, layers),
        train_a=part.train_a,
        core=part.adapter_core,
        seed=seed,
    )


def private_learning_rate(plan: MethodPlan, round_id: int) -> float:
    """Of a round's DP-SGD; with a DP reference model it falls from round to round.

    Later rounds go on from what the earlier ones found: large steps would only shake it.
    """
    decay = 1.0 if plan.guide is None else plan.guide.rate_decay**round_id
    return plan.distillation.learning_rate * decay


def round_release(
    plan: MethodPlan, round_id: int, spec: Callable[..., ReleaseSpec], parameters: object
) -> ReleaseSpec:
    """What one release of a round costs, as the ledger says it.

    Args: spec: the mechanism's own, such as `statistics_spec`. parameters: of that mechanism.
    """
    return spec(
        parameters,
        study_id=plan.study_id,
        plan_hash=plan.hash,
        round_id=round_id,
        unit=plan.privacy.unit,
    )


def planned_events(plan: MethodPlan) -> Mapping[str, PrivacyEvent]:
    """Everything that a study spends if it runs to its end, by purpose."""
    events: dict[str, PrivacyEvent] = {
        STATISTICS: GaussianEvent(
            noise_multiplier=plan.statistics.noise_multiplier, count=plan.rounds
        ),
        TRAINING: DpSgdEvent(
            noise_multiplier=plan.training.noise_multiplier,
            sampling_probability=plan.training.sampling_probability,
            steps=plan.training.steps_per_round * plan.rounds,
        ),
    }
    valuation = valuation_parameters(plan)
    if valuation is not None:
        events[VALUATION] = GaussianEvent(
            noise_multiplier=valuation.noise_multiplier, count=plan.rounds
        )
    return events


def planned_epsilon(plan: MethodPlan) -> float:
    """Epsilon of the whole study at the plan's delta, by PLD, before anything is spent."""
    return epsilon([*planned_events(plan).values()], target_delta=plan.privacy.target_delta)


def plan_inconsistencies(plan: MethodPlan) -> tuple[str, ...]:
    """Everything in a plan that one of its own mechanisms would refuse; empty where it can run."""
    checks: dict[str, Callable[[], object]] = {
        "statistics": lambda: statistics_parameters(plan),
        "training": lambda: privacy_parameters(plan),
        "distillation": lambda: loss_settings(plan.distillation),
        "allocation": lambda: _order_of_samples(plan),
        "guide.trials": lambda: valuation_parameters(plan),
        "privacy": lambda: _within_cap(plan),
    }
    if plan.guide is not None:
        checks["guide"] = lambda: _rates(plan)
    faults: list[str] = []
    for part, check in checks.items():
        try:
            check()
        except ParameterError as error:
            faults.append(f"{part}: {error}")
    return tuple(faults)


def _order_of_samples(plan: MethodPlan) -> None:
    cell_grid(plan)
    value, cells = sample_value(plan), strategy(plan.allocation.strategy)
    if cells.sample_order == "random" and value != "score":
        raise ParameterError(
            f"strategy {cells.name} draws at random: leave out sample_value, or name another "
            "strategy"
        )


def _rates(plan: MethodPlan) -> None:
    if not private_learning_rate(plan, plan.rounds - 1) > 0.0:
        raise ParameterError("rate_decay: the last round's learning rate is 0; raise it")


def _within_cap(plan: MethodPlan) -> None:
    needed = planned_epsilon(plan)
    if not needed <= plan.privacy.epsilon_cap:
        raise ParameterError(
            f"epsilon_cap: its {plan.rounds} rounds would spend epsilon {needed:.3f}, above its "
            f"own cap of {plan.privacy.epsilon_cap}; take more noise, fewer rounds or steps, or a "
            "higher cap"
        )
