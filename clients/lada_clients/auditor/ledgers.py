"""The auditor's copies of the sites' ledgers: appended, verified, never shortened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lada_clients.outbox import write_atomically
from lada_protocol.messages import LedgerBody
from lada_protocol.roster import Party
from lada_secure.errors import LedgerError, PeerError, TransportError
from lada_secure.privacy.entries import LedgerEntry
from lada_secure.privacy.ledger_lines import parse_ledger_lines
from lada_secure.privacy.verification import verify_ledger

MAX_LEDGER_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerCopies:
    """One file of canonical JSON Lines per site."""

    folder: Path

    def raw(self, site: str) -> bytes:
        """The copy of one site's ledger; empty before its first part."""
        try:
            return self._path(site).read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise TransportError(f"cannot read {self._path(site)}: {error.strerror}") from error

    def entries(self, site: str) -> tuple[LedgerEntry, ...]:
        """The entries of one site's ledger, parsed."""
        raw = self.raw(site)
        return parse_ledger_lines(raw) if raw else ()

    def append(self, site: Party, body: LedgerBody, part: bytes) -> tuple[LedgerEntry, ...]:
        """Verify and keep the next part of a site's ledger.

        A part that overlaps the copy must agree with it byte by byte: a site cannot rewrite
        what it has shown once.

        Nothing that the part says about cost is believed: epsilon is recomputed.

        Raises: PeerError(reason="bad_ledger"): a gap, a rewritten entry, a broken chain or
            signature, a cost that is understated, or a head that is not the one announced.
        """
        kept = self.raw(site.id).splitlines(keepends=True)
        lines = part.splitlines(keepends=True)
        first = body.first_index
        overlap = kept[first : first + len(lines)]
        if first > len(kept) or lines[: len(overlap)] != overlap:
            raise PeerError(
                f"ledger of {site.id}: entries from {first} on do not continue the auditor's "
                f"copy of {len(kept)} entries; the site's ledger was rewritten or cut",
                reason="bad_ledger",
                peer=site.id,
            )
        raw = b"".join(kept[:first] + lines)
        if len(lines) < len(kept) - first:
            raw = b"".join(kept)
        if len(raw) > MAX_LEDGER_BYTES:
            raise PeerError(f"ledger of {site.id} is too large", reason="too_large", peer=site.id)
        try:
            entries = parse_ledger_lines(raw)
            verify_ledger(
                entries, public_key=bytes.fromhex(site.signing_key), caps=None, site=site.id
            )
        except LedgerError as error:
            raise PeerError(
                f"ledger of {site.id}: {error}", reason="bad_ledger", peer=site.id
            ) from error
        head = body.head_index
        last = first + len(lines) - 1
        if head != last or head >= len(entries) or entries[head].entry_hash != body.head_hash:
            raise PeerError(
                f"ledger of {site.id}: entry {head} is not the head that was announced",
                reason="bad_ledger",
                peer=site.id,
            )
        write_atomically(self._path(site.id), raw)
        return entries

    def _path(self, site: str) -> Path:
        return self.folder / f"{site}.jsonl"
