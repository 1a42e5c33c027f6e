"""Sites and a coordinator without models around a real auditor, driven by the round logic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
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
    training_spec,
)
from sealed_sums import add_sealed

from lada_clients.auditor.ledgers import KnownEntries
from lada_clients.auditor.runner import write_export
from lada_clients.auditor.service import Auditor
from lada_clients.net.participant import Participant
from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.auditor import next_auditor_task
from lada_protocol.rounds.blind_scoring import ROW_BOUND
from lada_protocol.rounds.coordinator import next_coordinator_task
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.rounds.llm_transfer import (
    SiteRationale,
    inquiry_bytes,
    llm_version,
    parse_inquiry,
    site_rationales_bytes,
)
from lada_protocol.rounds.secure_aggregation import (
    basis_of,
    check_mask_keys,
    keys_digest,
    mask_context,
    opened_values,
    purpose_length,
    purpose_parameters,
    site_bound_of,
)
from lada_protocol.rounds.site import next_site_task
from lada_protocol.rounds.tasks import Done, GiveUp, Post, Task, Wait
from lada_protocol.rounds.transcript import FIRST, build_transcript
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import FaultBody, InquiryBody, parse_body
from lada_secure.encryption.blind_scores import PoolMatrix
from lada_secure.encryption.masks import MaskKey, masked, pairwise_mask
from lada_secure.encryption.matrix import encode_matrix
from lada_secure.encryption.scoring_key import ScoringKey
from lada_secure.encryption.sealing import parse_public_key, seal
from lada_secure.encryption.workers.process import shared_worker
from lada_secure.method.plan import (
    CONFIDENCE_EXCESS,
    DEMAND,
    STATISTICS,
    TRAINING,
    split_pool,
    transfer_of,
)
from lada_secure.privacy.ledger.entries import ReserveEntry, format_ledger_lines
from lada_secure.privacy.ledger.memory import MemoryLedger

FOUR = ("site-a", "site-b", "site-c", "site-d")
THREE = FOUR[:3]
ROUND_0 = Attempt(round_id=0, purpose=STATISTICS, number=0)
ROUND_0_AGAIN = Attempt(round_id=0, purpose=STATISTICS, number=1)


def owes(task: Task, kind: Kind) -> TypeGuard[Post]:
    """Whether a task is to post a message of this kind."""
    return isinstance(task, Post) and task.kind is kind


def scores_of(features: np.ndarray, query: bytes) -> bytes:
    """Blind scores of any matrix."""
    matrix = encode_matrix(features, row_bound=ROW_BOUND)
    return PoolMatrix(matrix, worker=shared_worker()).score(query)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """Body and payload of a message that is about to be signed."""

    body: Mapping[str, Any]
    payload: bytes = b""


@dataclass(kw_only=True)
class SimulatedSite:
    """A site without a model: dummy vectors, everything else real.

    `tamper` lets a test change a message's body and payload before it is signed.
    """

    me: Participant
    book: MemoryLedger
    noised: dict[int, np.ndarray] = field(default_factory=dict)
    mask_keys: dict[Attempt, MaskKey] = field(default_factory=dict)
    scoring_keys: dict[int, ScoringKey] = field(default_factory=dict)
    utilities: dict[int, np.ndarray] = field(default_factory=dict)
    tamper: Callable[[Kind, Outgoing], Outgoing] = lambda _kind, outgoing: outgoing

    def step(self) -> Task:
        """Read the board and carry out one task."""
        me = self.me
        me.sync()
        task = next_site_task(me.index, site=me.party)
        self.carry_out(task)
        return task

    def carry_out(self, task: Task) -> None:
        """Carry out a task."""
        match task:
            case Post(kind=Kind.ACCEPTANCE):
                self._accept()
            case Post(kind=Kind.MASK_KEY, attempt=attempt):
                key = self.mask_keys.setdefault(attempt, MaskKey.generate())
                self._post(Kind.MASK_KEY, {"public_key": key.public_bytes.hex()}, attempt=attempt)
            case Post(kind=Kind.CONTRIBUTION, attempt=attempt, sites=cohort):
                self._contribute(attempt, cohort)
            case Post(kind=Kind.QUERY, round_id=round_id):
                self.ask(round_id)
            case Post(kind=Kind.TRAINED, round_id=round_id):
                self._distil(round_id)
            case Post(kind=Kind.SITE_PATHS, round_id=round_id):
                self._answer(round_id)
            case Post(kind=Kind.CLOSE, round_id=round_id):
                digest = self.me.checked_transcript(round_id)
                self._post(Kind.CLOSE, {"transcript_sha256": digest}, round_id=round_id)
            case _:
                pass

    def ask(self, round_id: int) -> None:
        """Encrypt this round's utilities under a key of its own."""
        cells = self.me.plan.allocation.cells
        key = ScoringKey.generate(cells, row_bound=ROW_BOUND)
        self.scoring_keys[round_id] = key
        utilities = np.random.default_rng(round_id).uniform(-1.0, 1.0, cells)
        query = key.encrypt(self.utilities.get(round_id, utilities))
        self._post(Kind.QUERY, {"cells": cells}, query, round_id=round_id, to="coordinator")

    def vector(self, attempt: Attempt) -> np.ndarray:
        """This round's noised vector, or the demand that follows from it: fixed per round."""
        plan = self.me.plan
        if attempt.purpose == DEMAND:
            wanted = np.zeros(plan.pool_size, dtype=np.int64)
            wanted[: plan.allocation.quota] = 1
            return wanted
        if attempt.purpose == CONFIDENCE_EXCESS:
            known = np.zeros(plan.pool_size, dtype=np.int64)
            # Sites differ, and no site is below what the first candidate is worth to it.
            known[list(split_pool(plan).candidates)] = np.arange(transfer_of(plan).candidates)
            return np.minimum(known + 1, site_bound_of(plan, CONFIDENCE_EXCESS)) * (known > 0)
        if attempt.round_id not in self.noised:
            bound = site_bound_of(plan, STATISTICS)
            drawn = np.random.default_rng(attempt.round_id + len(self.me.party))
            self.noised[attempt.round_id] = drawn.integers(
                -bound, bound, size=purpose_length(plan, STATISTICS), endpoint=True
            )
        return self.noised[attempt.round_id]

    def pay(self, round_id: int, **changes: Any) -> str:
        """Reserve and commit the round's statistics; the hash of what paid."""
        reservation = self.book.reserve(statistics_spec(self.me.plan, round_id, **changes))
        if reservation.stored_output is None:
            self.book.commit(reservation, b"noised statistics")
        return reservation.entry_hash

    def seal_for(
        self, attempt: Attempt, cohort: tuple[str, ...], values: np.ndarray
    ) -> tuple[dict[str, str], bytes]:
        """Mask and seal a vector as the real site does; keys digest and parameters beside it."""
        me = self.me
        parameters = purpose_parameters(me.plan, attempt.purpose)
        keys = me.index.all_at(Kind.MASK_KEY, attempt)
        raw = check_mask_keys(cohort, keys, attempt)
        digest = keys_digest({site: keys[site] for site in cohort})
        mask = pairwise_mask(
            self.mask_keys[attempt],
            me.party,
            {site: one for site, one in raw.items() if site != me.party},
            context=mask_context(me.plan, me.roster, attempt, digest),
            length=parameters.length,
            modulus=parameters.plain_modulus,
        )
        hidden = masked(
            values,
            mask,
            bound=site_bound_of(me.plan, attempt.purpose),
            modulus=parameters.plain_modulus,
        )
        shown = me.index.find(Kind.OPENING_KEY, sender="auditor", purpose=attempt.purpose)
        if shown is None:
            raise AssertionError("the auditor posts its keys before any attempt")
        key = parse_public_key(me.payload(shown), parameters)
        body = {
            "keys_digest": digest,
            "opening_key": shown.message_hash,
            "parameters_digest": parameters.digest,
            "rests_on": basis_of(me.index, attempt, site=me.party).message_hash,
        }
        return body, seal(key, parameters, hidden)

    def _accept(self) -> None:
        plan = self.me.plan
        self.book.decide(
            "approve",
            study_id=plan.study_id,
            plan_hash=plan.hash,
            expires=NOW + timedelta(days=30),
            decided_by="policy",
            statement="inside the policy",
        )
        self.post_ledger(0, "")
        head = self.book.head()
        body = {
            "certificate": self.me.certificate,
            "population": head.population,
            "ledger_id": head.ledger_id,
            "head_index": head.index,
            "head_hash": head.entry_hash,
            "new_ledger": not any(isinstance(one, ReserveEntry) for one in self.book.entries()),
        }
        self._post(Kind.ACCEPTANCE, body)

    def _contribute(self, attempt: Attempt, cohort: tuple[str, ...]) -> None:
        paid_by = self.pay(attempt.round_id)
        if attempt.purpose == CONFIDENCE_EXCESS:
            paid_by = self.reservation(attempt.round_id, TRAINING).entry_hash
        if attempt.purpose == STATISTICS:
            self.post_ledger(attempt.round_id, STATISTICS)
        body, payload = self.seal_for(attempt, cohort, self.vector(attempt))
        self._post(Kind.CONTRIBUTION, {**body, "paid_by": paid_by}, payload, attempt=attempt)

    def _distil(self, round_id: int) -> None:
        reservation = self.book.reserve(training_spec(self.me.plan, round_id))
        self.book.commit(reservation, b"adapters")
        self.post_ledger(round_id, TRAINING)
        self._post(Kind.TRAINED, {"paid_by": reservation.entry_hash}, round_id=round_id)

    def post_ledger(self, round_id: int, purpose: str) -> None:
        """Show the auditor what is new in the ledger."""
        me = self.me
        if me.index.find(Kind.LEDGER, sender=me.party, round_id=round_id, purpose=purpose):
            return
        entries = self.book.entries()
        first = max(
            (
                int(one.header.body["head_index"]) + 1
                for one in me.index
                if one.kind is Kind.LEDGER and one.header.sender == me.party
            ),
            default=0,
        )
        head = entries[-1]
        body = {"first_index": first, "head_index": head.index, "head_hash": head.entry_hash}
        part = format_ledger_lines(entries[first:])
        self._post(Kind.LEDGER, body, part, round_id=round_id, purpose=purpose)

    def _answer(self, round_id: int) -> None:
        me = self.me
        inquiry = me.index.find(Kind.INQUIRY, sender="coordinator", round_id=round_id)
        if inquiry is None:
            raise AssertionError("asked to answer without an inquiry")
        opened = me.index.opened(round_id, CONFIDENCE_EXCESS)
        samples = parse_inquiry(
            me.payload(inquiry),
            parse_body(inquiry, InquiryBody),
            plan=me.plan,
            opened=opened_values(me.payload(opened), me.plan, CONFIDENCE_EXCESS),
        )
        paths = [SiteRationale(sample=one, path=f"{me.party} says {one}") for one in samples]
        body = {"inquiry": inquiry.message_hash, "written": len(paths)}
        self._post(
            Kind.SITE_PATHS, body, site_rationales_bytes(paths), round_id=round_id, to="coordinator"
        )

    def reservation(self, round_id: int, purpose: str = STATISTICS) -> ReserveEntry:
        """The ledger entry that paid for a round's statistics, or training."""
        return next(
            one
            for one in self.book.entries()
            if isinstance(one, ReserveEntry) and (one.round_id, one.purpose) == (round_id, purpose)
        )

    def _post(
        self, kind: Kind, body: dict[str, Any], payload: bytes = b"", **place: Any
    ) -> Envelope:
        outgoing = self.tamper(kind, Outgoing(body=body, payload=payload))
        return self.me.post(kind, outgoing.body, lambda: outgoing.payload, **place)


