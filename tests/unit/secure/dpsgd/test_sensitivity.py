"""Influence of one privacy unit on the clipped sum: at most one clip norm, measured.

The faults are planted in doubles of the step; the same measurement that passes the shipped step
must catch each of them, or it measures nothing.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from trainer_doubles import (
    ARCHITECTURES,
    float_sum,
    grid_sum,
    opened_trainer,
    small_model,
    stir_adapters,
    units_of_sizes,
)

from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.dpsgd.trainer import noised_gradient
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.examples import EncodedExample, EncodedUnit, PrivateUnit, TokenRow, rows_of
from lada_secure.models.loss import LossSettings
from lada_secure.models.rationale_scoring import RationaleScorer, per_token

CLIP = 0.05
LIMIT = 1.0 + 1e-6


def adapted(architecture="llama", *, dtype="float32", checkpointing=False, **changes):
    lm = small_model(architecture, dtype=dtype, gradient_checkpointing=checkpointing)
    lm = attach_adapters(lm, AdapterSettings(**{"rank": 2, **changes}))
    stir_adapters(lm)
    return lm


def parameters(**changes):
    values = {
        "noise_multiplier": 1.0,
        "l2_clip_norm": CLIP,
        "sampling_probability": 0.5,
        "expected_units": 4.0,
        "steps": 5,
        "pool_gradients": "public",
    }
    return DpSgdParameters(**{**values, **changes})


def open_trainer(lm, units, *, engine="fused", contrastive_form="dpo", **changes):
    return opened_trainer(
        lm,
        units,
        pool=(),
        privacy=parameters(**changes),
        settings=TrainerSettings(
            engine=engine,
            physical_batch_size=8,
            loss=LossSettings(contrastive_form=contrastive_form, contrastive_weight=1.0),
        ),
    )


def largest_influence(total_of, units, *, unit_scale=1.0):
    """max over units of ||total(D) - total(D without the unit)|| in clip norms."""
    whole = total_of(units)
    return max(
        float((whole - total_of([one for one in units if one is not left])).norm())
        / (CLIP * unit_scale)
        for left in units
    )


@pytest.mark.parametrize("core", [None, "seed", "weights"], ids=["lora", "seed", "weights"])
@pytest.mark.parametrize("engine", ["fused", "opacus"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_removing_any_unit_moves_the_shipped_sum_by_at_most_one_clip_norm(
    architecture, engine, core
):
    lm = adapted(architecture, core=core, train_a=core is None)
    trainer = open_trainer(lm, units_of_sizes(1, 4, 2, 8, 1, 3), engine=engine)

    def total_of(units):
        return grid_sum(trainer, units).integers().double() * (CLIP / parameters().clip_steps)

    influence = largest_influence(total_of, list(trainer._units))
    trainer.close()
    # Every unit here is longer than the clip norm, so the bound is reached.
    assert 0.99 < influence <= LIMIT


def test_on_the_grid_a_clipped_unit_alone_is_never_longer_than_the_clip_norm():
    for noise_multiplier in (0.3, 1.0, 7.0, 900.0):
        units = units_of_sizes(1, 4, 2, 8)
        trainer = open_trainer(adapted(), units, noise_multiplier=noise_multiplier)
        clip_steps = parameters(noise_multiplier=noise_multiplier).clip_steps
        assert clip_steps * noise_multiplier <= 2**20
        for unit in trainer._units:
            total = grid_sum(trainer, [unit])
            squared = sum(int(one) ** 2 for one in total.integers().tolist())
            assert squared <= clip_steps**2
        trainer.close()


class Fault:
    """The clipped sum as it is often written, by plain autograd; one method per fault."""

    def __init__(self, lm):
        self.model = lm.model
        self.scorer = RationaleScorer(lm.model, device=torch.device("cpu"))
        self.trained = [one for one in lm.model.parameters() if one.requires_grad]

    def gradient(self, loss):
        found = torch.autograd.grad(loss, self.trained, allow_unused=True, retain_graph=True)
        return torch.cat(
            [
                torch.zeros(one.numel()) if got is None else got.flatten()
                for one, got in zip(self.trained, found, strict=True)
            ]
        ).double()

    def clipped(self, loss):
        gradient = self.gradient(loss)
        return gradient * min(1.0, CLIP / float(gradient.norm()))

    def scores(self, rows):
        return per_token(self.scorer(rows), rows)

    def right(self, units):
        return sum(self.clipped(-self.scores(paths(unit)).sum()) for unit in units)

    def negatives_from_the_batch(self, units):
        """Contrast with the other examples of the batch, as InfoNCE does."""
        every = self.scores([row for unit in units for row in paths(unit)])
        total, at = torch.zeros(1, dtype=torch.float64), 0
        for unit in units:
            mine = every[at : at + len(unit.examples)]
            at += len(unit.examples)
            total = total + self.clipped((torch.logsumexp(8.0 * every, 0) - 8.0 * mine).sum())
        return total

    def mean_over_the_tokens_of_the_batch(self, units):
        """What `labels=` returns: divided by the tokens of the batch, then clipped."""
        tokens = sum(row.target_length for unit in units for row in paths(unit))
        shortest = min(units, key=lambda unit: unit.longest_row)
        usual = float(self.gradient(-self.scorer(paths(shortest)).sum()).norm())
        factor = 3.0 * CLIP / usual / tokens
        return sum(
            clip_to(self.gradient(-self.scorer(paths(unit)).sum()) * factor) for unit in units
        )

    def pairs_clipped_as_rows(self, units):
        """Path and own path are two rows; clipping rows lets their unit count twice."""
        total = torch.zeros(1, dtype=torch.float64)
        for unit in units:
            for one in unit.examples:
                for sign, row in zip((-1.0, 1.0), rows_of([one]), strict=False):
                    total = total + self.clipped(sign * self.scores([row]).sum())
        return total

    def records_clipped_each(self, units):
        return sum(self.clipped(-self.scores([row]).sum()) for unit in units for row in paths(unit))

    def divided_by_the_realised_batch(self, units):
        return self.right(units) / len(units)


def clip_to(gradient):
    return gradient * min(1.0, CLIP / float(gradient.norm()))


def paths(unit):
    return [one.path for one in unit.examples]


def row(*tokens):
    return TokenRow(tokens=tokens, target_start=2)


def unit_of(number, *rows, own=None):
    return EncodedUnit(
        unit_id=str(number),
        examples=tuple(
            EncodedExample(example_id=f"{number}.{at}", path=one, rejected=own)
            for at, one in enumerate(rows)
        ),
    )


SHORT = [unit_of(at, row(3, 4, 20)) for at in range(3)]
LONG = unit_of(9, row(9, 9, *([30] * 40)))
FAULTS = {
    "negatives_from_the_batch": [unit_of(at, row(5, 6, 7 + 3 * at)) for at in range(6)],
    "mean_over_the_tokens_of_the_batch": [*SHORT, LONG],
    "pairs_clipped_as_rows": [unit_of(0, row(5, 6, 12), own=row(5, 6, 35))],
    "records_clipped_each": [unit_of(0, *[row(5, 6, 7, 8 + at) for at in range(4)]), *SHORT],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_measurement_catches_a_planted_fault_and_passes_the_right_step(fault):
    steps = Fault(adapted())
    units = FAULTS[fault]

    def caught(total_of):
        empty = torch.zeros(1, dtype=torch.float64)
        return largest_influence(lambda some: total_of(some) if some else empty, units)

    assert caught(steps.right) <= LIMIT
    assert caught(getattr(steps, fault)) > 1.2


def test_the_measurement_catches_division_by_the_realised_batch():
    steps = Fault(adapted())
    # Three units that agree and one that does not: without it, the others weigh more.
    same = [unit_of(at, row(5, 6, 7, 8)) for at in range(3)]
    units = [*same, unit_of(9, row(20, 21, 30, 31), row(22, 23, 33, 31))]
    fixed = largest_influence(lambda some: steps.right(some) / len(units), units, unit_scale=0.25)
    realised = largest_influence(steps.divided_by_the_realised_batch, units, unit_scale=0.25)
    assert fixed <= LIMIT
    assert realised > 1.2


def test_the_shipped_denominator_is_the_plan_s_whoever_joined():
    privacy = parameters(noise_multiplier=0.02)
    trainer = open_trainer(adapted(), units_of_sizes(1, 2, 3), noise_multiplier=0.02)
    few, many = list(trainer._units[:1]), list(trainer._units)
    for joined in (few, many):
        gradient = noised_gradient(grid_sum(trainer, joined), privacy)
        noise = float((gradient - float_sum(trainer, joined) / 4.0).norm())
        expected = 0.02 * CLIP / 4.0 * gradient.numel() ** 0.5
        assert noise == pytest.approx(expected, rel=0.25)
    trainer.close()


def test_an_empty_batch_still_adds_noise_and_moves_the_weights():
    lm = adapted()
    trainer = open_trainer(lm, units_of_sizes(1, 2))
    total = grid_sum(trainer, [])
    assert not bool(total.integers().any())
    before = [one.detach().clone() for one in trainer.parameters]
    trainer.update(noised_gradient(total, parameters()))
    assert trainer.steps_done == 1
    assert all(not torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True))
    trainer.close()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_unit_with_a_non_finite_gradient_counts_as_zero(poison):
    trainer = open_trainer(adapted(), units_of_sizes(1, 2, 1))
    source, units = trainer.source, list(trainer._units)
    clean = grid_sum(trainer, units[1:]).integers()

    class Poisoned:
        """Gives one unit's gradient a bad number where the model would have produced one."""

        def __init__(self, engine):
            self.__dict__.update(name=engine.name, parameters=engine.parameters, _engine=engine)

        def gradients(self, *batch):
            taken, loss = self._engine.gradients(*batch)
            for one in taken:
                one[where][..., 0] = poison
            return taken, loss

    batch_order = sorted(units, key=lambda one: (one.longest_row, one.unit_id))
    where = batch_order.index(units[0])
    source.engine = Poisoned(source.engine)
    total = grid_sum(trainer, units)
    trainer.close()
    # Another physical batch may round a row differently, by far less than a clip norm.
    difference = (total.integers() - clean).double().norm() / parameters().clip_steps
    assert float(difference) < 1e-3


