"""A study's privacy report: what was released, when, at what cost, and what is left of each cap.

`build_report` verifies first and takes its figures from verified ledgers only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from lada_clients.reports.audit.report_document import (
    DecisionTaken,
    OpenedSum,
    PrivacyReport,
    PurposeSpending,
    Release,
    SiteReport,
    Slm,
    StudySpending,
    StudyTerms,
)
from lada_clients.reports.ledger_history import Restart, filled, history_sentences, key_renewals
from lada_protocol.evidence.export import ledger_file
from lada_protocol.evidence.study import Verdict, verify_evidence
from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.rounds.secure_aggregation import purpose_length
from lada_protocol.wire.messages import AdmissionBody, OpenedBody, parse_body
from lada_secure.errors import LadaError
from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.accounting.events import event_parts
from lada_secure.privacy.ledger.entries import (
    CommitEntry,
    DecisionEntry,
    LedgerEntry,
    ReserveEntry,
    RestartEntry,
    ResumeEntry,
    StudyEntry,
)
from lada_secure.privacy.ledger.terms import DISCRETE_GAUSSIAN
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
        study=filled(
            StudyTerms,
            study.plan,
            study.plan.privacy,
            rounds_closed=verdict.rounds,
            pool_gradients=study.plan.training.pool_gradients,
            plan_sha256=study.plan.hash,
            roster_sha256=study.roster.hash,
        ),
        sites=tuple(
            _site(party.id, study, verdict.ledgers.get(party.id), verdict)
            for party in study.roster.sites
        ),
        openings=_aggregates(study),
    )


def _site(
    site: str, study: MessageIndex, summary: LedgerSummary | None, verdict: Verdict
) -> SiteReport:
    named = verdict.slms.get(site)
    slm = filled(Slm, named) if named else None
    if summary is None:
        # The ledger itself is not whole, and nothing that it says is repeated.
        return SiteReport(site=site, slm=slm)
    entries = summary.entries
    releases = ledger_releases(entries)
    last = releases[-1] if releases else None
    new, said = _is_new_to_auditor(study, site), history_sentences(summary)
    if new and summary.restart is None:
        said = (*said, "A NEW LEDGER: the auditor had seen no entry of it before this study.")
    return SiteReport(
        site=site,
        slm=slm,
        population=summary.identity.population,
        verified=not any(fault.startswith(f"{ledger_file(site)}:") for fault in verdict.faults),
        ledger_id=summary.identity.ledger_id,
        started=summary.started,
        new_to_auditor=new,
        restart=filled(Restart, summary.restart) if summary.restart else None,
        key_renewals=key_renewals(summary),
        resumes=summary.resumes,
        history=said,
        entries=len(entries),
        head_sha256=entries[-1].entry_hash,
        target_delta=last.target_delta if last else None,
        epsilon=last.epsilon_after if last else None,
        epsilon_rdp=last.epsilon_rdp_after if last else None,
        total_cap=last.total_cap if last else None,
        left=_left(last.total_cap, last.epsilon_after) if last else None,
        studies=ledger_studies(entries, releases),
        decisions=tuple(
            filled(DecisionTaken, entry) for entry in entries if isinstance(entry, DecisionEntry)
        ),
        releases=releases,
    )


def _is_new_to_auditor(study: MessageIndex, site: str) -> bool:
    admission = study.find(Kind.ADMISSION, sender=study.auditor, to=site)
    try:
        return admission is None or parse_body(admission, AdmissionBody).known_entries == 0
    except LadaError:
        # `verify_evidence` has named it among the faults.
        return True


def _left(cap: float, spent: float) -> float:
    return max(cap - spent, 0.0)


def ledger_releases(entries: Sequence[LedgerEntry]) -> tuple[Release, ...]:
    """Every reservation of a verified ledger, in order."""
    commits = {one.reserve_hash: one for one in entries if isinstance(one, CommitEntry)}
    resumes = Counter(one.reserve_hash for one in entries if isinstance(one, ResumeEntry))
    grant = entries[0].grant if entries and isinstance(entries[0], RestartEntry) else None
    before = 0.0 if grant is None else grant.carried_epsilon
    study_before = {} if grant is None else dict.fromkeys(grant.studies, before)
    found: list[Release] = []
    for one in entries:
        if not isinstance(one, ReserveEntry):
            continue
        # The rules of a ledger allow one part only; see `check_mechanism`.
        part, commit = event_parts(one.event)[0], commits.get(one.entry_hash)
        found.append(
            filled(
                Release,
                one,
                round=one.round_id,
                noise=str(one.parameters.get("noise", DISCRETE_GAUSSIAN)),
                noise_multiplier=part.noise_multiplier,
                sampling_probability=getattr(part, "sampling_probability", None),
                steps=getattr(part, "steps", None),
                parameters=dict(one.parameters),
                epsilon_before=before,
                # Two studies may count at different deltas; a smaller total at a larger one costs
                # nothing.
                cost=max(one.epsilon_after - before, 0.0),
                study_epsilon_before=study_before.get(one.study_id, 0.0),
                resumes=resumes[one.entry_hash],
                output_commitment=commit and commit.output_commitment,
            )
        )
        before = one.epsilon_after
        study_before[one.study_id] = one.study_epsilon_after
    return tuple(found)


def ledger_studies(
    entries: Sequence[LedgerEntry], releases: Sequence[Release]
) -> tuple[StudySpending, ...]:
    """What each study of a verified ledger has spent, by purpose."""
    decided = {entry.study_id: entry for entry in entries if isinstance(entry, DecisionEntry)}
    found: list[StudySpending] = []
    for study_id in dict.fromkeys(one.study_id for one in entries if isinstance(one, StudyEntry)):
        own = [release for release in releases if release.study_id == study_id]
        last = own[-1] if own else None
        decision = decided.get(study_id)
        found.append(
            StudySpending(
                study_id=study_id,
                decision=decision.decision if decision else "none",
                expires=decision.expires if decision else "",
                target_delta=last.target_delta if last else None,
                epsilon=last.study_epsilon_after if last else None,
                cap=last.study_cap if last else None,
                left=_left(last.study_cap, last.study_epsilon_after) if last else None,
                purposes=_purposes(entries, own),
            )
        )
    return tuple(found)


def _purposes(
    entries: Sequence[LedgerEntry], releases: Sequence[Release]
) -> tuple[PurposeSpending, ...]:
    events = {entry.index: entry.event for entry in entries if isinstance(entry, ReserveEntry)}
    found: list[PurposeSpending] = []
    for purpose in dict.fromkeys(release.purpose for release in releases):
        own = [release for release in releases if release.purpose == purpose]
        found.append(
            PurposeSpending(
                purpose=purpose,
                releases=len(own),
                uncommitted=sum(release.output_commitment is None for release in own),
                first=own[0].time,
                last=own[-1].time,
                cost=sum(release.cost for release in own),
                epsilon_alone=epsilon(
                    [events[release.index] for release in own], target_delta=own[-1].target_delta
                ),
            )
        )
    return tuple(found)


def _aggregates(study: MessageIndex) -> tuple[OpenedSum, ...]:
    found: list[OpenedSum] = []
    for message in study.sent(Kind.OPENED):
        head = message.header
        try:
            sites = tuple(sorted(parse_body(message, OpenedBody).contributions))
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
