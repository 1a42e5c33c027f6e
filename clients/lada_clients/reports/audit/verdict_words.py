"""What `lada audit verify` says about one export or several, to people and to machines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lada_clients.reports.ledger_history import history_of
from lada_protocol.evidence.joint import JointVerdict, PopulationLedger
from lada_protocol.evidence.study import Verdict


def verdict_json(found: JointVerdict) -> dict[str, Any]:
    """One object: every export, every population over all exports, and all faults.

    Of a single export, its own fields stand on top as well.
    """
    exports = [{"folder": name, **_export(one)} for name, one in found.verdicts.items()]
    several = len(exports) > 1
    alone = {} if several else {key: one for key, one in exports[0].items() if key != "folder"}
    faults = [
        f"{name}: {fault}" if several else fault
        for name, one in found.verdicts.items()
        for fault in one.faults
    ]
    return {
        **alone,
        "good": found.good,
        "faults": [*faults, *found.faults],
        "exports": exports,
        "populations": [_population(one) for one in found.populations],
    }


def _export(verdict: Verdict) -> dict[str, Any]:
    return {
        "good": verdict.good,
        "outcome": verdict.outcome,
        "study_id": verdict.study_id,
        "rounds": verdict.rounds,
        "openings": verdict.openings,
        "messages": verdict.messages,
        "epsilon": {
            site: {
                "epsilon": summary.epsilon,
                "epsilon_rdp": summary.epsilon_rdp,
                "target_delta": summary.target_delta,
                "reservations": summary.reservations,
            }
            for site, summary in verdict.ledgers.items()
        },
        "faults": list(verdict.faults),
    }


def _population(one: PopulationLedger) -> dict[str, Any]:
    return {
        "site": one.site,
        "population": one.population,
        "epsilon": one.summary.epsilon,
        "epsilon_rdp": one.summary.epsilon_rdp,
        "target_delta": one.summary.target_delta,
        "reservations": one.summary.reservations,
        "studies": [study.study_id for study in one.summary.studies],
        "exports": list(one.exports),
        **history_of(one.entries).to_json(),
    }


def verdict_lines(found: JointVerdict) -> Iterator[str]:
    """The same, line by line; faults come first."""
    several = len(found.verdicts) > 1
    for name, verdict in found.verdicts.items():
        where = f"{name}: " if several else ""
        yield from (f"WRONG  {where}{fault}" for fault in verdict.faults)
    yield from (f"WRONG  {fault}" for fault in found.faults)
    for one in found.populations:
        summary = one.summary
        yield (
            f"ledger {one.site}, population {one.population}: epsilon {summary.epsilon:.4f} "
            f"(RDP {summary.epsilon_rdp:.4f}) at delta {summary.target_delta}, "
            f"{summary.reservations} releases in {len(summary.studies)} studies"
        )
        yield from (f"  {sentence}" for sentence in history_of(one.entries).sentences())
    for name, verdict in found.verdicts.items():
        where = f"{name}: " if several else ""
        yield (
            f"{where}{verdict.messages} messages, {verdict.openings} openings, {verdict.rounds} "
            f"rounds of study {verdict.study_id or '?'}: {_outcome(verdict)}"
        )
    if several:
        faults = len(found.faults) + sum(len(one.faults) for one in found.verdicts.values())
        yield f"{len(found.verdicts)} studies: " + (f"{faults} faults" if faults else "all good")


def _outcome(verdict: Verdict) -> str:
    if verdict.good:
        return "all good"
    failed = "the study failed, " if verdict.outcome == "failed" else ""
    return f"{failed}{len(verdict.faults)} faults"
