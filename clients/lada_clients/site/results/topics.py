"""The topics of a study as this site has kept them: clusters of the public pool, with examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lada_clients.site.public_material import CLUSTERS_FILE, POOL_FILE
from lada_clients.site.results.evaluation import Topic
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_secure.allocation.cells import Clusters, parse_clusters
from lada_secure.canonical import parse_canonical_json, sha256_hex
from lada_secure.data.records import parse_pool, pool_hash
from lada_secure.errors import LadaError, ParameterError
from lada_secure.models.embedding import Embedder, embedder
from lada_secure.storage.whole_files import read_if_there

_SHOWN = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """Topics of the pool. names: each with the question nearest to its centre."""

    clusters: Clusters
    embedder: Embedder
    names: tuple[Topic, ...]

    def of(self, questions: Sequence[str]) -> list[int]:
        """The topic of each question."""
        return [int(one) for one in self.clusters.assign(self.embedder.embed(list(questions)))]


def read_topics(folder: Path, plan: StudyPlan) -> Topics | None:
    """The topics of a study; None where its folder was made before they were kept.

    Raises: ParameterError: not those of the plan.
    """
    raw, pool_raw = read_if_there(folder / CLUSTERS_FILE), read_if_there(folder / POOL_FILE)
    if raw is None or pool_raw is None:
        return None
    pool = parse_pool(pool_raw, where=str(folder / POOL_FILE))
    for name, found, expected in (
        (CLUSTERS_FILE, sha256_hex(raw), plan.clusters_sha256),
        (POOL_FILE, pool_hash(pool), plan.pool_sha256),
    ):
        if found != expected:
            raise ParameterError(
                f"{folder / name}: expected the hash {expected[:16]}, found {found[:16]}; restore "
                "it from its backup, or remove it and do without topics"
            )
    try:
        content = parse_canonical_json(raw, max_bytes=Kind.CLUSTERS.rules.max_payload_bytes)
        clusters = parse_clusters(content)
    except LadaError as error:
        raise ParameterError(f"{folder / CLUSTERS_FILE}: {error}") from error
    embeds = embedder(plan.embedder)
    distances = clusters.squared_distances(embeds.embed([one.question for one in pool]))
    nearest = np.argmin(distances, axis=0)
    names = tuple(
        Topic(topic=topic, example=_short(pool[int(at)].question))
        for topic, at in enumerate(nearest)
    )
    return Topics(clusters=clusters, embedder=embeds, names=names)


def _short(question: str) -> str:
    line = " ".join(question.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."
