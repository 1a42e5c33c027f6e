"""Per-unit gradients of both engines against autograd on each unit alone, and plain training."""

from __future__ import annotations

import functools
from unittest import mock

import pytest
import torch
from torch.nn import functional
from trainer_doubles import (
    ARCHITECTURES,
    example,
    float_sum,
    opened_trainer,
    small_model,
    stir_adapters,
    units_of_sizes,
)

from lada_secure.dpsgd import trainer as trainer_module
from lada_secure.dpsgd.engine import open_engine
from lada_secure.dpsgd.engine_probe import probe_engine
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.errors import LocalProtocolError
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.examples import encode_row
from lada_secure.models.loss import BETA, MARGIN, LossSettings
from lada_secure.models.rationale_scoring import RationaleScorer

ENGINES = ("fused", "opacus")
EXPECTED_UNITS = 5.0


def plain_log_probability(lm, prompt, target):
    """Mean log-probability per token, one sequence at a time, from the model's own forward."""
    row = encode_row(lm, prompt, target)
    tokens = torch.tensor([row.tokens])
    scores = functional.log_softmax(lm.model(input_ids=tokens).logits[0].float(), dim=-1)
    places = range(row.target_start, len(row.tokens))
    return torch.stack([scores[at - 1, row.tokens[at]] for at in places]).mean()


def plain_loss(lm, one, settings, lead):
    path = plain_log_probability(lm, one.prompt, one.path)
    loss = -path
    if one.rejected is not None and settings.contrastive_weight:
        own = plain_log_probability(lm, one.prompt, one.rejected)
        if settings.contrastive_form == "dpo":
            margin = BETA * ((path - own) - lead)
            loss = loss - settings.contrastive_weight * functional.logsigmoid(margin)
        else:
            short = MARGIN - (path - own)
            loss = loss + settings.contrastive_weight * torch.clamp(short, min=0.0)
    return loss


def reference_leads(lm, examples):
    with torch.no_grad():
        return {
            one.example_id: float(
                plain_log_probability(lm, one.prompt, one.path)
                - plain_log_probability(lm, one.prompt, one.rejected)
            )
            for one in examples
            if one.rejected is not None
        }


def adapted(architecture, **settings):
    lm = attach_adapters(small_model(architecture), AdapterSettings(rank=3, **settings))
    stir_adapters(lm)
    return lm


def assert_same_vector(got, want):
    assert float(want.norm()) > 0.0
    assert float((got - want).norm()) <= 1e-5 * float(want.norm())


def trainable(lm):
    return [one for one in lm.model.parameters() if one.requires_grad]


def train_plainly(lm, batches, loss, learning_rate):
    """Ten ordinary AdamW steps of peft's own LoRA under autograd, example by example."""
    leads = reference_leads(lm, [one for units in batches for u in units for one in u.examples])
    optimizer = torch.optim.AdamW(trainable(lm), lr=learning_rate, weight_decay=0.0)
    for units in batches:
        optimizer.zero_grad()
        losses = [
            plain_loss(lm, one, loss, leads.get(one.example_id))
            for unit in units
            for one in unit.examples
        ]
        (torch.stack(losses).sum() / EXPECTED_UNITS).backward()
        optimizer.step()


def train_without_noise(lm, units, batches, loss, learning_rate, engine, cache_bytes):
    """The trainer's own steps, but for the noise: the un-noised sum goes to `update` directly."""
    privacy = DpSgdParameters(
        noise_multiplier=1.0,
        l2_clip_norm=1e6,
        sampling_probability=0.5,
        expected_units=EXPECTED_UNITS,
        steps=len(batches),
        pool_gradients="public",
    )
    settings = TrainerSettings(
        engine=engine,
        physical_batch_size=9,
        learning_rate=learning_rate,
        loss=loss,
    )
    with mock.patch.object(trainer_module, "FROZEN_CACHE_BYTES", cache_bytes):
        trainer = opened_trainer(lm, units, pool=(), privacy=privacy, settings=settings)
    by_id = {unit.unit_id: unit for unit in trainer._units}
    for joined in batches:
        total = float_sum(trainer, [by_id[one.unit_id] for one in joined])
        trainer.update(total / EXPECTED_UNITS)
    assert trainer.engine.name == engine
    caches = trainer.source._loss._scorer._prefix is not None
    trainer.close()
    return caches


# Units of 1 to 8 examples of different lengths, with and without own paths; other units join
# every step, in several padded physical batches.
UNITS = units_of_sizes(1, 2, 8, 4)
BATCHES = tuple(tuple(u for at, u in enumerate(UNITS) if (at + step) % 3) for step in range(10))
CASES = {
    "all layers, margin": ("margin", {}, 0),
    "last layer, dpo, cached": ("dpo", {"last_layers": 1}, 2**24),
    "two layers, frozen A, small cache": ("dpo", {"last_layers": 2, "train_a": False}, 9000),
    "cores, margin": ("margin", {"train_a": False, "core": "seed"}, 0),
    "cores, last layer, dpo, cached": (
        "dpo",
        {"last_layers": 1, "train_a": False, "core": "weights"},
        2**24,
    ),
}


