"""Gradient checkpointing: the same numbers to the last bit, from layers that run twice."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.nn import functional
from trainer_doubles import (
    ARCHITECTURES,
    example,
    grid_sum,
    opened_trainer,
    small_model,
    stir_adapters,
    units_of_sizes,
)

from lada_secure.dpsgd.engine import open_engine
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.checkpointing import checkpointed_layers, checkpointing, layers_of
from lada_secure.models.examples import encode_row
from lada_secure.models.rationale_scoring import RationaleScorer

ENGINES = ("fused", "opacus")
UNITS = units_of_sizes(2, 1, 4, own=False)
UNIT_OF_ROW = [at for at, unit in enumerate(UNITS) for _ in unit.examples]
LAYERS = 3
PRIVACY = DpSgdParameters(
    noise_multiplier=1.0,
    l2_clip_norm=0.05,
    sampling_probability=1.0,
    expected_units=4.0,
    steps=2,
    pool_gradients="public",
)


def adapted(architecture="llama", *, dtype="float32", checkpoints=False, **changes):
    lm = small_model(architecture, layers=LAYERS, dtype=dtype, gradient_checkpointing=checkpoints)
    lm = attach_adapters(lm, AdapterSettings(**{"rank": 2, **changes}))
    stir_adapters(lm)
    return lm


def unit_gradients(lm, engine, *, checkpoints, passes=2):
    opened = open_engine(lm.model, engine, checkpoints=checkpoints)
    scorer = RationaleScorer(lm.model, device=torch.device("cpu"))
    rows = [encode_row(lm, one.prompt, one.path) for unit in UNITS for one in unit.examples]
    back = [encode_row(lm, one.path, one.prompt) for unit in UNITS for one in unit.examples]

    def loss():
        if passes == 1:
            return -scorer(rows).sum()
        return functional.softplus(scorer(rows) - scorer(back)).sum()

    try:
        found, total = opened.gradients(len(UNITS), UNIT_OF_ROW, loss)
        return [one.clone() for one in found], total
    finally:
        opened.close()


@pytest.mark.parametrize("passes", [1, 2], ids=["one pass", "two passes"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_of_every_unit_are_the_same_to_the_last_bit(architecture, engine, dtype, passes):
    found = [
        unit_gradients(
            adapted(architecture, dtype=dtype), engine, checkpoints=checkpoints, passes=passes
        )
        for checkpoints in (False, True)
    ]
    (plain, loss), (again, same_loss) = found
    assert torch.equal(loss, same_loss)
    for one, other in zip(plain, again, strict=True):
        assert bool(one.any())
        assert torch.equal(one, other)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("shape", "twice"),
    [({}, {0, 1, 2}), ({"last_layers": 1}, {2}), ({"last_layers": 2, "train_a": False}, {1, 2})],
    ids=["all layers", "last layer", "two layers, frozen A"],
)
def test_layers_that_are_trained_run_twice_and_the_frozen_ones_below_once(engine, shape, twice):
    calls = Counter()
    lm = adapted(**shape)
    for number, layer in enumerate(layers_of(lm.model)):
        layer.self_attn.register_forward_pre_hook(
            lambda *_, number=number: calls.update({number: 1})
        )
    scorer = RationaleScorer(lm.model, device=torch.device("cpu"))
    rows = [encode_row(lm, one.prompt, one.path) for unit in UNITS for one in unit.examples]
    opened = open_engine(lm.model, engine, checkpoints=True)
    calls.clear()
    opened.gradients(len(UNITS), UNIT_OF_ROW, lambda: -scorer(rows).sum())
    opened.close()
    assert calls == {number: 2 if number in twice else 1 for number in range(LAYERS)}
    assert not any("forward" in vars(one) for one in layers_of(lm.model))


@pytest.mark.parametrize("shape", [{}, {"last_layers": 1}], ids=["all layers", "last layer"])
@pytest.mark.parametrize("engine", ENGINES)
def test_whole_steps_end_with_the_same_weights(engine, shape):
    """With a last layer alone its input comes from what was kept of the frozen ones."""
    ends = []
    for checkpoints in (False, True):
        trainer = opened_trainer(
            adapted(checkpoints=checkpoints, **shape),
            units_of_sizes(1, 3, 2),
            pool=[example(at) for at in range(50, 55)],
            privacy=PRIVACY,
            settings=TrainerSettings(engine=engine, physical_batch_size=4, pool_batch_size=3),
        )
        assert (trainer.engine._layers is not None) == checkpoints
        for _ in range(2):
            total = grid_sum(trainer).integers()
            trainer.update(total.double() * (PRIVACY.l2_clip_norm / PRIVACY.clip_steps / 4.0))
        ends.append([one.detach().clone() for one in trainer.parameters])
        losses = trainer.public_losses
        trainer.close()
    assert None not in losses
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)


def test_a_pass_that_fails_leaves_the_layers_as_they_were_and_nothing_for_the_next_batch():
    lm = adapted()
    opened = open_engine(lm.model, "fused", checkpoints=True)
    scorer = RationaleScorer(lm.model, device=torch.device("cpu"))
    rows = [encode_row(lm, one.prompt, one.path) for unit in UNITS for one in unit.examples]

    def gradients():
        return opened.gradients(len(UNITS), UNIT_OF_ROW, lambda: scorer(rows).sum())[0]

    clean = [one.clone() for one in gradients()]

    def fails():
        scorer(rows)
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        opened.gradients(len(UNITS), UNIT_OF_ROW, fails)
    assert not any("forward" in vars(one) for one in layers_of(lm.model))
    for one, other in zip(clean, gradients(), strict=True):
        assert torch.equal(one, other)
    opened.close()


def test_memory_between_the_passes_holds_inputs_of_layers_alone():
    lm = adapted()
    scorer = RationaleScorer(lm.model, device=torch.device("cpu"))
    rows = [encode_row(lm, one.prompt, one.path) for unit in UNITS for one in unit.examples]

    def kept(checkpoints):
        sizes = []
        opened = open_engine(lm.model, "fused", checkpoints=checkpoints)

        def loss():
            with torch.autograd.graph.saved_tensors_hooks(
                lambda one: (sizes.append(one.numel()), one)[1], lambda one: one
            ):
                return -scorer(rows).sum()

        opened.gradients(len(UNITS), UNIT_OF_ROW, loss)
        opened.close()
        return sum(sizes)

    assert kept(True) < 0.5 * kept(False)


def test_a_trained_weight_below_the_layers_needs_all_of_them():
    lm = adapted(last_layers=1)
    assert len(checkpointed_layers(lm.model)) == 1
    lm.model.get_input_embeddings().weight.requires_grad_(True)
    assert len(checkpointed_layers(lm.model)) == LAYERS


def test_a_model_without_a_list_of_layers_is_refused_by_name(monkeypatch):
    lm = adapted()
    lm.model.config.num_hidden_layers = 7
    with pytest.raises(ParameterError, match="no list of layers"):
        open_engine(lm.model, "auto", checkpoints=True)


def test_layers_that_somebody_else_replaced_get_their_own_back():
    lm = adapted()
    layers = checkpointed_layers(lm.model)
    own = layers[0].forward

    def theirs(*args, **kwargs):
        return own(*args, **kwargs)

    layers[0].__dict__["forward"] = theirs
    with checkpointing(layers):
        assert layers[0].forward is not theirs
    assert layers[0].forward is theirs
