"""Offline verification of several studies at once: one epsilon per population over all of them.

The ledger of a population spans studies, so what two exports hold of it must agree: the shorter one
is the beginning of the longer one, or a restart that an auditor granted links the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lada_protocol.evidence.export import ledger_file
from lada_protocol.evidence.study import Verdict, verify_evidence
from lada_secure.privacy.ledger.entries import LedgerEntry
from lada_secure.privacy.ledger.lines import parse_ledger_lines
from lada_secure.privacy.ledger.verification import LedgerSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationLedger:
    """The newest ledger of one population at one site, and the exports that hold any of it."""

    site: str
    population: str
    summary: LedgerSummary
    entries: tuple[LedgerEntry, ...]
    exports: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JointVerdict:
    """What each export says, and what all of them say together.

    `faults` are those between exports; each verdict has its own. A population with a fault between
    its exports may have several ledgers in `populations`.
    """

    verdicts: Mapping[str, Verdict]
    populations: tuple[PopulationLedger, ...]
    faults: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether nothing was wrong in any export and nothing between them."""
        return not self.faults and all(one.good for one in self.verdicts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """A ledger as one export holds it."""

    export: str
    summary: LedgerSummary
    entries: tuple[LedgerEntry, ...]

    @property
    def ledger_id(self) -> str:
        return self.summary.identity.ledger_id


def verify_exports(exports: Mapping[str, Mapping[str, bytes]]) -> JointVerdict:
    """Verify exported studies, each alone and all together.

    Args: exports: name for messages -> path relative to the export folder -> content.
    Returns: a verdict; it never raises for bad content.
    """
    verdicts = {name: verify_evidence(files) for name, files in exports.items()}
    found: dict[tuple[str, str], list[_Copy]] = {}
    for name, verdict in verdicts.items():
        for site, summary in verdict.ledgers.items():
            entries = parse_ledger_lines(exports[name][ledger_file(site)])
            copy = _Copy(export=name, summary=summary, entries=entries)
            found.setdefault((site, summary.identity.population), []).append(copy)
    faults: list[str] = []
    populations = [one for key in sorted(found) for one in _newest(found[key], faults)]
    return JointVerdict(verdicts=verdicts, populations=tuple(populations), faults=tuple(faults))


def _newest(copies: Sequence[_Copy], faults: list[str]) -> list[PopulationLedger]:
    """The ledger that counts, of all copies of one population's; more than one is a fault."""
    longest: dict[str, _Copy] = {}
    for copy in sorted(copies, key=lambda one: len(one.entries)):
        shorter = longest.get(copy.ledger_id)
        if shorter is not None:
            _check_prefix(shorter, copy, faults)
        longest[copy.ledger_id] = copy
    replaced = {
        grant.previous_ledger_id
        for copy in longest.values()
        if (grant := copy.summary.restart) is not None
        and _follows(copy, longest.get(grant.previous_ledger_id), faults)
    }
    newest = [one for one in longest.values() if one.ledger_id not in replaced]
    if len(newest) > 1:
        names = ", ".join(f"{one.ledger_id[:12]} in {one.export}" for one in newest)
        faults.append(
            f"{_of(newest[0])}: forked: different ledgers, and no granted restart links them: "
            f"{names}"
        )
    return [
        PopulationLedger(
            site=one.summary.identity.site,
            population=one.summary.identity.population,
            summary=one.summary,
            entries=one.entries,
            exports=tuple(copy.export for copy in copies),
        )
        for one in newest
    ]


def _check_prefix(shorter: _Copy, longer: _Copy, faults: list[str]) -> None:
    pairs = zip(shorter.entries, longer.entries, strict=False)
    differs = next((at for at, (one, two) in enumerate(pairs) if one != two), None)
    if differs is not None:
        faults.append(
            f"{_of(longer)}: forked: its entry {differs} in {longer.export} is another one than in "
            f"{shorter.export}"
        )


def _follows(copy: _Copy, lost: _Copy | None, faults: list[str]) -> bool:
    """Whether a restarted ledger takes the place of the lost one, as far as that is here."""
    grant = copy.summary.restart
    if grant is None or lost is None:
        return False
    known = lost.entries[grant.previous_index : grant.previous_index + 1]
    if len(lost.entries) > grant.previous_index + 1:
        faults.append(
            f"{_of(copy)}: forked: the ledger {lost.ledger_id[:12]} went on in {lost.export} after "
            f"entry {grant.previous_index}, up to which its restart has carried it over"
        )
    elif known and known[0].entry_hash != grant.previous_hash:
        faults.append(
            f"{_of(copy)}: forked: its restart carries over another entry {grant.previous_index} "
            f"than {lost.export} holds"
        )
    return True


def _of(copy: _Copy) -> str:
    identity = copy.summary.identity
    return f"ledger of {identity.site}, population {identity.population}"
