"""Memory of a DP-SGD step, counted on a model without numbers; see `models.rehearsal`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from lada_secure.dpsgd.clipping import ClippedSum
from lada_secure.dpsgd.engine import open_engine
from lada_secure.dpsgd.parameters import DpSgdParameters
from lada_secure.models.examples import TokenRow
from lada_secure.models.rationale_scoring import RationaleScorer
from lada_secure.models.rehearsal import Peak, Rehearsal


def step_peak(
    rehearsal: Rehearsal,
    *,
    rows: int,
    length: int,
    privacy: DpSgdParameters | None,
    cache_bytes: int,
) -> Peak:
    """Of one physical batch, from its forward pass to its part of the clipped sum.

    Args: rows: a unit each, or all of one where `privacy` is None, as in the public stream.
    cache_bytes: as the trainer's scorer has it.
    """
    model = rehearsal.model
    made_up = [TokenRow(tokens=(1,) * length, target_start=1)] * rows
    units, owners = (rows, list(range(rows))) if privacy is not None else (1, [0] * rows)
    with rehearsal.counting():
        engine = open_engine(model, "auto", checkpoints=rehearsal.placement.gradient_checkpointing)
        scorer = RationaleScorer(
            model, device=rehearsal.placement.torch_device, cache_bytes=cache_bytes
        )

    def summed_loss() -> Tensor:
        return -scorer(made_up).sum()

    def work(_: PreTrainedModel, *, privacy: DpSgdParameters | None) -> None:
        gradients: Sequence[Tensor] = engine.gradients(units, owners, summed_loss)[0]
        if privacy is not None:
            ClippedSum(engine.parameters, privacy).add(gradients)

    try:
        return rehearsal.peak_of(partial(work, privacy=privacy))
    finally:
        engine.close()
