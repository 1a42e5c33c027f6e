"""A round's training at a site, step 9: from a state and what the LLM wrote to the next state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lada_secure.canonical import Json
from lada_secure.distillation.adapters import (
    AdapterWeights,
    adapter_weights,
    load_adapters,
)
from lada_secure.distillation.examples import PathExample, PrivateUnit
from lada_secure.distillation.guide import scaled_adapters
from lada_secure.distillation.outlook import TrainingOutlook
from lada_secure.distillation.public_tuning import tune_on_paths
from lada_secure.distillation.training import Distilled, StepReport, distil
from lada_secure.learnability.allocation import strategy
from lada_secure.learnability.arrays import FloatArray
from lada_secure.learnability.data_filter import observations
from lada_secure.learnability.explanation import explain_cells
from lada_secure.learnability.gap import cell_rewards, probability
from lada_secure.learnability.statistics import NoisedStatistics
from lada_secure.method.judges import agreeing, draw_rationales, judge, release_valuation
from lada_secure.method.mechanisms import (
    cell_grid,
    loss_settings,
    privacy_parameters,
)
from lada_secure.method.plan import GuidePlan
from lada_secure.method.rejected import with_rejected
from lada_secure.method.site_allocation import choose_cells, screened
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_state import KnownRationale, ReceivedRationale, SiteState
from lada_secure.method.training import (
    pool_tuning,
    private_units,
    trainer_settings,
    training_release,
)
from lada_secure.privacy.ledger import Reservation


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRound:
    """What a round's training left.

    state: the next one. distilled: what DP-SGD released. cells: why each cell was allocated and
    what it brought, for the site's own reports. trained_on: pool indices, ascending.
    """

    state: SiteState
    distilled: Distilled
    cells: tuple[Json, ...]
    trained_on: tuple[int, ...]


def train(
    site: SiteContext,
    state: SiteState,
    round_id: int,
    noised: NoisedStatistics,
    received: Sequence[ReceivedRationale],
    *,
    progress: Callable[[StepReport], None] | None = None,
    announce: Callable[[TrainingOutlook], None] | None = None,
) -> TrainedRound:
    """Distil the rationales that were asked for and the private records.

    All rationales so far take part, as far as they pass the plan's screens. With a guide,
    DP-SGD reads the private records alone, and the rationales that agree with what it released
    are learned from afterwards.

    Args: noised: this round's statistics. received: what the LLM wrote for everybody.
    """
    choice = choose_cells(site.plan, state, noised)
    site.wear(state)
    rationales, new = _taken(state, round_id, received)
    examples = [site.example(known) for known in rationales]
    before = site.losses(examples)
    rationales = [
        replace(known, p=float(p)) if at in new else known
        for at, (known, p) in enumerate(zip(rationales, probability(before), strict=True))
    ]
    training = _Training(
        site=site, round_id=round_id, progress=progress, announce=announce, state=state
    )
    if site.plan.guide is None:
        places = [int(at) for at in np.flatnonzero(screened(site.plan, probability(before)))]
        distilled = training.together(rationales, examples, places)
        trained = replace(state, rationales=tuple(rationales))
    else:
        trained, places, distilled = training.judged(
            site.plan.guide, rationales, examples, probability(before)
        )
    fresh = [at for at in places if at in new]
    cells = np.array([known.cell for known in rationales], dtype=np.int64)
    rewards = cell_rewards(
        before[fresh],
        site.losses([examples[at] for at in fresh]),
        cells[fresh],
        cells=cell_grid(site.plan).cells,
    )
    explained = explain_cells(
        choice.view, choice.utilities, picked_cells=cells[sorted(new)], rewards=rewards
    )
    return TrainedRound(
        state=replace(
            trained,
            trained=(*state.trained, round_id),
            history=state.history.with_round(
                observations(choice.view.beliefs, rewards, round_id=round_id)
            ),
            student=adapter_weights(site.lm),
        ),
        distilled=distilled,
        cells=tuple(cell.to_json() for cell in explained),
        trained_on=tuple(rationales[at].pool_index for at in places),
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
    ordered = [known.get(at) or came[at] for at in sorted({*known, *came})]
    return ordered, frozenset(at for at, one in enumerate(ordered) if one.pool_index in came)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Training:
    """One round's training at one site, from the state before it."""

    site: SiteContext
    state: SiteState
    round_id: int
    progress: Callable[[StepReport], None] | None
    announce: Callable[[TrainingOutlook], None] | None

    def together(
        self,
        rationales: Sequence[KnownRationale],
        examples: Sequence[PathExample],
        places: Sequence[int],
    ) -> Distilled:
        """One training of private records and pool samples."""
        return self._private_steps(self._contrasted(rationales, examples, places))

    def judged(
        self,
        guide: GuidePlan,
        rationales: Sequence[KnownRationale],
        examples: Sequence[PathExample],
        probabilities: FloatArray,
    ) -> tuple[SiteState, list[int], Distilled]:
        """Train the DP reference model, then a student on the rationales that agree with it.

        In a round that finishes, the DP reference model is the newest one before, and the student
        is what the private steps go on from.

        Returns: the state but for student and history, the places of the rationales that were
        trained on, and what DP-SGD released.
        """
        site, plan, lm = self.site, self.site.plan, self.site.lm
        batch_size, rated = site.execution.batch_size, strategy(plan.allocation.strategy).judged
        load_adapters(lm, site.reference)
        if rated:
            rationales = draw_rationales(
                lm, plan, guide, rationales, site.pool, batch_size=batch_size
            )
        dp_reference = self.state.dp_reference or site.reference
        load_adapters(lm, dp_reference)
        distilled = None if plan.finishes(self.round_id) else self._private_steps(())
        if distilled is not None:
            dp_reference = distilled.adapters.value
        state = replace(self.state, rationales=tuple(rationales), dp_reference=dp_reference)
        passing = screened(plan, probabilities)
        if rated:
            state = self._rated(guide, state, examples, dp_reference)
            passing &= agreeing(plan, guide, state, state.rationales)
        places = [int(at) for at in np.flatnonzero(passing)]
        load_adapters(lm, scaled_adapters(dp_reference, guide.private_share))
        taught = self._contrasted(rationales, examples, places)
        if taught:
            last = self.round_id + 1 == plan.rounds
            tuning = pool_tuning(
                plan,
                guide,
                round_id=self.round_id,
                steps=guide.last_pool_steps if last else guide.pool_steps,
                loss=loss_settings(plan),
            )
            tune_on_paths(lm, taught, (), tuning)
        return state, places, self._private_steps(()) if distilled is None else distilled

    def _rated(
        self,
        guide: GuidePlan,
        state: SiteState,
        examples: Sequence[PathExample],
        dp_reference: AdapterWeights,
    ) -> SiteState:
        """Judge all rationales by the DP reference model and by data valuation."""
        site = self.site
        rationales = judge(
            site.lm,
            state.rationales,
            site.pool,
            reference=site.reference,
            dp_reference=dp_reference,
            batch_size=site.execution.batch_size,
        )
        valued = release_valuation(
            site.lm,
            site.plan,
            guide,
            rationales,
            examples,
            site.records,
            reference=site.reference,
            book=site.book,
            round_id=self.round_id,
            batch_size=site.execution.batch_size,
        )
        return replace(state, rationales=rationales, valuations=(*state.valuations, *valued))

    def _private_steps(self, pool: Sequence[PathExample]) -> Distilled:
        """The round's DP-SGD, from the present adapters."""
        site = self.site

        def units(paid: Reservation) -> Sequence[PrivateUnit]:
            return private_units(
                site.plan,
                site.lm,
                site.records.units(paid),
                round_id=self.round_id,
                batch_size=site.execution.batch_size,
            )

        return distil(
            site.lm,
            units=units,
            pool=pool,
            privacy=privacy_parameters(site.plan),
            settings=trainer_settings(site.plan, site.execution, round_id=self.round_id),
            book=site.book,
            spec=training_release(site.plan, self.round_id),
            progress=self.progress,
            announce=self.announce,
        )

    def _contrasted(
        self,
        rationales: Sequence[KnownRationale],
        examples: Sequence[PathExample],
        places: Sequence[int],
    ) -> list[PathExample]:
        site = self.site
        return with_rejected(
            site.lm,
            site.plan,
            [examples[at] for at in places],
            [site.pool[rationales[at].pool_index] for at in places],
            batch_size=site.execution.batch_size,
        )
