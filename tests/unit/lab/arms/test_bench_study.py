"""Settings, arms and tasks: the same budget for all, and changes from the command line."""

from __future__ import annotations

import pytest

from lada_lab.arms.arms import ARMS, arms_named
from lada_lab.arms.grid import parse_factor, points_of
from lada_lab.arms.presets import PRESETS, bench_settings
from lada_lab.arms.simulation import PreparedWorld
from lada_lab.arms.study import LabSettings, calibrated_noise, changed_plan, study_plan
from lada_secure.allocation.strategies import STRATEGIES
from lada_secure.errors import ParameterError
from lada_secure.method.mechanisms import plan_inconsistencies, planned_epsilon
from lada_secure.method.plan import MethodPlan


def settings(*changes: str) -> LabSettings:
    return bench_settings("tiny", harmful=0.3, held_out=100, changes=changes)


def test_a_preset_takes_sizes_and_changes() -> None:
    found = settings(
        "allocation.quota=7", "world.senses=4", "allocation.threshold=0.0", "noise_rate=1"
    )
    allocation = found.plan.allocation
    assert (allocation.quota, allocation.threshold, found.noise_rate) == (7, 0.0, 1)
    assert (found.world.senses, found.world.held_out) == (4, 100)  # type: ignore[union-attr]


def test_changes_that_only_fit_together_are_made_at_once() -> None:
    found = settings("rounds=1", "guide.finish=false")
    assert found.plan.rounds == 1
    with pytest.raises(ParameterError, match="needs rounds >= 2"):
        settings("rounds=1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("allocation.quota", "NAME=JSON"),
        ("allocation.quota=many", "NAME=JSON"),
        ("allocation.quota=1.5", "allocation.quota"),
        ("allocation.quota=true", "allocation.quota"),
        ("quotas=3", "--set quotas: a study's plan has no such field"),
        ("allocation.quotas=3", "no such field"),
        ("rounds.many=3", "no such field"),
        ("world.harmful=0.9", "harmful"),
        ("world.held=3", "expected one of"),
        ("world=3", "no such field"),
        ("rounds=0", "rounds"),
        ("batch_size=1.5", "expected a value like"),
        ("guide.rate_decay=1.5", "rate_decay"),
        ("noise_rate=-0.1", "noise_rate: expected above 0"),
        ('dtype="float16"', "dtype: expected"),
    ],
)
def test_a_wrong_change_is_refused_by_name(change: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        settings(change)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_grid_of_contrasts_is_one_command_on_every_preset(preset: str) -> None:
    weights = parse_factor("distillation.contrastive_weight=0.0,0.03,0.1,0.3")
    forms = parse_factor('distillation.contrastive_form="dpo","margin"')
    found = [
        bench_settings(
            preset,
            harmful=None,
            held_out=None,
            changes=[f"{name}={level}" for name, level in point],
        )
        for point in points_of([weights, forms])
    ]
    assert {
        (one.plan.distillation.contrastive_form, one.plan.distillation.contrastive_weight)
        for one in found
    } == {(form, weight) for form in ("dpo", "margin") for weight in (0.0, 0.03, 0.1, 0.3)}
    # An arm's own defaults give way to them.
    assert all({weights.name, forms.name} == one.chosen for one in found)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ParameterError, match="--preset"):
        bench_settings("huge", harmful=0.3, held_out=100)


def test_unknown_conditions_are_refused_and_doubles_taken_once() -> None:
    assert [one.name for one in arms_named(["random", "paper", "random"])] == ["random", "paper"]
    with pytest.raises(ParameterError, match="best"):
        arms_named(["random", "best"])
    with pytest.raises(ParameterError, match="none"):
        arms_named([])


