"""A site that has joined a study and is about to review its plan, with real ledger and gates."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from protocol_world import (
    NOW,
    Cast,
    MemoryBoard,
    make_cast,
    make_ledger,
    make_participant,
    make_plan,
    signed,
    statistics_spec,
)
from rich.console import Console
from slm_files import write_slm

from lada_clients.net.study_folder import SecretFolder
from lada_clients.site.gates.files import RecordFiles, SiteFiles, file_digests
from lada_clients.site.memory import SiteMemory
from lada_clients.site.service import Site
from lada_clients.site.settings import SitePolicy, SiteSettings, SlmSettings
from lada_clients.site.training_display import TrainingDisplay
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.index import Attempt
from lada_secure.data.records import RecordFile
from lada_secure.method.plan import STATISTICS
from lada_secure.privacy.ledger.entries import ReserveEntry
from lada_secure.privacy.ledger.memory import MemoryLedger

PLAN = make_plan(max_cohort=3)
ATTEMPT = Attempt(round_id=0, purpose=STATISTICS, number=0)


class SiteWithoutModel(Site):
    """The real service; nothing is measured with a model."""

    def _check_with_model(self) -> None:
        """The gate's second half has its own tests."""


@dataclass(kw_only=True)
class Reviewing:
    """A site that has joined a study, with a ledger that earlier studies have used."""

    site: SiteWithoutModel
    book: MemoryLedger
    board: MemoryBoard

    def posted(self, kind: Kind) -> dict[str, object] | None:
        """The body of what the site has posted of a kind."""
        found = self.site.participant.index.find(kind, sender="site-a")
        return None if found is None else dict(found.header.body)

    def reservations(self) -> int:
        """Payments in the ledger."""
        return sum(isinstance(one, ReserveEntry) for one in self.book.entries())


def _spend(book: MemoryLedger, plan: StudyPlan, rounds: int) -> None:
    book.decide(
        "approve",
        study_id=plan.study_id,
        plan_hash=plan.hash,
        expires=NOW + timedelta(days=30),
        decided_by="policy",
    )
    for round_id in range(rounds):
        book.commit(book.reserve(statistics_spec(plan, round_id)), b"noised")


def reviewing(folder: Path, *, cap: float, earlier_rounds: int = 0) -> Reviewing:
    cast: Cast = make_cast()
    board = MemoryBoard(cast.roster)
    body = {"certificate": cast.certificates["coordinator"]}
    raw = PLAN.to_bytes()
    key = cast.keys["coordinator"]
    board.post(signed(cast.roster, key, PLAN, Kind.PLAN, "coordinator", body, raw), raw)
    me = make_participant(cast, board, "site-a", folder)
    me.join(wait_s=5.0)
    folder.mkdir(exist_ok=True)
    (folder / "records.jsonl").write_text("{}\n")
    write_slm(folder / "slm")
    settings = SiteSettings(
        party="site-a",
        coordinator="localhost:1",
        identity=folder / "identity",
        roster=folder,
        policy=folder,
        state_dir=folder,
        records=folder / "records.jsonl",
        cache_dir=folder,
        model=SlmSettings(slm="slm", licence="Apache-2.0"),
    )
    book = make_ledger(cast, "site-a")
    if earlier_rounds:
        _spend(book, make_plan(study_id="earlier", rounds=earlier_rounds), earlier_rounds)
    site = SiteWithoutModel(
        participant=me,
        settings=settings,
        policy=SitePolicy(
            roster_sha256=cast.roster.hash,
            population="patients",
            target_delta=1e-5,
            epsilon_cap_per_study=8.0,
            epsilon_cap_total=cap,
            max_records_per_unit=4,
        ),
        files=SiteFiles(
            records=RecordFile(name="records.jsonl", records=(), lines=(), faults=()),
            held_out=None,
        ),
        record_files=RecordFiles(
            settings=settings,
            digests=file_digests(settings),
            folder=me.open_folder(),
            key=b"k" * 32,
        ),
        book=book,
        secrets=SecretFolder(folder=folder / "secrets"),
        memory=SiteMemory(folder=me.open_folder()),
        now=lambda: NOW,
        outdated=lambda: False,
        display=TrainingDisplay(Console(quiet=True), epsilon_cap=0.0),
    )
    return Reviewing(site=site, book=book, board=board)
