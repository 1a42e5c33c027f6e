"""A base dispatched by accelerate, as with a device_map: its hooks change no gradient.

All parts lie on the CPU here; accelerate's hooks stand in front of every module all the same.
"""

from __future__ import annotations

import pytest
import torch
from accelerate import dispatch_model
from trainer_doubles import (
    ARCHITECTURES,
    example,
    grid_sum,
    opened_trainer,
    small_model,
    stir_adapters,
    units_of_sizes,
)

from lada_secure.dpsgd.engine_probe import probe_engine
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.checkpointing import layers_of

PRIVACY = DpSgdParameters(
    noise_multiplier=1.0,
    l2_clip_norm=0.05,
    sampling_probability=1.0,
    expected_units=4.0,
    steps=2,
    pool_gradients="public",
)


def dispatched(model):
    """Every layer a part of its own, and the rest one by one."""
    layers = layers_of(model)
    owner = next(name for name, one in model.named_modules() if one is layers)
    parts = {f"{owner}.{at}": "cpu" for at in range(len(layers))}
    body = owner.rpartition(".")[0]
    for name, _ in model.get_submodule(body).named_children():
        if f"{body}.{name}" != owner:
            parts[f"{body}.{name}"] = "cpu"
    parts["lm_head"] = "cpu"
    return dispatch_model(model, parts, main_device="cpu", force_hooks=True)


def adapted(architecture, *, hooks, checkpointing=False, **changes):
    lm = small_model(architecture, gradient_checkpointing=checkpointing)
    if hooks:
        dispatched(lm.model)
    lm = attach_adapters(lm, AdapterSettings(**{"rank": 2, **changes}))
    stir_adapters(lm)
    return lm


def run(lm, engine):
    """The clipped sum, and the weights after a step with the public gradient alone."""
    trainer = opened_trainer(
        lm,
        units_of_sizes(1, 3, 2),
        pool=[example(at) for at in range(50, 53)],
        privacy=PRIVACY,
        settings=TrainerSettings(engine=engine, physical_batch_size=4, pool_batch_size=3),
    )
    total = grid_sum(trainer).integers()
    trainer.update(torch.zeros(total.numel(), dtype=torch.float64))
    losses = trainer.public_losses
    trainer.close()
    return total, [one.detach().clone() for one in trainer.parameters], losses


@pytest.mark.parametrize("shape", [{}, {"last_layers": 1}], ids=["all layers", "last layer"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("engine", ["fused", "opacus"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sums_and_steps_are_those_of_the_base_without_hooks(
    architecture, engine, checkpointing, shape
):
    plain = run(adapted(architecture, hooks=False, **shape), engine)
    lm = adapted(architecture, hooks=True, checkpointing=checkpointing, **shape)
    hooked = {name for name, one in lm.model.named_modules() if hasattr(one, "_hf_hook")}
    assert len(hooked) > 10
    forwards = {name: one.__dict__.get("forward") for name, one in lm.model.named_modules()}
    found = run(lm, engine)
    # Sums in whole grid steps: base and adapter as two nodes round a product elsewhere.
    gap = (found[0] - plain[0]).double().norm() / plain[0].double().norm()
    assert float(gap) < 1e-4
    for one, other in zip(found[1], plain[1], strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-5)
    assert found[2] == pytest.approx(plain[2], rel=1e-5)
    # Accelerate's own replacements are back in their places.
    after = {name: one.__dict__.get("forward") for name, one in lm.model.named_modules()}
    assert after == forwards


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_probe_accepts_it(architecture):
    probe_engine(adapted(architecture, hooks=True), "auto")
