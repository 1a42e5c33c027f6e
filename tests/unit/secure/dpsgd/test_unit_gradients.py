"""Gradients side by side in memory, and sums of models whose weights lie on several devices."""

from __future__ import annotations

import pytest
import torch
from devices_double import SeveralDevices, place_of, placed
from trainer_doubles import example, opened_trainer, small_model

from lada_secure.dpsgd.clipping import ClippedSum
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.dpsgd.trainer import noised_gradient
from lada_secure.dpsgd.unit_gradients import side_by_side, zero_gradients
from lada_secure.models.adapters import AdapterSettings, attach_adapters

SHAPES = ((3, 4), (5,), (2, 1), (1, 6), (2, 3))
PRIVACY = DpSgdParameters(
    noise_multiplier=1.0,
    l2_clip_norm=0.5,
    sampling_probability=0.5,
    expected_units=4.0,
    steps=1,
    pool_gradients="public",
)


def parameters():
    return [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]


def filled(gradients, *, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    for one in gradients:
        one.copy_(torch.randn(one.shape, generator=generator) * scale)
    return gradients


@pytest.mark.parametrize("units", [1, 4])
def test_gradients_of_the_engines_are_clipped_where_they_lie(units):
    gradients = filled(zero_gradients(units, parameters()))
    block = side_by_side(gradients)
    assert block.shape == (units, sum(one.numel() for one in parameters()))
    assert torch.equal(block, torch.cat([one.flatten(1) for one in gradients], dim=1))
    block.zero_()
    assert not any(bool(one.any()) for one in gradients)


@pytest.mark.parametrize(
    "others",
    [
        lambda some: [one.clone() for one in some],
        lambda some: [*some[1:], some[0]],
        lambda some: some[:-1],
        lambda some: [one.double() for one in some],
        lambda some: [one[1:] for one in some],
        lambda some: [some[0], *(one.clone() for one in some[1:])],
        lambda some: [one.transpose(0, 1) if one.shape[1:] == (4, 4) else one for one in some[::2]],
    ],
    ids=["copies", "another order", "one is missing", "doubles", "fewer units", "in part", "gaps"],
)
def test_any_other_gradients_are_put_side_by_side_in_a_copy(others):
    gradients = others(filled(zero_gradients(4, parameters())))
    expected = torch.cat([one.flatten(1).float() for one in gradients], dim=1)
    block = side_by_side(gradients)
    assert torch.equal(block, expected)
    before = [one.clone() for one in gradients]
    if not all(one.untyped_storage()._cdata == block.untyped_storage()._cdata for one in gradients):
        block.zero_()
        assert all(torch.equal(a, b) for a, b in zip(before, gradients, strict=True))


def test_one_sum_whether_gradients_are_copied_or_not():
    found = []
    for copied in (False, True):
        total = ClippedSum(parameters(), PRIVACY)
        for scale in (1.0, 0.01):
            gradients = filled(zero_gradients(4, parameters()), scale=scale)
            total.add([one.clone() for one in gradients] if copied else gradients)
        found.append(total.integers())
    assert torch.equal(*found)
    assert bool(found[0].any())


@pytest.mark.parametrize("at_once", [1, 7, 2**30], ids=["a column", "a few", "all"])
def test_sums_do_not_depend_on_how_many_columns_are_taken_at_once(monkeypatch, at_once):
    found = []
    for size in (at_once, 2**23):
        monkeypatch.setattr("lada_secure.dpsgd.clipping._BYTES_AT_ONCE", {"cpu": 8 * 4 * size})
        total = ClippedSum(parameters(), PRIVACY)
        gradients = filled(zero_gradients(4, parameters()))
        gradients[1][2, 0] = float("nan")
        total.add(gradients)
        found.append(total.integers())
    # Norms are added up in another order, which moves a length by 1e-16 of itself.
    assert int((found[0] - found[1]).abs().max()) <= 4
    assert bool(found[0].any())


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf"), 3.4e38])
def test_a_unit_that_is_no_number_adds_exactly_nothing_and_a_huge_one_no_more_than_others(broken):
    gradients = filled(zero_gradients(3, parameters()))
    alone = ClippedSum(parameters(), PRIVACY)
    alone.add([one[[0, 2]].clone() for one in gradients])
    gradients[2][1] = broken
    total = ClippedSum(parameters(), PRIVACY)
    total.add(gradients)
    change = (total.integers() - alone.integers()).double().norm()
    assert float(change) <= (PRIVACY.clip_steps if broken == 3.4e38 else 0.0)


def on_two_devices(weights):
    return [placed(one, f"cuda:{at % 2}") for at, one in enumerate(weights)]


def test_on_several_devices_the_sum_is_the_same_and_nothing_is_mixed():
    total = ClippedSum(parameters(), PRIVACY)
    total.add(filled(zero_gradients(4, parameters())))
    with SeveralDevices():
        weights = on_two_devices(parameters())
        gradients = zero_gradients(4, weights)
        assert [str(place_of(one)) for one in gradients] == [f"cuda:{at % 2}" for at in range(5)]
        spread = ClippedSum(weights, PRIVACY)
        spread.add(filled(gradients))
        found = spread.integers()
        assert str(place_of(found)) == "cuda:0"
        noise = torch.arange(found.numel())
        noised = noised_gradient(spread, PRIVACY, noise)
    # As above: norms are added up in another order.
    assert int((found - total.integers()).abs().max()) <= 4
    step = PRIVACY.l2_clip_norm / PRIVACY.clip_steps / PRIVACY.expected_units
    torch.testing.assert_close(noised, (found + noise).double() * step)


def test_the_double_refuses_to_mix_devices():
    with SeveralDevices(), pytest.raises(AssertionError, match="cuda:1"):
        on_two_devices([torch.zeros(2), torch.zeros(2)])[0] + placed(torch.zeros(2), "cuda:1")


def gradients_of_an_update(monkeypatch, *, spread, broken=False):
    """What AdamW is handed after an update with a public gradient, and where it lies."""
    lm = attach_adapters(small_model(layers=2), AdapterSettings(rank=2))
    trainer = opened_trainer(
        lm, (), pool=[example(1)], privacy=PRIVACY, settings=TrainerSettings(pool_batch_size=1)
    )
    if spread:
        on_two_devices(trainer.parameters)
        trainer.device = torch.device("cuda:0")
    exact = filled(zero_gradients(1, trainer.parameters))
    if broken:
        exact[3][0, 0, 0] = float("nan")
    with SeveralDevices():
        public = zero_gradients(1, trainer.parameters)
        for one, value in zip(public, exact, strict=True):
            one.copy_(value)
        loss = placed(torch.zeros(()), "cuda:0")
        found = [one.squeeze(0) for one in public], loss
        monkeypatch.setattr(trainer.source, "public_gradient", lambda _: found)
        handed = []
        monkeypatch.setattr(
            trainer.optimizer,
            "step",
            lambda: handed.extend((str(one.grad.device), one.grad) for one in trainer.parameters),
        )
        count = sum(one.numel() for one in trainer.parameters)
        home = "cuda:0" if spread else "cpu"
        trainer.update(placed(torch.arange(count, dtype=torch.float64), home))
    trainer.close()
    return handed, exact


@pytest.mark.parametrize("broken", [False, True], ids=["", "a public gradient that is no number"])
def test_an_update_reaches_every_weight_on_its_own_device(monkeypatch, broken):
    spread, exact = gradients_of_an_update(monkeypatch, spread=True, broken=broken)
    whole, _ = gradients_of_an_update(monkeypatch, spread=False, broken=broken)
    assert [where for where, _ in spread] == [f"cuda:{at % 2}" for at in range(len(spread))]
    start = 0
    for (_, one), (_, other), public in zip(spread, whole, exact, strict=True):
        private = torch.arange(start, start + one.numel(), dtype=torch.float32).view_as(one)
        start += one.numel()
        assert torch.equal(one, other)
        torch.testing.assert_close(one, private if broken else private + public[0])
