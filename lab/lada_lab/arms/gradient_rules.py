"""Choice by gradients under differential privacy.

A sample is worth the cosine of its gradient with the mean gradient of the site's records, both
under the model as it is now (LESS, Xia et al. 2024, arXiv 2402.04333). The records' gradients leave
sketched, by unit of norm 1, summed, noised and paid for in the ledger; a sample's own gradient is
that of the LLM's rationale for it, and costs no privacy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lada_lab.arms.gradient_release import (
    DirectionParameters,
    directions_spec,
    release_directions,
)
from lada_lab.arms.gradients import Sketch, UnitGradients, as_array, unit_gradients, unit_rows
from lada_lab.arms.llm import LabLlm
from lada_lab.arms.pool_rules import Turn
from lada_secure.allocation.selection import pick
from lada_secure.arrays import BoolArray, FloatArray
from lada_secure.errors import ParameterError
from lada_secure.method.mechanisms import round_release
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_training import TrainedRound
from lada_secure.method.training import private_units
from lada_secure.models.company import as_if_alone
from lada_secure.models.examples import (
    EncodedUnit,
    RationaleExample,
    encode_example,
    encode_units,
)
from lada_secure.privacy.ledger.terms import Reservation
from lada_secure.privacy.release.private_records import for_each_unit
from lada_secure.privacy.release.units import Unit

# Noise adds to every sample's cosine alike, however many buckets there are; too few mix gradients.
_BUCKETS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientAlignment:
    """Samples whose gradients point where a noised sum of the records' gradients points.

    It is paid from what the full method spends on data valuation: as many releases, of the same
    noise multiplier, so that a study costs the same epsilon.
    """

    llm: LabLlm

    def choose(self, turn: Turn) -> BoolArray:
        """See `PoolRule`."""
        site, plan = turn.site, turn.site.plan
        parameters = direction_parameters(site)
        site.wear(turn.state)
        with unit_gradients(site.lm, batch_size=site.execution.batch_size) as gradients:
            sketch = Sketch.drawn(gradients.entries, buckets=parameters.length, seed=plan.seed)

            def measured(paid: Reservation) -> list[FloatArray]:
                units = _encoded(site, site.records.units(paid), turn.round_id)
                return _sketched(site, gradients, units, sketch)

            target = release_directions(
                measured,
                parameters=parameters,
                book=site.book,
                spec=round_release(plan, turn.round_id, directions_spec, parameters),
            ).value
            towards = torch.from_numpy(target.copy())
            worth = _pool_worth(
                self.llm, turn, gradients, lambda found: unit_rows(sketch(found)) @ towards
            )
        return _best(turn, worth)

    def learn(self, turn: Turn, done: TrainedRound) -> None:
        """Nothing: gradients are measured anew in every round."""


def direction_parameters(site: SiteContext) -> DirectionParameters:
    """What a site releases of its gradients in a round, and how noisy.

    Raises: ParameterError: the plan has no data valuation, whose budget this is.
    """
    guide = site.plan.guide
    if guide is None or guide.trials is None:
        raise ParameterError(
            "gradient-alignment: the plan needs guide.trials, whose noise its release takes"
        )
    return DirectionParameters(length=_BUCKETS, noise_multiplier=guide.trials.noise_multiplier)


def _encoded(site: SiteContext, units: Sequence[Unit], round_id: int) -> Sequence[EncodedUnit]:
    """The records as a round's DP-SGD would read them."""
    joined = private_units(
        site.plan, site.lm, units, round_id=round_id, batch_size=site.execution.batch_size
    )
    return encode_units(site.lm, joined, contrast=False)


def _sketched(
    site: SiteContext, gradients: UnitGradients, units: Sequence[EncodedUnit], sketch: Sketch
) -> list[FloatArray]:
    """One sketch per unit; zeros for a unit without examples, or whose gradient fails."""
    nothing: FloatArray = np.zeros(sketch.buckets)

    def measured(part: Sequence[EncodedUnit]) -> list[FloatArray]:
        learned = [at for at, unit in enumerate(part) if unit.examples]
        found = [nothing] * len(part)
        if learned:
            rows = as_array(gradients.of_each([part[at].examples for at in learned], sketch))
            for at, row in zip(learned, rows, strict=True):
                found[at] = row
        return found

    together = as_if_alone(site.lm, measured)
    return for_each_unit(units, together, otherwise=nothing, what="gradients")


def _pool_worth(
    llm: LabLlm, turn: Turn, gradients: UnitGradients, look: Callable[[Tensor], Tensor]
) -> FloatArray:
    """A number per pool sample from the gradient of its rationale, 0 where it is not available."""
    site, texts = turn.site, llm.paths().texts
    places = [int(at) for at in np.flatnonzero(turn.available) if int(at) in texts]
    examples = [
        encode_example(
            site.lm,
            RationaleExample(
                example_id=site.pool[at].sample_id,
                prompt=site.prompt(at),
                path=texts[at],
                rejected=None,
            ),
            contrast=False,
        )
        for at in places
    ]
    worth: FloatArray = np.zeros(len(site.pool))
    if places:
        worth[places] = as_array(gradients.of_each([(one,) for one in examples], look))
    return worth


def _best(turn: Turn, worth: FloatArray) -> BoolArray:
    """The best by worth; what is worth nothing, or less, is not asked for."""
    plan = turn.site.plan
    return pick(worth, turn.available & (worth > 0.0), quota=plan.allocation.quota, seed=plan.seed)
