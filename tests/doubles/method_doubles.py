"""A small study with a DP reference model: plan, pool, and adapters that favour good rationales."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trainer_doubles import small_model

from lada_lab.mock.presets import read_preset
from lada_protocol.plan import StudyPlan
from lada_secure.allocation.cells import fit_clusters
from lada_secure.data.records import PoolSample
from lada_secure.method.execution import Execution
from lada_secure.method.plan import ReferenceModelPlan
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_state import KnownRationale, ReceivedRationale
from lada_secure.models.adapters import (
    AdapterSettings,
    AdapterWeights,
    adapter_weights,
    attach_adapters,
    load_adapters,
)
from lada_secure.models.embedding import HashedNgramEmbedder
from lada_secure.models.identity import SlmPlan
from lada_secure.models.loading import LanguageModel
from lada_secure.models.tuning import TuningSettings, tune_on_rationales
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.entries import LedgerIdentity
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.ledger.terms import BudgetCaps
from lada_secure.privacy.release.private_records import PrivateRecords
from lada_secure.privacy.release.units import Unit

POOL = tuple(
    PoolSample(sample_id=f"s{at}", question=f"{topic} {at}", choices=(), answer="9")
    for at, topic in enumerate(["question"] * 3 + ["riddle me"] * 3)
)
CHAINS = read_preset("chains")
# Cells alone decide; a test that is about what the SLM knows says so.
FEW_CELLS = {
    "clusters": 2,
    "difficulty_bins": 1,
    "strategy": "guided",
    "sample_value": None,
}
# The records agree with these, and contradict the others.
GOOD = {place: f"good {place}" for place in (0, 1, 2)}
BAD = {place: f"evil {place}" for place in (3, 4, 5)}
GUIDE = ReferenceModelPlan(
    records_with_reasons=True,
    own_paths=2,
    least_share=0.25,
    rate_decay=0.5,
    private_share=0.5,
    pool_steps=2,
    last_pool_steps=5,
    pool_learning_rate=1e-2,
    finish=False,
    own_reasons=False,
)


def plan() -> StudyPlan:
    return StudyPlan(
        study_id="guided",
        title=CHAINS.title,
        coordinator="coordinator",
        expires="2030-01-01T00:00:00Z",
        rounds=2,
        min_cohort=3,
        max_cohort=3,
        slm=SlmPlan(),
        embedder=CHAINS.embedder,
        seed=0,
        pool_sha256="ab" * 32,
        pool_size=len(POOL),
        clusters_sha256="ab" * 32,
        phase_timeout_s=60.0,
        privacy=CHAINS.privacy,
        statistics=CHAINS.statistics,
        training=CHAINS.training,
        distillation=CHAINS.distillation,
        allocation=CHAINS.allocation.model_copy(update=FEW_CELLS),
        paths=CHAINS.paths,
        guide=GUIDE,
    )


def site_context(
    study: StudyPlan,
    units: Sequence[Unit] = (),
    *,
    lm: LanguageModel | None = None,
    pool: tuple[PoolSample, ...] = POOL,
    book: LedgerBook | None = None,
    batch_size: int = 4,
) -> SiteContext:
    """What a site computes with, around a small model that knows nothing."""
    lm = lm or attach_adapters(small_model(), AdapterSettings(rank=4))
    texts = HashedNgramEmbedder()
    vectors = texts.embed([sample.question for sample in pool])
    clusters = fit_clusters(vectors, 2, 0)
    return SiteContext(
        plan=study,
        lm=lm,
        reference=adapter_weights(lm),
        pool=pool,
        clusters=clusters,
        embedder=texts,
        pool_clusters=clusters.assign(vectors),
        records=PrivateRecords(units),
        book=book or ledger(study),
        execution=Execution(threads=1, batch_size=batch_size),
    )


def received(texts: dict[int, str], *, cell: int) -> list[ReceivedRationale]:
    return [
        ReceivedRationale(pool_index=index, cell=cell, text=text) for index, text in texts.items()
    ]


def known(texts: dict[int, str], *, cell: int) -> tuple[KnownRationale, ...]:
    """Rationales that are neither likely nor unlikely."""
    return tuple(
        KnownRationale(pool_index=index, cell=cell, text=text, p=0.5)
        for index, text in texts.items()
    )


def trained_on_good(site: SiteContext) -> AdapterWeights:
    """Adapters that favour the good rationales; the model is left as it was."""
    before = adapter_weights(site.lm)
    settings = TuningSettings(
        steps=30, batch_size=3, replay_batch_size=0, learning_rate=1e-2, max_epochs=100
    )
    examples = [site.example(rationale) for rationale in known(GOOD, cell=0)]
    weights = tune_on_rationales(site.lm, examples, (), settings)
    load_adapters(site.lm, before)
    return weights


def ledger(plan: StudyPlan) -> MemoryLedger:
    """A site's ledger that has approved the plan."""
    key = Ed25519PrivateKey.generate()
    book = MemoryLedger(
        identity=LedgerIdentity.new(site="site-a", population="people"),
        signing_key=key,
        caps=BudgetCaps(target_delta=1e-5, total_epsilon=500.0, study_epsilon=500.0),
        clock=lambda: datetime(2026, 1, 31, 12, tzinfo=UTC),
    )
    book.decide(
        "approve",
        study_id=plan.study_id,
        plan_hash=plan.hash,
        expires=datetime(2026, 2, 1, tzinfo=UTC),
        decided_by="officer",
    )
    return book