@dataclass(slots=True, kw_only=True)
class SimulatedCoordinator:
    """A coordinator without a model.

    `given_up` is for the test to set, and `committed`: bytes in place of the matrix.
    """

    roster: Roster
    key: Ed25519PrivateKey
    certificate: str
    plan: StudyPlan
    board: MemoryBoard
    given_up: set[tuple[int, str]] = field(default_factory=set)
    index: MessageIndex = field(init=False)
    features: np.ndarray = field(init=False)
    committed: bytes | None = None
    _seen: int = 0

    def __post_init__(self) -> None:
        self.index = MessageIndex(self.plan, self.roster)
        rows = np.random.default_rng(7).uniform(
            size=(self.plan.pool_size, self.plan.allocation.cells)
        )
        self.features = rows / rows.sum(axis=1, keepdims=True)

    def sync(self) -> None:
        """Read everything that is new."""
        for number, envelope in self.board.visible(self.roster.coordinator, self._seen):
            self._seen = number
            self.index.add(envelope)

    def next(self) -> Task:
        """The next task after reading the board."""
        self.sync()
        return next_coordinator_task(self.index, given_up=frozenset(self.given_up))

    def step(self) -> Task:
        """Read the board and carry out one task."""
        task = self.next()
        self.carry_out(task)
        return task

    def carry_out(self, task: Task) -> None:
        """Carry out a task."""
        match task:
            case Post(kind=Kind.PLAN):
                self.post(
                    Kind.PLAN, {"certificate": self.certificate}, payload=self.plan.to_bytes()
                )
                self.post(Kind.POOL, {}, payload=b"pool")
                self.post(Kind.CLUSTERS, {}, payload=b"clusters")
            case Post(kind=Kind.COHORT, attempt=attempt, sites=sites):
                self.post_at(Kind.COHORT, attempt, {"sites": list(sites)})
            case Post(kind=Kind.ABORT, attempt=attempt):
                self.post_at(Kind.ABORT, attempt, {"code": "timeout", "message": "no answer"})
            case Post(kind=Kind.SUM, attempt=attempt, sites=cohort):
                self.add_up(attempt, cohort)
            case Post(kind=Kind.MATRIX, round_id=round_id):
                self.commit(round_id)
            case Post(kind=Kind.SCORES, round_id=round_id, to=site):
                self.score(round_id, site)
            case Post(kind=Kind.PATHS, round_id=round_id):
                body = {"demanded": 3, "written": 3, "wrong": 0, "dropped": 0}
                self.post(Kind.PATHS, body, payload=b"[]", round_id=round_id)
            case Post(kind=Kind.INQUIRY, round_id=round_id):
                self.inquire(round_id)
            case Post(kind=Kind.LLM_UPDATE, round_id=round_id):
                self.improve(round_id)
            case Post(kind=Kind.TRANSCRIPT, round_id=round_id):
                transcript = build_transcript(
                    self.index, round_id, previous=self._transcript_hash(round_id - 1)
                )
                self.post(
                    Kind.TRANSCRIPT,
                    {"messages": len(transcript.entries)},
                    payload=transcript.to_bytes(),
                    round_id=round_id,
                )
            case Post(kind=Kind.CLOSE, round_id=round_id):
                digest = self._transcript_hash(round_id)
                self.post(Kind.CLOSE, {"transcript_sha256": digest}, round_id=round_id)
            case Post(kind=Kind.FINISHED):
                self.post(Kind.FINISHED, {"rounds": self.plan.rounds})
            case GiveUp(code=code, message=message):
                self.post(Kind.FAILED, {"code": code, "message": message})
            case _:
                pass

    def commit(self, round_id: int) -> Envelope:
        """Post the matrix of a round."""
        matrix = encode_matrix(self.features, row_bound=ROW_BOUND)
        body = {"parameters_digest": matrix.parameters.digest}
        payload = matrix.to_bytes() if self.committed is None else self.committed
        return self.post(Kind.MATRIX, body, payload=payload, round_id=round_id)

    def score(
        self, round_id: int, site: str, *, payload: bytes | None = None, **changes: Any
    ) -> Envelope:
        """Answer a query from the round's matrix; a test may replace bytes or body fields."""
        query = self.index.find(Kind.QUERY, sender=site, to="coordinator", round_id=round_id)
        matrix = self.index.find(Kind.MATRIX, sender="coordinator", round_id=round_id)
        if query is None or matrix is None:
            raise AssertionError("asked to score without query and matrix")
        if payload is None:
            payload = scores_of(self.features, self.board.payload(query.message_hash))
        body = {
            "matrix": matrix.message_hash,
            "query": query.message_hash,
            "pool_size": self.plan.pool_size,
        }
        return self.post(
            Kind.SCORES, {**body, **changes}, payload=payload, round_id=round_id, to=site
        )

    def inquire(self, round_id: int, *, samples: list[int] | None = None) -> Envelope:
        """Ask about the samples with the largest sums, or about those that a test wants."""
        opened = self.index.opened(round_id, CONFIDENCE_EXCESS)
        values = opened_values(
            self.board.payload(opened.message_hash), self.plan, CONFIDENCE_EXCESS
        )
        if samples is None:
            known = [one for one in range(len(values)) if values[one] > 0]
            samples = sorted(sorted(known, key=lambda one: -values[one])[: self.budget])
        body = {"opened": opened.message_hash, "samples": len(samples)}
        return self.post(Kind.INQUIRY, body, payload=inquiry_bytes(samples), round_id=round_id)

    @property
    def budget(self) -> int:
        """Most samples of an inquiry."""
        return transfer_of(self.plan).budget

    def improve(self, round_id: int, **changes: Any) -> Envelope:
        """Publish a decision: kept in even rounds, dropped in odd ones, unless changed."""
        inquiry = self.index.find(Kind.INQUIRY, sender="coordinator", round_id=round_id)
        if inquiry is None:
            raise AssertionError("an update without an inquiry")
        before = llm_version(self.index, before_round=round_id)
        kept = round_id % 2 == 0
        body = {
            "inquiry": inquiry.message_hash,
            "received": 6,
            "used": 4,
            "holdout": transfer_of(self.plan).holdout,
            "right_before": 1,
            "right_after": 2 if kept else 1,
            "certainty_before": 9,
            "certainty_after": 15 if kept else 9,
            "accepted": kept,
            "llm_before": before,
            "llm_after": f"{round_id + 1:064x}" if kept else before,
        }
        return self.post(Kind.LLM_UPDATE, {**body, **changes}, round_id=round_id)

    def add_up(
        self,
        attempt: Attempt,
        cohort: tuple[str, ...],
        *,
        payload: bytes | None = None,
        names: Mapping[str, str] | None = None,
    ) -> Envelope:
        """Post the sum; a test may replace its bytes or the contributions that it names."""
        sent = self.index.all_at(Kind.CONTRIBUTION, attempt)
        if payload is None:
            parameters = purpose_parameters(self.plan, attempt.purpose)
            payload = add_sealed(
                parameters, [self.board.payload(sent[site].message_hash) for site in cohort]
            )
        if names is None:
            names = {site: sent[site].message_hash for site in cohort}
        return self.post_at(Kind.SUM, attempt, {"contributions": dict(names)}, payload=payload)

    def post_at(
        self, kind: Kind, attempt: Attempt, body: dict[str, Any], *, payload: bytes = b""
    ) -> Envelope:
        """Sign and post a message of an attempt."""
        return self.post(
            kind,
            body,
            payload=payload,
            round_id=attempt.round_id,
            purpose=attempt.purpose,
            attempt=attempt.number,
        )

    def post(
        self, kind: Kind, body: dict[str, Any], *, payload: bytes = b"", **place: Any
    ) -> Envelope:
        """Sign and post a message."""
        envelope = signed(
            self.roster, self.key, self.plan, kind, "coordinator", body, payload, **place
        )
        self.board.post(envelope, payload)
        self.index.add(envelope)
        return envelope

    def _transcript_hash(self, round_id: int) -> str:
        if round_id < 0:
            return FIRST
        message = self.index.find(Kind.TRANSCRIPT, sender="coordinator", round_id=round_id)
        if message is None:
            raise AssertionError(f"round {round_id} has no transcript")
        return message.header.payload_sha256


