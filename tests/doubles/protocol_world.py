"""A study in memory: real certificates, signatures, masks, sealing, ledgers and auditor.

Nothing here opens a socket or loads a model. The board keeps the rules of the real one (one
message per place, audiences by kind), and a test may reach into it the way a malicious
coordinator could.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_clients.net.participant import Participant
from lada_clients.net.study_folder import Outbox
from lada_clients.net.transport import BoardClient
from lada_protocol.events import EventLog
from lada_protocol.identity.certificates import (
    PartyName,
    certificate_fingerprint,
    certificate_pem,
    key_fingerprint,
)
from lada_protocol.identity.issuance import build_ca_certificate, issue_certificate
from lada_protocol.identity.roster import Party, Roster
from lada_protocol.kinds import Kind, Role, may_read
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.index import MessageIndex, slot_of
from lada_protocol.run_loop import ByteCounts
from lada_protocol.wire.envelope import Envelope, Header, sign_envelope
from lada_secure.allocation.statistics_parameters import l2_sensitivity, noise_std
from lada_secure.errors import PeerError
from lada_secure.method.plan import (
    STATISTICS,
    TRAINING,
    AllocationPlan,
    DistillationPlan,
    PrivacyPlan,
    RationalesPlan,
    ReferenceModelPlan,
    StatisticsPlan,
    TrainingPlan,
    TransferPlan,
)
from lada_secure.models.identity import ModelIdentity, SlmPlan
from lada_secure.privacy.accounting.events import DpSgdEvent, GaussianEvent
from lada_secure.privacy.ledger.entries import LedgerIdentity
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.ledger.terms import DISCRETE_GAUSSIAN, DP_SGD, BudgetCaps, ReleaseSpec

NOW = datetime(2026, 2, 1, 12, 0, tzinfo=UTC)
CAPS = BudgetCaps(target_delta=1e-5, total_epsilon=50.0, study_epsilon=8.0)


UPLINK = TransferPlan(
    bar=0.25,
    clip=0.5,
    integer_scale=10,
    holdout=3,
    candidates=5,
    budget=2,
    first_round=0,
    last_round=True,
    adapter_rank=2,
    adapter_layers=1,
    adapter_targets=("q_proj",),
    steps=2,
    batch_size=2,
    replay_batch_size=1,
    learning_rate=1e-3,
    contrastive_weight=0.1,
    contrastive_form="margin",
)


GUIDE = ReferenceModelPlan(
    records_with_reasons=True,
    own_paths=2,
    least_share=0.25,
    rate_decay=0.5,
    private_share=0.5,
    pool_steps=2,
    last_pool_steps=3,
    pool_learning_rate=1e-2,
    finish=False,
    own_reasons=False,
)


# What every site of these studies takes part with.
SLM = ModelIdentity(
    architecture="LlamaForCausalLM",
    parameters=1000,
    licence="Apache-2.0",
    revision="",
    weights_sha256="3" * 64,
    tokenizer_sha256="4" * 64,
    template_sha256="5" * 64,
)


def make_plan(**changes: Any) -> StudyPlan:
    """A small plan: 6 clusters, 9 pool samples, 2 rounds, cheap noise."""
    base: dict[str, Any] = {
        "study_id": "study-1",
        "title": "A study for tests",
        "coordinator": "coordinator",
        "expires": "2030-01-31T12:00:00Z",
        "rounds": 2,
        "min_cohort": 3,
        "max_cohort": 6,
        "slm": SlmPlan(),
        "embedder": "ngrams",
        "seed": 1,
        "pool_sha256": "1" * 64,
        "pool_size": 9,
        "clusters_sha256": "2" * 64,
        "phase_timeout_s": 60.0,
        "privacy": PrivacyPlan(
            unit="patient",
            target_delta=1e-5,
            epsilon_cap=8.0,
            max_records_per_unit=4,
            max_units=50,
        ),
        "statistics": StatisticsPlan(loss_clip=4.0, integer_scale=16, noise_multiplier=8.0),
        "training": TrainingPlan(
            noise_multiplier=2.0,
            l2_clip_norm=1.0,
            sampling_probability=0.05,
            expected_units=10.0,
            steps_per_round=5,
            pool_gradients="public",
        ),
        "distillation": DistillationPlan(
            adapter_rank=2,
            adapter_layers=1,
            adapter_targets=("q_proj",),
            train_a=True,
            learning_rate=1e-3,
            pool_batch_size=2,
            private_weight=0.5,
            contrastive_weight=0.0,
            contrastive_form="off",
        ),
        "allocation": AllocationPlan(
            strategy="band",
            clusters=6,
            difficulty_bins=2,
            quota=3,
            threshold=0.0,
            exploration_weight=0.1,
            screen_low=0.0,
            screen_high=1.0,
        ),
        "paths": RationalesPlan(budget=5, max_new_tokens=8, attempts=1),
    }
    return StudyPlan(**{**base, **changes})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Roster, keys and certificates of one CA's parties."""

    roster: Roster
    keys: Mapping[str, Ed25519PrivateKey]
    certificates: Mapping[str, str]
    ca_pem: bytes


