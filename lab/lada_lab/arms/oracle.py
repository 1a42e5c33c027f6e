"""The arm that is not private: what a choice could be that knows the records without noise.

In every round the SLM from before any training learns the private records themselves, exactly. A
sample is worth by how much likelier that makes the LLM's rationale for it. To first order, what
training on the records does for a sample is what training on the sample does for the records (both
are the inner product of their gradients; TracIn, Pruthi et al. 2020), and many steps say it where
one gradient does not: choosing by the exact gradient alone came out far behind.
Later rounds differ in what records without reasons are learned with, which the student writes.

It bounds choosing, not accuracy: samples are still learned from by the same steps as in all arms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lada_lab.arms.llm import LabLlm
from lada_lab.arms.pool_rules import Turn, path_losses
from lada_secure.allocation.selection import pick
from lada_secure.arrays import BoolArray, FloatArray
from lada_secure.errors import ParameterError
from lada_secure.method.site_training import TrainedRound
from lada_secure.method.training import pool_tuning, private_units
from lada_secure.models.adapters import adapters_kept, load_adapters
from lada_secure.models.loss import LossSettings
from lada_secure.models.tuning import tune_on_rationales
from lada_secure.privacy.release.units import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """Samples that become likelier by the most when the model learns the site's own records.

    units: of every site, by its name, read without a ledger.
    """

    llm: LabLlm
    units: Mapping[str, Sequence[Unit]]

    def choose(self, turn: Turn) -> BoolArray:
        """See `PoolRule`; what becomes no likelier is not asked for."""
        plan = turn.site.plan
        gains = self.gains(turn)
        return pick(
            gains, turn.available & (gains > 0.0), quota=plan.allocation.quota, seed=plan.seed
        )

    def gains(self, turn: Turn) -> FloatArray:
        """By how much likelier each rationale becomes, nats per token, (n,); 0 where none is."""
        site, plan, texts = turn.site, turn.site.plan, self.llm.paths().texts
        if plan.guide is None:
            raise ParameterError("oracle: the plan needs a guide, which says how models learn")
        found: FloatArray = np.zeros(len(site.pool))
        site.wear(turn.state)
        joined = private_units(
            plan,
            site.lm,
            self.units[turn.name],
            round_id=turn.round_id,
            batch_size=site.execution.batch_size,
        )
        examples = [example for unit in joined for example in unit.examples]
        if not examples or not texts:
            return found
        tuning = pool_tuning(
            plan,
            plan.guide,
            round_id=turn.round_id,
            steps=plan.guide.last_pool_steps,
            loss=LossSettings(contrastive_weight=0.0),
        )
        with adapters_kept(site.lm):
            load_adapters(site.lm, site.reference)
            before = path_losses(site, texts)
            tune_on_rationales(site.lm, examples, (), tuning)
            found[list(texts)] = before - path_losses(site, texts)
        return found

    def learn(self, turn: Turn, done: TrainedRound) -> None:
        """Nothing: the records are asked anew in every round."""
