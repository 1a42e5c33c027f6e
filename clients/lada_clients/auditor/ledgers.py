"""What the auditor keeps of the sites' ledgers: verified copies over all studies, and grants.

Copies are only ever appended to. A ledger that was restarted takes the place of the one that was
lost, which is kept beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lada_protocol.identity.roster import Party
from lada_protocol.kinds import Kind
from lada_protocol.rounds.admission import admission_of, check_accepted_head
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.wire.messages import AcceptanceBody, LedgerBody, parse_body
from lada_secure.errors import DiskError, LedgerError, ParameterError, PeerError
from lada_secure.privacy.ledger.entries import LedgerEntry, RestartEntry, parse_ledger_lines
from lada_secure.privacy.ledger.restart import RestartGrant, parse_grant
from lada_secure.privacy.ledger.verification import ledger_identity, verify_ledger
from lada_secure.storage.whole_files import read_file, read_if_there, write_atomically

MAX_LEDGER_BYTES = 256 * 1024 * 1024
_REPLACED = "replaced"


def claim_of(index: MessageIndex, site: str) -> AcceptanceBody | None:
    """What a site has accepted the plan with; None before that. Raises: PeerError: malformed."""
    acceptance = index.find(Kind.ACCEPTANCE, sender=site)
    return None if acceptance is None else parse_body(acceptance, AcceptanceBody)


def admitted_claim(index: MessageIndex, site: str) -> AcceptanceBody:
    """What an admitted site has accepted with. Raises: PeerError: it was not admitted."""
    claim = claim_of(index, site)
    if claim is None or admission_of(index, site) is None:
        raise PeerError(
            f"{site} sends a ledger, but was not admitted to the study",
            reason="not_admitted",
            peer=site,
        )
    return claim


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
            return int(read_file(path, refusal=DiskError))
        except ValueError as error:
            raise ParameterError(f"{path} is damaged; restore the folder from a backup") from error

    def _path(self, site: str) -> Path:
        return self.folder / f"known-entries-{site}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerCopies:
    """Canonical JSON Lines in ledgers/SITE/POPULATION.jsonl of the auditor's state folder.

    Restarts that people at this auditor have granted are kept as grants/LEDGER_ID.json, one file
    per ledger that may begin.
    """

    state_dir: Path

    def granted(self, ledger_id: str) -> RestartGrant | None:
        """The grant for a ledger; None where this auditor has given none.

        Raises: LedgerError: the file is damaged. TransportError: it cannot be read.
        """
        raw = read_if_there(self._grant_path(ledger_id))
        return None if raw is None else parse_grant(raw)

    def keep_grant(self, grant: RestartGrant) -> None:
        """Note a grant before it is given away. Raises: TransportError: it cannot be written."""
        write_atomically(self._grant_path(grant.ledger_id), grant.line())

    def raw(self, site: str, population: str) -> bytes:
        """The copy of one ledger; empty before its first part."""
        return read_if_there(self._path(site, population)) or b""

    def entries(self, site: str, population: str) -> tuple[LedgerEntry, ...]:
        """The entries of one ledger, parsed."""
        return parse_ledger_lines(self.raw(site, population))

    def sites(self) -> tuple[str, ...]:
        """Sites that this auditor has a ledger of."""
        return tuple(
            sorted({path.parent.name for path in self.state_dir.glob("ledgers/*/*.jsonl")})
        )

    def populations(self, site: str) -> tuple[str, ...]:
        """Populations of a site that this auditor has a ledger of."""
        folder = self.state_dir / "ledgers" / site
        return tuple(sorted(path.stem for path in folder.glob("*.jsonl")))

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
        population = claim.population
        kept = self.raw(site.id, population).splitlines(keepends=True)
        lines = part.splitlines(keepends=True)
        restarted = body.first_index == 0 and self._restarts(kept, claim.ledger_id)
        raw = b"".join(_joined([] if restarted else kept, lines, body.first_index, site=site.id))
        if len(raw) > MAX_LEDGER_BYTES:
            raise ledger_fault(site.id, "it is too large", reason="too_large")
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
            raise ledger_fault(site.id, str(error)) from error
        self._check_grant(entries[0], site=site.id)
        check_accepted_head(claim, entries, site=site.id)
        head, last = body.head_index, body.first_index + len(lines) - 1
        if head != last or head >= len(entries) or entries[head].entry_hash != body.head_hash:
            raise ledger_fault(site.id, f"entry {head} is not the head that was announced")
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
        granted = self.granted(ledger_id)
        return granted is not None and granted.previous_ledger_id == known

    def _check_grant(self, first: LedgerEntry, *, site: str) -> None:
        """A site can sign a grant of its own that carries less; this auditor keeps those it gave.

        Raises: PeerError(reason="bad_ledger").
        """
        granted = self.granted(first.ledger_id) if isinstance(first, RestartEntry) else None
        if isinstance(first, RestartEntry) and granted not in (None, first.grant):
            raise ledger_fault(
                site,
                "it begins with another grant than the one that this auditor has given for the "
                f"ledger {first.ledger_id[:12]}...",
            )

    def _path(self, site: str, population: str) -> Path:
        return self.state_dir / "ledgers" / site / f"{population}.jsonl"

    def _grant_path(self, ledger_id: str) -> Path:
        return self.state_dir / "grants" / f"{ledger_id}.json"


def ledger_fault(site: str, message: str, *, reason: str = "bad_ledger") -> PeerError:
    """An error for what is wrong with what a site shows of its ledger."""
    return PeerError(f"ledger of {site}: {message}", reason=reason, peer=site)


def _joined(kept: list[bytes], lines: list[bytes], first: int, *, site: str) -> list[bytes]:
    """The copy with a part of the ledger, which must go on where the copy ends or overlap it."""
    overlap = kept[first : first + len(lines)]
    if first > len(kept) or lines[: len(overlap)] != overlap:
        raise ledger_fault(
            site,
            f"entries from {first} on do not continue the auditor's copy of {len(kept)} entries; "
            "the site's ledger was rewritten or cut",
        )
    return kept if len(lines) < len(kept) - first else kept[:first] + lines
