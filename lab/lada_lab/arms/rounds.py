"""The rounds of one study in one process, by the very functions that parties run.

Left out are messages, signatures and encryption. Sums are whole numbers either way; scores are
computed in the clear from the matrix in its committed form, and read in the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lada_lab.arms.arms import Arm
from lada_lab.arms.baseline_rounds import BaselineRounds
from lada_lab.arms.ledgers import ArmLedger
from lada_lab.arms.llm import LabLlm
from lada_secure.allocation.selection import pick
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.method.llm_transfer import Decision
from lada_secure.method.plan import MethodPlan
from lada_secure.method.site_allocation import choose_cells
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_round import confidence_excess, site_statistics, solved
from lada_secure.method.site_round import pick as pick_by_plan
from lada_secure.method.site_state import ReceivedRationale, SiteState
from lada_secure.method.site_training import TrainedRound, train
from lada_secure.models.adapters import AdapterWeights
from lada_secure.models.evaluation import rationale_log_probabilities


@dataclass(slots=True, kw_only=True)
class SimulatedSite:
    """One site during one study: what its steps are computed with, and its state."""

    name: str
    context: SiteContext
    state: SiteState
    ledger: ArmLedger
    reports: list[dict[str, int]] = field(default_factory=list)

    def report(self, trained_on: Sequence[int], harmful: frozenset[int]) -> None:
        """Note what was asked for, received and learned from so far."""
        received = [known.pool_index for known in self.state.rationales]
        self.reports.append(
            {
                "asked": sum(len(picks) for picks in self.state.picks.values()),
                "received": len(received),
                "received_harmful": sum(index in harmful for index in received),
                "trained": len(trained_on),
                "trained_harmful": sum(index in harmful for index in trained_on),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A round's SLM-to-LLM transfer. asked: pool indices that sites were asked about."""

    asked: tuple[int, ...]
    decision: Decision[AdapterWeights]

    def report(self) -> dict[str, int | bool]:
        """Figures for the benchmark."""
        return {
            "asked": len(self.asked),
            "used": self.decision.used,
            "before": self.decision.before.right,
            "after": self.decision.after.right,
            "accepted": self.decision.weights is not None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRound:
    """What came of a round.

    demand: (n,) how many sites want each pool sample. received: what the LLM wrote for everybody.
    trained: by site, in their order. transfer: None where the round has none.
    """

    demand: tuple[int, ...]
    received: tuple[ReceivedRationale, ...]
    trained: tuple[TrainedRound, ...]
    transfer: Transfer | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedStudy:
    """One arm's study under one plan. spared_s: seconds on the SLM that another arm had spent."""

    arm: Arm
    plan: MethodPlan
    llm: LabLlm
    sites: tuple[SimulatedSite, ...]
    baseline: BaselineRounds | None
    spared_s: float = 0.0

    def run_round(self, round_id: int) -> SimulatedRound:
        """Take every site and the LLM through a round; rounds come in their order."""
        noised = [site_statistics(site.context, site.state, round_id).value for site in self.sites]
        demand = [0] * self.plan.pool_size
        for site, statistics in zip(self.sites, noised, strict=True):
            site.state = self._asked(site, round_id, statistics)
            for index in site.state.picks[round_id]:
                demand[index] += 1
        received = self.llm.write(demand)
        # An arm that asks by a rule of its own keeps to it; the method's own choice may fall back.
        wanted = sum(count > 0 for count in demand) if self.arm.asks == "method" else None
        trained = self._trained(noised, received, round_id, demanded=wanted)
        for site, done in zip(self.sites, trained, strict=True):
            site.state = done.state
            site.report(done.trained_on, self.llm.data.harmful)
        return SimulatedRound(
            demand=tuple(demand),
            received=tuple(received),
            trained=tuple(trained),
            transfer=None if self.plan.transfer_in(round_id) is None else self._transfer(round_id),
        )

    def _asked(self, site: SimulatedSite, round_id: int, noised: NoisedStatistics) -> SiteState:
        """What a site asks for, by the plan's strategy or by the arm's own rule."""
        asks, state = self.arm.asks, site.state
        if asks == "none" or (asks == "all" and round_id > 0):
            return state.with_picks(round_id, ())
        if asks == "all":
            return state.with_picks(round_id, [int(at) for at in np.flatnonzero(self.llm.solved)])
        if asks == "loss-based":
            return state.with_picks(round_id, self._largest_gap(site, round_id))
        scores = self.llm.scores(choose_cells(self.plan, state, noised).utilities)
        return pick_by_plan(site.context, state, round_id, noised, scores)

    def _trained(
        self,
        noised: Sequence[NoisedStatistics],
        received: Sequence[ReceivedRationale],
        round_id: int,
        *,
        demanded: int | None,
    ) -> list[TrainedRound]:
        if self.baseline is not None:
            sites = [(site.context, site.state) for site in self.sites]
            return self.baseline.train(sites, noised, received, round_id)
        return [
            train(site.context, site.state, round_id, statistics, received, demanded=demanded)
            for site, statistics in zip(self.sites, noised, strict=True)
        ]

    def _transfer(self, round_id: int) -> Transfer:
        """Add up what sites know better, ask them about it, and let the LLM learn or stay."""
        for site in self.sites:
            excess = confidence_excess(site.context, site.state)
            site.state = site.state.with_excess(round_id, [int(entry) for entry in excess])
        opened = np.sum([site.state.excess[round_id] for site in self.sites], axis=0)
        asked = self.llm.inquire([int(entry) for entry in opened])
        written = {site.name: solved(site.context, site.state, asked) for site in self.sites}
        return Transfer(
            asked=tuple(asked),
            decision=self.llm.improve(written, seed=self.plan.seed + round_id),
        )

    def _largest_gap(self, site: SimulatedSite, round_id: int) -> list[int]:
        """Samples whose gold answer the LLM finds likelier than the SLM, by the most."""
        context, pool = site.context, site.context.pool
        context.wear(site.state)
        own = rationale_log_probabilities(
            context.lm,
            [context.lm.form.prompt(sample.question, sample.choices) for sample in pool],
            [context.lm.form.target(sample.answer, sample.choices, None) for sample in pool],
            batch_size=context.execution.batch_size,
        ).losses
        # As in all other arms, no pick is wasted on a sample that the LLM cannot solve.
        available = self.llm.solved.copy()
        available[sorted(site.state.picked_before(round_id))] = False
        gap = own - self.llm.answer_losses()
        chosen = pick(
            gap,
            available & (gap >= 1e-9),
            quota=self.plan.allocation.quota,
            seed=self.plan.seed,
        )
        return [int(at) for at in np.flatnonzero(chosen)]
