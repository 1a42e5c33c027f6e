"""Canary units: their directions, their attacker, and that only their gradient is made up."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from trainer_doubles import float_sum, opened_trainer, small_model, stir_adapters, units_of_sizes

from lada_clients.audit.canaries import (
    FREE_DIRECTIONS,
    RAW_NORM,
    AuditedTrainer,
    CanaryDirections,
    CanaryRun,
    StepWatcher,
)
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import AdapterSettings, attach_adapters, parameter_count

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def adapted():
    lm = small_model(layers=2)
    attach_adapters(
        lm,
        AdapterSettings(
            rank=4, alpha=8.0, target_modules=ALL_LINEAR, last_layers=2, train_a=True, seed=0
        ),
    )
    stir_adapters(lm)
    return lm


def privacy(**changes):
    fields = {
        "noise_multiplier": 1.0,
        "l2_clip_norm": 0.5,
        "sampling_probability": 1.0,
        "expected_units": 3.0,
        "steps": 4,
        "pool_gradients": "public",
    }
    return DpSgdParameters(**{**fields, **changes})


def settings(**changes):
    return TrainerSettings(**{"pool_batch_size": 0, "private_weight": 0.25, **changes})


def open_run(lm, joined, **changes):
    return CanaryRun(
        lm, joined=np.array(joined, dtype=np.bool_), privacy=privacy(**changes), seed=3
    )


@pytest.mark.parametrize("dimension", [1, 2, 3, 100, 1023, 1024, 5000])
def test_directions_are_orthonormal_and_projection_reads_each_back(dimension: int) -> None:
    directions = CanaryDirections(dimension, seed=1)
    assert dimension / 2 < directions.capacity <= dimension
    numbers = list(range(0, directions.capacity, max(1, directions.capacity // 40)))
    vectors = directions.vectors(numbers, norm=1.0)
    assert vectors.shape == (len(numbers), dimension)
    gram = (vectors.double() @ vectors.double().T).numpy()
    assert np.allclose(gram, np.eye(len(numbers)), atol=1e-6)
    weights = np.random.default_rng(0).normal(size=len(numbers))
    mixed = weights @ vectors.double().numpy()
    found = directions.project(mixed)
    assert found.shape == (directions.capacity,)
    assert np.allclose(found[numbers], weights, atol=1e-5)
    others = np.setdiff1d(np.arange(directions.capacity), numbers)
    assert np.allclose(found[others], 0.0, atol=1e-5)


def test_a_direction_is_spread_over_many_coordinates() -> None:
    vector = CanaryDirections(5000, seed=1).vectors([17], norm=2.0)[0]
    assert float(vector.norm()) == pytest.approx(2.0, rel=1e-6)
    assert int((vector != 0).sum()) == 1024
    assert float(vector.abs().max()) == pytest.approx(2.0 / 32.0, rel=1e-6)


def test_the_attackers_log_odds_are_bayes_rule_on_the_steps() -> None:
    rng = np.random.default_rng(5)
    watcher = StepWatcher(canaries=3, sampling_probability=0.3)
    expected = np.zeros(3)
    for _ in range(6):
        shares = rng.normal(scale=0.7, size=3 + 300)
        spread = 1.4826 * np.median(np.abs(shares[3:]))

        def density(x: float, mean: float, std: float = spread) -> float:
            return math.exp(-0.5 * ((x - mean) / std) ** 2)

        for at in range(3):
            x = shares[at]
            expected[at] += math.log(
                (0.7 * density(x, 0.0) + 0.3 * density(x, 1.0)) / density(x, 0.0)
            )
        watcher.see(shares)
    assert watcher.log_odds == pytest.approx(expected, rel=1e-9)
    assert watcher.noise_seen == pytest.approx(0.7, rel=0.1)


@pytest.mark.parametrize("sampling_probability", [0.3, 1.0])
def test_a_trainer_without_noise_leaves_no_doubt_and_no_infinity(
    sampling_probability: float,
) -> None:
    watcher = StepWatcher(canaries=2, sampling_probability=sampling_probability)
    for share in (0.0, 1.0, 0.0):
        watcher.see(np.concatenate([[share, 0.0], np.zeros(300)]))
    assert np.all(np.isfinite(watcher.log_odds))
    if sampling_probability < 1.0:
        assert watcher.log_odds[0] > 1e6
        assert watcher.log_odds[1] == pytest.approx(3 * math.log(0.7))


def open_audited(lm, run, units):
    return opened_trainer(
        lm,
        units,
        trainer_class=AuditedTrainer,
        pool=(),
        privacy=privacy(),
        settings=settings(),
        canaries=run,
    )


def test_canaries_add_their_direction_clipped_and_leave_real_units_as_they_were() -> None:
    units = units_of_sizes(1, 3, 2, own=False)
    lm = adapted()
    plain = opened_trainer(lm, units, pool=(), privacy=privacy(), settings=settings())
    real = float_sum(plain)
    plain.close()
    run = open_run(lm, [True, False, True, True] + [False] * 20)
    audited = open_audited(lm, run, units)
    both = float_sum(audited)
    planted = run.directions.vectors([0, 2, 3], norm=privacy().l2_clip_norm).double().sum(0)
    assert torch.allclose(both - real, planted, atol=1e-6)
    assert float(real.norm()) > 0.1
    loose = float_sum(audited, clip=1e9)
    audited.close()
    shares = run.directions.project(loose.numpy())
    # Before clipping they are longer than the clip norm, so that clipping is put to the test.
    assert shares[0] - shares[1] == pytest.approx(RAW_NORM * 0.5, rel=0.2)


def test_the_attacker_sees_the_noised_sum_in_clip_norms() -> None:
    lm = adapted()
    run = open_run(lm, [True, False] * 8, noise_multiplier=0.02)
    seen = []
    run.see = seen.append  # type: ignore[method-assign]
    trainer = opened_trainer(
        lm,
        (),
        trainer_class=AuditedTrainer,
        pool=(),
        privacy=privacy(noise_multiplier=0.02),
        settings=settings(),
        canaries=run,
    )
    trainer.step()
    trainer.close()
    shares = run.directions.project(seen[0].double().numpy())[:16]
    # Eight noises of std .02 beside steps of 1: none is off by .2 (10 std).
    assert shares == pytest.approx([1.0, 0.0] * 8, abs=0.2)


def test_only_canaries_whose_coin_says_so_become_units() -> None:
    lm = adapted()
    run = open_run(lm, [False, True, True, False])
    names = [unit.unit_id for unit in run.units()]
    assert [run.number(name) for name in names] == [1, 2]
    assert run.number("canary:1") is None
    assert run.number("7") is None
    assert open_run(lm, [False] * 4).units() == ()


def test_more_canaries_than_directions_are_refused() -> None:
    lm = adapted()
    room = CanaryDirections(parameter_count(lm.model), seed=0).room
    assert 0 < room + FREE_DIRECTIONS <= parameter_count(lm.model)
    open_run(lm, [True] * room)
    with pytest.raises(ParameterError, match=f"expected 1 to {room} .*got {room + 1}"):
        open_run(lm, [True] * (room + 1))


def test_training_without_private_weight_is_refused() -> None:
    lm = adapted()
    with pytest.raises(ParameterError, match="private_weight is 0"):
        AuditedTrainer(
            lm,
            canaries=open_run(lm, [True]),
            pool=(),
            privacy=privacy(),
            settings=settings(private_weight=0.0),
        )
