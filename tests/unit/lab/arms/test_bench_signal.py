"""`lada bench signal`: a private step's signal beside its noise, by hand on a small world."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lada_lab.arms.arms import ARMS
from lada_lab.arms.signal import measured_signal
from lada_lab.arms.simulation import Laboratory
from lada_lab.arms.study import changed_plan


def test_the_ratio_is_the_sampled_sum_over_the_noise_of_all_trained_numbers(
    laboratory: Laboratory,
) -> None:
    found = measured_signal(laboratory, epsilons=[2.0, 8.0])
    plan = laboratory.plan_of(ARMS["no-pool"], 8.0)
    noise = plan.training.noise_multiplier * math.sqrt(found["trained"])
    joined = plan.training.sampling_probability * found["sum_in_clips"]
    assert found["signal_to_noise"]["8"] == pytest.approx(joined / noise, rel=0.01)
    assert found["signal_to_noise"]["2"] < found["signal_to_noise"]["8"]
    # No unit adds more than one clip norm, and none less than nothing.
    assert 0.0 < found["sum_in_clips"] <= found["units"]
    assert 0.0 < found["sum_of_directions"] <= found["units"]


def test_under_a_clip_below_every_gradient_the_sum_is_that_of_directions(
    laboratory: Laboratory,
) -> None:
    plan = changed_plan(laboratory.settings.plan, {"training.l2_clip_norm": 1e-6})
    tight = replace(laboratory, settings=replace(laboratory.settings, plan=plan))
    found = measured_signal(tight, epsilons=[8.0])
    assert found["clipped_share"] == 1.0
    assert found["sum_in_clips"] == pytest.approx(found["sum_of_directions"], rel=1e-3)
    assert found["signal_to_noise"]["8"] == found["signal_to_noise_at_small_clip"]["8"]


def test_cores_train_rank_by_rank_numbers_a_layer(laboratory: Laboratory) -> None:
    changes = {"distillation.adapter_core": "seed", "distillation.train_a": False}
    plan = changed_plan(laboratory.settings.plan, changes)
    with_cores = replace(laboratory, settings=replace(laboratory.settings, plan=plan))
    found = measured_signal(with_cores, epsilons=[8.0])
    # Query and value of two layers at rank 2.
    assert found["trained"] == 4 * 2 * 2
