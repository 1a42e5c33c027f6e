"""What a site's model and the public clusters say of its records, before any noise.

The result never leaves the site; `release_statistics` is the only way out for what becomes of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lada_secure.distillation.evaluation import path_losses
from lada_secure.distillation.models import LanguageModel
from lada_secure.distillation.private_examples import record_example
from lada_secure.learnability.cells import Clusters
from lada_secure.learnability.embedding import Embedder
from lada_secure.learnability.statistics import UnitStatistics, unit_statistics
from lada_secure.privacy.units import Unit


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
    losses are to be comparable.

    Args: lm: as it is now; public or released. loss_clip, scale: as in `unit_statistics`.
    """
    records = [record for unit in units for record in unit.records]
    vectors = embedder.embed([one.question for one in records])
    assigned = clusters.assign(vectors) if records else np.zeros(0, dtype=np.int64)
    losses = path_losses(
        lm, [record_example(one, reasons=False) for one in records], batch_size=batch_size
    )
    ids = [one.record_id for one in records]
    return unit_statistics(
        units,
        {one: int(cluster) for one, cluster in zip(ids, assigned, strict=True)},
        {one: float(loss) for one, loss in zip(ids, losses, strict=True)},
        clusters=clusters.count,
        loss_clip=loss_clip,
        scale=scale,
    )
