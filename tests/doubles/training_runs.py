"""Runs of `distil` on a small model, with a ledger to read."""

from __future__ import annotations

from trainer_doubles import (
    PLAN_HASH,
    example,
    paid,
    small_model,
    units_of_sizes,
)

from lada_secure.dpsgd.distillation import distil, training_spec
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.models.adapters import (
    AdapterSettings,
    attach_adapters,
)
from lada_secure.privacy.ledger.entries import CommitEntry, ReserveEntry

POOL = tuple(example(at) for at in range(50, 57))
UNITS = units_of_sizes(1, 2, 3, 1)


class Interrupted(Exception):
    """Stands for whatever ends a process in the middle of a step's report."""


def parameters(**changes):
    values = {
        "noise_multiplier": 2.0,
        "l2_clip_norm": 0.5,
        "sampling_probability": 0.25,
        "expected_units": 2.0,
        "steps": 7,
        "pool_gradients": "public",
    }
    return DpSgdParameters(**{**values, **changes})


def settings(**changes):
    values = {"pool_batch_size": 3, "physical_batch_size": 6, "steps_per_reservation": 3}
    return TrainerSettings(**{**values, **changes})


def adapted(**changes):
    return attach_adapters(small_model(), AdapterSettings(**{"rank": 2, **changes}))


def run(lm, book, *, privacy=None, tuned=None, units=UNITS, read=None, pool=POOL, progress=None):
    privacy = privacy or parameters()
    return distil(
        lm,
        units=read or paid(units),
        pool=pool,
        privacy=privacy,
        settings=tuned or settings(),
        book=book,
        spec=training_spec(privacy, study_id="study", plan_hash=PLAN_HASH, round_id=1),
        progress=progress,
    )


def reserved(book):
    return [one for one in book.entries() if isinstance(one, ReserveEntry)]


def committed(book):
    return [one for one in book.entries() if isinstance(one, CommitEntry)]
