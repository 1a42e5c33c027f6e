"""Every change to an exported ledger is reported, and the entry is named."""

from __future__ import annotations

import re

import pytest
from ledger_world import (
    AUDITOR_KEY,
    CAPS,
    NEW_KEY,
    approve,
    memory_ledger,
    raw_public_key,
    sample_ledger,
    statistics_spec,
)

from lada_secure.errors import LedgerError
from lada_secure.privacy.ledger.entries import format_ledger_lines, parse_ledger_lines, sign_entry
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.ledger.verification import verify_ledger

LEDGER = sample_ledger()
RAW = LEDGER.export_lines()
LINES = RAW.splitlines(keepends=True)


def short_ledger() -> MemoryLedger:
    """One entry of each kind but a restart: fast enough to change every byte of it."""
    ledger = memory_ledger()
    approve(ledger)
    ledger.reserve(statistics_spec())
    ledger.commit(ledger.reserve(statistics_spec()), b"noised statistics")
    ledger.renew_key(NEW_KEY, decided_by="dr.weber")
    return ledger


def problem(raw: bytes) -> str:
    """What verification says; empty if nothing is wrong."""
    try:
        verify_ledger(
            parse_ledger_lines(raw),
            public_key=raw_public_key(NEW_KEY),
            caps=CAPS,
            auditor_key=raw_public_key(AUDITOR_KEY),
        )
    except LedgerError as error:
        return str(error)
    return ""


def named_entry(message: str) -> int:
    """The number of the entry that a message names first."""
    found = re.match(r"entry (\d+): ", message)
    assert found is not None, f"no entry is named: {message!r}"
    return int(found[1])


def check_flips(raw: bytes, flips: tuple[int, ...]) -> int:
    """Change each byte in each way; every case must be reported at its own line."""
    assert problem(raw) == ""
    cases = 0
    for position, byte in enumerate(raw):
        line = raw.count(b"\n", 0, position)
        for flip in flips:
            message = problem(raw[:position] + bytes([byte ^ flip]) + raw[position + 1 :])
            assert message, f"byte {position} xor {flip} was not noticed"
            # A line feed that turns up in a line cuts it in two; the first half is named.
            assert named_entry(message) == line, message
            cases += 1
    return cases


def test_the_untouched_ledger_raises_no_alarm() -> None:
    assert problem(RAW) == ""
    assert len(LINES) == 12


def test_a_changed_byte_anywhere_is_reported_with_the_entry_named() -> None:
    raw = short_ledger().export_lines()
    # The lowest bit turns digits and hexadecimal digits into others; 32 is the case of letters.
    assert check_flips(raw, (1, 32)) == 2 * len(raw) > 5000


@pytest.mark.slow
def test_every_flipped_bit_is_reported_with_the_entry_named() -> None:
    assert check_flips(RAW, (1, 2, 4, 8, 16, 32, 64, 128)) > 40_000


def test_every_dropped_entry_is_reported() -> None:
    # Without its last entry it is a whole ledger that ends earlier; the auditor's copy tells.
    for position in range(len(LINES) - 1):
        message = problem(b"".join(LINES[:position] + LINES[position + 1 :]))
        assert named_entry(message) == position


def test_every_repeated_entry_is_reported() -> None:
    for source in range(len(LINES)):
        for target in range(len(LINES) + 1):
            raw = b"".join([*LINES[:target], LINES[source], *LINES[target:]])
            # Beside the original, the copy's own number tells which of the two is too much.
            expected = source + 1 if target == source else target
            assert named_entry(problem(raw)) == expected


def test_every_swap_of_two_entries_is_reported() -> None:
    for first in range(len(LINES)):
        for second in range(first + 1, len(LINES)):
            lines = list(LINES)
            lines[first], lines[second] = lines[second], lines[first]
            assert named_entry(problem(b"".join(lines))) == first


def test_every_entry_signed_by_another_key_is_reported() -> None:
    entries = LEDGER.entries()
    for position, entry in enumerate(entries):
        forged = (*entries[:position], sign_entry(entry, AUDITOR_KEY), *entries[position + 1 :])
        assert named_entry(problem(format_ledger_lines(forged))) == position


def test_every_cut_inside_the_last_line_is_reported() -> None:
    for cut in range(1, len(LINES[-1])):
        assert named_entry(problem(RAW[:-cut])) == len(LINES) - 1


def test_two_histories_mixed_at_any_place_are_reported() -> None:
    fork = memory_ledger()
    approve(fork)
    for round_id in range(len(LINES) - 3):
        fork.reserve(statistics_spec(round_id, noise_multiplier=40.0))
    fork.renew_key(NEW_KEY, decided_by="dr.weber")
    other = fork.export_lines().splitlines(keepends=True)
    for place in range(1, len(LINES)):
        # Start and first approval are the same in both, byte for byte, so a mix there is the fork.
        mixed = problem(b"".join(LINES[:place] + other[place:]))
        assert mixed == "" if place <= 2 else named_entry(mixed) == place


@pytest.mark.parametrize(
    "change",
    [
        RAW.replace(b'{"index":', b'{ "index":', 1),
        RAW.replace(b'"attempt":0', b'"attempt":0.0', 1),
        RAW.replace(b'"attempt":0', b'"attempt":-0', 1),
        RAW.replace(b"\n", b"\r\n", 1),
        RAW.replace(b'"hospital-a"', b'"hospit\\u0061l-a"', 1),
        RAW + b"\n",
        b"\n" + RAW,
        b"\xef\xbb\xbf" + RAW,
        RAW + LINES[-1].rstrip(b"\n"),
        RAW.replace(b'"attempt":0', b'"attempt":0,"attempt":0', 1),
        RAW.replace(b'"version":2', b'"version":1', 1),
        RAW.replace(b'"kind":"commit"', b'"kind":"note"', 1),
    ],
    ids=[
        "white space",
        "another number format",
        "minus zero",
        "carriage return",
        "an escape",
        "an empty line at the end",
        "an empty line at the start",
        "a byte-order mark",
        "no last line feed",
        "a repeated key",
        "another version",
        "an unknown kind",
    ],
)
def test_another_spelling_of_the_same_ledger_is_reported(change: bytes) -> None:
    assert change != RAW
    assert named_entry(problem(change)) <= len(LINES)
