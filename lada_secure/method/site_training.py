"""A round's training at a site, step 9: from a state and what the LLM wrote to the next state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lada_secure.allocation.explanation import explain_cells
from lada_secure.allocation.fallback import Fallback
from lada_secure.allocation.gap import cell_rewards, probability
from lada_secure.allocation.reward_model import observations
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.allocation.strategies import rationale_screen, strategy
from lada_secure.arrays import FloatArray
from lada_secure.canonical import Json
from lada_secure.dpsgd.distillation import Distilled, StepReport, distil, training_spec
from lada_secure.dpsgd.parameters import SignalToNoiseEstimate
from lada_secure.method.judges import agreeing, drawn_beside, judge, release_valuation
from lada_secure.method.mechanisms import (
    cell_grid,
    loss_settings,
    privacy_parameters,
    round_release,
)
from lada_secure.method.plan import ReferenceModelPlan
from lada_secure.method.rejected import with_rejected
from lada_secure.method.site_allocation import CellChoice
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_fallback import fallback_after_writing
from lada_secure.method.site_knowledge import replayed, site_choice
from lada_secure.method.site_state import KnownRationale, ReceivedRationale, SiteState
from lada_secure.method.training import pool_tuning, private_units, trainer_settings
from lada_secure.models.adapters import adapter_weights, load_adapters
from lada_secure.models.examples import PrivateUnit, RationaleExample
from lada_secure.models.reference_model import scaled_adapters
from lada_secure.models.tuning import tune_on_rationales
from lada_secure.privacy.ledger.terms import Reservation


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReports:
    """Whom to tell how training goes: after every step, and once before anything is spent."""

    progress: Callable[[StepReport], None] | None = None
    announce: Callable[[SignalToNoiseEstimate], None] | None = None


_UNTOLD = RoundReports()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConsideredRound:
    """What a site has made of a round's rationales before its SLM learns from any.

    state: with all rationales and what judges say of them. examples: of the same rationales.
    before: (m,) their losses under the SLM so far, nats per token. new: places among them of those
    that came in this round. passing: places of those to learn from. distilled: what DP-SGD
    released, None where its steps are still to come.
    """

    state: SiteState
    choice: CellChoice
    examples: tuple[RationaleExample, ...]
    before: FloatArray
    new: frozenset[int]
    passing: tuple[int, ...]
    distilled: Distilled | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRound:
    """What a round's training left.

    state: the next one. cells: why each cell was allocated and what it brought, for the site's own
    reports. trained_on: pool indices, ascending. fallback: why the site did not follow its choice,
    or learned nothing from the pool; None in a round as planned.
    """

    state: SiteState
    cells: tuple[Json, ...]
    trained_on: tuple[int, ...]
    fallback: Fallback | None


def train(
    site: SiteContext,
    state: SiteState,
    round_id: int,
    noised: NoisedStatistics,
    received: Sequence[ReceivedRationale],
    reports: RoundReports = _UNTOLD,
    *,
    demanded: int | None = None,
) -> TrainedRound:
    """Distil the rationales that were asked for and the private records.

    All rationales so far take part, as far as they pass the plan's screens; none where the round
    does without the pool. With a guide, DP-SGD reads the private records alone, and the rationales
    that agree with what it released are learned from afterwards.

    Args: noised: this round's statistics. received: what the LLM wrote for everybody. demanded: how
        many samples any site wants; None where that is not known.
    """
    considered = consider(site, state, round_id, noised, received, reports, demanded=demanded)
    learn(site, considered, round_id, reports)
    return close(site, considered, round_id)


def consider(
    site: SiteContext,
    state: SiteState,
    round_id: int,
    noised: NoisedStatistics,
    received: Sequence[ReceivedRationale],
    reports: RoundReports = _UNTOLD,
    *,
    demanded: int | None = None,
) -> ConsideredRound:
    """Take new rationales in, judge all of them, and say which to learn from."""
    plan = site.plan
    choice = site_choice(site, state, noised)
    late = fallback_after_writing(
        site, state.picks.get(round_id, ()), [one.pool_index for one in received], demanded
    )
    state = state.with_fallback(round_id, late)
    site.wear(state)
    rationales, new = _taken(state, round_id, received)
    examples = [site.example(known) for known in rationales]
    before = site.losses(examples)
    probabilities = probability(before)
    rationales = [
        replace(known, p=float(probabilities[at])) if at in new else known
        for at, known in enumerate(rationales)
    ]
    state = replace(state, rationales=tuple(rationales))
    screens = plan.allocation
    passing = rationale_screen(probabilities, screens.screen_low, screens.screen_high)
    distilled = None
    if plan.guide is not None:
        state, distilled = _with_dp_reference(site, state, plan.guide, round_id, reports)
        if strategy(plan.allocation.strategy).judged:
            state = _judged(site, state, plan.guide, examples, round_id)
            passing &= agreeing(plan, plan.guide, state)
    if state.without_pool(round_id):
        # Judged all the same: what is paid for counts in the rounds to come.
        passing[:] = False
    return ConsideredRound(
        state=state,
        choice=choice,
        examples=tuple(examples),
        before=before,
        new=new,
        passing=tuple(int(at) for at in np.flatnonzero(passing)),
        distilled=distilled,
    )


def wear_start(site: SiteContext, state: SiteState, round_id: int) -> None:
    """Put into the model what a round's student starts from.

    With a guide a share of what DP-SGD released, or all of it where no pool makes up for the rest;
    else the student so far.
    """
    guide = site.plan.guide
    if guide is None:
        site.wear(state)
    else:
        start = state.dp_reference or site.reference
        share = 1.0 if state.without_pool(round_id) else guide.private_share
        load_adapters(site.lm, scaled_adapters(start, share))


def learn(
    site: SiteContext,
    considered: ConsideredRound,
    round_id: int,
    reports: RoundReports = _UNTOLD,
) -> None:
    """Train the SLM on what passed; afterwards the model wears the round's student."""
    plan, guide = site.plan, site.plan.guide
    known = () if guide is None else replayed(site, guide)
    wear_start(site, considered.state, round_id)
    examples = _contrasted(site, considered)
    if guide is None:
        _private_steps(site, examples, round_id, reports)
        return
    if examples:
        last = round_id + 1 == plan.rounds
        tuning = pool_tuning(
            plan,
            guide,
            round_id=round_id,
            steps=guide.last_pool_steps if last else guide.pool_steps,
            loss=loss_settings(plan.distillation),
        )
        tune_on_rationales(site.lm, examples, known, tuning)
    finish(site, considered, round_id, reports)


