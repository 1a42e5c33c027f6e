"""What `lada audit verify` says about one export or several, to people and to machines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lada_clients.reports.ledger_history import history_facts, history_sentences
from lada_protocol.evidence.joint import JointVerdict, PopulationLedger
from lada_protocol.evidence.study import Verdict
from lada_secure.privacy.ledger.verification import LedgerSummary


def verdict_json(found: JointVerdict) -> dict[str, Any]:
    """One object: every export, every population over all exports, and all faults.

    Of a single export, its own fields stand on top as well.
    """
    exports = {name: _export(one) for name, one in found.verdicts.items()}
    alone = next(iter(exports.values())) if len(exports) == 1 else {}
    return {
        **alone,
        "good": found.good,
        "faults": _faults(found),
        "exports": [{"folder": name, **one} for name, one in exports.items()],
        "populations": [_population(one) for one in found.populations],
    }


def _export(verdict: Verdict) -> dict[str, Any]:
    told = ("good", "outcome", "study_id", "rounds", "openings", "messages")
    return {
        **{name: getattr(verdict, name) for name in told},
        "epsilon": {site: _cost(summary) for site, summary in verdict.ledgers.items()},
        "faults": list(verdict.faults),
    }


def _population(ledger: PopulationLedger) -> dict[str, Any]:
    return {
        "site": ledger.summary.identity.site,
        "population": ledger.summary.identity.population,
        **_cost(ledger.summary),
        "studies": [study.study_id for study in ledger.summary.studies],
        "exports": list(ledger.exports),
        **history_facts(ledger.summary),
    }


def _cost(summary: LedgerSummary) -> dict[str, Any]:
    told = ("epsilon", "epsilon_rdp", "target_delta", "reservations")
    return {name: getattr(summary, name) for name in told}


def verdict_lines(found: JointVerdict) -> Iterator[str]:
    """The same, line by line; faults come first."""
    faults = _faults(found)
    yield from (f"WRONG  {fault}" for fault in faults)
    for one in found.populations:
        summary, identity = one.summary, one.summary.identity
        yield (
            f"ledger {identity.site}, population {identity.population}: "
            f"epsilon {summary.epsilon:.4f} (RDP {summary.epsilon_rdp:.4f}) "
            f"at delta {summary.target_delta}, "
            f"{summary.reservations} releases in {len(summary.studies)} studies"
        )
        yield from (f"  {sentence}" for sentence in history_sentences(summary))
    for where, verdict in _prefixed(found):
        yield (
            f"{where}{verdict.messages} messages, {verdict.openings} openings, {verdict.rounds} "
            f"rounds of study {verdict.study_id or '?'}: {_outcome(verdict)}"
        )
    if len(found.verdicts) > 1:
        outcome = f"{len(faults)} faults" if faults else "all good"
        yield f"{len(found.verdicts)} studies: {outcome}"


def _prefixed(found: JointVerdict) -> list[tuple[str, Verdict]]:
    """Every export's verdict after its name; a single one needs no name."""
    several = len(found.verdicts) > 1
    return [(f"{name}: " if several else "", one) for name, one in found.verdicts.items()]


def _faults(found: JointVerdict) -> list[str]:
    own = [f"{where}{fault}" for where, one in _prefixed(found) for fault in one.faults]
    return [*own, *found.faults]


def _outcome(verdict: Verdict) -> str:
    if verdict.good:
        return "all good"
    failed = "the study failed, " if verdict.outcome == "failed" else ""
    return f"{failed}{len(verdict.faults)} faults"
