"""What a study would ask of each site, told before it is proposed: privacy, work, traffic, time.

All of it follows from the plan, the pool and the number of sites. Sizes of ciphertexts are exact;
what depends on texts or on a site's machine is bounded or left open, and says what it rests on.
"""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict

from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.blind_scoring import scoring_parameters_of
from lada_protocol.rounds.secure_aggregation import (
    purpose_length,
    purpose_parameters,
    purposes_of,
    site_bound_of,
)
from lada_secure.method.mechanisms import planned_epsilon, planned_events
from lada_secure.method.plan import DEMAND, STATISTICS
from lada_secure.privacy.accounting.accountant import epsilon

# A header with its signature, measured over a study of the preset tiny; an entry of a ledger or of
# a transcript likewise. They hold hashes and ids, so they hardly vary.
HEADER_BYTES: Final = 650
LEDGER_ENTRY_BYTES: Final = 1_150
TRANSCRIPT_ENTRY_BYTES: Final = 195
CERTIFICATE_BYTES: Final = 800
# Of a token of text in canonical JSON; other scripts than Latin take more.
TOKEN_BYTES: Final = 6
# Sums that every round opens, with a transfer or without.
_EVERY_ROUND: Final = (STATISTICS, DEMAND)
_COORDINATE_BYTES: Final = 8
_DIMENSIONS: Final = {"hashed-ngrams": 128, "minilm": 384}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Privacy(_Part):
    """Per site, over the whole study, at `target_delta`.

    alone: what each purpose would cost by itself; together they cost `epsilon`, which is less than
    the sum of these.
    """

    unit: str
    max_records_per_unit: int
    target_delta: float
    alone: dict[str, float]
    epsilon: float
    epsilon_cap: float


class Steps(_Part):
    """Gradient steps of one site: on private records by DP-SGD, and on the pool alone."""

    rounds: int
    private_per_round: int
    private: int
    pool: int
    units_per_step: float


class Traffic(_Part):
    """Bytes of one site's line over the study, without TLS and HTTP/2.

    once: for plan, pool and clusters. The rest is per round. texts: how much of it all, at most, is
    written by models; that much less it may be.
    """

    up_bytes: int
    down_bytes: int
    once_up_bytes: int
    once_down_bytes: int
    round_up_bytes: int
    round_down_bytes: int
    texts_bytes: int
    rests_on: str


class Time(_Part):
    """What can be said of time. computing_s is null: it is the sites' machines that decide.

    line_s: how long one site's traffic takes on a line of `line_bits_per_s`.
    """

    computing_s: None = None
    line_bits_per_s: int
    line_s: float
    phase_timeout_s: float
    rests_on: str


class Outlook(_Part):
    """All of it."""

    study_id: str
    sites: int
    min_cohort: int
    privacy: Privacy
    steps: Steps
    traffic: Traffic
    time: Time


def outlook_of(plan: StudyPlan, *, sites: int, pool_bytes: int) -> Outlook:
    """What the plan asks of each of so many sites.

    Args: pool_bytes: of the pool as it is posted.
    """
    traffic = _traffic(plan, sites=sites, pool_bytes=pool_bytes)
    return Outlook(
        study_id=plan.study_id,
        sites=sites,
        min_cohort=plan.min_cohort,
        privacy=_privacy(plan),
        steps=_steps(plan),
        traffic=traffic,
        time=_time(plan, traffic),
    )


def _privacy(plan: StudyPlan) -> Privacy:
    part = plan.privacy
    return Privacy(
        unit=part.unit,
        max_records_per_unit=part.max_records_per_unit,
        target_delta=part.target_delta,
        alone={
            purpose: epsilon([event], target_delta=part.target_delta)
            for purpose, event in planned_events(plan).items()
        },
        epsilon=planned_epsilon(plan),
        epsilon_cap=part.epsilon_cap,
    )


def _steps(plan: StudyPlan) -> Steps:
    pool = 0
    if plan.guide is not None:
        pool = plan.guide.pool_steps * (plan.rounds - 1) + plan.guide.last_pool_steps
    return Steps(
        rounds=plan.rounds,
        private_per_round=plan.training.steps_per_round,
        private=plan.training.steps_per_round * plan.rounds,
        pool=pool,
        units_per_step=plan.training.expected_units,
    )


