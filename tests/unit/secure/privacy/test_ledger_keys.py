"""A ledger outlives the keys that sign it: a renewal is an entry that both keys sign."""

from __future__ import annotations

import dataclasses

import pytest
from ledger_world import (
    AUDITOR_KEY,
    CAPS,
    NEW_KEY,
    SITE,
    SITE_KEY,
    approve,
    memory_ledger,
    raw_public_key,
    statistics_spec,
)

from lada_secure.errors import LedgerError, ParameterError
from lada_secure.privacy.ledger.entries import KeyEntry, parse_ledger_lines, sign_entry
from lada_secure.privacy.ledger.verification import verify_ledger

RENEWED = raw_public_key(NEW_KEY)


def test_a_renewed_key_goes_on_with_the_ledger_and_its_budget() -> None:
    ledger = memory_ledger()
    approve(ledger)
    ledger.commit(ledger.reserve(statistics_spec()), b"noised")
    spent = ledger.epsilon_spent(1e-6)
    entry = ledger.renew_key(NEW_KEY, decided_by="dr.weber")
    assert ledger.public_key == RENEWED
    assert ledger.epsilon_spent(1e-6) == spent
    assert ledger.stored_output(statistics_spec().key) == b"noised"
    ledger.reserve(statistics_spec(1))
    entries = parse_ledger_lines(ledger.export_lines())
    summary = verify_ledger(entries, public_key=RENEWED, caps=CAPS)
    assert (summary.public_key, summary.reservations) == (RENEWED.hex(), 2)
    assert entries[entry.index] == entry
    with pytest.raises(LedgerError, match=r"^entry 5: the ledger's key in force is"):
        verify_ledger(entries, public_key=SITE, caps=CAPS)
    verify_ledger(entries[:4], public_key=SITE, caps=CAPS)


def test_the_old_key_signs_nothing_after_its_renewal() -> None:
    ledger = memory_ledger()
    ledger.renew_key(NEW_KEY, decided_by="dr.weber")
    approve(ledger)
    entries = ledger.entries()
    forged = sign_entry(entries[-1], SITE_KEY)
    with pytest.raises(LedgerError, match=r"^entry 2: the signature is not the site's"):
        verify_ledger((*entries[:-1], forged), public_key=RENEWED, caps=CAPS)


def test_neither_key_alone_renews() -> None:
    ledger = memory_ledger()
    ledger.renew_key(NEW_KEY, decided_by="dr.weber")
    first, renewal = ledger.entries()
    assert isinstance(renewal, KeyEntry)
    by_new_alone = sign_entry(renewal, NEW_KEY)
    with pytest.raises(LedgerError, match=r"^entry 1: the signature is not the site's"):
        verify_ledger((first, by_new_alone), public_key=RENEWED, caps=CAPS)
    other = AUDITOR_KEY.sign(renewal.new_signed_bytes()).hex()
    by_old_alone = sign_entry(dataclasses.replace(renewal, new_signature=other), SITE_KEY)
    with pytest.raises(LedgerError, match=r"^entry 1: new_signature is not the new key's"):
        verify_ledger((first, by_old_alone), public_key=RENEWED, caps=CAPS)
    # The new key's agreement is to this place in this ledger, and to no other.
    moved = dataclasses.replace(renewal, time="2026-01-31T12:01:00.000000Z")
    with pytest.raises(LedgerError, match=r"^entry 1: new_signature is not the new key's"):
        verify_ledger((first, sign_entry(moved, SITE_KEY)), public_key=RENEWED, caps=CAPS)


def test_a_signature_of_another_kind_of_content_is_no_agreement() -> None:
    ledger = memory_ledger()
    ledger.renew_key(NEW_KEY, decided_by="dr.weber")
    _, renewal = ledger.entries()
    assert isinstance(renewal, KeyEntry)
    assert renewal.new_signed_bytes() != renewal.signed_bytes()
    swapped = dataclasses.replace(renewal, new_signature=NEW_KEY.sign(renewal.signed_bytes()).hex())
    with pytest.raises(LedgerError, match="new_signature is not the new key's"):
        verify_ledger(
            (ledger.entries()[0], sign_entry(swapped, SITE_KEY)), public_key=RENEWED, caps=CAPS
        )


def test_a_key_is_not_renewed_by_itself_or_by_nobody() -> None:
    ledger = memory_ledger()
    before = ledger.export_lines()
    with pytest.raises(LedgerError, match="the new key is the one that is in force already"):
        ledger.renew_key(SITE_KEY, decided_by="dr.weber")
    with pytest.raises(ParameterError, match=r"^decided_by: "):
        ledger.renew_key(NEW_KEY, decided_by="")
    assert ledger.export_lines() == before
    approve(ledger)
