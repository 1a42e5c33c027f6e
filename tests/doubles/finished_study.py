"""A site's folder after a study, made without a network: real model, ledger, training and files."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w
from architecture_doubles import family_folder
from protocol_world import Cast, make_cast
from site_doubles import file_of, site_plan, site_policy

from lada_clients.net.study_folder import Outbox, study_folder
from lada_clients.site.gates.files import SiteFiles
from lada_clients.site.gates.slm import SiteSlm, known_hashes
from lada_clients.site.learner import SiteLearner
from lada_clients.site.ledger.store import SqliteLedger
from lada_clients.site.memory import SiteMemory
from lada_clients.site.public_material import CLUSTERS_FILE, POOL_FILE
from lada_clients.site.settings import SiteSettings, read_site_settings
from lada_protocol.events import EVENTS_FILE, EventLog, Joined, StepFinished, Traffic
from lada_protocol.evidence.export import PLAN_FILE
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.index import MessageIndex, Slot
from lada_secure.allocation.cells import Clusters, fit_clusters
from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.data.records import PoolSample, Record, pool_bytes, pool_hash, write_json_lines
from lada_secure.method.site_state import ReceivedRationale
from lada_secure.method.site_training import RoundReports
from lada_secure.models.embedding import HashedNgramEmbedder
from lada_secure.privacy.ledger.entries import Decision
from lada_secure.privacy.ledger.terms import BudgetCaps

SITE = "site-a"
POPULATION = "people"
TOPICS = ("question", "riddle me")
# After the certificates of the cast and before the plan's end.
NOW = datetime(2026, 2, 2, 12, tzinfo=UTC)
POOL = tuple(
    PoolSample(
        sample_id=f"s{at}", question=f"{TOPICS[at % 2]} {at}", choices=("yes", "no"), answer="yes"
    )
    for at in range(8)
)


def records(count: int, *, first: int = 0, name: str = "r") -> list[Record]:
    """Multiple choice, two records to a unit."""
    return [
        Record(
            record_id=f"{name}{at}",
            unit=f"{name}u{at // 2}",
            question=f"{TOPICS[at % 2]} {at}",
            choices=("yes", "no"),
            answer="yes" if at % 3 else "no",
            rationale=None if at % 2 else f"good {at}",
        )
        for at in range(first, first + count)
    ]


def write_site(
    root: Path, *, family: str = "Llama", dtype: str = "float32", slm: Path | None = None
) -> Path:
    """Settings, policy, roster, model and records of a site.

    Args: slm: a model's folder to copy; by default a tiny one of the family is made.
    Returns: its settings file.
    """
    cast = make_cast()
    if slm is None:
        family_folder(family, root / "cache" / "slm")
    else:
        shutil.copytree(slm, root / "cache" / "slm")
    (root / "roster.json").write_bytes(cast.roster.to_bytes())
    policy = site_policy(population=POPULATION, roster_sha256=cast.roster.hash)
    table = policy.model_dump(mode="json", exclude_none=True, exclude={"model"})
    (root / "policy.toml").write_text(tomli_w.dumps(table))
    write_json_lines(root / "records.jsonl", records(12))
    write_json_lines(root / "held-out.jsonl", records(10, first=100, name="h"))
    settings = {
        "party": SITE,
        "coordinator": "127.0.0.1:1",
        "identity": "identity",
        "roster": "roster.json",
        "policy": "policy.toml",
        "state_dir": "state",
        "records": "records.jsonl",
        "held_out": "held-out.jsonl",
        "cache_dir": "cache",
        "physical_batch_size": 4,
        "model": {"slm": "slm", "device": "cpu", "dtype": dtype},
    }
    path = root / "site.toml"
    path.write_text(tomli_w.dumps(settings))
    return path


def plan_of(study_id: str, clusters: Clusters, **changes: Any) -> StudyPlan:
    """A plan over the pool above; `distillation` changes keys of that table."""
    base = site_plan(guide=changes.pop("guide", None))
    distillation = {"adapter_targets": ("q_proj", "v_proj"), **changes.pop("distillation", {})}
    return base.model_copy(
        update={
            "study_id": study_id,
            "pool_size": len(POOL),
            "pool_sha256": pool_hash(POOL),
            "clusters_sha256": sha256_hex(canonical_json(clusters.to_json())),
            "distillation": base.distillation.model_copy(update=distillation),
            **changes,
        }
    )


def take_part(
    settings_path: Path, *, study_id: str = "study-1", rounds: int = 2, **changes: Any
) -> StudyPlan:
    """Do what `lada site run` does, for so many rounds, and leave what it leaves."""
    settings, policy = read_site_settings(settings_path)
    cast = make_cast()
    clusters = fit_clusters(HashedNgramEmbedder().embed([one.question for one in POOL]), 2, 0)
    plan = plan_of(study_id, clusters, **changes)
    folder = study_folder(settings.state_dir, plan.study_id, plan.hash)
    folder.mkdir(parents=True)
    (folder / PLAN_FILE).write_bytes(plan.to_bytes())
    (folder / POOL_FILE).write_bytes(pool_bytes(POOL))
    (folder / CLUSTERS_FILE).write_bytes(canonical_json(clusters.to_json()))
    decide(settings, plan, "approve")
    with _ledger(settings, cast) as book:
        _accept(settings, plan, cast, book)
        files = SiteFiles(records=file_of("records.jsonl", records(12)), held_out=None)
        learner = SiteLearner.load(
            plan,
            settings,
            (POOL, clusters),
            files.units(policy, max_records_per_unit=plan.privacy.max_records_per_unit),
            held_out=(),
            book=book,
            memory=SiteMemory(folder=folder),
        )
        for round_id in range(rounds):
            _round(learner, round_id)
    _tell(settings, plan)
    return plan


def decide(settings: SiteSettings, plan: StudyPlan, decision: Decision) -> None:
    """A person decides about a plan."""
    with _ledger(settings, make_cast()) as book:
        book.decide(
            decision,
            study_id=plan.study_id,
            plan_hash=plan.hash,
            expires=datetime(2030, 1, 1, tzinfo=UTC),
            decided_by="dr-meyer",
        )


def _ledger(settings: SiteSettings, cast: Cast) -> SqliteLedger:
    settings.state_dir.mkdir(exist_ok=True)
    return SqliteLedger(
        settings.state_dir / f"ledger-{POPULATION}.sqlite",
        site=SITE,
        population=POPULATION,
        signing_key=cast.keys[SITE],
        caps=BudgetCaps(target_delta=1e-5, total_epsilon=200.0, study_epsilon=100.0),
        clock=lambda: NOW,
        time_step_s=3600,
    )


def _accept(settings: SiteSettings, plan: StudyPlan, cast: Cast, book: SqliteLedger) -> None:
    slm = SiteSlm(settings=settings, hashes=known_hashes(settings)).identity()
    slot = Slot(Kind.ACCEPTANCE, 0, "", 0, SITE, "")
    head = book.entries()[-1]
    body = {
        "certificate": cast.certificates[SITE],
        "population": POPULATION,
        "ledger_id": book.identity.ledger_id,
        "head_index": head.index,
        "head_hash": head.entry_hash,
        "new_ledger": True,
        "slm": slm.model_dump(),
    }
    message = MessageIndex(plan, cast.roster).sign(slot, body, b"", cast.keys[SITE])
    Outbox(folder=settings.state_dir, roster=cast.roster).store(message, b"")


def _round(learner: SiteLearner, round_id: int) -> None:
    noised = learner.release_statistics(round_id)
    picks = tuple(at for at in range(len(POOL)) if at % learner.plan.rounds == round_id)
    learner.state = learner.state.with_picks(round_id, picks)
    paths = [ReceivedRationale(pool_index=at, cell=0, text=" yes\ngood") for at in picks]
    learner.train(round_id, noised.value, paths, RoundReports())


def _tell(settings: SiteSettings, plan: StudyPlan) -> None:
    path = settings.state_dir / EVENTS_FILE
    with path.open("ab") as file:
        log = EventLog(party=SITE, sink=file.write, clock=lambda: 1.7e9)
        log.write(Joined, round_id=0, step="plan", study_id=plan.study_id, plan_hash=plan.hash)
        log.write(
            StepFinished, round_id=0, step="demand", seconds=1.5, bytes_up=1000, bytes_down=20
        )
        log.write(
            Traffic, round_id=1, step="close", messages_up=3, messages_down=4, bytes_up=1000,
            bytes_down=20,
        )  # fmt: skip
