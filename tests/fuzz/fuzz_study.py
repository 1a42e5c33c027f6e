"""One honest study without models, recorded: the valid messages that the fuzzers start from.

Board, coordinator, auditor and sites are the real ones. Only what needs a language model is
replaced: the teacher's look at the pool and its paths, and the learner's statistics and training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from fuzz_loopback import LoopbackClient, RealBoard
from fuzz_stand_ins import SiteWithoutModel, TeacherWithoutModel
from protocol_world import CAPS, UPLINK, make_plan
from rich.console import Console
from slm_files import write_slm

from lada_clients.auditor.ledgers import KnownEntries
from lada_clients.auditor.service import Auditor
from lada_clients.ca.authority import init_ca, issue_party, make_roster
from lada_clients.net.participant import Participant
from lada_clients.net.study_folder import Outbox, SecretFolder
from lada_clients.site.gates.files import RecordFiles, SiteFiles, file_digests
from lada_clients.site.memory import SiteMemory
from lada_clients.site.settings import SitePolicy, SiteSettings, SlmSettings
from lada_clients.site.training_display import TrainingDisplay
from lada_protocol.events import EventLog
from lada_protocol.identity.certificates import PartyName, certificate_pem
from lada_protocol.identity.credentials import Credentials
from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind, Role
from lada_protocol.party_files import LiveIdentity, load_credentials
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.auditor import next_auditor_task
from lada_protocol.rounds.llm_transfer import NO_ADAPTERS
from lada_protocol.rounds.site import next_site_task
from lada_protocol.rounds.tasks import Done, Post, Wait
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.transport_settings import TransportSettings
from lada_secure.allocation.cells import fit_clusters
from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.data.records import PoolSample, RecordFile, pool_hash
from lada_secure.method.llm_round import PoolView
from lada_secure.models.embedding import embedder
from lada_secure.privacy.ledger.entries import LedgerIdentity
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_server.board.client import LocalBoardClient
from lada_server.board.store import BoardStore
from lada_server.board.uploads import Uploads
from lada_server.rpc.calls import BoardCalls
from lada_server.rpc.limits import CallGate
from lada_server.study.coordinator import Coordinator
from lada_server.study.proposal import Study

SITES = ("site-a", "site-b", "site-c")
SITE = SITES[0]
NAMES = ("coordinator", "auditor", *SITES)
POOL = tuple(
    PoolSample(sample_id=f"q{number}", question=text, choices=("yes", "no"), answer="yes")
    for number, text in enumerate(
        [
            "is ten more than two",
            "has a week seven days",
            "is iron a metal",
            "is a whale a mammal",
            "is water wet",
            "is three odd",
            "does ice melt",
            "is a square round",
            "is noon at twelve",
        ]
    )
)


def silent(party: str) -> EventLog:
    """Events are encoded and dropped."""
    return EventLog(party=party, sink=lambda _line: None, clock=lambda: 0.0)


@dataclass(slots=True, kw_only=True)
class Recording:
    """Everything of one honest round: messages in order, and who may read which.

    `rows` are (sequence, envelope, payload) as the coordinator's board holds them.
    """

    folder: Path
    roster: Roster
    credentials: dict[str, Credentials]
    study: Study
    view: PoolView
    rows: list[tuple[int, Envelope, bytes]] = field(default_factory=list)

    @property
    def plan(self) -> StudyPlan:
        """The honest plan."""
        return self.study.plan

    def identity(self, party: str) -> Path:
        """A party's identity folder."""
        return self.folder / "identities" / party

    def state(self, party: str) -> Path:
        """What a party had written at the end of the round."""
        folder = self.folder / "states" / party
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def certificate(self, party: str) -> str:
        """PEM text of a signing certificate."""
        return certificate_pem(self.credentials[party].signing_certificate).decode("ascii")

    def open_store(self, folder: Path) -> BoardStore:
        """A board of its own."""
        return BoardStore(
            f"sqlite:///{folder / 'board.sqlite'}",
            payload_dir=folder / "payloads",
            roster=self.roster,
        )

    def serve(self, store: BoardStore, uploads: Path) -> BoardCalls:
        """The calls of a board, without a limit on their rate."""
        names = [one.id for one in self.roster.parties]
        limits = TransportSettings(calls_per_s=1e9, burst_calls=10**9, concurrent_calls=64)
        identity = LiveIdentity(
            self.identity("coordinator"), party_id="coordinator", roster=self.roster
        )
        return BoardCalls(
            store=store,
            identity=identity,
            gate=CallGate(limits, names, clock=lambda: 0.0),
            uploads=Uploads(uploads),
        )

    def coordinator(self, store: BoardStore) -> Coordinator:
        """The real coordinator; looking at the pool is done."""
        made = Coordinator(
            study=self.study,
            board=LocalBoardClient(
                plan=self.plan,
                store=store,
                signing_key=self.credentials["coordinator"].signing_key,
                events=silent("coordinator"),
            ),
            certificate=self.certificate("coordinator"),
            teacher=TeacherWithoutModel(self.study),
        )
        made._views = {NO_ADAPTERS: self.view}
        return made

    def participant(self, party: str, folder: Path) -> Participant:
        """A party's end; its client has no stub yet."""
        client = LoopbackClient(identity=self.identity(party), roster=self.roster, party_id=party)
        return Participant(
            party=party,
            roster=self.roster,
            client=client,
            signing_key=self.credentials[party].signing_key,
            certificate=self.certificate(party),
            outbox=Outbox(folder=folder, roster=self.roster),
            events=silent(party),
        )

    def auditor(self, me: Participant, folder: Path) -> Auditor:
        """The real auditor over a state folder."""
        return Auditor(
            participant=me,
            state_dir=folder,
            known_entries=KnownEntries(folder=folder / "known"),
            min_cohort=3,
            epsilon_cap=8.0,
        )

    def site(self, me: Participant, folder: Path, book: MemoryLedger) -> SiteWithoutModel:
        """The real site over a state folder."""
        settings = SiteSettings(
            party=me.party,
            coordinator="127.0.0.1:1",
            identity=self.identity(me.party),
            roster=Path("roster.json"),
            policy=Path("policy.toml"),
            state_dir=folder,
            # Any file that stays as it is: there is no model to read it.
            records=self.folder / "roster.json",
            cache_dir=self.folder,
            model=SlmSettings(slm="slm"),
        )
        record_files = RecordFiles(
            settings=settings, digests=file_digests(settings), folder=folder, key=b"k" * 32
        )
        # A site that comes back has accepted with these files.
        record_files.keep()
        return SiteWithoutModel(
            participant=me,
            settings=settings,
            record_files=record_files,
            policy=SitePolicy(
                roster_sha256=self.roster.hash,
                population="patients",
                target_delta=1e-5,
                epsilon_cap_per_study=8.0,
                epsilon_cap_total=50.0,
                max_records_per_unit=4,
            ),
            files=SiteFiles(
                records=RecordFile(name="records.jsonl", records=(), lines=(), faults=()),
                held_out=None,
            ),
            book=book,
            secrets=SecretFolder(folder=folder / "secrets"),
            memory=SiteMemory(folder=folder / "memory"),
            now=lambda: datetime.now(UTC),
            outdated=lambda: False,
            display=TrainingDisplay(Console(quiet=True), epsilon_cap=0.0),
        )

    def book(self, party: str) -> MemoryLedger:
        """An empty ledger of a site."""
        key = self.credentials[party].signing_key
        return MemoryLedger(
            identity=LedgerIdentity.new(site=party, population="patients"),
            signing_key=key,
            caps=CAPS,
            clock=lambda: datetime.now(UTC),
        )


