"""A site's review of a plan: every bound of its policy, and the cost before anything is spent."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_clients.site.gates.policy import describe_budget, describe_plan, plan_faults, study_caps
from lada_clients.site.ledger.store import SqliteLedger
from lada_clients.site.settings import SitePolicy
from lada_protocol.plan import StudyPlan, parse_time
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.payments import check_payment
from lada_secure.method.mechanisms import planned_epsilon, planned_events
from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.accounting.events import GaussianEvent
from lada_secure.privacy.ledger.entries import MAX_STATEMENT
from lada_secure.privacy.ledger.terms import ReleaseSpec

NOW = datetime(2026, 2, 1, tzinfo=UTC)
UPLINK: dict[str, Any] = {
    "bar": 0.5,
    "clip": 0.5,
    "integer_scale": 100,
    "holdout": 2,
    "candidates": 4,
    "budget": 4,
    "first_round": 0,
    "last_round": False,
    "adapter_rank": 2,
    "adapter_layers": 1,
    "adapter_targets": ["q_proj"],
    "steps": 5,
    "batch_size": 2,
    "replay_batch_size": 0,
    "learning_rate": 1e-3,
    "contrastive_weight": 0.0,
    "contrastive_form": "margin",
}


def _policy(**changes: Any) -> SitePolicy:
    fields: dict[str, Any] = {
        "roster_sha256": "0" * 64,
        "population": "patients",
        "target_delta": 1e-5,
        "epsilon_cap_per_study": 8.0,
        "epsilon_cap_total": 10.0,
        "min_cohort": 3,
        "max_records_per_unit": 4,
        "pool_gradients": ("public",),
    }
    return SitePolicy(**{**fields, **changes})


TRIED: dict[str, Any] = {
    "records_with_reasons": True,
    "own_paths": 2,
    "least_share": 0.25,
    "rate_decay": 0.5,
    "private_share": 0.5,
    "pool_steps": 2,
    "last_pool_steps": 3,
    "pool_learning_rate": 1e-2,
    "finish": False,
    "own_reasons": False,
    "trials": {"noise_multiplier": 6.0, "gain_clip": 0.5, "least_gain": -1.0},
}


def _plan(**changes: Any) -> StudyPlan:
    fields: dict[str, Any] = {
        "study_id": "study",
        "title": "A study",
        "coordinator": "coordinator",
        "expires": "2030-01-31T12:00:00Z",
        "rounds": 2,
        "min_cohort": 3,
        "max_cohort": 3,
        "slm": {},
        "embedder": "ngrams",
        "seed": 1,
        "pool_sha256": "1" * 64,
        "pool_size": 9,
        "clusters_sha256": "2" * 64,
        "phase_timeout_s": 60.0,
        "privacy": {
            "unit": "patient",
            "target_delta": 1e-5,
            "epsilon_cap": 8.0,
            "max_records_per_unit": 4,
            "max_units": 50,
        },
        "statistics": {"loss_clip": 4.0, "integer_scale": 16, "noise_multiplier": 8.0},
        "training": {
            "noise_multiplier": 2.0,
            "l2_clip_norm": 1.0,
            "sampling_probability": 0.05,
            "expected_units": 10.0,
            "steps_per_round": 5,
            "pool_gradients": "public",
        },
        "distillation": {
            "adapter_rank": 2,
            "adapter_layers": 1,
            "adapter_targets": ["q_proj"],
            "train_a": True,
            "learning_rate": 1e-3,
            "pool_batch_size": 2,
            "private_weight": 0.5,
            "contrastive_weight": 0.0,
            "contrastive_form": "off",
        },
        "allocation": {
            "strategy": "band",
            "clusters": 6,
            "difficulty_bins": 2,
            "quota": 3,
            "threshold": 0.0,
            "exploration_weight": 0.1,
            "screen_low": 0.0,
            "screen_high": 1.0,
        },
        "paths": {"budget": 5, "max_new_tokens": 8, "attempts": 1},
    }
    for path, value in changes.items():
        *folders, last = path.split("__")
        part = fields
        for folder in folders:
            part = part[folder]
        part[last] = value
    return StudyPlan.model_validate(fields)


def _faults(study: Any, plan: StudyPlan, policy: SitePolicy) -> tuple[str, ...]:
    return plan_faults(plan, policy, roster=study.roster, now=NOW)


def test_a_plan_inside_the_policy_has_no_fault(study: Any) -> None:
    assert _faults(study, _plan(), _policy()) == ()


@pytest.mark.parametrize(
    ("plan", "policy", "fault"),
    [
        ({"expires": "2026-01-31T23:59:59Z"}, {}, "it expired at 2026-01-31T23:59:59Z"),
        ({}, {"min_cohort": 4}, "min_cohort is 3, the policy asks for 4"),
        ({"max_cohort": 900}, {}, "max_cohort is 900, the roster has 3 sites"),
        ({"privacy__target_delta": 1e-4}, {}, "delta is 0.0001, the policy allows 1e-05"),
        ({"privacy__epsilon_cap": 8.5}, {}, "its epsilon cap is 8.5, the policy allows 8.0"),
        ({"privacy__max_records_per_unit": 5}, {}, "max_records_per_unit is 5"),
        ({"training__pool_gradients": "private"}, {}, "pool_gradients is 'private'"),
        (
            {"privacy__ledger_time_step_s": 1},
            {},
            "ledger_time_step_s is 1, the policy asks for 3600",
        ),
    ],
)
def test_a_plan_over_the_policy_is_named(
    study: Any, plan: dict[str, Any], policy: dict[str, Any], fault: str
) -> None:
    faults = _faults(study, _plan(**plan), _policy(**policy))
    assert len(faults) == 1
    assert fault in faults[0]


def test_all_faults_are_named_at_once(study: Any) -> None:
    plan = _plan(privacy__epsilon_cap=50.0, privacy__target_delta=1e-3)
    assert len(_faults(study, plan, _policy(min_cohort=5))) == 3


def test_a_plan_that_would_pass_its_own_cap_is_refused_before_anything_is_spent(
    study: Any,
) -> None:
    plan = _plan(statistics__noise_multiplier=0.5)
    assert planned_epsilon(plan) > 8.0
    (fault,) = _faults(study, plan, _policy())
    assert "above its own cap of 8.0" in fault


def test_more_rounds_cost_more() -> None:
    assert planned_epsilon(_plan(rounds=3)) > planned_epsilon(_plan(rounds=2)) > 0


def test_the_description_says_what_leaves_at_what_cost_until_when() -> None:
    text = " ".join(describe_plan(_plan()))
    for part in ("patient", "epsilon at most 8.0", "delta 1e-05", "2030-01-31", "at least 3 sites"):
        assert part in text


@pytest.mark.parametrize(
    ("of_plan", "of_policy", "enforced"),
    [
        pytest.param(1e-6, 1e-5, 1e-6, id="the plan promises more than the policy asks for"),
        pytest.param(1e-5, 1e-5, 1e-5, id="both ask for the same"),
        pytest.param(1e-5, 1e-6, 1e-6, id="the policy asks for more than the plan promises"),
    ],
)
def test_the_ledger_counts_at_the_smaller_delta(
    of_plan: float, of_policy: float, enforced: float
) -> None:
    caps = study_caps(_plan(privacy__target_delta=of_plan), _policy(target_delta=of_policy))
    assert caps.target_delta == enforced
    assert caps.total_epsilon == 10.0
    assert caps.for_study("study") == 8.0


def test_the_caps_of_a_study_are_the_lower_of_plan_and_policy() -> None:
    plan = _plan(privacy__epsilon_cap=5.0)
    assert study_caps(plan, _policy()).for_study("study") == 5.0
    assert study_caps(plan, _policy(epsilon_cap_per_study=4.0)).for_study("study") == 4.0
    assert study_caps(plan, _policy()).for_study("another") == 8.0


def test_a_ledger_at_the_plans_delta_pays_for_what_the_auditor_checks(tmp_path: Path) -> None:
    """At the policy's larger delta the auditor would call every contribution over budget."""
    plan, policy = _plan(privacy__target_delta=1e-7), _policy(target_delta=1e-5)
    spec = ReleaseSpec(
        study_id=plan.study_id,
        plan_hash=plan.hash,
        round_id=0,
        purpose="statistics",
        mechanism="discrete_gaussian",
        event=GaussianEvent(plan.statistics.noise_multiplier),
        parameters={"l2_sensitivity": 100.0, "std": 800.0},
        unit=plan.privacy.unit,
    )
    with SqliteLedger(
        tmp_path / "ledger.sqlite",
        site="hospital-a",
        population=policy.population,
        signing_key=Ed25519PrivateKey.generate(),
        caps=study_caps(plan, policy),
        clock=lambda: NOW,
        time_step_s=60,
    ) as ledger:
        ledger.decide(
            "approve",
            study_id=plan.study_id,
            plan_hash=plan.hash,
            expires=parse_time(plan.expires),
            decided_by="policy",
            statement=" ".join(describe_plan(plan)),
        )
        reservation = ledger.reserve(spec)
        ledger.commit(reservation, b"noised")
        assert reservation.entry.target_delta == plan.privacy.target_delta
        attempt = Attempt(round_id=0, purpose="statistics", number=0)
        check_payment(
            ledger.entries(), reservation.entry_hash, plan=plan, attempt=attempt, site="hospital-a"
        )


