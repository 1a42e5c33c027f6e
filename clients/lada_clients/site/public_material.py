"""What the coordinator posts for all, as a site reads it: pool, clusters, the LLM's rationales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lada_clients.net.participant import Participant
from lada_protocol.kinds import Kind
from lada_protocol.rounds.llm_transfer import MAX_RATIONALE_CHARACTERS
from lada_protocol.rounds.tasks import Wait
from lada_secure.allocation.cells import Clusters, parse_clusters
from lada_secure.canonical import parse_canonical_json, sha256_hex
from lada_secure.data.records import PoolSample, parse_pool, pool_bytes, pool_hash
from lada_secure.errors import ParameterError, PeerError
from lada_secure.method.site_state import ReceivedRationale
from lada_secure.storage.whole_files import write_atomically

POOL_FILE: Final = "pool.jsonl"
CLUSTERS_FILE: Final = "clusters.json"
_POOL: Final = "the coordinator's pool"


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

    pool = _pool_of_plan(me, posted(Kind.POOL))
    raw = posted(Kind.CLUSTERS)
    if sha256_hex(raw) != me.plan.clusters_sha256:
        raise PeerError("the clusters are not those in the plan", reason="wrong_clusters")
    limit = Kind.CLUSTERS.rules.max_payload_bytes
    clusters = parse_clusters(parse_canonical_json(raw, max_bytes=limit))
    if clusters.count != me.plan.allocation.clusters:
        raise PeerError("the number of clusters differs from the plan", reason="wrong_clusters")
    # The board may be gone when somebody asks what the site's figures are about.
    folder = me.open_folder()
    for path, content in ((folder / POOL_FILE, pool_bytes(pool)), (folder / CLUSTERS_FILE, raw)):
        if not path.exists():
            write_atomically(path, content)
    return pool, clusters


def posted_pool(me: Participant) -> tuple[PoolSample, ...]:
    """The pool of the study if the coordinator has posted it, else nothing.

    Raises: PeerError: wrong_pool: no pool, or not the one that the plan names.
    """
    message = me.index.find(Kind.POOL, sender=me.roster.coordinator.id)
    return () if message is None else _pool_of_plan(me, me.payload(message))


def _pool_of_plan(me: Participant, raw: bytes) -> tuple[PoolSample, ...]:
    coordinator = me.roster.coordinator.id
    try:
        pool = parse_pool(raw, where=_POOL)
    except ParameterError as error:
        raise PeerError(str(error), reason="wrong_pool", peer=coordinator) from error
    if pool_hash(pool) != me.plan.pool_sha256 or len(pool) != me.plan.pool_size:
        raise PeerError(
            "the pool is not the one in the plan", reason="wrong_pool", peer=coordinator
        )
    return pool


def parse_received_rationales(
    raw: bytes, *, pool: Sequence[PoolSample], cells: int
) -> tuple[ReceivedRationale, ...]:
    """Read the payload of `paths`.

    Raises: PeerError(reason="malformed"): anything but known samples, cells and texts.
    """
    places = {sample.sample_id: number for number, sample in enumerate(pool)}
    value = parse_canonical_json(raw, max_bytes=Kind.PATHS.rules.max_payload_bytes)
    received: list[ReceivedRationale] = []
    if not isinstance(value, list):
        raise PeerError("paths: expected a list")
    for row in value:
        if not isinstance(row, dict) or set(row) != {"sample_id", "path", "cell"}:
            raise PeerError("paths: expected objects with sample_id, path and cell")
        sample, path, cell = row["sample_id"], row["path"], row["cell"]
        known = isinstance(sample, str) and sample in places
        if not known or type(cell) is not int or not 0 <= cell < cells:
            raise PeerError("paths: a sample or cell that the study does not have")
        if not isinstance(path, str) or not 0 < len(path) <= MAX_RATIONALE_CHARACTERS:
            raise PeerError(f"paths: expected texts of 1 to {MAX_RATIONALE_CHARACTERS} characters")
        received.append(ReceivedRationale(pool_index=places[sample], cell=cell, text=path))
    if len({one.pool_index for one in received}) != len(received):
        raise PeerError("paths: two paths for one sample")
    return tuple(received)