@dataclass(slots=True, kw_only=True)
class RecordedStudy:
    """A recording and the ledgers that its sites ended with."""

    recording: Recording
    books: dict[str, MemoryLedger]


def _prepare(folder: Path) -> Recording:
    now = datetime.now(UTC)
    init_ca(folder / "ca", name="test CA", days=30, now=now)
    roles = {"coordinator": Role.COORDINATOR, "auditor": Role.AUDITOR}
    for name in NAMES:
        issue_party(
            folder / "ca",
            party=PartyName(role=roles.get(name, Role.SITE), id=name),
            hosts=("localhost",),
            days=20,
            out=folder / "identities" / name,
            now=now,
        )
    roster = make_roster(
        folder / "ca",
        parties=[folder / "identities" / name for name in NAMES],
        out=folder / "roster.json",
        now=now,
    )
    write_slm(folder / "slm")
    vectors = embedder("hashed-ngrams").embed([one.question for one in POOL])
    clusters = fit_clusters(vectors, 3, 1)
    raw_clusters = canonical_json(clusters.to_json())
    base = make_plan(
        uplink=UPLINK,
        embedder="hashed-ngrams",
        max_cohort=3,
        pool_size=len(POOL),
        pool_sha256=pool_hash(POOL),
    )
    plan = base.model_copy(
        update={
            "clusters_sha256": sha256_hex(raw_clusters),
            "allocation": base.allocation.model_copy(update={"clusters": clusters.count}),
        }
    )
    study = Study(
        plan=plan,
        pool=POOL,
        clusters=clusters,
        embeddings=vectors,
    )
    view = TeacherWithoutModel(study).view_pool()
    return Recording(
        folder=folder,
        roster=roster,
        credentials={
            name: load_credentials(folder / "identities" / name, expected_id=name) for name in NAMES
        },
        study=study,
        view=view,
    )