def test_every_strategy_has_an_arm_and_every_arm_a_summary() -> None:
    assert set(STRATEGIES) <= set(ARMS)
    assert all(one.summary and name == one.name for name, one in ARMS.items())


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_a_plan_that_its_own_mechanisms_can_run(
    name: str, prepared: PreparedWorld
) -> None:
    plan = arm_plan(name, prepared)
    assert plan_inconsistencies(plan) == ()
    assert planned_epsilon(plan) <= 8.0 * 1.001


def arm_plan(name: str, prepared: PreparedWorld, *, epsilon: float = 8.0) -> MethodPlan:
    return study_plan(
        settings("uplink=null", "paths.budget=9"),
        ARMS[name].changes
        if name != "lada-transfer"
        else {},  # its hold-out is for a pool of the usual size
        prepared.data,
        clusters=4,
        units=600,
        epsilon=epsilon,
        seed=7,
    )


def test_arms_have_the_same_noise_where_they_have_the_same_releases(
    prepared: PreparedWorld,
) -> None:
    full, topics = arm_plan("lada-secure", prepared), arm_plan("topic-quotas", prepared)
    assert full.training == topics.training
    assert full.statistics == topics.statistics
    # What a strategy does not release, it does not spend.
    assert planned_epsilon(topics) < planned_epsilon(full)


def test_an_ablation_differs_from_the_full_method_in_one_thing(prepared: PreparedWorld) -> None:
    full = arm_plan("lada-secure", prepared)
    for name, change in (
        ("no-replay", {"guide.replay_batch_size": None}),
        ("with-contrast", {"distillation.contrastive_weight": 0.1}),
        (
            "mass-valuation",
            {"allocation.strategy": "valuation", "allocation.sample_value": None},
        ),
        ("full-gain-top", {"allocation.strategy": "gain"}),
        ("no-screen", {"allocation.screen_low": 0.0}),
        ("lada-fedmkt", {}),
    ):
        assert arm_plan(name, prepared) == changed_plan(full, change)


def test_forms_of_the_gap_differ_in_what_a_sample_and_a_topic_are_worth_alone(
    prepared: PreparedWorld,
) -> None:
    topics = arm_plan("topic-quotas", prepared)
    for value in ("gap", "gain"):
        change = {"allocation.sample_value": value}
        assert arm_plan(f"{value}-top", prepared) == changed_plan(topics, change)
    gain, full = arm_plan("gain-top", prepared), arm_plan("full-gain-top", prepared)
    assert full == changed_plan(gain, {"allocation.strategy": "gain"})
    judged = changed_plan(full, {"allocation.strategy": "valued_gain"})
    assert arm_plan("lada-secure", prepared) == judged


def test_noise_is_calibrated_to_the_epsilon_of_all_releases_together() -> None:
    def noise(**changes: object) -> dict[str, float]:
        usual = {
            "epsilon": 8.0,
            "delta": 1e-5,
            "rounds": 1,
            "steps": 2,
            "sampling_probability": 1.0,
            "valuation": True,
        }
        return dict(calibrated_noise(**{**usual, **changes}))  # type: ignore[arg-type]

    found, longer, without = noise(), noise(steps=5), noise(valuation=False)
    assert longer["training"] > found["training"]
    # Valuation is cheap beside the training, and is not paid for where there is none.
    assert without["training"] < found["training"] < 1.05 * without["training"]
    assert "trials" not in without
    assert found["trials"] == pytest.approx(found["statistics"] / 2, rel=1e-3)


@pytest.mark.slow
def test_the_private_learning_rate_falls_with_noise_and_is_never_above_the_one_without(
    prepared: PreparedWorld,
) -> None:
    plans = [arm_plan("lada-secure", prepared, epsilon=one) for one in (100.0, 1.0)]
    rates = [plan.distillation.learning_rate for plan in plans]
    usual = settings()
    assert rates[0] == usual.plan.distillation.learning_rate
    assert rates[0] > rates[1]
    training = plans[-1].training
    assert rates[1] * training.noise_multiplier / training.expected_units == pytest.approx(
        usual.noise_rate
    )
