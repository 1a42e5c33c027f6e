"""A site's review of a plan: every bound of its policy, and the cost before anything is spent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from lada_clients.site.policy import describe_plan, plan_faults, planned_epsilon
from lada_clients.site.settings import SitePolicy
from lada_protocol.plan import StudyPlan

NOW = datetime(2026, 2, 1, tzinfo=UTC)


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


def _plan(**changes: Any) -> StudyPlan:
    fields: dict[str, Any] = {
        "study_id": "study",
        "title": "A study",
        "coordinator": "coordinator",
        "expires": "2030-01-31T12:00:00Z",
        "rounds": 2,
        "min_cohort": 3,
        "max_cohort": 3,
        "slm": "tiny",
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
