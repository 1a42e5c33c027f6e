"""Message kinds: who may send each, who may read it, and how large its payload may be.

SPEC.md, "Messages", holds the same table in prose.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

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


MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class KindRules:
    """What the board and every reader enforce for one kind."""

    senders: Set[Role]
    audience: Audience = Audience.ALL
    max_payload_bytes: int = 0

    @property
    def needs_addressee(self) -> bool:
        """Whether a message of the kind is for one party."""
        return self.audience in (Audience.ADDRESSEE, Audience.ADDRESSEE_AND_AUDITOR)


_C, _A, _S = Role.COORDINATOR, Role.AUDITOR, Role.SITE
_ALL, _AUDITOR, _ADDRESSEE, _BOTH = Audience


class Kind(StrEnum):
    """Every message of the protocol, in the order in which a study meets them, with its rules."""

    rules: KindRules

    def __new__(cls, name: str, *rules: Any) -> Kind:
        kind = str.__new__(cls, name)
        kind._value_, kind.rules = name, KindRules(*rules)
        return kind

    PLAN = "plan", {_C}, _ALL, MIB // 16
    POOL = "pool", {_C}, _ALL, 256 * MIB
    CLUSTERS = "clusters", {_C}, _ALL, 16 * MIB
    OPENING_KEY = "opening_key", {_A}, _ALL, 2 * MIB
    ACCEPTANCE = "acceptance", {_S}
    ADMISSION = "admission", {_A}
    REFUSAL = "refusal", {_A, _S}
    COHORT = "cohort", {_C}
    MASK_KEY = "mask_key", {_S}
    LEDGER = "ledger", {_S}, _AUDITOR, 64 * MIB
    RECEIPT = "receipt", {_A}
    CONTRIBUTION = "contribution", {_S}, _AUDITOR, 64 * MIB
    SUM = "sum", {_C}, _AUDITOR, 64 * MIB
    OPENED = "opened", {_A}, _ALL, 32 * MIB
    OPENING_REFUSED = "opening_refused", {_A}
    ABORT = "abort", {_C}
    MATRIX = "matrix", {_C}, _AUDITOR, 256 * MIB
    QUERY = "query", {_S}, _BOTH, 64 * MIB
    SCORES = "scores", {_C}, _BOTH, 64 * MIB
    PATHS = "paths", {_C}, _ALL, 64 * MIB
    TRAINED = "trained", {_S}
    INQUIRY = "inquiry", {_C}, _ALL, 8 * MIB
    SITE_PATHS = "site_paths", {_S}, _ADDRESSEE, 64 * MIB
    LLM_UPDATE = "llm_update", {_C}
    TRANSCRIPT = "transcript", {_C}, _ALL, 16 * MIB
    CLOSE = "close", {_C, _A, _S}
    FINISHED = "finished", {_C}
    FAILED = "failed", {_C, _A, _S}


def parse_kind(name: str) -> Kind:
    """The kind of that name. Raises: PeerError(reason="unknown_kind")."""
    try:
        return Kind(name)
    except ValueError:
        raise PeerError(f"unknown message kind {name[:40]!r}", reason="unknown_kind") from None


def may_read(*, kind: Kind, sender: str, to: str, reader: str, role: Role) -> bool:
    """Whether `reader` may see a message; the coordinator keeps the board and sees all."""
    if role is Role.COORDINATOR or reader in (sender, to):
        return True
    audience = kind.rules.audience
    return audience is Audience.ALL or (role is Role.AUDITOR and audience is not Audience.ADDRESSEE)