def _traffic(plan: StudyPlan, *, sites: int, pool_bytes: int) -> Traffic:
    dimensions = _DIMENSIONS.get(plan.embedder, max(_DIMENSIONS.values()))
    clusters = plan.allocation.clusters * dimensions * _COORDINATE_BYTES
    once_up = 2 * HEADER_BYTES + CERTIFICATE_BYTES + 2 * LEDGER_ENTRY_BYTES
    # Plan, pool, clusters, keys; of every site acceptance, receipt and admission.
    headers = 3 + len(purposes_of(plan)) + 3 * sites
    once_down = pool_bytes + len(plan.to_bytes()) + clusters
    once_down += headers * HEADER_BYTES + (1 + sites) * CERTIFICATE_BYTES
    ups, downs, texts = 0, 0, 0
    for round_id in range(plan.rounds):
        up, down, text = _round_traffic(plan, round_id, sites=sites)
        ups, downs, texts = ups + up, downs + down, texts + text
    return Traffic(
        up_bytes=once_up + ups,
        down_bytes=once_down + downs,
        once_up_bytes=once_up,
        once_down_bytes=once_down,
        round_up_bytes=ups // plan.rounds,
        round_down_bytes=downs // plan.rounds,
        texts_bytes=texts,
        rests_on=(
            "exact sizes of ciphertexts and pool; about "
            f"{HEADER_BYTES} bytes a header; texts as long as the plan allows, {TOKEN_BYTES} bytes "
            "a token; one attempt a sum, no repetitions"
        ),
    )


def _round_traffic(plan: StudyPlan, round_id: int, *, sites: int) -> tuple[int, int, int]:
    """Bytes up, down, and of both what models write, of one site in one round."""
    transfer = plan.transfer_in(round_id)
    scoring = scoring_parameters_of(plan)
    text = plan.paths.max_new_tokens * TOKEN_BYTES + 80
    paths = min(plan.paths.budget, sites * plan.allocation.quota) * text
    answers = 0 if transfer is None else transfer.budget * text
    purposes = [one for one in purposes_of(plan) if transfer is not None or one in _EVERY_ROUND]
    sealed = sum(purpose_parameters(plan, one).sealed_bytes for one in purposes)
    # Whoever seals fetches the aggregate key for it.
    keys = sum(purpose_parameters(plan, one).public_key_bytes for one in purposes)
    opened = sum(
        purpose_length(plan, one) * (1 + len(str(sites * site_bound_of(plan, one))))
        for one in purposes
    )
    # Own messages: a key and a vector for each sum, query, two parts of the ledger, trained, close.
    own = 2 * len(purposes) + 5 + (0 if transfer is None else 1)
    up = own * HEADER_BYTES + sealed + scoring.query_bytes + 4 * LEDGER_ENTRY_BYTES + answers
    # What a site reads: cohort and result of each sum, all keys, scores, paths; everybody's
    # trained, close and receipts; transcript, and with a transfer inquiry and update.
    read = len(purposes) * (2 + sites) + 2 + 4 * sites + 3 + (0 if transfer is None else 2)
    entries = len(purposes) * (3 + 2 * sites) + 2 + 5 * sites + (0 if transfer is None else 2)
    down = read * HEADER_BYTES + keys + opened + scoring.scores_bytes(plan.pool_size) + paths
    down += entries * TRANSCRIPT_ENTRY_BYTES
    return up, down, paths + answers


def _time(plan: StudyPlan, traffic: Traffic) -> Time:
    line = 10_000_000
    return Time(
        line_bits_per_s=line,
        line_s=8.0 * (traffic.up_bytes + traffic.down_bytes) / line,
        phase_timeout_s=plan.phase_timeout_s,
        rests_on=(
            "bytes alone. How long a site trains depends on its model, records and machine, which "
            "are not known here; it shows the time left from its first steps on. A site that does "
            "not end a step of a round within phase_timeout_s is left out of the round"
        ),
    )


def outlook_sentences(outlook: Outlook) -> tuple[str, ...]:
    """The same for people, a line each."""
    privacy, steps, traffic, time = outlook.privacy, outlook.steps, outlook.traffic, outlook.time
    alone = ", ".join(f"{purpose} {spent:.3f}" for purpose, spent in privacy.alone.items())
    pool = f", and {steps.pool:,} on the pool alone" if steps.pool else ""
    return (
        f"  privacy  epsilon {privacy.epsilon:.3f} of at most {privacy.epsilon_cap:g}, at delta "
        f"{privacy.target_delta:g}, for each {privacy.unit} (at most "
        f"{privacy.max_records_per_unit} records); alone: {alone}",
        f"  work     {steps.rounds} rounds of {steps.private_per_round:,} private steps, "
        f"{steps.private:,} in all{pool}; denominator {steps.units_per_step:g} units a step",
        f"  traffic  {_megabytes(traffic.up_bytes)} up and {_megabytes(traffic.down_bytes)} down; "
        f"{_megabytes(traffic.round_up_bytes)} and {_megabytes(traffic.round_down_bytes)} a round. "
        f"It rests on {traffic.rests_on}",
        f"  time     {time.line_s:.0f} s of transfer at {time.line_bits_per_s / 1e6:g} Mbit/s; no "
        f"forecast of computing. It rests on {time.rests_on}",
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
