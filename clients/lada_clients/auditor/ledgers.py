"""What the auditor keeps of the sites' ledgers: verified copies over all studies, and grants.

Copies are only ever appended to. A ledger that was restarted takes the place of the one that was
lost, which is kept beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lada_protocol.identity.roster import Party
from lada_protocol.rounds.admission import check_accepted_head
from lada_protocol.wire.messages import AcceptanceBody, LedgerBody
from lada_secure.errors import LedgerError, ParameterError, PeerError, TransportError
from lada_secure.privacy.ledger.entries import LedgerEntry, RestartEntry, parse_ledger_lines
from lada_secure.privacy.ledger.restart import RestartGrant, parse_grant
from lada_secure.privacy.ledger.verification import ledger_identity, verify_ledger
from lada_secure.storage.whole_files import write_atomically

MAX_LEDGER_BYTES = 256 * 1024 * 1024
_REPLACED = "replaced"


def _content(path: Path) -> bytes | None:
    """None where there is no such file. Raises: TransportError: it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TransportError(f"cannot read {path}: {error.strerror}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartGrants:
    """Restarts that people at this auditor have granted, one file per ledger that may begin."""

    folder: Path

    def of(self, ledger_id: str) -> RestartGrant | None:
        """The grant for a ledger; None where this auditor has given none.

        Raises: LedgerError: the file is damaged. TransportError: it cannot be read.
        """
        raw = _content(self._path(ledger_id))
        return None if raw is None else parse_grant(raw)

    def keep(self, grant: RestartGrant) -> None:
        """Note a grant before it is given away. Raises: TransportError: it cannot be written."""
        write_atomically(self._path(grant.ledger_id), grant.to_bytes())

    def _path(self, ledger_id: str) -> Path:
        return self.folder / f"{ledger_id}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownEntries:
    """How much of each site's ledger the auditor knew before a study: a note that outlives a crash.

    One small file per site in the auditor's folder of the study. The copy itself grows with what a
    site shows on joining, and would no longer tell.
    """

    folder: Path

    def note(self, site: str, entries: int) -> None:
        """Note it before the copy grows; the first note of a study stays."""
        path = self._path(site)
        if not path.exists():
            write_atomically(path, str(entries).encode("ascii"))

    def before(self, site: str) -> int:
        """What was noted. Raises: ParameterError: damaged. TransportError: cannot be read."""
        path = self._path(site)
        try:
            return int(path.read_bytes())
        except OSError as error:
            raise TransportError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise ParameterError(f"{path} is damaged; restore the folder from a backup") from error

    def _path(self, site: str) -> Path:
        return self.folder / f"known-entries-{site}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerCopies:
    """Canonical JSON Lines in `folder`/SITE/POPULATION.jsonl; `grants` are this auditor's own."""

    folder: Path
    grants: RestartGrants

    def raw(self, site: str, population: str) -> bytes:
        """The copy of one ledger; empty before its first part."""
        return _content(self._path(site, population)) or b""

    def entries(self, site: str, population: str) -> tuple[LedgerEntry, ...]:
        """The entries of one ledger, parsed."""
        return parse_ledger_lines(self.raw(site, population))

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
