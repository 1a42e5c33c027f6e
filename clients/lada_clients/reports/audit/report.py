"""A study's privacy report: what was released, when, at what cost, and what is left of each cap.

`build_report` verifies first and takes its figures from verified ledgers only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lada_clients.reports.audit.report_document import (
    DecisionTaken,
    KeyRenewal,
    OpenedSum,
    PrivacyReport,
    PurposeSpending,
    Release,
    Restart,
    SiteReport,
    StudySpending,
    StudyTerms,
)
from lada_clients.reports.ledger_history import history_of
from lada_protocol.evidence.export import ExportedStudy, ledger_file
from lada_protocol.evidence.study import verify_evidence
from lada_protocol.kinds import Kind
from lada_protocol.rounds.secure_aggregation import purpose_length
from lada_protocol.wire.messages import AdmissionBody, OpenedBody, parse_body
from lada_secure.errors import LadaError
from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.accounting.events import ComposedEvent, DpSgdEvent
from lada_secure.privacy.ledger.book import DISCRETE_GAUSSIAN
from lada_secure.privacy.ledger.entries import (
    CommitEntry,
    DecisionEntry,
    LedgerEntry,
    ReserveEntry,
    RestartEntry,
    ResumeEntry,
    StudyEntry,
)
from lada_secure.privacy.ledger.lines import parse_ledger_lines
from lada_secure.privacy.ledger.verification import LedgerSummary


def build_report(files: Mapping[str, bytes]) -> PrivacyReport:
    """Verify an exported study and report what it spent.

    Args: files: path relative to the export folder -> content (`folder.read_evidence`).
    """
    verdict = verify_evidence(files)
    study = verdict.study
    if study is None:
        return PrivacyReport(good=False, faults=verdict.faults, study=None, sites=(), openings=())
    return PrivacyReport(
        good=verdict.good,
        faults=verdict.faults,
        study=_terms(study, verdict.rounds),
        sites=tuple(
            _site(party.id, study, verdict.ledgers.get(party.id), verdict.faults)
            for party in study.roster.sites
        ),
        openings=_aggregates(study),
    )


def _terms(study: ExportedStudy, rounds_closed: int) -> StudyTerms:
    plan = study.plan
    return StudyTerms(
        study_id=plan.study_id,
        title=plan.title,
        coordinator=plan.coordinator,
        expires=plan.expires,
        rounds=plan.rounds,
        rounds_closed=rounds_closed,
        unit=plan.privacy.unit,
        adjacency=plan.privacy.adjacency,
        max_records_per_unit=plan.privacy.max_records_per_unit,
        target_delta=plan.privacy.target_delta,
        epsilon_cap=plan.privacy.epsilon_cap,
        min_cohort=plan.min_cohort,
        pool_gradients=plan.training.pool_gradients,
        plan_sha256=plan.hash,
        roster_sha256=study.roster.hash,
    )


def _site(
    site: str, study: ExportedStudy, summary: LedgerSummary | None, faults: Sequence[str]
) -> SiteReport:
    name = ledger_file(site)
    # Without a summary the ledger itself is not whole, and nothing that it says is repeated.
    entries = () if summary is None else parse_ledger_lines(study.files[name])
    releases = _releases(entries)
    last = releases[-1] if releases else None
    new = summary is not None and _is_new_to_auditor(study, site)
    return SiteReport(
        site=site,
        **_history(entries, new=new),
        population="" if summary is None else summary.identity.population,
        verified=summary is not None and not any(one.startswith(f"{name}:") for one in faults),
        entries=len(entries),
        head_sha256="" if summary is None else summary.head.entry_hash,
        target_delta=None if last is None else last.target_delta,
        epsilon=None if last is None else last.epsilon_after,
        epsilon_rdp=None if last is None else last.epsilon_rdp_after,
        total_cap=None if last is None else last.total_cap,
        left=None if last is None else _left(last.total_cap, last.epsilon_after),
        studies=_studies(entries, releases),
        decisions=tuple(
            DecisionTaken(
                index=one.index,
                time=one.time,
                study_id=one.study_id,
                decision=one.decision,
                decided_by=one.decided_by,
                expires=one.expires,
                statement=one.statement,
            )
            for one in entries
            if isinstance(one, DecisionEntry)
        ),
        releases=releases,
    )


def _is_new_to_auditor(study: ExportedStudy, site: str) -> bool:
    admission = study.index.find(Kind.ADMISSION, sender=study.roster.auditor.id, to=site)
    try:
        return admission is None or parse_body(admission, AdmissionBody).known_entries == 0
    except LadaError:
        # `verify_evidence` has named it among the faults.
        return True


def _history(entries: Sequence[LedgerEntry], *, new: bool) -> dict[str, Any]:
    """How the ledger came to be, as fields of `SiteReport`."""
    if not entries:
        return {
            "ledger_id": "",
            "started": "",
            "new_to_auditor": False,
            "restart": None,
            "key_renewals": (),
            "resumes": 0,
            "history": (),
        }
    history = history_of(entries)
    facts = history.to_json()
    said = history.sentences()
    if new and history.restart is None:
        said = (*said, "A NEW LEDGER: the auditor had seen no entry of it before this study.")
    restart = facts["restart"]
    return {
        **facts,
        "restart": restart and Restart(**{**restart, "studies": tuple(restart["studies"])}),
        "key_renewals": tuple(KeyRenewal(**one) for one in facts["key_renewals"]),
        "new_to_auditor": new,
        "history": said,
    }


def _left(cap: float, spent: float) -> float:
    return max(cap - spent, 0.0)


def _releases(entries: Sequence[LedgerEntry]) -> tuple[Release, ...]:
    commits = {one.reserve_hash: one for one in entries if isinstance(one, CommitEntry)}
    resumes = Counter(one.reserve_hash for one in entries if isinstance(one, ResumeEntry))
    grant = entries[0].grant if entries and isinstance(entries[0], RestartEntry) else None
    before = 0.0 if grant is None else grant.carried_epsilon
    study_before = {} if grant is None else dict.fromkeys(grant.studies, before)
    found: list[Release] = []
    for one in entries:
        if isinstance(one, ReserveEntry):
            found.append(
                _release(
                    one,
                    before=before,
                    study_before=study_before.get(one.study_id, 0.0),
                    commit=commits.get(one.entry_hash),
                    resumes=resumes[one.entry_hash],
                )
            )
            before = one.epsilon_after
            study_before[one.study_id] = one.study_epsilon_after
    return tuple(found)


def _release(
    entry: ReserveEntry,
    *,
    before: float,
    study_before: float,
    commit: CommitEntry | None,
    resumes: int,
) -> Release:
    # The rules of a ledger allow one part only; see `check_mechanism`.
    part = entry.event.parts[0] if isinstance(entry.event, ComposedEvent) else entry.event
    sampled = part if isinstance(part, DpSgdEvent) else None
    return Release(
        index=entry.index,
        study_id=entry.study_id,
        round=entry.round_id,
        purpose=entry.purpose,
        chunk=entry.chunk,
        attempt=entry.attempt,
        time=entry.time,
        mechanism=entry.mechanism,
        noise=str(entry.parameters.get("noise", DISCRETE_GAUSSIAN)),
        noise_multiplier=part.noise_multiplier,
        sampling_probability=sampled.sampling_probability if sampled else None,
        steps=sampled.steps if sampled else None,
        parameters=dict(entry.parameters),
        unit=entry.unit,
        adjacency=entry.adjacency,
        target_delta=entry.target_delta,
        epsilon_before=before,
        epsilon_after=entry.epsilon_after,
        # Two studies may count at different deltas; a smaller total at a larger one costs nothing.
        cost=max(entry.epsilon_after - before, 0.0),
        study_epsilon_before=study_before,
        study_epsilon_after=entry.study_epsilon_after,
        epsilon_rdp_after=entry.epsilon_rdp_after,
        total_cap=entry.total_cap,
        study_cap=entry.study_cap,
        resumes=resumes,
        output_commitment=commit.output_commitment if commit else None,
    )


def _studies(
    entries: Sequence[LedgerEntry], releases: Sequence[Release]
) -> tuple[StudySpending, ...]:
    found: list[StudySpending] = []
    for study_id in dict.fromkeys(one.study_id for one in entries if isinstance(one, StudyEntry)):
        decisions = [
            one for one in entries if isinstance(one, DecisionEntry) and one.study_id == study_id
        ]
        own = [one for one in releases if one.study_id == study_id]
        last = own[-1] if own else None
        found.append(
            StudySpending(
                study_id=study_id,
                decision=decisions[-1].decision if decisions else "none",
                expires=decisions[-1].expires if decisions else "",
                target_delta=None if last is None else last.target_delta,
                epsilon=None if last is None else last.study_epsilon_after,
                cap=None if last is None else last.study_cap,
                left=None if last is None else _left(last.study_cap, last.study_epsilon_after),
                purposes=_purposes(entries, own, study_id),
            )
        )
    return tuple(found)


def _purposes(
    entries: Sequence[LedgerEntry], releases: Sequence[Release], study_id: str
) -> tuple[PurposeSpending, ...]:
    events = {one.index: one.event for one in entries if isinstance(one, ReserveEntry)}
    found: list[PurposeSpending] = []
    for purpose in dict.fromkeys(one.purpose for one in releases):
        own = [one for one in releases if (one.study_id, one.purpose) == (study_id, purpose)]
        found.append(
            PurposeSpending(
                purpose=purpose,
                releases=len(own),
                uncommitted=sum(one.output_commitment is None for one in own),
                first=own[0].time,
                last=own[-1].time,
                cost=sum(one.cost for one in own),
                epsilon_alone=epsilon(
                    [events[one.index] for one in own], target_delta=own[-1].target_delta
                ),
            )
        )
    return tuple(found)


def _aggregates(study: ExportedStudy) -> tuple[OpenedSum, ...]:
    found: list[OpenedSum] = []
    for one in study.index:
        if one.kind is not Kind.OPENED:
            continue
        head = one.header
        try:
            sites = tuple(sorted(parse_body(one, OpenedBody).contributions))
            values = purpose_length(study.plan, head.purpose)
        except LadaError:
            # `verify_evidence` has named it among the faults.
            continue
        found.append(
            OpenedSum(
                round=head.round_id,
                purpose=head.purpose,
                attempt=head.attempt,
                cohort=len(sites),
                sites=sites,
                values=values,
            )
        )
    # Statistics come before demand, and demand before confidence excesses, in every round.
    order = {name: place for place, name in enumerate(("statistics", "demand", "advantage"))}
    return tuple(sorted(found, key=lambda one: (one.round, order.get(one.purpose, len(order)))))