@functools.cache
def plainly_trained(architecture, case):
    """What peft's own LoRA, autograd and AdamW make of it, and how far the weights moved."""
    form, settings, _ = CASES[case]
    lm = adapted(architecture, **settings)
    start = [one.detach().clone() for one in trainable(lm)]
    loss = LossSettings(contrastive_form=form, contrastive_weight=0.5)
    train_plainly(lm, BATCHES, loss, 1e-3)
    end = [one.detach().clone() for one in trainable(lm)]
    return end, max(float((a - b).abs().max()) for a, b in zip(start, end, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("architecture", "case"),
    [
        *((architecture, "all layers, margin") for architecture in ("llama", "gpt2")),
        *(
            pytest.param(architecture, "all layers, margin", marks=pytest.mark.slow)
            for architecture in ARCHITECTURES
            if architecture not in ("llama", "gpt2")
        ),
        *((architecture, "last layer, dpo, cached") for architecture in ("llama", "gpt2")),
        ("llama", "two layers, frozen A, small cache"),
        ("llama", "cores, margin"),
        *(
            pytest.param(architecture, "cores, margin", marks=pytest.mark.slow)
            for architecture in ARCHITECTURES
            if architecture != "llama"
        ),
        *(
            pytest.param(architecture, "cores, last layer, dpo, cached", marks=pytest.mark.slow)
            for architecture in ("llama", "gpt2")
        ),
    ],
)
def test_without_noise_and_clipping_ten_steps_equal_plain_training(engine, architecture, case):
    form, settings, cache_bytes = CASES[case]
    expected, moved = plainly_trained(architecture, case)
    assert moved > 5e-3
    ours = adapted(architecture, **settings)
    loss = LossSettings(contrastive_form=form, contrastive_weight=0.5)
    caches = train_without_noise(ours, UNITS, BATCHES, loss, 1e-3, engine, cache_bytes)
    assert caches == (cache_bytes > 0)
    for want, got in zip(expected, trainable(ours), strict=True):
        torch.testing.assert_close(got, want, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("core", [None, "seed", "weights"], ids=["lora", "seed", "weights"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_unit_gradients_over_two_forward_passes_equal_autograd_on_each_unit(
    engine, architecture, core
):
    lm = adapted(architecture, core=core, train_a=core is None)
    units = units_of_sizes(2, 1, 4, own=False)
    unit_of_row = [at for at, unit in enumerate(units) for _ in unit.examples]
    rows = [encode_row(lm, one.prompt, one.path) for unit in units for one in unit.examples]
    second = [encode_row(lm, one.path, one.prompt) for unit in units for one in unit.examples]

    expected = []
    for unit in range(len(units)):
        for one in trainable(lm):
            one.grad = None
        scorer = RationaleScorer(lm.model, device=torch.device("cpu"))
        mine = [at for at, owner in enumerate(unit_of_row) if owner == unit]
        lead = scorer([rows[at] for at in mine]) - scorer([second[at] for at in mine])
        functional.softplus(lead).sum().backward()
        expected.append([one.grad.clone() for one in trainable(lm)])

    opened = open_engine(lm.model, engine)
    scorer = RationaleScorer(lm.model, device=torch.device("cpu"))
    taken, _ = opened.gradients(
        len(units), unit_of_row, lambda: functional.softplus(scorer(rows) - scorer(second)).sum()
    )
    opened.close()
    for at, gradient in enumerate(taken):
        for unit in range(len(units)):
            assert_same_vector(gradient[unit], expected[unit][at])


def with_short_base(architecture, *, exact, core=None):
    """exact: the weights of a base in bfloat16, computed with in float32."""
    lm = small_model(architecture, dtype="bfloat16")
    if exact:
        lm.model.float()
    lm = attach_adapters(lm, AdapterSettings(rank=3, core=core, train_a=core is None))
    stir_adapters(lm)
    return lm


def gradient_alone(lm, unit, engine):
    """The gradient of one unit, (d,): by an engine, or by peft's own LoRA under autograd."""
    rows = [encode_row(lm, one.prompt, one.path) for one in unit.examples]
    scorer = RationaleScorer(lm.model, device=torch.device("cpu"))
    if engine is None:
        found = torch.autograd.grad(-scorer(rows).sum(), trainable(lm))
        return torch.cat([one.flatten() for one in found])
    opened = open_engine(lm.model, engine)
    taken, _ = opened.gradients(1, [0] * len(rows), lambda: -scorer(rows).sum())
    opened.close()
    assert all(one.dtype == torch.float32 for one in taken)
    return torch.cat([one.flatten() for one in taken])


@pytest.mark.parametrize("core", [None, "weights"], ids=["", "core"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_with_a_bfloat16_base_gradients_are_as_near_to_the_exact_ones_as_plain_lora_s(
    architecture, engine, core
):
    for unit in units_of_sizes(1, 4, own=False):
        exact = gradient_alone(with_short_base(architecture, exact=True, core=core), unit, None)
        plain = gradient_alone(with_short_base(architecture, exact=False, core=core), unit, None)
        ours = gradient_alone(with_short_base(architecture, exact=False, core=core), unit, engine)
        off = float((plain - exact).norm() / exact.norm())
        assert 0.0 < off < 0.05
        assert float((ours - exact).norm() / exact.norm()) <= 1.5 * off + 1e-3


@pytest.mark.parametrize("core", [None, "seed"], ids=["", "core"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_probe_accepts_a_bfloat16_base(architecture, engine, checkpointing, core):
    lm = small_model(architecture, dtype="bfloat16", gradient_checkpointing=checkpointing)
    lm = attach_adapters(lm, AdapterSettings(rank=3, core=core, train_a=core is None))
    probe_engine(lm, engine)


def batched_losses(lm, units, passes):
    """One loss per example: of its path, and with two passes also of the way back."""
    scorer = RationaleScorer(lm.model, device=torch.device("cpu"))
    there = [encode_row(lm, one.prompt, one.path) for unit in units for one in unit.examples]
    back = [encode_row(lm, one.path, one.prompt) for unit in units for one in unit.examples]
    if passes == 1:
        return -scorer(there)
    return functional.softplus(scorer(back) - scorer(there))


@functools.cache
def plainly_trained_in_batches(architecture, passes):
    """Ten AdamW steps of autograd over whole padded batches, and how far the weights moved."""
    lm = adapted(architecture)
    start = [one.detach().clone() for one in trainable(lm)]
    optimizer = torch.optim.AdamW(trainable(lm), lr=1e-3)
    for units in EIGHT_BATCHES:
        optimizer.zero_grad()
        (batched_losses(lm, units, passes).sum() / EXPECTED_UNITS).backward()
        optimizer.step()
    end = [one.detach().clone() for one in trainable(lm)]
    return end, max(float((a - b).abs().max()) for a, b in zip(start, end, strict=True))


# Units of every size from 1 to 8, of which three or so join each step.
EIGHT = units_of_sizes(*range(1, 9), own=False)
EIGHT_BATCHES = tuple(
    tuple(unit for at, unit in enumerate(EIGHT) if (at + step) % 3 == 0) for step in range(10)
)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("passes", [1, 2], ids=["one pass", "two passes"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ten_steps_over_padded_batches_equal_plain_training(architecture, passes, engine):
    expected, moved = plainly_trained_in_batches(architecture, passes)
    assert moved > 5e-3
    lm = adapted(architecture)
    opened = open_engine(lm.model, engine)
    optimizer = torch.optim.AdamW(opened.parameters, lr=1e-3)
    for units in EIGHT_BATCHES:
        unit_of_row = [at for at, unit in enumerate(units) for _ in unit.examples]
        found, _ = opened.gradients(
            len(units), unit_of_row, lambda units=units: batched_losses(lm, units, passes).sum()
        )
        for one, taken in zip(opened.parameters, found, strict=True):
            assert len(taken) == len(units)
            one.grad = (taken.double().sum(0) / EXPECTED_UNITS).float()
        optimizer.step()
    opened.close()
    for want, got in zip(expected, trainable(lm), strict=True):
        torch.testing.assert_close(got, want, rtol=0.0, atol=1e-5)


def test_a_forward_pass_over_other_rows_than_were_told_is_refused():
    lm = adapted("llama")
    rows = [encode_row(lm, example(at).prompt, example(at).path) for at in range(3)]
    scorer = RationaleScorer(lm.model, device=torch.device("cpu"))
    engine = open_engine(lm.model, "fused")
    with pytest.raises(LocalProtocolError, match="expected"):
        engine.gradients(2, [0, 1], lambda: scorer(rows).sum())
    engine.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_closed_engine_leaves_the_model_as_it_was(engine):
    lm = adapted("llama")
    row = encode_row(lm, "abc", "def")
    before = lm.model(input_ids=torch.tensor([row.tokens])).logits
    opened = open_engine(lm.model, engine)
    opened.close()
    after = lm.model(input_ids=torch.tensor([row.tokens])).logits
    assert torch.equal(before, after)
    assert not any("grad_sample" in vars(one) for one in lm.model.parameters())
    assert not any("forward" in vars(one) for one in lm.model.modules())
    after.sum().backward()
    assert all(one.grad is not None for one in trainable(lm))


@pytest.mark.parametrize("engine", ENGINES)
def test_what_an_interrupted_batch_left_does_not_reach_the_next(engine):
    lm = adapted("llama")
    rows = [encode_row(lm, example(at).prompt, example(at).path) for at in range(3)]
    scorer = RationaleScorer(lm.model, device=torch.device("cpu"))
    opened = open_engine(lm.model, engine)

    def gradients():
        return opened.gradients(3, [0, 1, 2], lambda: scorer(rows).sum())[0]

    def never_ends(backward):
        loss = scorer(rows[:2]).sum()
        if backward:
            loss.backward()
        raise MemoryError

    clean = gradients()
    for backward in (False, True):
        with pytest.raises(MemoryError):
            opened.gradients(2, [0, 1], lambda backward=backward: never_ends(backward))
    for expected, got in zip(clean, gradients(), strict=True):
        assert torch.equal(expected, got)
    opened.close()