class _HonestRun:
    """Steps everybody through the first round."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._store = recording.open_store(recording.state("coordinator"))
        board = recording.serve(self._store, recording.state("coordinator") / "uploads")
        self._coordinator = recording.coordinator(self._store)
        self._ends: dict[str, Participant] = {}
        for name in NAMES[1:]:
            me = self._ends[name] = recording.participant(name, recording.state(name))
            pem = recording.credentials[name].tls_certificate_pem
            cast(LoopbackClient, me.client).stub = RealBoard(board, pem)
        self.books = {name: recording.book(name) for name in SITES}

    @cached_property
    def _auditor(self) -> Auditor:
        return self._recording.auditor(self._ends["auditor"], self._recording.state("auditor"))

    @cached_property
    def _sites(self) -> list[SiteWithoutModel]:
        return [
            self._recording.site(self._ends[name], self._recording.state(name), self.books[name])
            for name in SITES
        ]

    def run(self) -> None:
        """Until the coordinator would start the second round, or the study is over."""
        recording = self._recording
        self._coordinator_step()
        for me in self._ends.values():
            me.join(wait_s=5.0)
        for _ in range(400):
            if not self._coordinator_step():
                break
            self._step(self._auditor, next_auditor_task)
            for site in self._sites:
                self._step(site, next_site_task, site=site.participant.party)
        else:
            raise AssertionError("the honest study does not come to an end")
        recording.rows = [
            (sequence, envelope, self._store.payload(envelope.message_hash))
            for sequence, envelope in self._store.visible("coordinator", 0)
        ]
        self._store.close()

    def _coordinator_step(self) -> bool:
        one = self._coordinator
        task = one.loop.next_task()
        is_cohort = isinstance(task, Post) and task.kind is Kind.COHORT
        second_round = is_cohort and task.round_id > 0
        if isinstance(task, Done) or second_round:
            return False
        if not isinstance(task, Wait):
            one.loop.carry_out(task)
        return True

    def _step(self, party: Any, next_task: Callable[..., Any], **more: Any) -> None:
        me = party.participant
        me.sync()
        task = next_task(me.index, **more)
        if not isinstance(task, Wait | Done):
            party.loop.carry_out(task)


def record(folder: Path) -> RecordedStudy:
    """Run one honest round in `folder` and write down what was sent."""
    recording = _prepare(folder)
    honest = _HonestRun(recording)
    honest.run()
    kinds = {envelope.kind for _, envelope, _ in recording.rows}
    if not {Kind.OPENED, Kind.SCORES, Kind.PATHS, Kind.CLOSE} <= kinds:
        raise AssertionError(f"the honest study stopped early: {sorted(kinds)}")
    return RecordedStudy(recording=recording, books=honest.books)
