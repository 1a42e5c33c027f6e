"""The public pool and its clusters, as the plan pins them."""

from __future__ import annotations

from lada_clients.net.participant import Participant
from lada_protocol.kinds import Kind
from lada_protocol.rounds.tasks import Wait
from lada_secure.allocation.cells import Clusters, parse_clusters
from lada_secure.canonical import parse_canonical_json, sha256_hex
from lada_secure.data.records import PoolSample, parse_pool, pool_hash
from lada_secure.errors import ParameterError, PeerError


def read_public_material(me: Participant) -> tuple[tuple[PoolSample, ...], Clusters]:
    """Pool and clusters of the study, waiting until the coordinator has posted them.

    Raises: PeerError: wrong_pool, wrong_clusters: not those that the plan names.
    """
    coordinator = me.roster.coordinator.id
    missing = Wait(step="plan", round_id=0, awaited="pool and clusters", parties=(coordinator,))

    def posted(kind: Kind) -> bytes:
        while (message := me.index.find(kind, sender=coordinator)) is None:
            me.wait(missing)
        return me.payload(message)

    try:
        pool = parse_pool(posted(Kind.POOL), where="the coordinator's pool")
    except ParameterError as error:
        raise PeerError(str(error), reason="wrong_pool", peer=coordinator) from error
    raw = posted(Kind.CLUSTERS)
    if pool_hash(pool) != me.plan.pool_sha256 or len(pool) != me.plan.pool_size:
        raise PeerError("the pool is not the one in the plan", reason="wrong_pool")
    if sha256_hex(raw) != me.plan.clusters_sha256:
        raise PeerError("the clusters are not those in the plan", reason="wrong_clusters")
    limit = Kind.CLUSTERS.rules.max_payload_bytes
    clusters = parse_clusters(parse_canonical_json(raw, max_bytes=limit))
    if clusters.count != me.plan.allocation.clusters:
        raise PeerError("the number of clusters differs from the plan", reason="wrong_clusters")
    return pool, clusters
