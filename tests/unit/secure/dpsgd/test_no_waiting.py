"""A step asks the device for no value: on a GPU every such question stops the CPU until it is idle.

On a CPU the same operators are called, so they are counted here.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from trainer_doubles import (
    ARCHITECTURES,
    example,
    opened_trainer,
    small_model,
    stir_adapters,
    units_of_sizes,
)

from lada_secure.dpsgd.batching import PoissonSampler
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.loss import LossSettings

# What hands a tensor's value, or its size by its values, to Python.
QUESTIONS = {"_local_scalar_dense", "item", "equal", "nonzero", "is_nonzero", "masked_select"}
PRIVACY = DpSgdParameters(
    noise_multiplier=1.0,
    l2_clip_norm=0.05,
    sampling_probability=1.0,
    expected_units=4.0,
    steps=3,
    pool_gradients="public",
)


class NoQuestions(TorchDispatchMode):
    """Refuses operators whose result the CPU would have to wait for."""

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in QUESTIONS, f"a step asks for a value: {func}"
        return func(*args, **(kwargs or {}))


def open_trainer(architecture="llama", *, engine="fused", **changes):
    lm = attach_adapters(small_model(architecture), AdapterSettings(rank=2, **changes))
    stir_adapters(lm)
    return opened_trainer(
        lm,
        units_of_sizes(1, 3, 2),
        pool=[example(at) for at in range(50, 55)],
        privacy=PRIVACY,
        settings=TrainerSettings(
            engine=engine,
            physical_batch_size=4,
            pool_batch_size=3,
            loss=LossSettings(contrastive_form="dpo", contrastive_weight=1.0),
        ),
    )


@pytest.mark.parametrize("shape", [{}, {"last_layers": 1}], ids=["all layers", "last layer"])
@pytest.mark.parametrize("engine", ["fused", "opacus"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_asks_for_no_value(architecture, engine, shape):
    trainer = open_trainer(architecture, engine=engine, **shape)
    with NoQuestions():
        trainer.step()
        trainer.step()
    losses = trainer.public_losses
    trainer.close()
    assert len(losses) == 2
    assert all(loss > 0.0 for loss in losses)


def test_the_measurement_catches_a_question():
    with pytest.raises(AssertionError, match="asks for a value"), NoQuestions():
        float(torch.ones(1))


def test_a_broken_unit_and_a_broken_public_loss_raise_no_question_either():
    trainer = open_trainer()
    trainer._sampler = PoissonSampler(3, sampling_probability=1.0)
    with torch.no_grad():
        next(trainer.lm.model.parameters())[5] = float("nan")
    before = [one.detach().clone() for one in trainer.parameters]
    with NoQuestions():
        trainer.step()
    after = [one.detach() for one in trainer.parameters]
    assert trainer.public_losses == [None]
    trainer.close()
    # Noise alone, and what is left of either stream: the weights are numbers, and moved.
    assert all(bool(one.isfinite().all()) for one in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
