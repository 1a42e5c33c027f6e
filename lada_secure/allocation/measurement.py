"""What a site's model makes of its records, before any noise.

None of it leaves the site but through `release_statistics` and `release_gains`. Models are public
or released, so that what is measured of a record depends on that record alone beside them.

Total: a unit that cannot be measured, whatever its records hold, adds zero, which is within the
bound of every unit's part; see `for_each_unit` for why it moves nobody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch

from lada_secure.allocation.cells import Clusters
from lada_secure.allocation.statistics import MeasuredRecord
from lada_secure.arrays import FloatArray
from lada_secure.data.records import Record
from lada_secure.models.adapters import AdapterWeights, adapters_kept, load_adapters
from lada_secure.models.company import as_if_alone
from lada_secure.models.embedding import Embedder
from lada_secure.models.evaluation import rationale_losses
from lada_secure.models.examples import RationaleExample, TokenRow, encode_row, record_example
from lada_secure.models.forward import batches_by_length
from lada_secure.models.loading import LanguageModel
from lada_secure.models.rationale_scoring import RationaleScorer, per_token
from lada_secure.models.tuning import TuningSettings, tune_on_rationales
from lada_secure.privacy.release.private_records import for_each_unit
from lada_secure.privacy.release.units import Unit

_CACHE_BYTES = 256 * 2**20

T = TypeVar("T")


def measured_records(
    lm: LanguageModel,
    units: Sequence[Unit],
    *,
    clusters: Clusters,
    embedder: Embedder,
    batch_size: int,
) -> list[tuple[MeasuredRecord, ...]]:
    """Assign every record to its cluster and measure the model's loss on it, by unit.

    Of the stated answer alone: some records have reasons and some do not, and what is measured is
    to be comparable.

    Args: lm: as it is now.
    """

    def measured(part: Sequence[Unit], batch: int) -> list[tuple[MeasuredRecord, ...]]:
        records = [record for unit in part for record in unit.records]
        placed = clusters.assign(embedder.embed([record.question for record in records]))
        losses = _losses(lm, records, batch)
        found = iter(
            MeasuredRecord(cluster=int(cluster), loss=float(loss))
            for cluster, loss in zip(placed, losses, strict=True)
        )
        return [tuple(next(found) for _ in unit.records) for unit in part]

    return _by_unit(lm, units, measured, batch_size=batch_size, otherwise=(), what="statistics")


def _losses(lm: LanguageModel, records: Sequence[Record], batch_size: int) -> FloatArray:
    """Of the stated answers, nats per token, (n,)."""
    stated = [
        record_example(record, lm.form, path=lm.form.target(record.answer, record.choices, None))
        for record in records
    ]
    return rationale_losses(lm, stated, batch_size=batch_size)


def valuation_student(
    lm: LanguageModel,
    paths: Sequence[RationaleExample],
    replay: Sequence[RationaleExample],
    *,
    reference: AdapterWeights,
    tuning: TuningSettings,
) -> AdapterWeights:
    """A student of one cluster's paths, from the reference by cross-entropy.

    Args: replay: what the tuning repeats of what is known already.

    Reads released adapters and public text alone. The model's adapters are left as they were.
    """
    with adapters_kept(lm):
        load_adapters(lm, reference)
        return tune_on_rationales(lm, paths, replay, tuning)


def measured_gains(
    lm: LanguageModel,
    units: Sequence[Unit],
    students: Mapping[int, AdapterWeights],
    *,
    reference: AdapterWeights,
    clusters: int,
    batch_size: int,
) -> list[FloatArray]:
    """By how much each student makes the records' own reasons likelier than the reference does.

    Returns: per unit (records with reasons, clusters), nats per token; 0 for clusters without a
    student.

    Records without reasons take no part: a student that reasons differs from the reference in how
    likely a bare answer is, whatever it has learned. The model's adapters are left as they were.
    Scores are float32 or of the base's type; where that is shorter, each unit is scored alone.
    """

    def measured(part: Sequence[Unit], batch: int) -> list[FloatArray]:
        examples = [
            [
                record_example(record, lm.form)
                for record in unit.records
                if record.rationale is not None
            ]
            for unit in part
        ]
        rows = [encode_row(lm, one.prompt, one.path) for unit in examples for one in unit]
        gains: FloatArray = np.zeros((len(rows), clusters), dtype=np.float64)
        if rows:
            # Layers below the adapters run once per record, not once per student.
            lm.model.eval()
            scorer = RationaleScorer(lm.model, device=lm.model.device, cache_bytes=_CACHE_BYTES)
            load_adapters(lm, reference)
            base = _path_scores(scorer, rows, batch_size=batch)
            for cluster, student in students.items():
                load_adapters(lm, student)
                gains[:, cluster] = _path_scores(scorer, rows, batch_size=batch) - base
        return np.split(gains, np.cumsum([len(unit) for unit in examples])[:-1])

    nothing: FloatArray = np.zeros((0, clusters), dtype=np.float64)
    with adapters_kept(lm):
        return _by_unit(
            lm, units, measured, batch_size=batch_size, otherwise=nothing, what="trials"
        )


@torch.no_grad()
def _path_scores(
    scorer: RationaleScorer, rows: Sequence[TokenRow], *, batch_size: int
) -> FloatArray:
    """Log-probabilities in nats per token under the present adapters, (n,)."""
    found: FloatArray = np.zeros(len(rows), dtype=np.float64)
    for places in batches_by_length([len(row.tokens) for row in rows], batch_size):
        batch = [rows[at] for at in places]
        found[places] = per_token(scorer(batch), batch).cpu().numpy()
    return found


def _by_unit(
    lm: LanguageModel,
    units: Sequence[Unit],
    measured: Callable[[Sequence[Unit], int], Sequence[T]],
    *,
    batch_size: int,
    otherwise: T,
    what: str,
) -> list[T]:
    return for_each_unit(
        units,
        as_if_alone(lm, lambda part: measured(part, batch_size)),
        alone=lambda unit: measured([unit], 1)[0],
        otherwise=otherwise,
        what=what,
    )
