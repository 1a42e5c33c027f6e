"""Secure aggregation (SPEC.md, section 7): what is bound, and what is checked.

Pure checks over signed messages. The arithmetic lives in `lada_secure.encryption`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.index import Attempt, MessageIndex
from lada_protocol.wire.envelope import Envelope, read_document
from lada_protocol.wire.messages import (
    CohortBody,
    ContributionBody,
    MaskKeyBody,
    SumBody,
    parse_body,
)
from lada_secure.allocation.statistics_parameters import site_bound
from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.encryption.parameters import AggregationParameters, aggregation_parameters
from lada_secure.errors import PeerError
from lada_secure.method.plan import CONFIDENCE_EXCESS, DEMAND, STATISTICS, split_pool, transfer_of


def purposes_of(plan: StudyPlan) -> tuple[str, ...]:
    """What is opened collectively in a study, in the order of a round."""
    return (STATISTICS, DEMAND) if plan.uplink is None else (STATISTICS, DEMAND, CONFIDENCE_EXCESS)


def purpose_length(plan: StudyPlan, purpose: str) -> int:
    """Entries of the vector that is summed for this purpose."""
    return 2 * plan.allocation.clusters if purpose == STATISTICS else plan.pool_size


def site_bound_of(plan: StudyPlan, purpose: str) -> int:
    """Largest absolute value of one entry of one site's vector, public and proven.

    Statistics: the noised vector is clamped to it. Demand: a site wants a sample or not.
    Confidence excess: the clip at the plan's scale.
    """
    if purpose == DEMAND:
        return 1
    if purpose == CONFIDENCE_EXCESS:
        return transfer_of(plan).site_bound
    return site_bound(
        scale=plan.statistics.integer_scale,
        max_units=plan.privacy.max_units,
        noise_multiplier=plan.statistics.noise_multiplier,
    )


def purpose_parameters(plan: StudyPlan, purpose: str) -> AggregationParameters:
    """BFV parameters of a purpose; a function of the plan, so no party sends any."""
    sum_bound = plan.max_cohort * site_bound_of(plan, purpose)
    return aggregation_parameters(length=purpose_length(plan, purpose), sum_bound=sum_bound)


def check_opened_range(values: Sequence[int], plan: StudyPlan, purpose: str, sites: int) -> None:
    """Check an opened sum against what its sites can honestly have sent.

    Raises: PeerError(reason="out_of_range"): masks that do not cancel, values that wrapped, an
        confidence excess at a sample that is no candidate. PeerError(reason="over_quota"): a demand
        above the quota.
    """
    bound = sites * site_bound_of(plan, purpose)
    low = -bound if purpose == STATISTICS else 0
    outside = sum(1 for value in values if not low <= value <= bound)
    if outside:
        raise PeerError(
            f"{purpose}: {outside} of {len(values)} opened entries lie outside [{low}, {bound}]; "
            "masks did not cancel or a site sent values out of range",
            reason="out_of_range",
        )
    if purpose == CONFIDENCE_EXCESS:
        elsewhere = set(range(len(values))) - set(split_pool(plan).candidates)
        if any(values[sample] for sample in elsewhere):
            raise PeerError(
                "advantage: an opened entry belongs to a sample that is no candidate",
                reason="out_of_range",
            )
    quota = sites * plan.allocation.quota
    if purpose == DEMAND and sum(values) > quota:
        raise PeerError(
            f"demand: {sum(values)} samples wanted in all, {sites} sites may want {quota}",
            reason="over_quota",
        )


def opened_values(raw: bytes, plan: StudyPlan, purpose: str) -> list[int]:
    """Read the payload of `opened`: one integer per entry.

    Raises: PeerError(reason="malformed").
    """
    what, limit = f"opened {purpose}", Kind.OPENED.rules.max_payload_bytes
    values = read_document(raw, list[int], what=what, max_bytes=limit)
    length = purpose_length(plan, purpose)
    if len(values) != length:
        raise PeerError(f"{what}: expected {length} integers, got {len(values)}")
    return values


def keys_digest(keys: Mapping[str, Envelope]) -> str:
    """Hash over the mask keys that a site was shown.

    Contributions built on different key sets carry different digests, so two rosters shown to
    two sites are found before anything is opened.
    """
    return sha256_hex(canonical_json({site: key.message_hash for site, key in keys.items()}))


def mask_context(plan: StudyPlan, roster: Roster, attempt: Attempt, digest: str) -> bytes:
    """What the pairwise masks are derived for: study, plan, roster, round, attempt, purpose."""
    return canonical_json(
        {
            "protocol": "lada/2/mask",
            "study_id": plan.study_id,
            "plan_hash": plan.hash,
            "roster_hash": roster.hash,
            "round_id": attempt.round_id,
            "purpose": attempt.purpose,
            "attempt": attempt.number,
            "keys_digest": digest,
        }
    )


def basis_of(index: MessageIndex, attempt: Attempt, *, site: str) -> Envelope:
    """What a site's vector of this purpose is computed from, of all that the coordinator sent it.

    Statistics: the clusters. Demand: this site's blind scores. Confidence excess: the round's
    paths.

    Raises: PeerError: missing_scores, missing_message.
    """
    coordinator, round_id = index.coordinator, attempt.round_id
    if attempt.purpose == DEMAND:
        found = index.find(Kind.SCORES, sender=coordinator, to=site, round_id=round_id)
    elif attempt.purpose == CONFIDENCE_EXCESS:
        found = index.find(Kind.PATHS, sender=coordinator, round_id=round_id)
    else:
        found = index.find(Kind.CLUSTERS, sender=coordinator)
    if found is None:
        raise attempt.fault(
            f"{coordinator} has sent nothing that {site} could have computed its vector from",
            reason="missing_scores" if attempt.purpose == DEMAND else "missing_message",
            peer=coordinator,
        )
    return found


def check_cohort(cohort: Envelope, *, plan: StudyPlan, roster: Roster) -> tuple[str, ...]:
    """The sites of an attempt, sorted.

    Raises: PeerError: unknown_party, cohort_too_small, cohort_too_large, malformed.
    """
    sites = parse_body(cohort, CohortBody).sites
    where = f"round {cohort.header.round_id}: cohort"
    if sites != sorted(set(sites)):
        raise cohort.fault("cohort is not a sorted list of different sites")
    known = {party.id for party in roster.sites}
    strangers = [site for site in sites if site not in known]
    if strangers:
        raise cohort.fault(
            f"{where} names {strangers[0]}, which is not in the roster", reason="unknown_party"
        )
    if len(sites) < plan.min_cohort:
        raise cohort.fault(
            f"{where} of {len(sites)} sites, at least {plan.min_cohort} needed; the round must "
            "wait for more sites",
            reason="cohort_too_small",
        )
    if len(sites) > plan.max_cohort:
        raise cohort.fault(
            f"{where} of {len(sites)} sites, at most {plan.max_cohort}", reason="cohort_too_large"
        )
    return tuple(sites)


def check_mask_keys(
    cohort: tuple[str, ...], keys: Mapping[str, Envelope], attempt: Attempt
) -> dict[str, bytes]:
    """Raw X25519 keys of the whole cohort.

    Raises: PeerError: missing_key, repeated_key (one key for two sites would cancel its mask).
    """
    missing = [site for site in cohort if site not in keys]
    if missing:
        raise attempt.fault(f"no mask key of {missing[0]}", reason="missing_key")
    raw = {site: bytes.fromhex(parse_body(keys[site], MaskKeyBody).public_key) for site in cohort}
    if len(set(raw.values())) != len(raw):
        raise attempt.fault("two sites show the same mask key", reason="repeated_key")
    return raw


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateRequest:
    """What the auditor has verified before it touches a key."""

    attempt: Attempt
    cohort: tuple[str, ...]
    contributions: Mapping[str, Envelope]
    paid_by: Mapping[str, str]
    sum_message: Envelope


def check_aggregate_request(index: MessageIndex, attempt: Attempt) -> AggregateRequest:
    """Check everything about a secure aggregation that messages alone can show.

    The caller still checks ledgers, recomputes the sum, and makes sure that nothing was opened
    for this round and purpose before.

    Raises: PeerError with the codes of SPEC.md, section 7.5.
    """
    coordinator = index.coordinator
    where = f"round {attempt.round_id}, {attempt.purpose}, attempt {attempt.number}"

    def needed(kind: Kind, found: Envelope | None) -> Envelope:
        if found is None:
            raise PeerError(f"{where}: no {kind} message", reason="missing_message")
        return found

    named = needed(Kind.COHORT, index.at(Kind.COHORT, attempt, sender=coordinator))
    cohort = check_cohort(named, plan=index.plan, roster=index.roster)
    keys = index.all_at(Kind.MASK_KEY, attempt)
    check_mask_keys(cohort, keys, attempt)
    digest = keys_digest({site: keys[site] for site in cohort})
    total = needed(Kind.SUM, index.at(Kind.SUM, attempt, sender=coordinator))
    added = parse_body(total, SumBody).contributions
    if tuple(sorted(added)) != cohort:
        raise total.fault(
            f"{where}: the sum names {sorted(added)}, the cohort is {list(cohort)}",
            reason="wrong_cohort",
        )
    opening_key = index.find(Kind.OPENING_KEY, sender=index.auditor, purpose=attempt.purpose)
    shown = needed(Kind.OPENING_KEY, opening_key).message_hash
    parameters = purpose_parameters(index.plan, attempt.purpose)
    sent = index.all_at(Kind.CONTRIBUTION, attempt)
    paid_by: dict[str, str] = {}
    for site in cohort:
        contribution = sent.get(site)
        if contribution is None or contribution.message_hash != added[site]:
            raise PeerError(
                f"{where}: no signed contribution of {site} behind the sum",
                reason="missing_contribution",
                peer=site,
                round_id=attempt.round_id,
            )
        body, who = parse_body(contribution, ContributionBody), f"{where}: {site}"
        if body.keys_digest != digest:
            raise contribution.fault(
                f"{who} was shown other mask keys than the auditor", reason="different_keys"
            )
        if body.parameters_digest != parameters.digest:
            raise contribution.fault(
                f"{who} sealed under other parameters than the plan's", reason="wrong_parameters"
            )
        if body.opening_key != shown:
            raise contribution.fault(
                f"{who} sealed under another key than the auditor's, message {shown[:16]}; got "
                f"{body.opening_key[:16]}",
                reason="wrong_opening_key",
            )
        basis = basis_of(index, attempt, site=site)
        if body.rests_on != basis.message_hash:
            raise basis.fault(
                f"{who} was shown another {basis.kind} message by {coordinator} than the auditor",
                reason="wrong_basis",
            )
        paid_by[site] = body.paid_by
    return AggregateRequest(
        attempt=attempt,
        cohort=cohort,
        contributions={site: sent[site] for site in cohort},
        paid_by=paid_by,
        sum_message=total,
    )
