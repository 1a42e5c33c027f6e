"""Offline verification of several studies at once: one epsilon per population over all of them.

The ledger of a population spans studies, so what two exports hold of it must agree: the shorter one
is the beginning of the longer one, or a restart that an auditor granted links the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lada_protocol.evidence.study import Verdict, verify_evidence
from lada_secure.privacy.ledger.entries import LedgerEntry
from lada_secure.privacy.ledger.restart import RestartGrant
from lada_secure.privacy.ledger.verification import LedgerSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationLedger:
    """The newest ledger of one population at one site, and the exports that hold any of it."""

    summary: LedgerSummary
    exports: tuple[str, ...]

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """All of it, from the first entry on."""
        return self.summary.entries

    @property
    def ledger_id(self) -> str:
        """Which ledger it is."""
        return self.summary.identity.ledger_id

    def __str__(self) -> str:
        identity = self.summary.identity
        return f"ledger of {identity.site}, population {identity.population}"


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


def verify_exports(exports: Mapping[str, Mapping[str, bytes]]) -> JointVerdict:
    """Verify exported studies, each alone and all together.

    Args: exports: name for messages -> path relative to the export folder -> content.
    Returns: a verdict; it never raises for bad content.
    """
    verdicts = {name: verify_evidence(files) for name, files in exports.items()}
    found: dict[tuple[str, str], list[PopulationLedger]] = {}
    for name, verdict in verdicts.items():
        for site, summary in verdict.ledgers.items():
            copy = PopulationLedger(summary=summary, exports=(name,))
            found.setdefault((site, summary.identity.population), []).append(copy)
    faults: list[str] = []
    populations = [ledger for key in sorted(found) for ledger in _newest(found[key], faults)]
    return JointVerdict(verdicts=verdicts, populations=tuple(populations), faults=tuple(faults))


def _newest(copies: Sequence[PopulationLedger], faults: list[str]) -> list[PopulationLedger]:
    """The ledger that counts, of all copies of one population's; more than one is a fault."""
    longest: dict[str, PopulationLedger] = {}
    for copy in sorted(copies, key=lambda copy: len(copy.entries)):
        shorter = longest.get(copy.ledger_id)
        if shorter is not None:
            _check_prefix(shorter, copy, faults)
        longest[copy.ledger_id] = copy
    replaced = {
        grant.previous_ledger_id
        for copy in longest.values()
        if (grant := copy.summary.restart) is not None
        and _follows(copy, grant, longest.get(grant.previous_ledger_id), faults)
    }
    newest = [copy for copy in longest.values() if copy.ledger_id not in replaced]
    if len(newest) > 1:
        names = ", ".join(f"{copy.ledger_id[:12]} in {copy.exports[0]}" for copy in newest)
        faults.append(
            f"{newest[0]}: forked: different ledgers, and no granted restart links them: {names}"
        )
    exports = tuple(copy.exports[0] for copy in copies)
    return [replace(copy, exports=exports) for copy in newest]


def _check_prefix(shorter: PopulationLedger, longer: PopulationLedger, faults: list[str]) -> None:
    pairs = zip(shorter.entries, longer.entries, strict=False)
    differs = next((at for at, (one, two) in enumerate(pairs) if one != two), None)
    if differs is not None:
        faults.append(
            f"{longer}: forked: its entry {differs} in {longer.exports[0]} is another one than in "
            f"{shorter.exports[0]}"
        )


def _follows(
    copy: PopulationLedger, grant: RestartGrant, lost: PopulationLedger | None, faults: list[str]
) -> bool:
    """Whether a restarted ledger takes the place of the lost one, as far as that is here."""
    if lost is None:
        return False
    known = lost.entries[grant.previous_index : grant.previous_index + 1]
    if len(lost.entries) > grant.previous_index + 1:
        faults.append(
            f"{copy}: forked: the ledger {lost.ledger_id[:12]} went on in {lost.exports[0]} after "
            f"entry {grant.previous_index}, up to which its restart has carried it over"
        )
    elif known and known[0].entry_hash != grant.previous_hash:
        faults.append(
            f"{copy}: forked: its restart carries over another entry {grant.previous_index} than "
            f"{lost.exports[0]} holds"
        )
    return True
