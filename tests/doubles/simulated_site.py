"""A site without a model, driven by the round logic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeGuard

import numpy as np
from protocol_world import (
    NOW,
    SLM,
    statistics_spec,
    training_spec,
)

from lada_clients.net.participant import Participant
from lada_protocol.kinds import Kind
from lada_protocol.rounds.blind_scoring import ROW_BOUND
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.llm_transfer import (
    SiteRationale,
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
from lada_protocol.rounds.tasks import Post, Task
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import InquiryBody, parse_body
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
from lada_secure.models.identity import ModelIdentity
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
    slm: ModelIdentity = SLM
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
        head = self.book.entries()[-1]
        body = {
            "certificate": self.me.certificate,
            "population": head.population,
            "ledger_id": self.book.identity.ledger_id,
            "head_index": head.index,
            "head_hash": head.entry_hash,
            "new_ledger": not any(isinstance(one, ReserveEntry) for one in self.book.entries()),
            "slm": self.slm.model_dump(),
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
