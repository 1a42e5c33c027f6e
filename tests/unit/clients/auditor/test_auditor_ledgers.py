"""The auditor's copies: parts appended in order, nothing rewritten, nothing believed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_clients.auditor.ledgers import KnownEntries, LedgerCopies
from lada_protocol.identity.roster import Party
from lada_protocol.kinds import Role
from lada_protocol.wire.messages import AcceptanceBody, LedgerBody
from lada_secure.errors import ParameterError, PeerError
from lada_secure.privacy.accounting.events import GaussianEvent
from lada_secure.privacy.ledger.entries import LedgerEntry, LedgerIdentity, format_ledger_lines
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.ledger.terms import DISCRETE_GAUSSIAN, BudgetCaps, ReleaseSpec

KEY = Ed25519PrivateKey.generate()
NOW = datetime(2026, 2, 1, tzinfo=UTC)
IDENTITY = LedgerIdentity.new(site="site-a", population="patients")
PARTY = Party(
    id="site-a",
    role=Role.SITE,
    tls_fingerprint="1" * 64,
    signing_fingerprint="2" * 64,
    signing_key=KEY.public_key().public_bytes_raw().hex(),
)


def _entries(rounds: int = 2, *, expires_days: int = 30) -> tuple[LedgerEntry, ...]:
    ledger = MemoryLedger(
        identity=IDENTITY,
        signing_key=KEY,
        caps=BudgetCaps(target_delta=1e-5, total_epsilon=9.0, study_epsilon=9.0),
        clock=lambda: NOW,
    )
    ledger.decide(
        "approve",
        study_id="study",
        plan_hash="a" * 64,
        expires=NOW + timedelta(days=expires_days),
        decided_by="policy",
    )
    for round_id in range(rounds):
        spec = ReleaseSpec(
            study_id="study",
            plan_hash="a" * 64,
            round_id=round_id,
            purpose="statistics",
            mechanism=DISCRETE_GAUSSIAN,
            event=GaussianEvent(8.0),
            parameters={"l2_sensitivity": 20.0, "std": 160.0},
        )
        ledger.commit(ledger.reserve(spec), b"output")
    return ledger.entries()


ENTRIES = _entries()
LAST = len(ENTRIES) - 1


def _copies(folder: Path) -> LedgerCopies:
    return LedgerCopies(state_dir=folder)


def _claim(entries: tuple[LedgerEntry, ...] = ENTRIES) -> AcceptanceBody:
    """What the site has accepted the plan with: its ledger up to the decision."""
    return AcceptanceBody(
        certificate="",
        population="patients",
        ledger_id=IDENTITY.ledger_id,
        head_index=1,
        head_hash=entries[1].entry_hash,
        new_ledger=True,
    )


def _append(
    copies: LedgerCopies,
    first: int,
    last: int,
    entries: tuple[LedgerEntry, ...] = ENTRIES,
    *,
    head: int | None = None,
) -> None:
    announced = last if head is None else head
    body = LedgerBody(
        first_index=first, head_index=announced, head_hash=entries[announced].entry_hash
    )
    copies.append(PARTY, _claim(), body, format_ledger_lines(entries[first : last + 1]))


def _refused(copies: LedgerCopies, *args: object, **more: object) -> str:
    before = copies.raw("site-a", "patients")
    with pytest.raises(PeerError) as caught:
        _append(copies, *args, **more)  # type: ignore[arg-type]
    assert caught.value.reason == "bad_ledger"
    assert copies.raw("site-a", "patients") == before
    return str(caught.value)


def test_parts_in_order_make_the_whole_ledger(tmp_path: Path) -> None:
    copies = _copies(tmp_path)
    assert copies.entries("site-a", "patients") == ()
    _append(copies, 0, 2)
    _append(copies, 3, LAST)
    assert copies.entries("site-a", "patients") == ENTRIES
    assert copies.raw("site-a", "patients") == format_ledger_lines(ENTRIES)


def test_a_part_shown_again_changes_nothing(tmp_path: Path) -> None:
    copies = _copies(tmp_path)
    _append(copies, 0, LAST)
    _append(copies, 0, 2)
    _append(copies, 2, LAST)
    assert copies.entries("site-a", "patients") == ENTRIES


def test_a_gap_is_refused(tmp_path: Path) -> None:
    copies = _copies(tmp_path)
    _append(copies, 0, 1)
    assert "do not continue" in _refused(copies, 3, 4)


def test_a_rewritten_history_is_refused(tmp_path: Path) -> None:
    copies = _copies(tmp_path)
    _append(copies, 0, 2)
    other = _entries(expires_days=31)
    assert "rewritten or cut" in _refused(copies, 0, 4, other)
    assert "previous_hash" in _refused(copies, 3, 4, other)


def test_a_head_that_is_not_the_last_entry_of_the_part_is_refused(tmp_path: Path) -> None:
    copies = _copies(tmp_path)
    assert "head" in _refused(copies, 0, 4, head=2)
    assert "head" in _refused(copies, 0, 1, head=2)


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    copies = _copies(tmp_path)
    raw = format_ledger_lines(ENTRIES)
    body = LedgerBody(first_index=0, head_index=LAST, head_hash=ENTRIES[LAST].entry_hash)
    for position in range(5, len(raw), len(raw) // 15):
        changed = bytearray(raw)
        changed[position] ^= 1
        with pytest.raises(PeerError) as caught:
            copies.append(PARTY, _claim(), body, bytes(changed))
        assert caught.value.reason == "bad_ledger"
    assert copies.raw("site-a", "patients") == b""


def test_an_empty_ledger_is_refused(tmp_path: Path) -> None:
    body = LedgerBody(first_index=0, head_index=0, head_hash="0" * 64)
    with pytest.raises(PeerError) as caught:
        _copies(tmp_path).append(PARTY, _claim(), body, b"")
    assert caught.value.reason == "bad_ledger"


def test_what_was_known_before_a_study_stays_when_the_copy_has_grown(tmp_path: Path) -> None:
    known = KnownEntries(folder=tmp_path / "study")
    known.note("site-a", 0)
    # After a crash between keeping the ledger and answering, the copy is the whole ledger.
    known.note("site-a", 40)
    assert known.before("site-a") == 0
    (tmp_path / "study" / "known-entries-site-a").write_text("many")
    with pytest.raises(ParameterError, match="is damaged"):
        known.before("site-a")
