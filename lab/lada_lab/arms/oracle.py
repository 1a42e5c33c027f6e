"""The arm that is not private: what a choice could be that knows the records without noise.

Three exact answers, none of which leaves a ledger:

| question | answer |
|---|---|
| how much of the site's data lies in a cluster? | the count of its records |
| do a cluster's rationales suit the records? | data valuation, of all that the LLM could write |
| which of them suit the records best? | by how much likelier each becomes as the SLM learns these |

The third is the other way round because one training then answers for every sample: to first order,
what training on the records does for a sample is what training on the sample does for the records
(both are the inner product of their gradients; TracIn, Pruthi et al. 2020).

A yardstick and no strict bound: the best samples one by one need not be the best set, and all are
learned from by the same steps as in other arms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from lada_lab.arms.llm import LabLlm
from lada_lab.arms.pool_rules import Turn, path_losses
from lada_secure.allocation.data_valuation import (
    cell_usefulness,
    cluster_valuations,
    groups_to_value,
    usefulness,
)
from lada_secure.allocation.measurement import measured_gains, valuation_student
from lada_secure.allocation.selection import cluster_quotas, pick_by_cluster
from lada_secure.allocation.valuation_gains import NoisedGains, ValuationParameters, unit_gains
from lada_secure.arrays import BoolArray, FloatArray
from lada_secure.errors import ParameterError
from lada_secure.method.mechanisms import cell_grid
from lada_secure.method.plan import ReferenceModelPlan, ValuationPlan
from lada_secure.method.site_knowledge import replayed
from lada_secure.method.site_training import TrainedRound
from lada_secure.method.training import pool_tuning, private_units
from lada_secure.models.adapters import adapters_kept, load_adapters
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loss import LossSettings
from lada_secure.models.tuning import TuningSettings, tune_on_rationales
from lada_secure.privacy.release.units import Unit

# A cluster that is less surely useful than that is left out.
_LEAST_SURE: Final = 0.1
# No noise is added; the least that parameters may name says how fine whole numbers are, and that
# any record counts.
_NO_NOISE: Final = 0.01


@dataclass(slots=True, kw_only=True)
class Oracle:
    """Of clusters that suit the site's records, the samples that suit them best.

    units: of every site, by its name, read without a ledger.
    """

    llm: LabLlm
    units: Mapping[str, Sequence[Unit]]
    _useful: dict[str, FloatArray] = field(default_factory=dict)

    def choose(self, turn: Turn) -> BoolArray:
        """See `PoolRule`; the quota is split by records x usefulness."""
        plan, clusters = turn.site.plan, turn.site.pool_clusters
        if turn.name not in self._useful:
            self._useful[turn.name] = self.useful_clusters(turn)
        useful = self._useful[turn.name]
        available = turn.available & self.llm.paths().solved & (useful >= _LEAST_SURE)[clusters]
        quotas = cluster_quotas(
            self._masses(turn) * useful,
            plan.allocation.quota,
            available=np.bincount(clusters[available], minlength=len(useful)),
        )
        return pick_by_cluster(self.gains(turn), available, clusters, quotas, seed=plan.seed)

    def _masses(self, turn: Turn) -> FloatArray:
        """Records by cluster, (C,), each unit's weight being 1."""
        site = turn.site
        found: FloatArray = np.zeros(site.clusters.count)
        for unit in self.units[turn.name]:
            placed = site.clusters.assign(
                site.embedder.embed([record.question for record in unit.records])
            )
            np.add.at(found, placed, 1.0 / len(placed))
        return found

    def useful_clusters(self, turn: Turn) -> FloatArray:
        """How surely each cluster's rationales suit the records, (C,) in [0, 1]; 1/2 if untried."""
        site, plan, texts = turn.site, turn.site.plan, self.llm.paths().texts
        guide, trials = _judges(turn)
        clusters, places = site.clusters.count, list(texts)
        groups = groups_to_value([int(site.pool_clusters[at]) for at in places], clusters=clusters)
        tuning, replay = _tuning(turn, guide, steps=guide.pool_steps), replayed(site, guide)
        students = {
            cluster: valuation_student(
                site.lm,
                [_example(turn, places[at], texts[places[at]]) for at in members],
                replay,
                reference=site.reference,
                tuning=tuning,
            )
            for cluster, members in groups.items()
        }
        gains = measured_gains(
            site.lm,
            self.units[turn.name],
            students,
            reference=site.reference,
            clusters=clusters,
            batch_size=site.execution.batch_size,
        )
        parameters = ValuationParameters(
            clusters=clusters,
            gain_clip=trials.gain_clip,
            noise_multiplier=_NO_NOISE,
        )
        exact = NoisedGains(vector=unit_gains(gains, parameters), parameters=parameters)
        sizes = {cluster: len(members) for cluster, members in groups.items()}
        valued = [replace(one, std=0.0) for one in cluster_valuations(exact, sizes)]
        found = usefulness(valued, clusters=clusters, least_gain=trials.least_gain)
        by_cell = cell_usefulness(found, cell_grid(plan))
        per_cluster: FloatArray = by_cell.reshape(clusters, -1).mean(axis=1)
        return per_cluster

    def gains(self, turn: Turn) -> FloatArray:
        """By how much likelier each rationale becomes, nats per token, (n,); 0 where none is.

        The SLM from before any training learns the records; those without reasons with what the
        present student writes for them, as in DP-SGD.
        """
        site, texts = turn.site, self.llm.paths().texts
        guide, _ = _judges(turn)
        found: FloatArray = np.zeros(len(site.pool))
        site.wear(turn.state)
        joined = private_units(
            site.plan,
            site.lm,
            self.units[turn.name],
            round_id=turn.round_id,
            batch_size=site.execution.batch_size,
        )
        examples = [example for unit in joined for example in unit.examples]
        if not examples or not texts:
            return found
        with adapters_kept(site.lm):
            load_adapters(site.lm, site.reference)
            before = path_losses(site, texts)
            tune_on_rationales(
                site.lm,
                examples,
                replayed(site, guide),
                _tuning(turn, guide, steps=guide.last_pool_steps),
            )
            found[list(texts)] = before - path_losses(site, texts)
        return found

    def learn(self, turn: Turn, done: TrainedRound) -> None:
        """Nothing: the records are asked anew in every round."""


def _judges(turn: Turn) -> tuple[ReferenceModelPlan, ValuationPlan]:
    guide = turn.site.plan.guide
    if guide is None or guide.trials is None:
        raise ParameterError("oracle: the plan needs guide.trials, whose clip it values by")
    return guide, guide.trials


def _tuning(turn: Turn, guide: ReferenceModelPlan, *, steps: int) -> TuningSettings:
    return pool_tuning(
        turn.site.plan,
        guide,
        round_id=turn.round_id,
        steps=steps,
        loss=LossSettings(contrastive_weight=0.0),
    )


def _example(turn: Turn, pool_index: int, text: str) -> RationaleExample:
    return RationaleExample(
        example_id=turn.site.pool[pool_index].sample_id,
        prompt=turn.site.prompt(pool_index),
        path=text,
        rejected=None,
    )