@dataclass(slots=True, kw_only=True)
class World:
    """One study with everybody in it."""

    cast: Cast
    plan: StudyPlan
    board: MemoryBoard
    coordinator: SimulatedCoordinator
    auditor: Auditor
    sites: dict[str, SimulatedSite]

    def auditor_step(self) -> object:
        """Let the real auditor carry out one task."""
        me = self.auditor.participant
        me.sync()
        task = next_auditor_task(me.index)
        if not isinstance(task, Wait | Done):
            self.auditor.loop.carry_out(task)
        return task

    def step_all(self) -> bool:
        """One step of everybody; whether anything was done."""
        before = len(self.board.rows)
        self.coordinator.step()
        self.auditor_step()
        for site in self.sites.values():
            site.step()
        return len(self.board.rows) > before

    def run(self, until: Callable[[World], bool] | None = None, *, steps: int = 400) -> None:
        """Step until the condition holds, or nobody has anything to do any more."""
        for _ in range(steps):
            if until is not None and until(self):
                return
            if not self.step_all():
                return
        raise AssertionError("the study did not come to rest")

    def to_sum(self, purpose: str = STATISTICS, round_id: int = 0) -> Post:
        """Run until the coordinator is about to post the sum of this round and purpose."""

        def ready() -> Post | None:
            task = self.coordinator.next()
            fits = owes(task, Kind.SUM) and (
                (task.attempt.round_id, task.attempt.purpose) == (round_id, purpose)
            )
            return task if fits else None

        for _ in range(400):
            task = ready()
            if task is not None:
                self.settle_auditor()
                return task
            if not self.step_all():
                break
        raise AssertionError(f"no sum is due: {self.coordinator.next()}")

    def settle_auditor(self) -> None:
        """Let the auditor do everything that it can do now."""
        while not isinstance(self.auditor_step(), Wait | Done):
            pass

    def admit_all(self) -> None:
        """Let every site accept the plan, and the auditor admit it."""
        for site in self.sites.values():
            site.step()
        self.settle_auditor()

    def answer(self, attempt: Attempt) -> Envelope:
        """What the auditor said to the sum of an attempt, after letting it work."""
        self.settle_auditor()
        index = self.auditor.participant.index
        for kind in (Kind.OPENED, Kind.OPENING_REFUSED):
            found = index.at(kind, attempt, sender="auditor")
            if found is not None:
                return found
        raise AssertionError("the auditor has not answered")


