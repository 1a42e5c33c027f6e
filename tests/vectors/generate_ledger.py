"""The ledger of the test vectors: one that goes on under a new key, and one that begins again.

Its epsilons are constants; only chain, signatures, keys, commitment and restart are shown here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from generate_world import Vectors, digest_of, signing_key

from lada_secure.method.plan import STATISTICS
from lada_secure.privacy.accounting.events import DpSgdEvent, GaussianEvent, composed_event
from lada_secure.privacy.ledger.entries import (
    CommitEntry,
    DecisionEntry,
    KeyEntry,
    LedgerEntry,
    LedgerIdentity,
    ReserveEntry,
    RestartEntry,
    ResumeEntry,
    StartEntry,
    commit_to_output,
    sign_entry,
    sign_with_new_key,
)
from lada_secure.privacy.ledger.restart import RestartGrant

PEOPLE: dict[str, Any] = {"site": "site-a", "population": "patients"}
STUDY: dict[str, Any] = {"study_id": "vectors-1", "plan_hash": digest_of("plan")}
KEY = signing_key("site-a")
NEW_KEY = signing_key("site-a, renewed")
OUTPUT = b"noised statistics"
SALT = bytes.fromhex(digest_of("salt"))
STATISTICS_EVENT = GaussianEvent(8.5)
TRAINING_EVENT = DpSgdEvent(noise_multiplier=1.25, sampling_probability=0.05, steps=10)
COST: dict[str, Any] = {
    "round_id": 0,
    "chunk": 0,
    "attempt": 0,
    "unit": "patient",
    "adjacency": "add_or_remove_one_unit",
    "target_delta": 1e-05,
    "total_cap": 20.0,
    "study_cap": 8.0,
}


def _hex(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


class _Lines:
    """Entries that follow each other, each signed by the key in force."""

    def __init__(self, identity: LedgerIdentity) -> None:
        self.identity = identity
        self.entries: list[LedgerEntry] = []
        self._key = KEY

    def add(self, make: Callable[..., LedgerEntry], minute: int, **fields: Any) -> LedgerEntry:
        last = self.entries[-1].entry_hash if self.entries else self.identity.genesis_hash
        entry = make(
            **PEOPLE,
            index=len(self.entries),
            previous_hash=last,
            time=f"2026-01-31T12:{minute:02d}:00.000000Z",
            signature="",
            **fields,
        )
        if isinstance(entry, KeyEntry):
            entry = sign_with_new_key(entry, NEW_KEY)
        self.entries.append(sign_entry(entry, self._key))
        if isinstance(entry, KeyEntry):
            self._key = NEW_KEY
        return self.entries[-1]

    def vectors(self) -> Vectors:
        """Lines and hashes, and what they begin with."""
        return {
            **PEOPLE,
            "ledger_id": self.identity.ledger_id,
            "genesis_hash": self.identity.genesis_hash,
            "lines": [one.line().decode("ascii") for one in self.entries],
            "entry_hashes": [one.entry_hash for one in self.entries],
        }


def _first() -> _Lines:
    lines = _Lines(LedgerIdentity(**PEOPLE, ledger_id=digest_of("ledger")))
    add = lines.add
    add(StartEntry, 0, ledger_id=lines.identity.ledger_id, public_key=_hex(KEY))
    add(
        DecisionEntry,
        0,
        **STUDY,
        decision="approve",
        expires="2030-01-31T12:00:00.000000Z",
        decided_by="dr.weber",
        statement="gepr\u00fcft",
    )
    paid = add(
        ReserveEntry,
        1,
        **STUDY,
        **COST,
        purpose=STATISTICS,
        mechanism="discrete_gaussian",
        parameters={"l2_sensitivity": 22.627416997969522, "std": 192.33304448274094},
        event=STATISTICS_EVENT,
        epsilon_after=0.4375,
        epsilon_rdp_after=0.5,
        study_epsilon_after=0.4375,
        study_epsilon_rdp_after=0.5,
    ).entry_hash
    add(ResumeEntry, 3, **STUDY, reserve_hash=paid, attempt=1)
    add(
        KeyEntry,
        7,
        new_public_key=_hex(NEW_KEY),
        decided_by="dr.weber",
        new_signature="",
    )
    add(
        CommitEntry,
        3,
        **STUDY,
        round_id=0,
        purpose=STATISTICS,
        chunk=0,
        reserve_hash=paid,
        output_commitment=commit_to_output(OUTPUT, salt=SALT),
    )
    add(
        ReserveEntry,
        9,
        **STUDY,
        **COST,
        purpose="training",
        mechanism="dp_sgd",
        parameters={"l2_clip_norm": 0.5, "expected_units": 5.0, "noise": "discrete_gaussian"},
        event=TRAINING_EVENT,
        epsilon_after=1.25,
        epsilon_rdp_after=1.5,
        study_epsilon_after=1.25,
        study_epsilon_rdp_after=1.5,
    )
    return lines


def _restarted(lost: Sequence[LedgerEntry]) -> _Lines:
    grant = RestartGrant(
        **PEOPLE,
        ledger_id=digest_of("ledger in place of a lost one"),
        public_key=_hex(KEY),
        previous_ledger_id=digest_of("ledger"),
        previous_index=lost[-1].index,
        previous_hash=lost[-1].entry_hash,
        carried=composed_event([STATISTICS_EVENT, TRAINING_EVENT]),
        studies=(STUDY["study_id"],),
        target_delta=1e-05,
        carried_epsilon=1.25,
        requested_by="dr.weber",
        auditor="auditor",
        auditor_key="",
        granted_by="ms.okafor",
        time="2026-02-01T09:30:00.000000Z",
        signature="",
    ).signed(signing_key("auditor"))
    lines = _Lines(LedgerIdentity(**PEOPLE, ledger_id=grant.ledger_id))
    lines.add(RestartEntry, 40, grant=grant)
    return lines


def ledger_vectors() -> Vectors:
    """A ledger with every kind of entry but a restart, and the one that begins in its place."""
    first = _first()
    return {
        "ledger": first.vectors(),
        "restarted": _restarted(first.entries).vectors(),
        "auditor_key": _hex(signing_key("auditor")),
        "output": OUTPUT.hex(),
        "salt": SALT.hex(),
    }
