"""The auditor's copies of the sites' ledgers, over all studies: only ever appended to, verified.

One file per site and population. A ledger that was restarted takes the place of the one that was
lost, which is kept beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lada_clients.auditor.grants import RestartGrants
from lada_protocol.identity.roster import Party
from lada_protocol.rounds.admission import check_accepted_head
from lada_protocol.wire.messages import AcceptanceBody, LedgerBody
from lada_secure.errors import LedgerError, PeerError, TransportError
from lada_secure.privacy.ledger.entries import LedgerEntry, RestartEntry
from lada_secure.privacy.ledger.lines import parse_ledger_lines
from lada_secure.privacy.ledger.verification import ledger_identity, verify_ledger
from lada_secure.storage.whole_files import write_atomically

MAX_LEDGER_BYTES = 256 * 1024 * 1024
_REPLACED = "replaced"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerCopies:
    """Canonical JSON Lines in `folder`/SITE/POPULATION.jsonl; `grants` are this auditor's own."""

    folder: Path
    grants: RestartGrants

    def raw(self, site: str, population: str) -> bytes:
        """The copy of one ledger; empty before its first part."""
        path = self._path(site, population)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise TransportError(f"cannot read {path}: {error.strerror}") from error

    def entries(self, site: str, population: str) -> tuple[LedgerEntry, ...]:
        """The entries of one ledger, parsed."""
        raw = self.raw(site, population)
        return parse_ledger_lines(raw) if raw else ()

    def populations(self, site: str) -> tuple[str, ...]:
        """Populations of a site that this auditor has a ledger of."""
        return tuple(sorted(path.name[:-6] for path in (self.folder / site).glob("*.jsonl")))

    def append(self, site: Party, claim: AcceptanceBody, body: LedgerBody, part: bytes) -> None:
        """Verify and keep the next part of a site's ledger.

        A part that overlaps the copy must agree with it byte by byte: a site cannot rewrite
        what it has shown once. Nothing that the part says about cost is believed: epsilon is
        recomputed.

        Args: claim: what the site has accepted the plan with, and was admitted with.
        Raises: PeerError(reason="bad_ledger"): a gap, a rewritten entry, a broken chain or
            signature, a cost that is understated, a head that is not the one announced, or not
            the ledger of the acceptance.
        """
        where, population = f"ledger of {site.id}", claim.population
        kept = self.raw(site.id, population).splitlines(keepends=True)
        lines = part.splitlines(keepends=True)
        restarted = body.first_index == 0 and self._restarts(kept, claim.ledger_id)
        raw = b"".join(_joined([] if restarted else kept, lines, body.first_index, site=site.id))
        if len(raw) > MAX_LEDGER_BYTES:
            raise PeerError(f"{where} is too large", reason="too_large", peer=site.id)
        try:
            entries = parse_ledger_lines(raw)
            verify_ledger(
                entries,
                public_key=bytes.fromhex(site.signing_key),
                caps=None,
                site=site.id,
                population=population,
            )
        except LedgerError as error:
            raise PeerError(f"{where}: {error}", reason="bad_ledger", peer=site.id) from error
        self._check_grant(entries[0], where=where, site=site.id)
        check_accepted_head(claim, entries, site=site.id)
        head, last = body.head_index, body.first_index + len(lines) - 1
        if head != last or head >= len(entries) or entries[head].entry_hash != body.head_hash:
            raise PeerError(
                f"{where}: entry {head} is not the head that was announced",
                reason="bad_ledger",
                peer=site.id,
            )
        path = self._path(site.id, population)
        if restarted:
            replaced = f"{population}-{claim.ledger_id[:16]}.jsonl"
            write_atomically(path.parent / _REPLACED / replaced, b"".join(kept))
        write_atomically(path, raw)

    def _restarts(self, kept: list[bytes], ledger_id: str) -> bool:
        """Whether the ledger takes the place of the copy by a grant of this auditor."""
        if not kept:
            return False
        known = ledger_identity(parse_ledger_lines(kept[0])).ledger_id
        granted = self.grants.of(ledger_id)
        return granted is not None and granted.previous_ledger_id == known

    def _check_grant(self, first: LedgerEntry, *, where: str, site: str) -> None:
        """A site can sign a grant of its own that carries less; this auditor keeps those it gave.

        Raises: PeerError(reason="bad_ledger").
        """
        if not isinstance(first, RestartEntry):
            return
        granted = self.grants.of(first.ledger_id)
        if granted is not None and first.grant != granted:
            raise PeerError(
                f"{where}: it begins with another grant than the one that this auditor has given "
                f"for the ledger {first.ledger_id[:12]}...",
                reason="bad_ledger",
                peer=site,
            )

    def _path(self, site: str, population: str) -> Path:
        return self.folder / site / f"{population}.jsonl"


def _joined(kept: list[bytes], lines: list[bytes], first: int, *, site: str) -> list[bytes]:
    """The copy with a part of the ledger, which must go on where the copy ends or overlap it."""
    overlap = kept[first : first + len(lines)]
    if first > len(kept) or lines[: len(overlap)] != overlap:
        raise PeerError(
            f"ledger of {site}: entries from {first} on do not continue the auditor's copy of "
            f"{len(kept)} entries; the site's ledger was rewritten or cut",
            reason="bad_ledger",
            peer=site,
        )
    return kept if len(lines) < len(kept) - first else kept[:first] + lines
