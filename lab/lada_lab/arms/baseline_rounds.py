"""Rounds in which a distillation baseline trains the students: FedMKT and FedCoLLM.

The method chooses and judges samples as ever; the baseline decides what is sent of those that
passed, and how students and LLM learn from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from lada_lab.arms.llm import LabLlm
from lada_lab.baselines.adapter_sums import AdapterSumSettings, adapter_vector, mean_adapters
from lada_lab.baselines.logit_baseline import BaselineTraining, LogitBaseline
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.errors import ParameterError
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_state import ReceivedRationale, SiteState
from lada_secure.method.site_training import (
    ConsideredRound,
    TrainedRound,
    close,
    consider,
    finish,
    wear_start,
)
from lada_secure.models.adapters import AdapterWeights, adapter_weights, load_adapters
from lada_secure.models.loading import LanguageModel

_LLM_STEPS = 60
_LLM_LEARNING_RATE = 5e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRounds:
    """One baseline with one LLM during one arm."""

    baseline: LogitBaseline
    llm: LabLlm

    @classmethod
    def open(cls, name: str, llm: LabLlm, sites: Sequence[SiteContext]) -> BaselineRounds:
        """Raises: ParameterError: an unknown name, or tokenizers without a common token."""
        baseline = LogitBaseline(name, llm.data.pool, llm=llm.lm, slm=sites[0].lm)
        return cls(baseline=baseline, llm=llm)

    def train(
        self,
        sites: Sequence[tuple[SiteContext, SiteState]],
        noised: Sequence[NoisedStatistics],
        received: Sequence[ReceivedRationale],
        round_id: int,
    ) -> list[TrainedRound]:
        """One round of all sites, and of the LLM."""
        considered = [
            consider(site, state, round_id, statistics, received)
            for (site, state), statistics in zip(sites, noised, strict=True)
        ]
        contexts = [site for site, _ in sites]
        if self.baseline.name == "fedcollm":
            return self._shared(contexts, considered, round_id)
        return self._separate(contexts, considered, round_id)

    def _separate(
        self, sites: Sequence[SiteContext], considered: Sequence[ConsideredRound], round_id: int
    ) -> list[TrainedRound]:
        """FedMKT: each site learns from the LLM, and the LLM from the best site per sample.

        The LLM's owner sends what is in demand to all, so that every site answers for every sample
        and none shows what it asked for.
        """
        trained = []
        for site, one in zip(sites, considered, strict=True):
            wear_start(site, one.state, round_id)
            self.baseline.teach(site.lm, _passing(one), _training(site, round_id))
            finish(site, one, round_id)
            trained.append(close(site, one, round_id))
        ready = [
            partial(_ready, site, done.state) for site, done in zip(sites, trained, strict=True)
        ]
        self._teach(
            ready,
            {index: text for one in considered for index, text in _known(one).items()},
            sites[0],
            round_id,
        )
        return trained

    def _shared(
        self, sites: Sequence[SiteContext], considered: Sequence[ConsideredRound], round_id: int
    ) -> list[TrainedRound]:
        """FedCoLLM: the sum of the sites' adapters, distilled mutually with the LLM.

        A sample is used where at least half of the sites that know it would learn from it. Only
        these counts are needed, so they can come from an aggregate as demand does.
        """
        knowing = Counter(index for one in considered for index in _known(one))
        votes = Counter(index for one in considered for index in _passing(one))
        texts = {
            index: text
            for one in considered
            for index, text in _known(one).items()
            if 2 * votes[index] >= knowing[index]
        }
        starts = []
        for site, one in zip(sites, considered, strict=True):
            wear_start(site, one.state, round_id)
            starts.append(adapter_weights(site.lm))
        first = sites[0]
        load_adapters(first.lm, added_up(starts))
        training = _training(first, round_id)
        # As many steps as all sites together take on their own.
        self.baseline.teach(first.lm, texts, replace(training, steps=training.steps * len(sites)))
        shared = adapter_weights(first.lm)
        self._teach(
            [partial(_ready, first, replace(considered[0].state, student=shared))],
            texts,
            first,
            round_id,
        )
        trained = []
        for site, one in zip(sites, considered, strict=True):
            load_adapters(site.lm, shared)
            finish(site, one, round_id)
            trained.append(close(site, one, round_id))
        return trained

    def _teach(
        self,
        students: Sequence[Callable[[], LanguageModel]],
        texts: Mapping[int, str],
        site: SiteContext,
        round_id: int,
    ) -> None:
        training = replace(
            _training(site, round_id), steps=_LLM_STEPS, learning_rate=_LLM_LEARNING_RATE
        )
        if self.baseline.teach_llm(students, texts, training):
            self.llm.forget()


def added_up(shares: Sequence[AdapterWeights]) -> AdapterWeights:
    """The mean of the sites' adapters, through the whole numbers that an aggregate would hold."""
    settings = AdapterSumSettings()
    total = np.sum([adapter_vector(share, settings) for share in shares], axis=0)
    return mean_adapters(total, sites=len(shares), like=shares[0], settings=settings)


def _known(considered: ConsideredRound) -> dict[int, str]:
    return {known.pool_index: known.text for known in considered.state.rationales}


def _passing(considered: ConsideredRound) -> dict[int, str]:
    rationales = considered.state.rationales
    return {rationales[at].pool_index: rationales[at].text for at in considered.passing}


def _training(site: SiteContext, round_id: int) -> BaselineTraining:
    """Steps, batch size and rate as the method's own students have them."""
    plan, guide = site.plan, site.plan.guide
    if guide is None:
        raise ParameterError("baselines start from what DP-SGD released: the plan needs a guide")
    last = round_id + 1 == plan.rounds
    return BaselineTraining(
        steps=guide.last_pool_steps if last else guide.pool_steps,
        batch_size=plan.distillation.pool_batch_size,
        learning_rate=guide.pool_learning_rate,
        seed=plan.seed + round_id,
    )


def _ready(site: SiteContext, state: SiteState) -> LanguageModel:
    site.wear(state)
    return site.lm
