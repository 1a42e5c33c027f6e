"""Trains valuation students on public paths, and measures what each makes of a site's records.

Training reads released adapters and public text alone. The gains are private; they leave through
`lada_secure.allocation.valuation_gains.release_gains` and in no other way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lada_secure.allocation.valuation_gains import UnitGains, ValuationParameters, unit_gains
from lada_secure.arrays import FloatArray
from lada_secure.data.records import Record
from lada_secure.dpsgd.private_examples import record_example
from lada_secure.models.adapters import AdapterWeights, adapter_weights, load_adapters
from lada_secure.models.evaluation import batches_by_length
from lada_secure.models.examples import RationaleExample, TokenRow, encode_row
from lada_secure.models.loading import LanguageModel
from lada_secure.models.rationale_scoring import RationaleScorer, per_token
from lada_secure.models.tuning import TuningSettings, tune_on_rationales
from lada_secure.privacy.release.unit_by_unit import for_each_unit
from lada_secure.privacy.release.units import Unit

_CACHE_BYTES = 256 * 2**20


def valuation_student(
    lm: LanguageModel,
    paths: Sequence[RationaleExample],
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
        return tune_on_rationales(lm, paths, (), tuning)
    finally:
        load_adapters(lm, before)


def measured_gains(
    lm: LanguageModel,
    units: Sequence[Unit],
    students: Mapping[int, AdapterWeights],
    *,
    reference: AdapterWeights,
    parameters: ValuationParameters,
    batch_size: int,
) -> UnitGains:
    """By how much each student makes the records' own reasons likelier than the reference does.

    Records without reasons take no part: a student that reasons differs from the reference in how
    likely a bare answer is, whatever it has learned. The model's adapters are left as they were.
    Scores are float32, whatever training runs in.

    Total: a unit that cannot be measured, whatever its records hold, adds zero, which is within
    the bound of every unit's part; see `for_each_unit` for why it moves nobody else's.
    """

    def measured(part: Sequence[Unit], batch: int) -> list[FloatArray]:
        records = [one for unit in part for one in unit.records if one.rationale is not None]
        gains: FloatArray = np.zeros((len(records), parameters.clusters), dtype=np.float64)
        if records:
            scores = _RecordScores.open(lm, records, batch_size=batch)
            base = scores.under(reference)
            for cluster, student in students.items():
                gains[:, cluster] = scores.under(student) - base
        sizes = [sum(one.rationale is not None for one in unit.records) for unit in part]
        return np.split(gains, np.cumsum(sizes)[:-1])

    before = adapter_weights(lm)
    try:
        found = for_each_unit(
            units,
            lambda part: measured(part, batch_size),
            alone=lambda unit: measured([unit], 1)[0],
            otherwise=np.zeros((0, parameters.clusters), dtype=np.float64),
            what="trials",
        )
    finally:
        load_adapters(lm, before)
    return unit_gains(found, parameters=parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class _RecordScores:
    """How likely records' own paths are under one set of adapters after another.

    Layers below the adapters run once per record, not once per student (`FrozenPrefix`).
    """

    lm: LanguageModel
    rows: tuple[TokenRow, ...]
    scorer: RationaleScorer
    batch_size: int

    @classmethod
    def open(
        cls, lm: LanguageModel, records: Sequence[Record], *, batch_size: int
    ) -> _RecordScores:
        examples = [record_example(one) for one in records]
        lm.model.eval()
        return cls(
            lm=lm,
            rows=tuple(encode_row(lm, one.prompt, one.path) for one in examples),
            scorer=RationaleScorer(lm.model, device=lm.model.device, cache_bytes=_CACHE_BYTES),
            batch_size=batch_size,
        )

    @torch.no_grad()
    def under(self, weights: AdapterWeights) -> FloatArray:
        """Log-probabilities in nats per token, (n,)."""
        load_adapters(self.lm, weights)
        found: FloatArray = np.zeros(len(self.rows), dtype=np.float64)
        for places in batches_by_length([len(one.tokens) for one in self.rows], self.batch_size):
            rows = [self.rows[at] for at in places]
            found[places] = per_token(self.scorer(rows), rows).cpu().numpy()
        return found