def make_world(
    folder: Path,
    *,
    sites: tuple[str, ...] = ("site-a", "site-b", "site-c"),
    cast_: Cast | None = None,
    plan: StudyPlan | None = None,
) -> World:
    """A study whose plan is on the board and that everybody has joined."""
    cast_ = cast_ or make_cast(sites)
    plan = plan or make_plan()
    board = MemoryBoard(cast_.roster)
    coordinator = SimulatedCoordinator(
        roster=cast_.roster,
        key=cast_.keys["coordinator"],
        certificate=cast_.certificates["coordinator"],
        plan=plan,
        board=board,
    )
    coordinator.step()
    auditor = make_auditor(cast_, board, folder / "auditor")
    joined = {}
    for name in sites:
        me = make_participant(cast_, board, name, folder / name)
        me.join(wait_s=5.0)
        joined[name] = SimulatedSite(me=me, book=make_ledger(cast_, name))
    return World(
        cast=cast_, plan=plan, board=board, coordinator=coordinator, auditor=auditor, sites=joined
    )


def make_auditor(cast_: Cast, board: MemoryBoard, folder: Path, *, min_cohort: int = 3) -> Auditor:
    """A real auditor that has joined; called again with the same folder it is a restart."""
    me = make_participant(cast_, board, "auditor", folder)
    me.join(wait_s=5.0)
    return Auditor(
        participant=me,
        state_dir=folder,
        known_entries=KnownEntries(folder=me.open_folder()),
        min_cohort=min_cohort,
        epsilon_cap=8.0,
    )


