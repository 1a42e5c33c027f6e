"""Making a study plan from the operator's study file, the public pool and its clusters."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from lada_protocol.identity.roster import Roster
from lada_protocol.plan import StudyPlan, format_time, parse_plan
from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.data.records import PoolSample, pool_hash
from lada_secure.errors import ParameterError, PeerError, TransportError
from lada_server.settings import StudySettings

if TYPE_CHECKING:
    from lada_secure.allocation.cells import Clusters
    from lada_secure.arrays import Float32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A plan and the public material that its hashes pin. is_new: it was never proposed yet."""

    plan: StudyPlan
    is_new: bool
    pool: tuple[PoolSample, ...]
    pool_bytes: bytes
    clusters: Clusters
    clusters_bytes: bytes
    embeddings: Float32Array


def prepare_study(
    settings: StudySettings,
    *,
    pool: tuple[PoolSample, ...],
    pool_bytes: bytes,
    roster: Roster,
    now: datetime,
    kept_plan: Path,
) -> Study:
    """Cluster the pool and make the plan, or read the plan that was proposed before a restart.

    A new plan is not on disk yet: `keep_plan` comes after the checks that need the LLM.

    Args: kept_plan: file of the plan; its expiry was fixed when it was first proposed, so it is
        read back and never made again.
    Raises: ParameterError: the pool does not fit the study, or the kept plan is another study's.
    """
    from lada_secure.allocation.cells import fit_clusters
    from lada_secure.models.embedding import embedder

    if settings.paths.budget > len(pool):
        raise ParameterError(
            f"paths.budget is {settings.paths.budget}, the pool has {len(pool)} samples; "
            "lower the budget or enlarge the pool"
        )
    uplink = settings.uplink
    if uplink is not None and uplink.holdout >= len(pool):
        raise ParameterError(
            f"uplink.holdout is {uplink.holdout}, the pool has {len(pool)} samples; hold out fewer "
            "or enlarge the pool"
        )
    embeddings = embedder(settings.embedder).embed([sample.question for sample in pool])
    clusters = fit_clusters(embeddings, settings.allocation.clusters, settings.seed)
    clusters_bytes = canonical_json(clusters.to_json())
    kept = _kept(kept_plan)
    plan = kept or _plan(
        settings, pool=pool, roster=roster, clusters=clusters, now=now, digest=clusters_bytes
    )
    if (plan.study_id, plan.pool_sha256) != (settings.study_id, pool_hash(pool)):
        raise ParameterError(
            f"{kept_plan} holds the plan of study {plan.study_id} over another pool or id; "
            "give a new study a state folder of its own"
        )
    if plan.clusters_sha256 != sha256_hex(clusters_bytes):
        raise ParameterError(f"{kept_plan}: the pool's clusters changed since the plan was made")
    return Study(
        plan=plan,
        is_new=kept is None,
        pool=pool,
        pool_bytes=pool_bytes,
        clusters=clusters,
        clusters_bytes=clusters_bytes,
        embeddings=embeddings,
    )


def _kept(path: Path) -> StudyPlan | None:
    if not path.exists():
        return None
    try:
        return parse_plan(path.read_bytes())
    except (OSError, PeerError) as error:
        raise ParameterError(f"cannot read the kept plan {path}: {error}") from error


def keep_plan(path: Path, plan: StudyPlan) -> None:
    """Write the plan whole or not at all: it is signed and sent right afterwards."""
    part = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(plan.to_bytes())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise TransportError(
            f"cannot write {path}: {error.strerror}; nothing was proposed yet"
        ) from error


def _plan(
    settings: StudySettings,
    *,
    pool: tuple[PoolSample, ...],
    roster: Roster,
    clusters: Clusters,
    now: datetime,
    digest: bytes,
) -> StudyPlan:
    allocation = settings.allocation.model_copy(update={"clusters": clusters.count})
    return StudyPlan(
        study_id=settings.study_id,
        title=settings.title,
        coordinator=roster.coordinator.id,
        expires=format_time(now + timedelta(days=settings.valid_days)),
        rounds=settings.rounds,
        min_cohort=settings.min_cohort,
        max_cohort=max(len(roster.sites), settings.min_cohort),
        slm=settings.slm,
        embedder=settings.embedder,
        seed=settings.seed,
        pool_sha256=pool_hash(pool),
        pool_size=len(pool),
        clusters_sha256=sha256_hex(digest),
        phase_timeout_s=settings.phase_timeout_s,
        privacy=settings.privacy,
        statistics=settings.statistics,
        training=settings.training,
        distillation=settings.distillation,
        allocation=allocation,
        paths=settings.paths,
        uplink=settings.uplink,
        guide=settings.guide,
    )
