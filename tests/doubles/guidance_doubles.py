"""Stand-ins around a site's guide: its study and pool, and adapters that favour good paths."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trainer_doubles import example, small_model

from lada_clients.site.guidance import Guidance
from lada_clients.site.memory import SiteMemory
from lada_clients.site.received_paths import ReceivedRationale
from lada_lab.mock.presets import GUIDED
from lada_protocol.plan import ReferenceModelPlan, StudyPlan
from lada_secure.allocation.cells import CellGrid
from lada_secure.data.records import PoolSample
from lada_secure.models.adapters import (
    AdapterSettings,
    AdapterWeights,
    adapter_weights,
    attach_adapters,
    load_adapters,
)
from lada_secure.models.tuning import TuningSettings, tune_on_rationales
from lada_secure.privacy.ledger.book import BudgetCaps
from lada_secure.privacy.ledger.entries import LedgerIdentity
from lada_secure.privacy.ledger.memory import MemoryLedger

POOL = tuple(
    PoolSample(sample_id=f"s{at}", question=f"question {at}", choices=(), answer="9")
    for at in range(6)
)
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
        title=GUIDED.title,
        coordinator="coordinator",
        expires="2030-01-01T00:00:00Z",
        rounds=2,
        min_cohort=3,
        max_cohort=3,
        slm="small",
        embedder=GUIDED.embedder,
        seed=0,
        pool_sha256="ab" * 32,
        pool_size=len(POOL),
        clusters_sha256="ab" * 32,
        phase_timeout_s=60.0,
        privacy=GUIDED.privacy,
        statistics=GUIDED.statistics,
        training=GUIDED.training,
        distillation=GUIDED.distillation,
        allocation=GUIDED.allocation.model_copy(update={"clusters": 2, "difficulty_bins": 1}),
        paths=GUIDED.paths,
        guide=GUIDE,
    )


def guided_site(folder: Path) -> Guidance:
    """A site of the study above, with a model that knows nothing."""
    lm = small_model()
    attach_adapters(lm, AdapterSettings(rank=4))
    return Guidance(
        plan=plan(),
        settings=GUIDE,
        pool=POOL,
        memory=SiteMemory(folder=folder),
        model=lm,
        reference=adapter_weights(lm),
        batch_size=4,
        grid=CellGrid(clusters=2, bins=1),
    )


def received(paths: dict[int, str], *, cell: int) -> list[ReceivedRationale]:
    return [ReceivedRationale(sample=place, cell=cell, path=path) for place, path in paths.items()]


def trained_on_good(guidance: Guidance) -> AdapterWeights:
    """Adapters that favour the good paths; the model is left as it was."""
    before = adapter_weights(guidance.model)
    settings = TuningSettings(
        steps=30, batch_size=3, replay_batch_size=0, learning_rate=1e-2, max_epochs=100
    )
    examples = [
        replace(example(place), prompt=f"question {place}\n", path=path, rejected=None)
        for place, path in GOOD.items()
    ]
    weights = tune_on_rationales(guidance.model, examples, (), settings)
    load_adapters(guidance.model, before)
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