def test_a_plan_with_a_larger_delta_is_refused_by_name_before_anything_is_reserved(
    study: Any,
) -> None:
    (fault,) = _faults(study, _plan(privacy__target_delta=1e-5), _policy(target_delta=1e-6))
    assert fault == "delta is 1e-05, the policy allows 1e-06"


def test_the_longest_plan_still_fits_into_the_ledgers_statement() -> None:
    plan = _plan(
        study_id="s" * 64,
        title="t" * 200,
        uplink=UPLINK,
        guide=TRIED,
        privacy__unit="u" * 40,
        rounds=1000,
        allocation__sample_value="gain",
    )
    assert len(" ".join(describe_plan(plan))) <= MAX_STATEMENT


def test_the_description_names_the_cost_of_each_purpose_and_the_uplink() -> None:
    plain, with_uplink = _plan(), _plan(uplink=UPLINK)
    tried = _plan(guide=TRIED, allocation__strategy="guided")
    # A strategy without judges releases nothing of the kind; an unknown one is feared to.
    assert set(planned_events(_plan(guide=TRIED))) == {"statistics", "training"}
    unknown = _plan(guide=TRIED, allocation__strategy="ladaa")
    assert set(planned_events(unknown)) == {"statistics", "training", "trials"}
    assert set(planned_events(tried)) == {"statistics", "training", "trials"}
    assert planned_epsilon(tried) > planned_epsilon(plain)
    assert "decided by noised sums over them (trials)" in " ".join(describe_plan(tried))
    for plan in (plain, with_uplink, tried):
        text = " ".join(describe_plan(plan))
        assert f"epsilon {planned_epsilon(plan):.3f} of the cap" in text
        for purpose, event in planned_events(plan).items():
            alone = epsilon([event], target_delta=plan.privacy.target_delta)
            assert f"{purpose} alone {alone:.3f}" in text
    assert "stays here; it is protected all the same" in " ".join(describe_plan(plain))
    text = " ".join(describe_plan(with_uplink))
    assert "for at most 4 of them, what that model writes" in text
    assert "advantage" in text


