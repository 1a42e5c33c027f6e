"""A site without a network: learner, files and policy around a small model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from method_doubles import plan, site_context
from trainer_doubles import small_model

from lada_clients.site.gates.files import SiteFiles
from lada_clients.site.learner import SiteLearner
from lada_clients.site.memory import SiteMemory
from lada_clients.site.settings import SitePolicy, SiteSettings, SlmSettings
from lada_protocol.plan import StudyPlan
from lada_secure.data.records import PoolSample, Record, RecordFile
from lada_secure.method.plan import ReferenceModelPlan
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.loading import LanguageModel
from lada_secure.privacy.ledger.book import LedgerBook

TOPICS = ("question", "riddle me")
POOL = tuple(
    PoolSample(sample_id=f"s{at}", question=f"{TOPICS[at % 2]} {at}", choices=(), answer=str(at))
    for at in range(6)
)


def record(number: int, **changes: object) -> Record:
    """An ordinary record of a unit of its own."""
    ordinary = Record(
        record_id=f"r{number}",
        unit=f"u{number}",
        question=f"{TOPICS[number % 2]} {number}",
        choices=(),
        answer=str(number % 10),
        rationale=f"good {number}",
    )
    return replace(ordinary, **changes)  # type: ignore[arg-type]


def site_plan(*, guide: ReferenceModelPlan | None = None, **changes: object) -> StudyPlan:
    """A study of two rounds with few steps."""
    base = plan()
    return base.model_copy(
        update={
            "embedder": "hashed-ngrams",
            "guide": guide,
            "training": base.training.model_copy(
                update={
                    "noise_multiplier": 4.0,
                    "sampling_probability": 0.5,
                    "steps_per_round": 2,
                }
            ),
            "privacy": base.privacy.model_copy(
                update={"max_records_per_unit": 4, "epsilon_cap": 100.0}
            ),
            "paths": base.paths.model_copy(update={"max_new_tokens": 8}),
            "distillation": base.distillation.model_copy(update={"pool_batch_size": 2}),
            **changes,
        }
    )


def site_settings(folder: Path, **changes: object) -> SiteSettings:
    """Settings that name files in a folder."""
    base = SiteSettings(
        party="site-a",
        coordinator="127.0.0.1:1",
        identity=folder / "identity",
        roster=folder / "roster.json",
        policy=folder / "policy.toml",
        state_dir=folder / "state",
        records=folder / "records.jsonl",
        cache_dir=folder / "cache",
        model=SlmSettings(slm="slm", device="cpu"),
        physical_batch_size=4,
    )
    return base.model_copy(update=changes)


def site_policy(**changes: object) -> SitePolicy:
    """A policy that allows the study above."""
    base = SitePolicy(
        roster_sha256="ab" * 32,
        population="people",
        target_delta=1e-5,
        epsilon_cap_per_study=100.0,
        epsilon_cap_total=200.0,
        max_records_per_unit=4,
    )
    return base.model_copy(update=changes)


def file_of(name: str, records: Sequence[Record]) -> RecordFile:
    """Records as if they had been read from a file, one a line."""
    return RecordFile(
        name=name, records=tuple(records), lines=tuple(range(1, len(records) + 1)), faults=()
    )


def site_learner(
    folder: Path,
    records: Sequence[Record],
    *,
    held_out: Sequence[Record] = (),
    study: StudyPlan | None = None,
    settings: SiteSettings | None = None,
    model: LanguageModel | None = None,
    pool: tuple[PoolSample, ...] = POOL,
    book: LedgerBook | None = None,
) -> SiteLearner:
    """A site's learner over records that no gate has seen."""
    study = study or site_plan()
    settings = settings or site_settings(folder)
    files = SiteFiles(records=file_of("records.jsonl", records), held_out=None)
    memory = SiteMemory(folder=folder / "memory")
    return SiteLearner(
        plan=study,
        context=site_context(
            study,
            files.units(site_policy(), max_records_per_unit=study.privacy.max_records_per_unit),
            lm=model or attach_adapters(small_model(), AdapterSettings(rank=2)),
            pool=pool,
            book=book,
            batch_size=settings.physical_batch_size,
        ),
        memory=memory,
        state=memory.load(),
        held_out=tuple(held_out),
    )