@cache
def make_cast(sites: tuple[str, ...] = ("site-a", "site-b", "site-c")) -> Cast:
    """A CA, a coordinator, an auditor and these sites; made once per set of names."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = build_ca_certificate(
        key=ca_key,
        name="test CA",
        serial=1,
        period=(NOW - timedelta(days=1), NOW + timedelta(days=365)),
    )
    names = [
        PartyName(role=Role.COORDINATOR, id="coordinator"),
        PartyName(role=Role.AUDITOR, id="auditor"),
        *(PartyName(role=Role.SITE, id=one) for one in sites),
    ]
    keys: dict[str, Ed25519PrivateKey] = {}
    pems: dict[str, str] = {}
    parties = []
    for serial, name in enumerate(names, start=2):
        key = keys[name.id] = Ed25519PrivateKey.generate()
        certificate = issue_certificate(
            ca=ca,
            ca_key=ca_key,
            party=name,
            public_key=key.public_key(),
            serial=serial,
            period=(NOW, NOW + timedelta(days=100)),
        )
        pems[name.id] = certificate_pem(certificate).decode("ascii")
        parties.append(
            Party(
                id=name.id,
                role=name.role,
                # No connection is made, so any distinct fingerprint will do.
                tls_fingerprint=hashlib.sha256(name.id.encode("ascii")).hexdigest(),
                signing_fingerprint=key_fingerprint(certificate),
                signing_key=key.public_key().public_bytes_raw().hex(),
            )
        )
    return Cast(
        roster=Roster(study_ca=certificate_fingerprint(ca), parties=tuple(parties)),
        keys=keys,
        certificates=pems,
        ca_pem=certificate_pem(ca),
    )


@dataclass(slots=True)
class MemoryBoard:
    """The coordinator's board: what is posted, in order, one message per place."""

    roster: Roster
    rows: list[tuple[Envelope, bytes]] = field(default_factory=list)

    def post(self, envelope: Envelope, payload: bytes = b"") -> int:
        """Add a message; the same one again is fine, another one in its place is not."""
        for number, (known, _) in enumerate(self.rows, start=1):
            same_study = known.header.study_id == envelope.header.study_id
            if same_study and slot_of(known) == slot_of(envelope):
                if known.message_hash != envelope.message_hash:
                    raise PeerError("place is taken", reason="equivocation")
                return number
        self.rows.append((envelope, payload))
        return len(self.rows)

    def insert(self, envelope: Envelope, payload: bytes = b"") -> None:
        """What only a malicious coordinator can do: show a message, whatever was there."""
        self.rows.append((envelope, payload))

    def replace(self, envelope: Envelope, payload: bytes) -> None:
        """Show other payload bytes than the sender posted."""
        self.rows = [
            (one, payload if one.message_hash == envelope.message_hash else old)
            for one, old in self.rows
        ]

    def payload(self, message_hash: str) -> bytes:
        """The payload of a message."""
        return next(raw for one, raw in self.rows if one.message_hash == message_hash)

    def visible(self, party: Party, after: int) -> list[tuple[int, Envelope]]:
        """What the party may read."""
        return [
            (number, one)
            for number, (one, _) in enumerate(self.rows, start=1)
            if number > after
            and may_read(
                kind=one.kind,
                sender=one.header.sender,
                to=one.header.to,
                reader=party.id,
                role=party.role,
            )
        ]


