"""Message kinds: who may send each, who may read it, and how large its payload may be.

SPEC.md, "Messages", holds the same table in prose.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from lada_secure.errors import PeerError


class Role(StrEnum):
    """What a certificate entitles its holder to be."""

    COORDINATOR = "coordinator"
    AUDITOR = "auditor"
    SITE = "site"


class Audience(StrEnum):
    """Who may read a message besides its sender and the coordinator, whose board carries it."""

    ALL = "all"
    AUDITOR = "auditor"
    ADDRESSEE = "addressee"
    ADDRESSEE_AND_AUDITOR = "addressee, auditor"


class Kind(StrEnum):
    """Every message of the protocol, in the order in which a study meets them."""

    PLAN = "plan"
    POOL = "pool"
    CLUSTERS = "clusters"
    OPENING_KEY = "opening_key"
    ACCEPTANCE = "acceptance"
    ADMISSION = "admission"
    REFUSAL = "refusal"
    COHORT = "cohort"
    MASK_KEY = "mask_key"
    LEDGER = "ledger"
    RECEIPT = "receipt"
    CONTRIBUTION = "contribution"
    SUM = "sum"
    OPENED = "opened"
    OPENING_REFUSED = "opening_refused"
    ABORT = "abort"
    MATRIX = "matrix"
    QUERY = "query"
    SCORES = "scores"
    PATHS = "paths"
    TRAINED = "trained"
    INQUIRY = "inquiry"
    SITE_PATHS = "site_paths"
    LLM_UPDATE = "llm_update"
    TRANSCRIPT = "transcript"
    CLOSE = "close"
    FINISHED = "finished"
    FAILED = "failed"


MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class KindRules:
    """What the board and every reader enforce for one kind."""

    senders: frozenset[Role]
    audience: Audience
    max_payload_bytes: int

    @property
    def needs_addressee(self) -> bool:
        """Whether a message of the kind is for one party."""
        return self.audience in (Audience.ADDRESSEE, Audience.ADDRESSEE_AND_AUDITOR)


def _rules(
    *senders: Role, audience: Audience = Audience.ALL, max_payload_bytes: int = 0
) -> KindRules:
    return KindRules(
        senders=frozenset(senders), audience=audience, max_payload_bytes=max_payload_bytes
    )


_C, _A, _S = Role.COORDINATOR, Role.AUDITOR, Role.SITE

RULES: dict[Kind, KindRules] = {
    Kind.PLAN: _rules(_C, max_payload_bytes=64 * 1024),
    Kind.POOL: _rules(_C, max_payload_bytes=256 * MIB),
    Kind.CLUSTERS: _rules(_C, max_payload_bytes=16 * MIB),
    Kind.OPENING_KEY: _rules(_A, max_payload_bytes=2 * MIB),
    Kind.ACCEPTANCE: _rules(_S),
    Kind.ADMISSION: _rules(_A),
    Kind.REFUSAL: _rules(_A, _S),
    Kind.COHORT: _rules(_C),
    Kind.MASK_KEY: _rules(_S),
    Kind.LEDGER: _rules(_S, audience=Audience.AUDITOR, max_payload_bytes=64 * MIB),
    Kind.RECEIPT: _rules(_A),
    Kind.CONTRIBUTION: _rules(_S, audience=Audience.AUDITOR, max_payload_bytes=64 * MIB),
    Kind.SUM: _rules(_C, audience=Audience.AUDITOR, max_payload_bytes=64 * MIB),
    Kind.OPENED: _rules(_A, max_payload_bytes=32 * MIB),
    Kind.OPENING_REFUSED: _rules(_A),
    Kind.ABORT: _rules(_C),
    Kind.MATRIX: _rules(_C, audience=Audience.AUDITOR, max_payload_bytes=256 * MIB),
    Kind.QUERY: _rules(_S, audience=Audience.ADDRESSEE_AND_AUDITOR, max_payload_bytes=64 * MIB),
    Kind.SCORES: _rules(_C, audience=Audience.ADDRESSEE_AND_AUDITOR, max_payload_bytes=64 * MIB),
    Kind.PATHS: _rules(_C, max_payload_bytes=64 * MIB),
    Kind.TRAINED: _rules(_S),
    Kind.INQUIRY: _rules(_C, max_payload_bytes=8 * MIB),
    Kind.SITE_PATHS: _rules(_S, audience=Audience.ADDRESSEE, max_payload_bytes=64 * MIB),
    Kind.LLM_UPDATE: _rules(_C),
    Kind.TRANSCRIPT: _rules(_C, max_payload_bytes=16 * MIB),
    Kind.CLOSE: _rules(_C, _A, _S),
    Kind.FINISHED: _rules(_C),
    Kind.FAILED: _rules(_C, _A, _S),
}


def parse_kind(name: str) -> Kind:
    """The kind of that name. Raises: PeerError(reason="unknown_kind")."""
    try:
        return Kind(name)
    except ValueError:
        raise PeerError(f"unknown message kind {name[:40]!r}", reason="unknown_kind") from None


def kind_rules(kind: Kind) -> KindRules:
    """What holds for messages of this kind."""
    return RULES[kind]


def may_read(*, kind: Kind, sender: str, to: str, reader: str, role: Role) -> bool:
    """Whether `reader` may see a message; the coordinator keeps the board and sees all."""
    if role is Role.COORDINATOR or reader in (sender, to):
        return True
    audience = RULES[kind].audience
    return audience is Audience.ALL or (role is Role.AUDITOR and audience is not Audience.ADDRESSEE)