def test_two_steps_over_the_same_sum_never_get_the_same_noise():
    trainer = open_trainer(adapted(), units_of_sizes(1))
    total = grid_sum(trainer)
    with torch.random.fork_rng(devices=[]):
        # A run that resumes often restores torch's generator; noise must not come from it.
        torch.manual_seed(1)
        first = noised_gradient(total, parameters())
        torch.manual_seed(1)
        second = noised_gradient(total, parameters())
        torch.manual_seed(1)
        seeded = torch.randn(first.numel())
        torch.manual_seed(1)
        assert torch.equal(seeded, torch.randn(first.numel()))
    trainer.close()
    assert float((first == second).double().mean()) < 0.01


@pytest.mark.parametrize("engine", ["fused", "opacus"])
def test_a_base_in_bfloat16_still_gives_float_gradients_near_the_exact_ones(engine):
    units = units_of_sizes(1, 3, 2)
    sums = []
    for dtype in ("float32", "bfloat16"):
        trainer = open_trainer(adapted(dtype=dtype), units, engine=engine)
        sums.append(float_sum(trainer, clip=1e6))
        trainer.close()
    exact, short = sums
    assert not torch.equal(exact, short)
    assert float((exact - short).norm()) < 0.05 * float(exact.norm())


# With the last layer alone, outputs of the others could be kept from one batch to another.
SHAPES = {
    "all layers": {},
    "last layer": {"last_layers": 1},
    "checkpointing": {"checkpointing": True},
    "cores of the last layer": {"core": "seed", "train_a": False, "last_layers": 1},
}


