"""Adapters: what is trainable, their bytes, and what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save
from trainer_doubles import ARCHITECTURES, small_model, stir_adapters

from lada_secure.dpsgd.parameters import DpSgdParameters, estimate_signal_to_noise, signal_to_noise
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import (
    AdapterSettings,
    AdapterWeights,
    adapter_weights,
    attach_adapters,
    load_adapters,
    parameter_count,
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fresh_adapters_change_no_answer(architecture):
    lm = small_model(architecture)
    tokens = torch.tensor([[5, 6, 7, 8]])
    before = lm.model(input_ids=tokens).logits.detach().clone()
    after = attach_adapters(lm, AdapterSettings()).model(input_ids=tokens).logits
    assert torch.equal(before, after)


def test_only_adapters_of_the_last_layers_are_trainable():
    lm = attach_adapters(small_model(layers=4), AdapterSettings(rank=2, last_layers=2))
    # Query 32 -> 32 and value 32 -> 16, rank 2, two layers.
    assert parameter_count(lm.model) == 2 * (2 * (32 + 32) + 2 * (32 + 16))
    trained = [name for name, one in lm.model.named_parameters() if one.requires_grad]
    assert [name.split(".layers.")[1][0] for name in trained] == ["2"] * 4 + ["3"] * 4


def test_with_a_frozen_only_b_is_trained():
    lm = attach_adapters(small_model(), AdapterSettings(rank=2, train_a=False))
    trained = [name for name, one in lm.model.named_parameters() if one.requires_grad]
    assert trained
    assert all("lora_B" in name for name in trained)


def test_the_first_weights_follow_from_the_seed_alone():
    one, same, other = (
        adapter_weights(attach_adapters(small_model(), AdapterSettings(seed=seed)))
        for seed in (3, 3, 4)
    )
    assert one == same
    assert one.sha256 != other.sha256


def test_attaching_leaves_torch_s_generator_where_it_was():
    before = torch.random.get_rng_state()
    attach_adapters(small_model(), AdapterSettings())
    assert torch.equal(before, torch.random.get_rng_state())


def test_bytes_and_back_is_exact():
    lm = attach_adapters(small_model(), AdapterSettings())
    stir_adapters(lm)
    weights = adapter_weights(lm)
    fresh = attach_adapters(small_model(), AdapterSettings(seed=9))
    load_adapters(fresh, weights)
    assert adapter_weights(fresh) == weights


@pytest.mark.parametrize("raw", [b"", b"garbage", b"\x80\x04pickle", b"\xff" * 64])
def test_bytes_that_are_no_safetensors_are_refused(raw):
    lm = attach_adapters(small_model(), AdapterSettings())
    with pytest.raises(ParameterError, match="no safetensors"):
        load_adapters(lm, AdapterWeights(data=raw))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one * float("nan"), "NaN or infinity"),
        (lambda one: one.double(), "expected float32"),
        (lambda one: one[:-1].contiguous(), "has shape"),
    ],
    ids=["not a number", "another type", "another shape"],
)
def test_wrong_tensors_are_refused_and_change_nothing(change, message):
    lm = attach_adapters(small_model(), AdapterSettings())
    before = adapter_weights(lm)
    tensors = load(before.data)
    name = sorted(tensors)[-1]
    tensors[name] = change(tensors[name] + 1.0)
    with pytest.raises(ParameterError, match=message):
        load_adapters(lm, AdapterWeights(data=save(tensors)))
    assert adapter_weights(lm) == before


def test_adapters_of_other_layers_are_refused():
    lm = attach_adapters(small_model(), AdapterSettings())
    other = attach_adapters(small_model(), AdapterSettings(last_layers=1))
    with pytest.raises(ParameterError, match="other settings"):
        load_adapters(lm, adapter_weights(other))


def test_unknown_target_modules_are_named_with_what_there_is():
    with pytest.raises(ParameterError, match=r"no linear layer is called w_query.*q_proj"):
        attach_adapters(small_model(), AdapterSettings(target_modules=("w_query",)))


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(ParameterError, match="the model has 3 layers, got 7"):
        attach_adapters(small_model(), AdapterSettings(last_layers=7))


def test_adapters_on_adapters_are_refused():
    lm = attach_adapters(small_model(), AdapterSettings())
    with pytest.raises(ParameterError, match="has adapters already"):
        attach_adapters(lm, AdapterSettings())


@pytest.mark.parametrize("field", ["rank", "alpha", "last_layers"])
def test_settings_out_of_range_are_refused(field):
    with pytest.raises(ParameterError, match=field):
        AdapterSettings(**{field: 0})


def test_signal_to_noise_falls_with_dimension_and_grows_with_units_and_steps():
    values = {"expected_units": 10.0, "noise_multiplier": 2.0, "parameters": 400}
    assert signal_to_noise(**values) == pytest.approx(0.25)
    assert signal_to_noise(**{**values, "parameters": 1600}) == pytest.approx(0.125)
    assert signal_to_noise(**values, steps=16) == pytest.approx(1.0)


def test_the_outlook_warns_where_noise_would_drown_the_signal():
    privacy = DpSgdParameters(
        noise_multiplier=2.0,
        l2_clip_norm=1.0,
        sampling_probability=0.1,
        expected_units=4.0,
        steps=4,
        pool_gradients="public",
    )
    assert estimate_signal_to_noise(privacy, parameters=400).hint is None
    drowned = estimate_signal_to_noise(privacy, parameters=460_800)
    assert drowned.signal_to_noise < 0.1
    assert "last_layers" in drowned.hint
