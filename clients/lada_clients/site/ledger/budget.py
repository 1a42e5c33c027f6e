"""A site's own view of its ledger: verified, summed up against its policy, and exported.

Needs neither network nor keys, and never waits for a running site.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lada_clients.reports.ledger_history import history_facts, history_sentences
from lada_clients.site.ledger.population import ledger_path
from lada_clients.site.ledger.store import open_ledger_reader
from lada_clients.site.settings import SitePolicy, read_site_settings
from lada_secure.errors import ParameterError
from lada_secure.privacy.ledger.verification import LedgerSummary, verify_ledger
from lada_secure.storage.whole_files import write_atomically

_TOLD_OF_STUDIES = ("study_id", "epsilon", "reservations", "commits", "decision")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteBudget:
    """What the population's ledger says, recomputed, beside the caps of the site's policy.

    lines: the ledger as canonical JSON Lines, which `lada audit verify` reads inside an export.
    """

    summary: LedgerSummary
    policy: SitePolicy
    lines: bytes

    @property
    def target_delta(self) -> float:
        """The delta that the ledger counts at: the smaller of the policy's and a plan's."""
        recorded = self.summary.target_delta
        return self.policy.target_delta if recorded is None else recorded

    @property
    def left(self) -> float:
        """Cap over all studies minus what is spent, >= 0.

        A lower bound of what further studies may cost: privacy losses compose to less than the sum.
        """
        return max(0.0, self.policy.epsilon_cap_total - self.summary.epsilon)

    def to_json(self) -> dict[str, Any]:
        """One object for machines; every epsilon is at `target_delta`."""
        summary = self.summary
        return {
            "population": summary.identity.population,
            "site": summary.identity.site,
            "target_delta": self.target_delta,
            "epsilon": summary.epsilon,
            "epsilon_rdp": summary.epsilon_rdp,
            "epsilon_cap_total": self.policy.epsilon_cap_total,
            "epsilon_cap_per_study": self.policy.epsilon_cap_per_study,
            "epsilon_left": self.left,
            "entries": summary.head.index + 1,
            "head": summary.head.entry_hash,
            **history_facts(summary),
            "reservations": summary.reservations,
            "uncommitted": summary.uncommitted,
            "studies": [
                {name: getattr(study, name) for name in _TOLD_OF_STUDIES}
                for study in summary.studies
            ],
        }

    def sentences(self) -> tuple[str, ...]:
        """The same for people."""
        summary, policy = self.summary, self.policy
        told = [
            f"{summary.identity.population} at {summary.identity.site}: epsilon "
            f"{summary.epsilon:.4f} of {policy.epsilon_cap_total:g} is spent at delta "
            f"{self.target_delta:g}, {self.left:.4f} is left.",
            f"The ledger is whole: {summary.head.index + 1} entries, {summary.reservations} "
            f"releases paid for, {summary.uncommitted} of them without an output.",
        ]
        if summary.reservations == 0 and summary.restart is None:
            told.append("Nothing was ever spent from it: a NEW LEDGER with the whole budget.")
        told += history_sentences(summary)
        told += [
            f"Study {one.study_id}: epsilon {one.epsilon:.4f} of {policy.epsilon_cap_per_study:g}, "
            f"{one.reservations} releases, last decision: {one.decision}."
            for one in summary.studies
        ]
        return tuple(told)


def read_budget(settings_path: Path) -> SiteBudget:
    """Read and verify the ledger of the site's population.

    Raises: ParameterError: settings or policy are wrong, or nothing was ever recorded.
        LedgerError: the ledger is damaged; the first wrong entry is named.
    """
    settings, policy = read_site_settings(settings_path)
    path = ledger_path(settings, policy)
    if not path.exists():
        raise ParameterError(
            f"no ledger of population {policy.population} at {path}; it is made when the site "
            "first decides about a study"
        )
    with open_ledger_reader(path) as ledger:
        # A policy may have been tightened since; the ledger is held to the caps it recorded.
        summary = verify_ledger(ledger.entries(), public_key=ledger.public_key, caps=None)
        return SiteBudget(summary=summary, policy=policy, lines=ledger.export_lines())


def export_ledger(budget: SiteBudget, out: Path) -> None:
    """Write the ledger's lines to a new file.

    Raises: ParameterError: the file is there already, or cannot be written.
    """
    if out.exists():
        raise ParameterError(f"--out: {out} is there already; name a new file")
    write_atomically(out, budget.lines)
