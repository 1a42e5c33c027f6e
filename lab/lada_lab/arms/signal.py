"""`lada bench signal`: how long a private step's signal is beside its noise, in one world.

With made-up records nothing is private here: unit gradients may be looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from lada_lab.arms.arms import arms_named
from lada_lab.arms.rounds import SimulatedSite
from lada_lab.arms.simulation import Laboratory, prepare
from lada_lab.arms.study import LabSettings
from lada_secure.dpsgd.batching import physical_batches
from lada_secure.dpsgd.engine import open_engine
from lada_secure.dpsgd.gradient import GradientSource
from lada_secure.method.mechanisms import loss_settings
from lada_secure.method.plan import MethodPlan
from lada_secure.method.training import private_units
from lada_secure.models.examples import PrivateUnit, RationaleExample, encode_units
from lada_secure.models.loading import LanguageModel
from lada_secure.models.rationale_scoring import RationaleScorer
from lada_secure.privacy.release.units import Unit

_ARM = "no-pool"
_PUBLIC_SAMPLES = 200


def run_signal(
    settings: LabSettings, *, seed: int, epsilons: Sequence[float], cache_dir: Path
) -> dict[str, Any]:
    """Measure one world; see `measured_signal`."""
    lab = Laboratory.open(prepare(settings, seed=seed, cache_dir=cache_dir), settings)
    return {"seed": seed, **measured_signal(lab, epsilons=epsilons)}


def measured_signal(lab: Laboratory, *, epsilons: Sequence[float]) -> dict[str, Any]:
    """Measure the first private step of the arm `no-pool`, from the fresh model.

    Returns: JSON-ready, means over the sites. trained: numbers, d. unit_norm, public_norm: medians
        of a unit's and of a public sample's gradient. clipped_share: of units. sum_in_clips: length
        of the sum of all units' clipped gradients, in clip norms; sum_of_directions: the same under
        a clip that is below every gradient. By epsilon, signal_to_noise: sampling probability times
        sum_in_clips, over noise_multiplier times sqrt(d), and signal_to_noise_at_small_clip.
    """
    (arm,) = arms_named([_ARM])
    plans = {epsilon: lab.plan_of(arm, epsilon) for epsilon in epsilons}
    first = plans[epsilons[0]]
    sites = [
        _measured(site, units, first)
        for site, units in zip(lab.study(arm, first).sites, lab.units, strict=True)
    ]
    report: dict[str, Any] = {
        **{name: _rounded(fmean(one[name] for one in sites)) for name in sites[0]},
        # Whole, for it is the same at every site.
        "trained": int(sites[0]["trained"]),
        "l2_clip_norm": first.training.l2_clip_norm,
    }
    report["noise_multiplier"] = {
        f"{epsilon:g}": plan.training.noise_multiplier for epsilon, plan in plans.items()
    }
    for name, signal in (
        ("signal_to_noise", "sum_in_clips"),
        ("signal_to_noise_at_small_clip", "sum_of_directions"),
    ):
        report[name] = {
            f"{epsilon:g}": _rounded(fmean(_ratio(plan, one, signal) for one in sites))
            for epsilon, plan in plans.items()
        }
    return report


def _ratio(plan: MethodPlan, measured: dict[str, float], signal: str) -> float:
    training = plan.training
    joined = training.sampling_probability * measured[signal]
    return joined / (training.noise_multiplier * math.sqrt(measured["trained"]))


def _measured(site: SimulatedSite, units: Sequence[Unit], plan: MethodPlan) -> dict[str, float]:
    context = site.context
    context.wear(site.state)
    lm, size = context.lm, context.execution.batch_size
    joined = private_units(plan, lm, units, round_id=0, batch_size=size)
    private = _gradients(lm, joined, plan, batch_size=size)
    public = _gradients(lm, _public_units(site), plan, batch_size=size)
    clip = plan.training.l2_clip_norm
    norms = private.norm(dim=1)
    kept = clip / norms.clamp(min=clip)
    directions = private / norms.clamp(min=1e-30).unsqueeze(1)
    return {
        "trained": private.shape[1],
        "units": len(norms),
        "unit_norm": median(norms.tolist()),
        "public_norm": median(public.norm(dim=1).tolist()),
        "clipped_share": float((norms > clip).double().mean()),
        "sum_in_clips": float((private * kept.unsqueeze(1)).sum(0).norm()) / clip,
        "sum_of_directions": float(directions.sum(0).norm()),
    }


def _public_units(site: SimulatedSite) -> list[PrivateUnit]:
    """Pool samples with their own answers for a path, as units."""
    form = site.context.lm.form
    return [
        PrivateUnit(
            unit_id=one.sample_id,
            examples=(
                RationaleExample(
                    example_id=one.sample_id,
                    prompt=form.prompt(one.question, one.choices),
                    path=form.target(one.answer, one.choices, None),
                    rejected=None,
                ),
            ),
        )
        for one in site.context.pool[:_PUBLIC_SAMPLES]
    ]


def _gradients(
    lm: LanguageModel, units: Sequence[PrivateUnit], plan: MethodPlan, *, batch_size: int
) -> Tensor:
    """Of every unit with examples, (units, d) float64."""
    engine = open_engine(lm.model, "auto")
    try:
        source = GradientSource(
            engine=engine,
            scorer=RationaleScorer(lm.model, device=lm.device),
            loss=loss_settings(plan.distillation),
            physical_batch_size=batch_size,
        )
        found = []
        encoded = encode_units(lm, units, contrast=False)
        for batch in physical_batches(encoded, physical_batch_size=batch_size):
            parts = source.unit_gradients(batch)
            found.append(torch.cat([one.flatten(1) for one in parts], dim=1).double())
        return torch.cat(found)
    finally:
        engine.close()


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