@pytest.mark.parametrize(
    ("shape", "contrastive_form"),
    [
        ("all layers", "margin"),
        *((shape, "dpo") for shape in SHAPES),
        *(
            pytest.param(shape, "margin", marks=pytest.mark.slow)
            for shape in SHAPES
            if shape != "all layers"
        ),
    ],
)
@pytest.mark.parametrize("engine", ["fused", "opacus"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_in_bfloat16_no_unit_moves_the_sum_by_more_than_one_clip_norm_exactly(
    architecture, engine, shape, contrastive_form
):
    """In whole numbers on the grid: a unit's gradient does not depend on its company at all."""
    # Two units share a row, and a unit without examples is in between.
    units = (*units_of_sizes(1, 4, 2, 8), PrivateUnit(unit_id="none", examples=()))
    twin = PrivateUnit(unit_id="twin", examples=units[1].examples[:1])
    trainer = open_trainer(
        adapted(architecture, dtype="bfloat16", **SHAPES[shape]),
        (*units, twin),
        engine=engine,
        contrastive_form=contrastive_form,
    )

    def total_of(some):
        return grid_sum(trainer, some).integers()

    everybody = list(trainer._units)
    whole = total_of(everybody)
    for left in everybody:
        change = whole - total_of([one for one in everybody if one is not left])
        squared = sum(int(one) ** 2 for one in change.tolist())
        assert squared <= parameters().clip_steps ** 2
        assert torch.equal(change, total_of([left]))
    among_others = total_of(everybody[-1:])
    trainer.close()
    # Nor does anything that was kept from before: references, outputs of frozen layers.
    alone = open_trainer(
        adapted(architecture, dtype="bfloat16", **SHAPES[shape]),
        [twin],
        engine=engine,
        contrastive_form=contrastive_form,
    )
    by_itself = grid_sum(alone).integers()
    alone.close()
    assert torch.equal(by_itself, among_others)


def test_a_loss_sees_its_own_example_alone():
    lm = adapted()
    trainer = open_trainer(lm, units_of_sizes(2, 3, 1))
    examples = [one for unit in trainer._units for one in unit.examples]
    together = trainer.source.losses(examples)
    alone = torch.cat([trainer.source.losses([one]) for one in examples])
    trainer.close()
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert functional.mse_loss(together, together.flip(0)) > 0.0
