"""The rounds of one study in one process, by the very functions that parties run.

Left out are messages, signatures and encryption. Sums are whole numbers either way; scores are
computed in the clear from the matrix in its committed form, and read in the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lada_lab.arms.arms import Arm
from lada_lab.arms.baseline_rounds import BaselineRounds
from lada_lab.arms.ledgers import ArmLedger
from lada_lab.arms.llm import LabLlm
from lada_lab.arms.paper_filter import PaperTransfer
from lada_lab.arms.pool_rules import PoolRule, Turn
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.method.llm_transfer import Decision
from lada_secure.method.plan import MethodPlan
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_knowledge import site_choice
from lada_secure.method.site_round import confidence_excess, site_statistics, solved
from lada_secure.method.site_round import pick as pick_by_plan
from lada_secure.method.site_state import ReceivedRationale, SiteState
from lada_secure.method.site_training import TrainedRound, train
from lada_secure.models.adapters import AdapterWeights


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
    """One arm's study under one plan.

    rule: who chooses samples where the method does not. inquiries: who chooses what sites are asked
    about in SLM-to-LLM transfer, where the method does not. spared_s: seconds on the SLM that
    another arm had spent.
    """

    arm: Arm
    plan: MethodPlan
    llm: LabLlm
    sites: tuple[SimulatedSite, ...]
    baseline: BaselineRounds | None
    rule: PoolRule | None = None
    inquiries: PaperTransfer | None = None
    spared_s: float = 0.0

    def run_round(self, round_id: int) -> SimulatedRound:
        """Take every site and the LLM through a round; rounds come in their order."""
        noised = [site_statistics(site.context, site.state, round_id).value for site in self.sites]
        demand = [0] * self.plan.pool_size
        turns = [
            self._turn(site, round_id, statistics)
            for site, statistics in zip(self.sites, noised, strict=True)
        ]
        for site, turn in zip(self.sites, turns, strict=True):
            site.state = self._asked(turn)
            for index in site.state.picks[round_id]:
                demand[index] += 1
        received = self.llm.write(demand)
        # An arm that asks by a rule of its own keeps to it; the method's own choice may fall back.
        wanted = sum(count > 0 for count in demand) if self.arm.asks == "method" else None
        trained = self._trained(noised, received, round_id, demanded=wanted)
        for site, turn, done in zip(self.sites, turns, trained, strict=True):
            if self.rule is not None:
                self.rule.learn(turn, done)
            site.state = done.state
            site.report(done.trained_on, self.llm.data.harmful)
        return SimulatedRound(
            demand=tuple(demand),
            received=tuple(received),
            trained=tuple(trained),
            transfer=None if self.plan.transfer_in(round_id) is None else self._transfer(round_id),
        )

    def _turn(self, site: SimulatedSite, round_id: int, noised: NoisedStatistics) -> Turn:
        # As in all other arms, no pick is wasted on a sample that the LLM cannot solve.
        available = self.llm.solved.copy()
        available[sorted(site.state.picked_before(round_id))] = False
        return Turn(
            name=site.name,
            site=site.context,
            state=site.state,
            round_id=round_id,
            noised=noised,
            available=available,
        )

    def _asked(self, turn: Turn) -> SiteState:
        """What a site asks for, by the plan's strategy or by the arm's own rule."""
        asks, state, round_id = self.arm.asks, turn.state, turn.round_id
        if asks == "none" or (asks == "all" and round_id > 0):
            return state.with_picks(round_id, ())
        if asks == "all":
            return state.with_picks(round_id, [int(at) for at in np.flatnonzero(turn.available)])
        if self.rule is not None:
            chosen = self.rule.choose(turn)
            return state.with_picks(round_id, [int(at) for at in np.flatnonzero(chosen)])
        scores = self.llm.scores(site_choice(turn.site, state, turn.noised).utilities)
        return pick_by_plan(turn.site, state, round_id, turn.noised, scores)

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
        """Find what sites know better, ask them about it, and let the LLM learn or stay."""
        asked = self._inquired(round_id)
        written = {
            site.name: solved(site.context, site.state, asked[site.name]) for site in self.sites
        }
        if self.inquiries is not None:
            self.inquiries.before(written)
        decision = self.llm.improve(written, seed=self.plan.seed + round_id)
        if self.inquiries is not None:
            self.inquiries.after(written, round_id)
        return Transfer(
            asked=tuple(sorted({index for one in asked.values() for index in one})),
            decision=decision,
        )

    def _inquired(self, round_id: int) -> Mapping[str, Sequence[int]]:
        """What every site is asked about: where the sum of their excess passes, or by a rule."""
        if self.inquiries is not None:
            sites = {site.name: (site.context, site.state) for site in self.sites}
            return self.inquiries.ask(sites, round_id)
        for site in self.sites:
            excess = confidence_excess(site.context, site.state)
            site.state = site.state.with_excess(round_id, [int(entry) for entry in excess])
        opened = np.sum([site.state.excess[round_id] for site in self.sites], axis=0)
        asked = self.llm.inquire([int(entry) for entry in opened])
        return {site.name: asked for site in self.sites}