def test_the_description_says_what_is_measured_and_what_picks_tell_of_the_model() -> None:
    plain = " ".join(describe_plan(_plan()))
    assert "of their losses per topic" in plain
    assert "lack a question" not in plain
    for changes in (
        {"allocation__sample_value": "gap"},
        {"allocation__strategy": "gain"},
    ):
        assert "lack a question" in " ".join(describe_plan(_plan(**changes)))
    assert "lack a question" not in " ".join(describe_plan(_plan(allocation__sample_value="score")))


def test_the_budget_says_what_is_spent_and_what_the_study_would_leave() -> None:
    other = GaussianEvent(2.0)
    first, second = describe_budget(_plan(), _policy(), spent=[("other", other)])
    before = epsilon([other], target_delta=1e-5)
    after = epsilon([other, *planned_events(_plan()).values()], target_delta=1e-5)
    assert f"epsilon {before:.3f} of 10 is spent" in first
    assert f"it would be {after:.3f} (at delta 1e-05)" in first
    assert "epsilon 8 per study" in second
    *_, warning = describe_budget(_plan(), _policy(), spent=[("other", GaussianEvent(0.5))] * 2)
    assert "this site refuses the plan" in warning
    assert "epsilon 0.000 of 10" in describe_budget(_plan(), _policy(), spent=[])[0]


def test_a_delta_near_one_over_the_units_is_warned_about_when_a_plan_is_shown() -> None:
    plan = _plan(privacy__max_units=50_000)
    *_, warning = describe_budget(plan, _policy(), spent=[])
    assert "not far below 1/units" in warning


def test_a_study_that_has_begun_is_not_counted_twice() -> None:
    plan = _plan()
    whole = [(plan.hash, event) for event in planned_events(plan).values()]
    first, *_ = describe_budget(plan, _policy(), spent=whole)
    total = f"{planned_epsilon(plan):.3f}"
    assert f"epsilon {total} of 10 is spent" in first
    assert f"it would be {total} " in first