@dataclass(slots=True)
class MemoryClient:
    """A participant's end of the board, with the checks of the real client."""

    board: MemoryBoard
    party: Party
    read_to: int = 0

    @property
    def traffic(self) -> ByteCounts:
        """Bytes are not counted here."""
        return ByteCounts(up_bytes=0, down_bytes=0)

    def post(
        self, envelope: Envelope, payload: bytes = b"", *, patience_s: float = math.inf
    ) -> int:
        """Post our own message."""
        if hashlib.sha256(payload).hexdigest() != envelope.header.payload_sha256:
            raise PeerError("payload differs from its header", reason="payload_mismatch")
        return self.board.post(envelope, payload)

    def list(
        self, after: int, *, wait_s: float = 0.0, patience_s: float = math.inf
    ) -> list[tuple[int, Envelope]]:
        """What is new for us; never waits."""
        self.read_to = max(self.read_to, after)
        return self.board.visible(self.party, after)

    def fetch(self, envelope: Envelope) -> bytes:
        """A payload, refused where its bytes are not the signed ones."""
        raw = self.board.payload(envelope.message_hash)
        if hashlib.sha256(raw).hexdigest() != envelope.header.payload_sha256:
            raise PeerError("payload is not the one that was signed", reason="payload_mismatch")
        return raw


def make_participant(cast_: Cast, board: MemoryBoard, party: str, folder: Path) -> Participant:
    """A real participant on the memory board."""
    return Participant(
        party=party,
        roster=cast_.roster,
        client=cast(BoardClient, MemoryClient(board, cast_.roster.party(party))),
        signing_key=cast_.keys[party],
        certificate=cast_.certificates[party],
        outbox=Outbox(folder=folder, roster=cast_.roster),
        events=EventLog(party=party, sink=lambda _line: None, clock=lambda: 0.0),
    )


def make_ledger(cast_: Cast, site: str, *, caps: BudgetCaps = CAPS) -> MemoryLedger:
    """A new ledger of a site, signed with the site's own key."""
    return MemoryLedger(
        identity=LedgerIdentity.new(site=site, population="patients"),
        signing_key=cast_.keys[site],
        caps=caps,
        clock=lambda: NOW,
    )


def statistics_spec(plan: StudyPlan, round_id: int, **changes: Any) -> ReleaseSpec:
    """What the plan says a round's statistics cost."""
    scale, noise = plan.statistics.integer_scale, plan.statistics.noise_multiplier
    fields: dict[str, Any] = {
        "study_id": plan.study_id,
        "plan_hash": plan.hash,
        "round_id": round_id,
        "purpose": STATISTICS,
        "mechanism": DISCRETE_GAUSSIAN,
        "event": GaussianEvent(noise),
        "parameters": {
            "l2_sensitivity": l2_sensitivity(scale),
            "std": noise_std(scale=scale, noise_multiplier=noise),
        },
        "unit": plan.privacy.unit,
    }
    return ReleaseSpec(**{**fields, **changes})


def training_spec(plan: StudyPlan, round_id: int) -> ReleaseSpec:
    """What the plan says a round's training costs."""
    training = plan.training
    return ReleaseSpec(
        study_id=plan.study_id,
        plan_hash=plan.hash,
        round_id=round_id,
        purpose=TRAINING,
        mechanism=DP_SGD,
        event=DpSgdEvent(
            noise_multiplier=training.noise_multiplier,
            sampling_probability=training.sampling_probability,
            steps=training.steps_per_round,
        ),
        parameters={
            "l2_clip_norm": training.l2_clip_norm,
            "expected_units": training.expected_units,
            "noise": "discrete_gaussian",
        },
        unit=plan.privacy.unit,
    )


def index_of_zeros(roster: Roster) -> MessageIndex:
    """An index that takes messages of the shared small study, whose plan is a hash of zeros."""
    index = MessageIndex(make_plan(study_id="study"), roster)
    index.plan_hash = "0" * 64
    return index


def signed(
    roster: Roster,
    key: Ed25519PrivateKey,
    plan: StudyPlan,
    kind: Kind | str,
    sender: str,
    body: dict[str, Any] | None = None,
    payload: bytes = b"",
    **place: Any,
) -> Envelope:
    """A message that this key really signed; `place` may overwrite any header field."""
    fields: dict[str, Any] = {
        "kind": str(kind),
        "study_id": plan.study_id,
        "plan_hash": plan.hash,
        "roster_hash": roster.hash,
        "round_id": 0,
        "attempt": 0,
        "purpose": "",
        "sender": sender,
        "to": "",
        "body": body or {},
        "payload_sha256": hashlib.sha256(payload).hexdigest(),
        "payload_bytes": len(payload),
    }
    return sign_envelope(Header(**{**fields, **place}), key)
