"""What a site's model and the public clusters say of its records, before any noise.

The result never leaves the site; `release_statistics` is the only way out for what becomes of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from lada_secure.allocation.cells import Clusters
from lada_secure.allocation.statistics import (
    MeasuredRecord,
    UnitStatistics,
    unit_statistics,
)
from lada_secure.dpsgd.private_examples import record_example
from lada_secure.models.embedding import Embedder
from lada_secure.models.evaluation import rationale_losses
from lada_secure.models.loading import LanguageModel
from lada_secure.privacy.release.unit_by_unit import for_each_unit
from lada_secure.privacy.release.units import Unit


def measured_statistics(
    lm: LanguageModel,
    units: Sequence[Unit],
    *,
    clusters: Clusters,
    embedder: Embedder,
    loss_clip: float,
    scale: int,
    batch_size: int,
) -> UnitStatistics:
    """Assign every record to its cluster, measure the model's loss on it, and add up by unit.

    The loss is of the stated answer alone: some records have reasons and some do not, and their
    losses are to be comparable. Losses are float32 or wider, whatever training runs in.

    Total: a unit that cannot be measured, whatever its records hold, adds zero, which is within
    the bound of every unit's part; see `for_each_unit` for why it moves nobody else's.

    Args: lm: as it is now; public or released. loss_clip, scale: as in `unit_statistics`.
    """

    def measured(part: Sequence[Unit], batch: int) -> list[tuple[MeasuredRecord, ...]]:
        records = [one for unit in part for one in unit.records]
        placed = clusters.assign(embedder.embed([one.question for one in records]))
        losses = rationale_losses(
            lm, [record_example(one, reasons=False) for one in records], batch_size=batch
        )
        found = iter(
            MeasuredRecord(cluster=int(cluster), loss=float(loss))
            for cluster, loss in zip(placed, losses, strict=True)
        )
        return [tuple(next(found) for _ in unit.records) for unit in part]

    return unit_statistics(
        for_each_unit(
            units,
            lambda part: measured(part, batch_size),
            alone=lambda unit: measured([unit], 1)[0],
            otherwise=(),
            what="statistics",
        ),
        clusters=clusters.count,
        loss_clip=loss_clip,
        scale=scale,
    )
