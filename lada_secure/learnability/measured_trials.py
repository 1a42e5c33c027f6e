"""Trains trial students on public paths, and measures what each makes of a site's records.

Training reads released adapters and public text alone. The gains are private; they leave through
`lada_secure.learnability.trial_gains.release_trials` and in no other way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lada_secure.distillation.adapters import AdapterWeights, adapter_weights, load_adapters
from lada_secure.distillation.evaluation import path_losses
from lada_secure.distillation.examples import PathExample
from lada_secure.distillation.models import LanguageModel
from lada_secure.distillation.private_examples import record_example
from lada_secure.distillation.public_tuning import TuningSettings, tune_on_paths
from lada_secure.learnability.arrays import FloatArray
from lada_secure.learnability.trial_gains import TrialParameters, UnitGains, unit_gains
from lada_secure.privacy.units import Unit


def trial_student(
    lm: LanguageModel,
    paths: Sequence[PathExample],
    *,
    reference: AdapterWeights,
    tuning: TuningSettings,
) -> AdapterWeights:
    """A student of one cluster's paths alone, from the reference by cross-entropy.

    The model's adapters are left as they were.
    """
    before = adapter_weights(lm)
    try:
        load_adapters(lm, reference)
        return tune_on_paths(lm, paths, (), tuning)
    finally:
        load_adapters(lm, before)


def measured_trials(
    lm: LanguageModel,
    units: Sequence[Unit],
    students: Mapping[int, AdapterWeights],
    *,
    reference: AdapterWeights,
    parameters: TrialParameters,
    batch_size: int,
) -> UnitGains:
    """By how much each student makes the records' own reasons likelier than the reference does.

    Records without reasons take no part: a student that reasons differs from the reference in how
    likely a bare answer is, whatever it has learned. The model's adapters are left as they were.
    """
    records = [one for unit in units for one in unit.records if one.rationale is not None]
    examples = [record_example(one) for one in records]
    gains: FloatArray = np.zeros((len(records), parameters.clusters), dtype=np.float64)
    before = adapter_weights(lm)
    try:
        load_adapters(lm, reference)
        base = path_losses(lm, examples, batch_size=batch_size)
        for cluster, student in students.items():
            load_adapters(lm, student)
            gains[:, cluster] = base - path_losses(lm, examples, batch_size=batch_size)
    finally:
        load_adapters(lm, before)
    return unit_gains(
        units,
        {one.record_id: row for one, row in zip(records, gains, strict=True)},
        parameters=parameters,
    )
