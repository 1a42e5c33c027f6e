"""Settings, arms and tasks: the same budget for all, and changes from the command line."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from lada_lab.arms.arms import ARMS, arms_named
from lada_lab.arms.presets import bench_settings
from lada_lab.arms.run import plan_tasks
from lada_lab.arms.study import (
    StudySettings,
    calibrated_noise,
    private_rate,
    study_noise,
)
from lada_secure.errors import ParameterError


def settings(*changes: str) -> StudySettings:
    return bench_settings("tiny", harmful=0.3, held_out=100, changes=changes)


def test_a_preset_takes_sizes_and_changes() -> None:
    found = settings("quota=7", "world.senses=4", "private_steps=[1, 2, 3, 4]", "threshold=0")
    assert (found.quota, found.world.senses, found.private_steps) == (7, 4, (1, 2, 3, 4))
    assert (found.world.held_out, found.threshold) == (100, 0)


def test_changes_that_only_fit_together_are_made_at_once() -> None:
    found = settings("rounds=2", "private_steps=[5, 6]")
    assert (found.rounds, found.private_steps) == (2, (5, 6))


def test_the_uplink_comes_in_the_last_round_unless_asked_for_earlier() -> None:
    usual, early = settings(), settings("uplink_first_round=1")
    assert [usual.transfer_in(at) for at in range(4)] == [False, False, False, True]
    assert [early.transfer_in(at) for at in range(4)] == [False, True, True, True]
    # A study with fewer rounds has one all the same.
    short = settings("rounds=2", "private_steps=[5, 6]")
    assert [short.transfer_in(at) for at in range(2)] == [False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("quota", "NAME=JSON"),
        ("quota=many", "NAME=JSON"),
        ("quota=1.5", "expected a value like"),
        ("quota=true", "expected a value like"),
        ("quotas=3", "expected one of"),
        ("world.harmful=0.9", "harmful"),
        ("world=3", "expected one of"),
        ("rounds=9", "rounds"),
        ("private_steps=[1]", "private_steps"),
        ("guide_rounds=0", "guide_rounds"),
        ("uplink_first_round=-1", "uplink_first_round"),
        ('contrastive_form="sum"', "contrastive_form"),
    ],
)
def test_a_wrong_change_is_refused_by_name(change: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        settings(change)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ParameterError, match="--preset"):
        bench_settings("huge", harmful=0.3, held_out=100)


def test_unknown_conditions_are_refused_and_doubles_taken_once() -> None:
    assert [one.name for one in arms_named(["random", "paper", "random"])] == ["random", "paper"]
    with pytest.raises(ParameterError, match="best"):
        arms_named(["random", "best"])
    with pytest.raises(ParameterError, match="none"):
        arms_named([])


def test_every_condition_of_the_study_has_an_arm_with_a_summary() -> None:
    wanted = {
        *("no-pool", "random", "random-screen", "domain-screen", "domain-late", "whole-pool"),
        *("loss-based", "paper", "lada-secure", "lada-nonprivate", "random-nonprivate"),
        *("no-exploration", "with-contrast", "no-clustering", "no-screen", "lada-joint"),
        *("random-joint", "lada-pool-private", "random-pool-private", "lada-uplink"),
        *("fedmkt", "lada-fedmkt", "fedcollm", "lada-fedcollm"),
    }
    assert wanted <= set(ARMS)
    assert all(one.summary and name == one.name for name, one in ARMS.items())


def test_an_ablation_differs_from_the_full_method_in_one_thing() -> None:
    full = ARMS["lada-secure"]
    for name, change in (
        ("no-exploration", {"exploration": False}),
        ("with-contrast", {"contrast": True}),
        ("no-clustering", {"clustering_start": False}),
        ("no-screen", {"screened": False}),
        ("lada-nonprivate", {"privacy": "none"}),
        ("lada-uplink", {"uplink": True}),
        ("lada-fedmkt", {"host": "fedmkt"}),
        ("lada-fedcollm", {"host": "fedcollm"}),
    ):
        arm = ARMS[name]
        same = replace(arm, name=full.name, summary=full.summary, ablation=full.ablation)
        assert same == replace(full, **change)


def test_tasks_share_releases_and_ablations_run_at_the_largest_epsilon_alone(
    tmp_path: Path,
) -> None:
    tasks = plan_tasks(
        arms_named(["random", "lada-secure", "no-screen", "lada-nonprivate"]),
        seeds=[4, 5],
        epsilons=[1.0, 8.0],
        settings=StudySettings(),
        cache_dir=tmp_path,
    )
    found = {(one.seed, one.epsilon): [arm.name for arm in one.arms] for one in tasks}
    assert found[5, 8.0] == ["random", "lada-secure", "no-screen"]
    assert found[5, 1.0] == ["random", "lada-secure"]
    assert found[5, None] == ["lada-nonprivate"]
    assert len(found) == len(tasks) == 6


@pytest.mark.parametrize(
    ("seeds", "epsilons"),
    [([], [8.0]), ([-1], [8.0]), ([1], []), ([1], [0.0]), ([1], [8.0, float("nan")])],
)
def test_no_seed_or_no_epsilon_is_refused(
    seeds: list[int], epsilons: list[float], tmp_path: Path
) -> None:
    with pytest.raises(ParameterError):
        plan_tasks(
            arms_named(["random"]),
            seeds=seeds,
            epsilons=epsilons,
            settings=StudySettings(),
            cache_dir=tmp_path,
        )


def test_noise_is_calibrated_to_the_epsilon_of_all_releases_together(
    small_settings: StudySettings,
) -> None:
    noise = study_noise(small_settings, epsilon=8.0, units=38)
    assert 7.5 < noise.epsilon <= 8.0
    # The number of units is rounded, because it may be public only so far.
    assert noise == study_noise(small_settings, epsilon=8.0, units=42)
    assert noise.sampling_probability == 1.0
    longer = replace(small_settings, joint_steps=5)
    joint = study_noise(longer, epsilon=8.0, units=38, joint=True)
    assert joint.training > noise.training
    assert joint == calibrated_noise(
        epsilon=8.0,
        delta=small_settings.target_delta,
        rounds=1,
        steps=5,
        sampling_probability=1.0,
        trials=False,
    )
    # Valuations are cheap beside the training, and are not paid for where there are none.
    without = calibrated_noise(
        epsilon=8.0,
        delta=small_settings.target_delta,
        rounds=1,
        steps=sum(small_settings.private_steps),
        sampling_probability=1.0,
        trials=False,
    )
    assert without.training < noise.training < 1.05 * without.training
    assert math.isinf(without.trials)
    assert noise.trials == pytest.approx(noise.statistics / 2, rel=1e-3)


def test_the_guides_rate_falls_with_noise_and_is_never_above_the_one_without() -> None:
    study = settings()
    noises = [study_noise(study, epsilon=epsilon, units=610) for epsilon in (100.0, 4.0, 1.0)]
    rates = [private_rate(study, noise, round_id=0) for noise in (None, *noises)]
    assert rates[0] == rates[1] == study.private_learning_rate
    assert rates[1] > rates[2] > rates[3]
    assert rates[3] * noises[-1].training / study.expected_units == pytest.approx(study.noise_rate)


def test_the_guides_rate_falls_from_round_to_round_where_noise_does_not_keep_it_lower() -> None:
    study = settings()
    first, second, third = (private_rate(study, None, round_id=number) for number in range(3))
    assert second == study.rate_decay * first < first
    assert third == study.rate_decay * second
    loud = study_noise(study, epsilon=1.0, units=610)
    rates = [private_rate(study, loud, round_id=number) for number in range(3)]
    assert max(rates) < third
    assert rates[0] == rates[1] == rates[2]


@pytest.mark.parametrize("change", ["rate_decay=0.0", "rate_decay=1.5"])
def test_a_decay_out_of_range_is_refused(change: str) -> None:
    with pytest.raises(ParameterError, match="rate_decay: expected above 0 to 1"):
        settings(change)


@pytest.mark.parametrize("change", ["private_learning_rate=0.0", "noise_rate=-0.1"])
def test_a_rate_that_is_not_above_0_is_refused(change: str) -> None:
    with pytest.raises(ParameterError, match="noise_rate: expected above 0"):
        settings(change)