def finish(
    site: SiteContext,
    considered: ConsideredRound,
    round_id: int,
    reports: RoundReports = _UNTOLD,
) -> None:
    """Take the private steps that the round has left, on top of the student in the model.

    What the pool has taught makes the records easier to learn from: their gradients then point at
    what only they know.
    """
    if considered.distilled is None:
        _private_steps(site, (), round_id, reports)


def close(site: SiteContext, considered: ConsideredRound, round_id: int) -> TrainedRound:
    """Reward what was new and learned from, and remember the student that the model wears."""
    state, places = considered.state, considered.passing
    fresh = [at for at in places if at in considered.new]
    cells = np.array([known.cell for known in state.rationales], dtype=np.int64)
    rewards = cell_rewards(
        considered.before[fresh],
        site.losses([considered.examples[at] for at in fresh]),
        cells[fresh],
        cells=cell_grid(site.plan).cells,
    )
    view = considered.choice.view
    explained = explain_cells(
        view,
        considered.choice.utilities,
        picked_cells=cells[sorted(considered.new)],
        rewards=rewards,
    )
    return TrainedRound(
        state=replace(
            state,
            trained=(*state.trained, round_id),
            history=state.history.with_round(
                observations(view.beliefs, rewards, round_id=round_id)
            ),
            student=adapter_weights(site.lm),
        ),
        cells=explained,
        trained_on=tuple(state.rationales[at].pool_index for at in places),
        fallback=state.fallbacks.get(round_id),
    )


def _taken(
    state: SiteState, round_id: int, received: Sequence[ReceivedRationale]
) -> tuple[list[KnownRationale], frozenset[int]]:
    """All rationales so far, and where among them those are that are new."""
    wanted = set(state.picks.get(round_id, ()))
    known = {one.pool_index: one for one in state.rationales}
    came = {
        one.pool_index: KnownRationale(
            pool_index=one.pool_index, cell=one.cell, text=one.text, p=0.0
        )
        for one in received
        if one.pool_index in wanted and one.pool_index not in known
    }
    ordered = [known.get(index) or came[index] for index in sorted({*known, *came})]
    return ordered, frozenset(at for at, one in enumerate(ordered) if one.pool_index in came)


def _with_dp_reference(
    site: SiteContext,
    state: SiteState,
    guide: ReferenceModelPlan,
    round_id: int,
    reports: RoundReports,
) -> tuple[SiteState, Distilled | None]:
    """Let DP-SGD go on with the DP reference model, but in a round that finishes."""
    if strategy(site.plan.allocation.strategy).judged:
        load_adapters(site.lm, site.reference)
        state = replace(state, rationales=drawn_beside(site, guide, state.rationales))
    if site.plan.finishes(round_id):
        return state, None
    load_adapters(site.lm, state.dp_reference or site.reference)
    distilled = _private_steps(site, (), round_id, reports)
    return replace(state, dp_reference=distilled.adapters.value), distilled


def _judged(
    site: SiteContext,
    state: SiteState,
    guide: ReferenceModelPlan,
    examples: Sequence[RationaleExample],
    round_id: int,
) -> SiteState:
    """Judge all rationales by the DP reference model and by data valuation."""
    dp_reference = state.dp_reference or site.reference
    state = replace(state, rationales=judge(site, state.rationales, dp_reference))
    valued = release_valuation(site, guide, state.rationales, examples, round_id)
    return replace(state, valuations=(*state.valuations, *valued))


def _private_steps(
    site: SiteContext,
    examples: Sequence[RationaleExample],
    round_id: int,
    reports: RoundReports,
) -> Distilled:
    """The round's DP-SGD, from the present adapters, beside examples of pool samples."""
    plan, privacy = site.plan, privacy_parameters(site.plan)

    def units(paid: Reservation) -> Sequence[PrivateUnit]:
        return private_units(
            plan,
            site.lm,
            site.records.units(paid),
            round_id=round_id,
            batch_size=site.execution.batch_size,
        )

    return distil(
        site.lm,
        units=units,
        pool=examples,
        privacy=privacy,
        settings=trainer_settings(plan, site.execution, round_id=round_id),
        book=site.book,
        spec=round_release(plan, round_id, training_spec, privacy),
        progress=reports.progress,
        announce=reports.announce,
    )


def _contrasted(site: SiteContext, considered: ConsideredRound) -> list[RationaleExample]:
    rationales = considered.state.rationales
    return with_rejected(
        site.lm,
        site.plan,
        [considered.examples[at] for at in considered.passing],
        [site.pool[rationales[at].pool_index] for at in considered.passing],
        batch_size=site.execution.batch_size,
    )