def refusal(world: World, attempt: Attempt) -> FaultBody:
    """The auditor's refusal of a sum."""
    answer = world.answer(attempt)
    assert answer.kind is Kind.OPENING_REFUSED, f"opened instead: {answer!r}"
    assert answer.header.payload_bytes == 0
    return parse_body(answer, FaultBody)


def notes(world: World) -> list[str]:
    """What the auditor has noted as opened."""
    folder = world.auditor.opening.notes
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def never_opened(world: World) -> None:
    """Nothing was opened: no note, which is written before the key is used."""
    assert notes(world) == []
    assert not world.coordinator.index.attempts(Kind.OPENED, round_id=0, purpose=STATISTICS)


def bring_together(world: World, attempt: Attempt, cohort: tuple[str, ...]) -> None:
    """Sites that do whatever the coordinator wants: keys and contributions for an attempt."""
    for name in cohort:
        world.sites[name].me.sync()
        world.sites[name].carry_out(Post(kind=Kind.MASK_KEY, attempt=attempt, sites=cohort))
    for name in cohort:
        world.sites[name].me.sync()
        world.sites[name].carry_out(Post(kind=Kind.CONTRIBUTION, attempt=attempt, sites=cohort))
    world.coordinator.sync()


def exported(world: World, folder: Path) -> dict[str, bytes]:
    """The auditor's export of a study, by file."""
    identity = folder / "identity"
    identity.mkdir(parents=True)
    (identity / "ca.crt").write_bytes(world.cast.ca_pem)
    out = folder / "export"
    write_export(out, world.auditor.participant, world.auditor.ledgers, identity=identity)
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
