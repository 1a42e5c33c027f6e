"""Rules of choice that see every pool sample, for rivals that are not blind.

The method scores cells behind encryption; a rule here may look at each sample, at what the LLM
would write for it, and at both models' losses. Whatever a rule reads of private records comes out
of a ledger, but for the arm that is not private and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from lada_lab.arms.llm import LabLlm
from lada_secure.allocation.selection import pick
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.arrays import BoolArray, FloatArray
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_state import SiteState
from lada_secure.method.site_training import TrainedRound
from lada_secure.models.evaluation import rationale_log_probabilities

# Gaps below it are rounding.
_SMALLEST_GAP = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Turn:
    """One site's turn to ask for samples.

    noised: its released statistics of the round. available: (n,) bool, pool samples that the LLM
    solves and that this site has not asked for: as in all other arms, no pick is wasted.
    """

    name: str
    site: SiteContext
    state: SiteState
    round_id: int
    noised: NoisedStatistics
    available: BoolArray


class PoolRule(Protocol):
    """Chooses samples for every site of one study, round by round."""

    def choose(self, turn: Turn) -> BoolArray:
        """Samples to ask for, (n,) bool, at most the plan's quota, among the available ones."""
        ...

    def learn(self, turn: Turn, done: TrainedRound) -> None:
        """See what came of a turn, before the next round. The site's model wears any adapters."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LargestGap:
    """Samples whose gold answer the LLM finds likelier than the SLM, by the most.

    Dual minimum cross-entropy (Fan et al. 2024).
    """

    llm: LabLlm

    def choose(self, turn: Turn) -> BoolArray:
        """See `PoolRule`."""
        plan = turn.site.plan
        turn.site.wear(turn.state)
        gap = answer_losses(turn.site) - self.llm.answer_losses()
        return pick(
            gap,
            turn.available & (gap >= _SMALLEST_GAP),
            quota=plan.allocation.quota,
            seed=plan.seed,
        )

    def learn(self, turn: Turn, done: TrainedRound) -> None:
        """Nothing: losses are measured anew in every round."""


def answer_losses(site: SiteContext) -> FloatArray:
    """Losses on the pool's gold answers of a site's model as it is, nats per token, (n,)."""
    form = site.lm.form
    return rationale_log_probabilities(
        site.lm,
        [form.prompt(sample.question, sample.choices) for sample in site.pool],
        [form.target(sample.answer, sample.choices, None) for sample in site.pool],
        batch_size=site.execution.batch_size,
    ).losses


def path_losses(site: SiteContext, texts: Mapping[int, str]) -> FloatArray:
    """Losses of a site's model as it is on rationales by pool index, nats per token, (m,)."""
    return rationale_log_probabilities(
        site.lm,
        [site.prompt(at) for at in texts],
        list(texts.values()),
        batch_size=site.execution.batch_size,
    ).losses
